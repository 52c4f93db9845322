"""python -m tinymoe.bench sparse [--sizes …] [--densities …] [--plot FILE]: timings, as ratios within one run.

What is compared runs in turn within one process, and the median of each is taken, so that a ratio holds on a
busy machine where a time would not. Every ratio is the other's time over ours: above 1, ours is faster.
"""

import io
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from .errors import Parser, UserError, named_path, run
from .runs.files import check_writable, write_named
from .sparse import COO, CSR, sparse_normal

WIDTH = 128  # columns of the dense operand
Pair = tuple[str, Callable[[], Any], Callable[[], Any] | None, Callable[[], Any] | None]  # name, ours, SciPy, dense


def medians(calls: Sequence[Callable[[], Any]], seconds: float = 0.3, most: int = 25) -> list[float]:
    """Median seconds of each call; they take turns, 3 to `most` times, for about `seconds` each."""
    times: list[list[float]] = [[] for _ in calls]
    began = perf_counter()
    while len(times[0]) < 3 or (len(times[0]) < most and perf_counter() - began < seconds * len(calls)):
        for call, mine in zip(calls, times, strict=True):
            start = perf_counter()
            call()
            mine.append(perf_counter() - start)
    return [float(np.median(mine)) for mine in times]


def operations(scipy_sparse: Any, size: int, density: float, rng: np.random.Generator) -> Iterator[Pair]:
    """The operations on a size×size float32 matrix, each beside the same in SciPy and as a dense product."""
    a, b = (sparse_normal(rng, (size, size), density, 1.0) for _ in range(2))
    coo, shuffled = a.to_coo(), rng.permutation(a.nnz)
    triples = coo.rows[shuffled], coo.cols[shuffled], coo.data[shuffled]
    theirs, other = a.to_scipy(), b.to_scipy()
    sorted_theirs = coo.to_scipy()
    messy = scipy_sparse.coo_array((triples[2], triples[:2]), shape=a.shape)
    x = rng.standard_normal((size, WIDTH)).astype(np.float32)
    left = np.ascontiguousarray(x.T)
    dense, dense_b = a.to_dense(), b.to_dense()
    yield "triples → CSR", lambda: COO(*triples, a.shape).to_csr(), messy.tocsr, None
    yield "COO → CSR", coo.to_csr, sorted_theirs.tocsr, None
    yield "transpose", lambda: a.T, lambda: theirs.T.tocsr(), lambda: np.ascontiguousarray(dense.T)
    yield "A @ x", lambda: a @ x[:, 0], lambda: theirs @ x[:, 0], lambda: dense @ x[:, 0]
    yield f"A @ X ({WIDTH})", lambda: a @ x, lambda: theirs @ x, lambda: dense @ x
    yield f"X @ A ({WIDTH})", lambda: left @ a, lambda: left @ theirs, lambda: left @ dense
    yield "A ∘ (X Y)", lambda: a.sampled_matmul(x, left), None, lambda: x @ left
    yield "A + B", lambda: a + b, lambda: theirs + other, lambda: dense + dense_b
    yield "A @ B", lambda: a @ b, lambda: theirs @ other, lambda: dense @ dense_b


def dispatch(scipy_sparse: Any, size: int, rng: np.random.Generator) -> Iterator[Pair]:
    """One entry in each of 2·size rows, as when each token goes to two experts; ones, or gate weights."""
    x = rng.standard_normal((size, WIDTH)).astype(np.float32)
    tokens, slots = rng.permutation(np.repeat(np.arange(size), 2)), np.arange(2 * size + 1)
    for name, gate in [("dispatch", np.ones(2 * size)), ("dispatch, gated", rng.random(2 * size))]:
        a = CSR(slots, tokens, gate.astype(np.float32), (2 * size, size))
        theirs = a.to_scipy()
        yield name, lambda a=a: a @ x, lambda theirs=theirs: theirs @ x, None  # type: ignore[misc]


def crossover(densities: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The density at which dense time / sparse time passes 1, between logarithms; None if nowhere."""
    logs = np.log(densities), np.log(ratios)
    for i in range(len(ratios) - 1):
        if ratios[i] >= 1 > ratios[i + 1]:
            share = logs[1][i] / (logs[1][i] - logs[1][i + 1])
            return float(np.exp(logs[0][i] + share * (logs[0][i + 1] - logs[0][i])))
    return None


def bench_sparse(sizes: Sequence[int], densities: Sequence[float], plot: Path | None) -> None:
    """Print the table of ratios, their medians over the densities, and the crossover with dense products."""
    try:
        import scipy
        import scipy.sparse as scipy_sparse
    except ImportError:
        sys.exit("The sparse bench compares with SciPy, which is not installed: pip install scipy.")
    print(machine(), f"SciPy {scipy.__version__}", "float32", sep=" · ")
    print(f"{'size':>6} {'density':>8} {'operation':<16} {'ours ms':>9}", end="")
    print(f" {'SciPy ms':>9} {'ratio':>6} {'dense ms':>9} {'ratio':>6}")
    against: dict[tuple[int, str], list[float]] = {}
    curves: dict[tuple[int, str], list[float]] = {}
    for size in sizes:
        for density in densities:
            rng = np.random.default_rng(0)
            for name, ours, theirs, dense in operations(scipy_sparse, size, density, rng):
                to_scipy, to_dense = report(f"{density:.3%}", size, name, ours, theirs, dense)
                against.setdefault((size, name), []).append(to_scipy)
                curves.setdefault((size, name), []).append(to_dense)
        for name, ours, theirs, dense in dispatch(scipy_sparse, size, np.random.default_rng(0)):
            against.setdefault((size, name), []).append(report("1 a row", size, name, ours, theirs, dense)[0])
    print("\nmedian over densities of SciPy's time / ours; the density where the dense product overtakes ours")
    for (size, name), ratios in against.items():
        cross = crossover(densities, curves.get((size, name), []))
        below = "" if cross is None else f"   dense wins above {cross:.2%}"
        if np.isfinite(ratios).all():
            print(f"{size:>6} {name:<16} {np.median(ratios):6.2f}×{below}")
    if plot:
        draw(plot, densities, {key: curve for key, curve in curves.items() if "@" in key[1]})


def report(
    density: str, size: int, name: str, ours: Callable[[], Any], *others: Callable[[], Any] | None
) -> tuple[float, float]:
    """Time, print a line, and return (SciPy's time / ours, dense time / ours), NaN where there is none."""
    mine, *rest = medians([ours, *(call for call in others if call)])
    times = iter(rest)
    seconds = [next(times) if call else float("nan") for call in others]
    cells = "".join(f" {second * 1e3:9.3f} {second / mine:6.2f}" for second in seconds).replace("nan", "  –")
    print(f"{size:>6} {density:>8} {name:<16} {mine * 1e3:9.3f}{cells}", flush=True)
    return seconds[0] / mine, seconds[1] / mine


def machine() -> str:
    """Versions, processors, and the BLAS and its threads as far as the environment states them."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]["name"]
    names = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
    threads = next((os.environ[name] for name in names if name in os.environ), f"default of {os.cpu_count()}")
    python = f"Python {platform.python_version()}"
    return f"{python} · NumPy {np.__version__} · {blas}, threads: {threads} · processors: {os.cpu_count()}"


def draw(file: Path, densities: Sequence[float], curves: dict[tuple[int, str], list[float]]) -> None:
    """Dense time / sparse time against density, both logarithmic; the crossover is where a curve meets 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for (size, name), ratios in curves.items():
        axes.loglog([100 * density for density in densities], ratios, marker="o", label=f"{name}, {size}×{size}")
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xlabel="density, % of places stored", ylabel="dense time / sparse time")
    axes.set_title("When does a sparse product pay? Above the line it is faster")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, format=file.suffix[1:] or "png")
    write_named(file, buffer.getvalue())
    print(f"picture: {file}")


def check_picture(file: Path) -> None:
    """Raises UserError, before anything is measured, for a place that can't be written or a format that can't be drawn."""
    check_writable(file)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("--plot draws with Matplotlib, which is not installed: pip install matplotlib") from None
    formats = Figure().canvas.get_supported_filetypes()
    if (file.suffix[1:] or "png").lower() not in formats:
        raise UserError(f"--plot {file} has an ending that can't be drawn; choose one of {', '.join(sorted(formats))}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run one bench."""
    parser = Parser(prog="python -m tinymoe.bench", description="Timings, as ratios in one run.")
    benches = parser.add_subparsers(dest="bench", required=True)
    sparse = benches.add_parser("sparse", help="sparse matrices against SciPy and against dense products")
    sparse.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096], help="rows = columns")
    sparse.add_argument("--densities", type=float, nargs="+", default=[0.001, 0.01, 0.1], help="share of places stored")
    sparse.add_argument("--plot", type=named_path, metavar="FILE", help="draw dense time / sparse time against density")
    given = parser.parse_args(arguments)
    if min(given.sizes) < 1 or not all(0 < density <= 1 for density in given.densities):
        raise UserError("sizes must be at least 1 and densities above 0 and at most 1")
    if given.plot:
        check_picture(given.plot)
    bench_sparse(given.sizes, sorted(given.densities), given.plot)
    return 0


if __name__ == "__main__":
    run(main)
