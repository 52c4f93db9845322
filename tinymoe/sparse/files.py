"""SciPy's `.npz` files: `scipy.sparse.load_npz` reads what `save_npz` writes, and the reverse for the formats below.

An archive of plain arrays: format (b"csr", b"csc" or b"coo"), shape, data, and the format's own index arrays.
Nothing is ever unpickled.
"""

import os
from typing import BinaryIO

import numpy as np

from .formats import COO, CSR

File = str | os.PathLike[str] | BinaryIO


def save_npz(file: File, matrix: COO | CSR, compressed: bool = True) -> None:
    """Write a matrix; a file name without the ending .npz gets it."""
    if isinstance(matrix, CSR):
        arrays = {"indices": matrix.indices, "indptr": matrix.indptr, "format": np.array(b"csr")}
    elif isinstance(matrix, COO):
        arrays = {"row": matrix.rows, "col": matrix.cols, "format": np.array(b"coo")}
    else:
        raise ValueError(f"matrix is a {type(matrix).__name__}: save_npz writes a COO or a CSR.")
    save = np.savez_compressed if compressed else np.savez
    save(file, shape=np.array(matrix.shape), data=matrix.data, _is_array=np.array(True), **arrays)  # type: ignore[arg-type]


def load_npz(file: File, *, keep_zeros: bool = False) -> COO | CSR:
    """Read a matrix: csr and csc come as CSR, coo as COO, made canonical and checked like any other.

    A file that is damaged or holds something else raises ValueError; one that can't be opened, OSError.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as stream:
            return load_npz(stream, keep_zeros=keep_zeros)
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return _matrix(arrays, keep_zeros)
    except KeyError as error:
        problem = f"it lacks the array {error}"
    except Exception as error:  # a damaged archive fails in any layer: zip, zlib, header, our own checks
        problem = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    raise ValueError(f"{getattr(file, 'name', 'the stream')} is not a readable sparse matrix file: {problem}")


def _matrix(arrays: dict[str, np.ndarray], keep_zeros: bool) -> COO | CSR:
    kind = arrays["format"].item()
    kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
    shape, data = tuple(arrays["shape"].tolist()), arrays["data"]
    if kind == "coo":
        rows, cols = arrays["coords"] if "coords" in arrays else (arrays["row"], arrays["col"])
        return COO(rows, cols, data, shape, keep_zeros)
    if kind not in ("csr", "csc"):
        raise ValueError(f"its format is {kind!r}; save it as csr, csc or coo")
    shape = shape if kind == "csr" else shape[::-1]
    matrix = CSR(arrays["indptr"], arrays["indices"], data, shape, keep_zeros)
    return matrix if kind == "csr" else matrix.T  # columns compressed are the rows of the transpose
