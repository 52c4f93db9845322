"""python -m tinymoe.golden: inputs, outputs and gradients to compare a mixture-of-experts kernel with.

Writes a folder of cases in float64, each one .npz file that NumPy reads; manifest.json, which states the convention of
every case, in fields and in words, since public systems differ; and compare.py, which needs nothing but NumPy.
"""

import argparse
import hashlib
import io
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import Parser, UserError, named_path, run, say
from ..runs.files import check_plain, remove_leftovers, write_atomically
from ..runs.folder import locked
from .agreements import in_words
from .cases import CASES, Named, draw
from .solve import margin, solve

MANIFEST, COMPARE = "manifest.json", "compare.py"

ARRAYS = {  # shape and meaning; a given d<output> is the incoming gradient, the other d<name> are what backward returns
    "x": "(N, D) tokens",
    "router": "(D, E)",
    "up": "(E, D, F)",
    "down": "(E, F, D)",
    "gate": "(E, D, F)",
    "shared_up": "(D, S) the shared expert's",
    "shared_down": "(S, D)",
    "shared_gate": "(D, S)",
    "bias": "(E,) added to the scores for the choice only, a constant",
    "noise_router": "(D, E)",
    "noise": "(N, E) a constant",
    "mask": "(N,) bool, False for padding",
    "logits": "(N, E) x @ router",
    "spread": "(N, E) x @ noise_router",
    "load": "(E,) smooth number of tokens",
    "indices": "(N, K) int, the experts of each token, best first",
    "weights": "(N, K) factors of the experts' outputs, 0 where not kept",
    "kept": "(N, K) bool, False for what is dropped, not chosen, or padding",
    "order": "(M,) the kept assignments n*K + j sorted by expert, by token within an expert",
    "inverse": "(NK,) where each assignment stands in that order, M if it is not kept",
    "offsets": "(E+1,) rows offsets[e] to offsets[e+1] of that order belong to expert e",
    "outputs": "(M, D) what the experts return for those rows, not yet multiplied by weights",
    "y": "(N, D) what the layer returns",
    "balance": "()",
    "z_loss": "()",
    "sequence_balance": "()",
    "importance_loss": "()",
    "load_loss": "()",
    "objective": "() sum of dy * y, plus dloss * loss for each loss: all gradients are derivatives of this number",
}


def pack(seed: int) -> Iterator[tuple[str, bytes]]:
    """The names and contents of all files. The manifest comes first: it knows the checksums of the others."""
    files, entries = {COMPARE: Path(__file__).with_name("compare.py").read_bytes()}, {}
    for name, case in CASES.items():
        given = draw(name, seed)
        results = solve(given, case.convention)
        arrays = {name: np.asarray(a) for name, a in (given | results).items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its entries are dated 1980: equal seeds, equal bytes
        files[f"{name}.npz"] = buffer.getvalue()
        entries[name] = {
            "about": case.about,
            "words": in_words(case.convention),
            "convention": asdict(case.convention),
            "margin": margin(given, results, case.convention),
            "file": f"{name}.npz",
            "sha256": hashlib.sha256(files[f"{name}.npz"]).hexdigest(),
            "given": _shapes(arrays, given),
            "expected": _shapes(arrays, results),
        }
    manifest = {
        "format": 1,
        "made_by": f"python -m tinymoe.golden --seed {seed}",
        "versions": {"tinymoe": __version__, "numpy": np.__version__, "python": platform.python_version()},
        "letters": "N tokens, D width, E experts, K choices per token, M kept assignments, F expert width, S shared width",
        "arrays": ARRAYS,
        "gradients": "a given d<name> is the gradient of the objective that comes in; an expected one has the shape of "
        "<name>, and is the derivative of the objective by it, along all paths",
        "cases": entries,
    }
    yield MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    yield from files.items()


def _shapes(arrays: Named, names: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [str(arrays[name].dtype), *arrays[name].shape] for name in names}


def write_pack(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    """Write whole files only, the manifest first, so that a pack cut short is recognised by its checksums.

    Raises UserError where that can't be, or where the folder holds anything else than a pack to be overwritten.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _write_pack(folder, files, overwrite)
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}; choose another --out") from None


def _write_pack(folder: Path, files: Mapping[str, bytes], overwrite: bool) -> None:
    remove_leftovers(folder, files)
    check_plain(folder / name for name in files)
    found = [file.name for file in folder.iterdir()]
    if found and not overwrite:
        raise UserError(f"{folder} is not empty; replace its pack with --overwrite, or choose another --out")
    if found and (MANIFEST not in found or b"tinymoe.golden" not in (folder / MANIFEST).read_bytes()):
        raise UserError(f"{folder} holds files that are no pack, so it is not overwritten; choose another --out")
    if COMPARE in found and (folder / COMPARE).read_bytes() != files[COMPARE]:
        raise UserError(f"{folder / COMPARE} is not as it was written, perhaps there is a kernel in it; move it away")
    for name, data in files.items():
        write_atomically(folder / name, data)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.golden",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=named_path, required=True, metavar="DIR", help="the folder to write, new or empty"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the inputs (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace the pack that is in DIR")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must be 0 or more")
    write_pack(args.out, dict(pack(args.seed)), args.overwrite)
    say(f"wrote {len(CASES)} cases to {args.out}; put your kernel into {args.out / COMPARE} and run it")
    return 0


if __name__ == "__main__":
    run(main, patient=True)
