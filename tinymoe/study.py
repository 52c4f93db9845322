"""python -m tinymoe.study: does the load collapse, and what cures it? One training run for each way to balance.

Each run is `python -m tinymoe.train` with flags of its own and is kept under --out; a run that is there already is read
instead of repeated. Writes collapse.png and prints a table: validation loss, MaxVio and load entropy at the end, and on the
toy text the mutual information of expert and dialect.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics, plots
from .data import toy
from .errors import Parser, UserError, run, say
from .folder import MODEL, read_metrics
from .models.language import forward
from .state import load_model

METHODS = {  # name: flags of the training command
    "nothing": ["--balance", "none"],
    "switch": ["--balance", "switch"],
    "global": ["--balance", "global"],
    "importance": ["--balance", "importance"],
    "z-loss alone": ["--balance", "none", "--z-weight", "0.001"],
    "sigmoid, nothing": ["--router", "sigmoid", "--balance", "none"],
    "sigmoid, sequence": ["--router", "sigmoid", "--balance", "sequence"],
    "sigmoid, bias": ["--router", "sigmoid", "--balance", "bias", "--bias-rate", "0.003"],
    "noisy, importance and load": ["--router", "noisy", "--balance", "importance", "--balance", "load"],
    "sinkhorn": ["--router", "sinkhorn"],
}


def train(folder: Path, flags: list[str]) -> None:
    """Run the training command, unless its folder holds a model already."""
    if not (folder / MODEL).exists():
        command = [sys.executable, "-m", "tinymoe.train", "--out", str(folder), "--overwrite", "--sample-tokens", "0"]
        if subprocess.run([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise UserError(f"training into {folder} failed; try: {' '.join([*command, *flags])}")


def summary(folder: Path) -> dict[str, Any]:
    """Curves and final numbers of a run: validation loss, and MaxVio and load entropy over its last fifth, mean over layers."""
    records = list(read_metrics(folder))
    steps = [r for r in records if r["split"] == "train"]
    curves = {name: np.array([np.mean(r[name]) for r in steps]) for name in ("max_violation", "load_entropy")}
    last = len(steps) // 5
    return {
        "validation": [(r["step"], r["loss"]) for r in records if r["split"] == "val"],
        "curves": curves,
        **{name: float(curve[-last:].mean()) for name, curve in curves.items()},
    }


def specialisation(folder: Path, windows: int = 200) -> list[float]:
    """By layer: mutual information of expert and dialect, as a share of the dialect's entropy, on unseen toy text."""
    params, config = load_model(folder / MODEL)
    text = toy.generate(windows * config.context, np.random.default_rng(12345))
    ids = np.frombuffer(text.text.encode(), np.uint8)[: windows * config.context].astype(np.int64)
    labels = text.domains[: len(ids)]
    (_, _, routed), _ = forward(params, config, ids.reshape(windows, -1))
    shape = config.experts, len(text.names)
    return [
        metrics.mutual_information(metrics.joint_counts(r.indices, labels, *shape), normalised=True)
        for r in routed
        if r is not None
    ]


def draw(found: dict[str, dict[str, Any]]) -> Any:
    """MaxVio, load entropy and validation loss over time, a line for each method."""
    figure, panels = plots.new_figure(3, 9)
    for number, (name, result) in enumerate(found.items()):
        style = {"label": name, "color": f"C{number}", "linestyle": "-" if number % 2 else "--", "linewidth": 1.2}
        for axes, curve in zip(panels, result["curves"].values(), strict=False):
            width = max(len(curve) // 40, 1)
            axes.plot(np.arange(width, len(curve) + 1), np.convolve(curve, np.ones(width) / width, "valid"), **style)
        panels[2].plot(*zip(*result["validation"], strict=True), **style)
    panels[0].set(ylabel="MaxVio, 0 = even", ylim=(0, None))
    panels[1].set(ylabel="load entropy, 1 = even")
    panels[2].set(ylabel="validation loss, nats per byte", xlabel="step")
    panels[1].legend(ncols=2, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.study",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/study"), help="folder for the runs (default: runs/study)"
    )
    parser.add_argument("--corpus", default="pydoc", help="what to train on (default: pydoc)")
    parser.add_argument("--steps", type=int, default=1000, help="of each run (default: 1000)")
    parser.add_argument("--only", nargs="+", choices=list(METHODS), metavar="METHOD", help="some of the methods")
    given, flags = parser.parse_known_args(argv)
    if given.steps < 10:
        raise UserError(f"--steps is {given.steps}; it must be at least 10")
    steps = [
        "--steps",
        str(given.steps),
        "--decay-steps",
        str(given.steps),
        "--eval-every",
        str(max(given.steps // 10, 1)),
    ]
    found = {}
    say(
        "| balancing | validation | MaxVio | load entropy | expert tells dialect, by layer |\n| --- | --- | --- | --- | --- |"
    )
    for name in given.only or METHODS:
        folder = given.out / given.corpus / name.replace(" ", "-").replace(",", "")
        train(folder, ["--corpus", given.corpus, *steps, *METHODS[name], *flags])
        result = found[name] = summary(folder)
        told = [f"{share:.0%}" for share in specialisation(folder)] if given.corpus == "toy" else ["–"]
        say(
            f"| {name} | {result['validation'][-1][1]:.3f} | {result['max_violation']:.2f} | {result['load_entropy']:.3f} "
            f"| {' '.join(told)} |"
        )
    plots.save(given.out / given.corpus / "collapse.png", draw(found))
    say(f"picture: {given.out / given.corpus / 'collapse.png'}")
    return 0


if __name__ == "__main__":
    run(main)
