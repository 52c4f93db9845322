"""python -m tinymoe.study: questions that take several training runs to answer, one after another.

    collapse     does the load collapse, and what cures it? A run for each way to balance: validation loss, MaxVio and load
                 entropy, and on the toy text how much of the dialect the expert tells
    accounting   what do sparse experts gain? A mixture against dense models with as many active parameters, with as many in
                 all, and with as much time

Each run is `python -m tinymoe.train` with flags of its own and is kept under --out; a run that is there already is read
instead of repeated. Prints a table and writes a picture.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .data import toy
from .errors import Parser, UserError, named_path, run, say
from .models.accounting import active_parameters, flops_per_token, parameters_by_part
from .models.language import forward
from .ops import metrics
from .runs import plots
from .runs.files import write_atomically
from .runs.folder import MODEL, read_metrics
from .runs.state import load_model

COLLAPSE = {  # name: flags of the training command
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


DENSE = ["--dense-layers", "0", "--dense-layers", "1", "--dense-layers", "2"]
ACCOUNTING: dict[str, Any] = {
    "mixture, 2 of 8 experts": [],
    "dense, as many active": DENSE,
    "dense, as many active, as much time": lambda found: [*DENSE, *as_much_time(*list(found.values())[:2])],
    "dense, as many in all": [*DENSE, "--expert-width", "768"],
    "mixture of all experts": ["--router", "dense"],
}


def as_much_time(slow: dict[str, Any], fast: dict[str, Any]) -> list[str]:
    """Flags for as many steps of the faster run as the slower one had time for."""
    steps = str(round(slow["steps"] * (slow["seconds"] / slow["steps"]) / (fast["seconds"] / fast["steps"])))
    return ["--steps", steps, "--decay-steps", steps]


def train(folder: Path, flags: list[str]) -> None:
    """Run the training command, unless its folder holds a model made with the same flags already."""
    note = folder / "flags.json"
    if (folder / MODEL).exists():
        if not note.exists() or json.loads(note.read_text()) != flags:
            raise UserError(f"{folder} holds a run with other flags; choose another --out, or delete it")
        return
    command = [
        sys.executable,
        "-m",
        "tinymoe.train",
        "--out",
        str(folder),
        "--overwrite",
        "--sample-tokens",
        "0",
        *flags,
    ]
    found = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if found.returncode:
        raise UserError(f"training into {folder} failed: {found.stderr.strip().splitlines()[-1:] or ''}")
    write_atomically(note, json.dumps(flags).encode())


def summary(folder: Path) -> dict[str, Any]:
    """Curves and final numbers of a run; MaxVio and load entropy over its last fifth, mean over layers."""
    records = list(read_metrics(folder))
    steps = [r for r in records if r["split"] == "train"]
    curves = {}
    for name in ("max_violation", "load_entropy"):
        layers = np.array([[math.nan if x is None else x for x in r[name]] for r in steps])
        curves[name] = layers[:, ~np.isnan(layers[0])].mean(1) if not np.isnan(layers[0]).all() else layers[:, 0]
    last = len(steps) // 5
    return {
        "validation": [(r["step"], r["loss"]) for r in records if r["split"] == "val"],
        "curves": curves,
        "seconds": steps[-1]["seconds"],
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
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


def collapse(folder: Path, result: dict[str, Any], toy_text: bool) -> list[str]:
    """The cells of a table."""
    told = " ".join(f"{share:.0%}" for share in specialisation(folder)) if toy_text else "–"
    return [f"{result['max_violation']:.2f}", f"{result['load_entropy']:.3f}", told]


def accounting(folder: Path, result: dict[str, Any], _: bool) -> list[str]:
    """The cells of a table."""
    params, config = load_model(folder / MODEL)
    total, active = sum(parameters_by_part(params).values()), active_parameters(params, config)
    flops = flops_per_token(config, config.context)
    result["flops"] = 3 * flops * result["tokens"] / result["steps"]  # of a step; backward takes twice as much again
    per_step = f"{1e3 * result['seconds'] / result['steps']:.0f}"
    return [f"{total:,}", f"{active:,}", f"{flops:,.0f}", str(result["steps"]), per_step]


def draw_losses(found: dict[str, dict[str, Any]]) -> Any:
    """Validation loss against steps, and against work. Not against time: that depends on what else the machine does."""
    figure, panels = plots.new_figure(2, 8, sharex=False)
    for name, result in found.items():
        steps, losses = np.array(result["validation"]).T
        panels[0].plot(steps, losses, "o-", markersize=3, label=name)
        panels[1].plot(steps * result["flops"] / 1e12, losses, "o-", markersize=3, label=name)
    panels[0].set(xlabel="step", ylabel="validation loss, nats per byte")
    panels[1].set(xlabel="10¹² operations", ylabel="validation loss, nats per byte")
    panels[0].legend()
    return figure


STUDIES: dict[str, tuple[Any, ...]] = {
    "collapse": (COLLAPSE, "MaxVio | load entropy | expert tells dialect, by layer", collapse, draw),
    "accounting": (
        ACCOUNTING,
        "parameters | active | operations per token | steps | ms per step",
        accounting,
        draw_losses,
    ),
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.study",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Flags that this command does not know go to every training run: --top-k 1 --expert-width 384",
    )
    parser.add_argument("study", choices=list(STUDIES), help="the question")
    parser.add_argument(
        "--out", type=named_path, default=Path("runs/study"), help="folder for the runs (default: runs/study)"
    )
    parser.add_argument("--corpus", default="pydoc", help="what to train on (default: pydoc)")
    parser.add_argument("--steps", type=int, default=1000, help="of each run (default: 1000)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the rows, by their names in the table")
    given, flags = parser.parse_known_args(argv)
    methods, heads, cells, picture = STUDIES[given.study]
    if given.steps < 10:
        raise UserError(f"--steps is {given.steps}; it must be at least 10")
    if "dense, as many active, as much time" in (given.only or ()) and len(given.only) < 3:
        raise UserError(
            "--only 'dense, as many active, as much time' needs the two rows above it, whose times it compares"
        )
    if unknown := set(given.only or ()) - set(methods):
        raise UserError(f"--only {min(unknown)!r} is not a row; the rows are {', '.join(methods)}")
    steps = ["--steps", given.steps, "--decay-steps", given.steps, "--eval-every", given.steps // 10]
    found: dict[str, Any] = {}
    folder = given.out / given.study / given.corpus
    say(f"| run | validation | {heads} |\n" + "| --- " * (heads.count("|") + 3) + "|")
    for name in given.only or methods:
        run_folder = folder / name.replace(" ", "-").replace(",", "")
        chosen = methods[name](found) if callable(methods[name]) else methods[name]
        train(run_folder, ["--corpus", given.corpus, *map(str, steps), *flags, *chosen])
        found[name] = result = summary(run_folder)
        row = [name, f"{result['validation'][-1][1]:.3f}", *cells(run_folder, result, given.corpus == "toy")]
        say("| " + " | ".join(row) + " |")
    plots.save(folder / f"{given.study}.png", picture(found))
    say(f"picture: {folder / given.study}.png")
    return 0


if __name__ == "__main__":
    run(main, patient=True)
