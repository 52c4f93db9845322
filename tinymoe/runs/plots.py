"""Pictures of a run, drawn from metrics.jsonl."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from .files import write_atomically
from .folder import read_metrics


def draw(folder: Path, floor: float | None = None) -> None:
    """Write loss.png and, where a router chose experts, experts.png. `floor` is the entropy of the text, where known."""
    records = list(read_metrics(folder))
    train = [r for r in records if r["split"] == "train"]
    if not train:
        return
    save(folder / "loss.png", _loss(train, [r for r in records if r["split"] == "val"], floor))
    if any(layer is not None for layer in train[-1]["load"]):
        save(folder / "experts.png", _experts(train))


def new_figure(rows: int, height: float, sharex: bool = True) -> Any:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(7, height), layout="constrained")
    return figure, figure.subplots(rows, squeeze=False, sharex=sharex)[:, 0]


def save(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def _loss(train: list[dict[str, Any]], val: list[dict[str, Any]], floor: float | None) -> Any:
    figure, (axes,) = new_figure(1, 4.2)
    steps, losses = np.array([(r["step"], r["loss"]) for r in train]).T
    window = max(len(losses) // 50, 1)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    axes.plot(steps, losses, color="0.85", linewidth=0.6)
    axes.plot(steps[window - 1 :], smooth, color="0.35", label=f"training, mean of {window} steps")
    if val:
        axes.plot([r["step"] for r in val], [r["loss"] for r in val], "o-", color="C3", label="validation")
        axes.annotate(
            f"{val[-1]['loss']:.3f}",
            (val[-1]["step"], val[-1]["loss"]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="right",
        )
    if floor is not None:
        axes.axhline(floor, color="k", linestyle=":", label=f"entropy of the text, {floor:.3f}")
    axes.set(xlabel="step", ylabel="loss in nats per token", ylim=(None, min(losses.max(), losses[-1] + 2.5)))
    axes.legend()
    return figure


def _experts(train: list[dict[str, Any]]) -> Any:
    layers = [i for i, layer in enumerate(train[-1]["load"]) if layer is not None]
    figure, panels = new_figure(len(layers), 0.8 + 1.3 * len(layers))
    groups = np.array_split(np.arange(len(train)), min(len(train), 200))
    for axes, layer in zip(panels, layers, strict=True):
        load = np.array([np.mean([train[i]["load"][layer] for i in group], 0) for group in groups]).T  # (E, time)
        even = 1 / len(load)
        image = axes.imshow(
            load / even,
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=2,
            interpolation="nearest",
            extent=(train[0]["step"], train[-1]["step"] + 1, len(load) - 0.5, -0.5),
        )
        axes.set(ylabel=f"layer {layer}\nexpert", yticks=range(0, len(load), max(len(load) // 4, 1)))
    panels[-1].set_xlabel("step")
    figure.colorbar(image, ax=list(panels), label="share of the tokens, 1 = even")
    return figure


def captioned(images: np.ndarray, written: list[str], true: list[str]) -> Any:
    """Pictures (N, H, W, C) with what a model says of them, and what they are where that is something else."""
    from matplotlib.figure import Figure

    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.6 * rows), layout="constrained")
    for panel, image, mine, right in zip(
        figure.subplots(rows, columns, squeeze=False).flat, images, written, true, strict=False
    ):
        panel.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        shown = "".join(c if " " <= c <= "~" and c != "$" else "·" for c in mine)  # a young model writes anything
        panel.set_title(mine if mine == right else f"{shown[:40]}\n✗ {right}", fontsize=8)
        panel.set(xticks=[], yticks=[])
    return figure
