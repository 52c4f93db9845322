"""python -m tinymoe.train: train a model with sparse experts on text, or on pictures and what they show.

The six steps of every training are here: prepare the data and design the model (`prepare`), choose optimiser and loss
(`Settings`), train and validate (`fit`), and adjust what the pictures show to be wrong (flags).

Source: 《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §9.6.
"""

import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..data.sources import CaptionSource
from ..errors import run, say
from ..generate import decoded
from ..models.accounting import active_parameters, parameters_by_part
from ..models.captions import exact, write_captions
from ..models.sampling import generate
from ..ops import metrics
from ..optim import sparsify
from ..optim.trainer import EVALUATION_WINDOWS, LayerReport, StepReport, Trainer
from ..runs import plots
from ..runs.checkpoint import write_atomically
from ..runs.folder import CHECKPOINT, MODEL, Metrics, write_config
from ..runs.state import NotFinite, save_model, save_state
from ..tree import named
from .arguments import Run, prepare
from .progress import Progress, stop_signals


def fit(work: Run, stop: list[int]) -> None:
    """Train to the last step or until `stop` is filled, with records, evaluations and checkpoints on the way."""
    settings, state, source = work.settings, work.state, work.source
    began = time.perf_counter() - state.seconds

    with (
        Trainer(state, settings) as trainer,
        Metrics(work.folder, state.step) as log,
        Progress(settings, state.step, source.context) as progress,
    ):
        while state.step < settings.steps and not stop:
            report = trainer.step(source.batch(state.step + 1, settings.batch_size))
            state.seconds = time.perf_counter() - began
            where = {
                "step": state.step,
                "tokens": state.step * settings.batch_size * source.context,
                "seconds": round(state.seconds, 3),
            }
            log.add(
                **where,
                split="train",
                loss=report.loss,
                balance=report.balance,
                gradient_norm=report.norm,
                **load_statistics(report),
            )
            progress.add(state.step, report)
            last = state.step == settings.steps
            if last or state.step % settings.eval_every == 0:
                loss, count = trainer.evaluate(source.evaluation(0 if last else EVALUATION_WINDOWS))
                if not math.isfinite(loss):
                    raise NotFinite(f"the validation loss is {loss} at step {state.step}")
                log.add(**where, split="val", loss=loss, predicted=count)
                progress.evaluated(state.step, loss)
            if last or state.step % settings.checkpoint_every == 0:
                save_state(work.folder, state, settings, source.sha256)
        if stop and state.step:
            save_state(work.folder, state, settings, source.sha256)


def load_statistics(report: StepReport) -> dict[str, Any]:
    """What the routers did, by layer (null where there is none): `load`, each expert's share of the assignments;
    `max_violation`, by how much the busiest expert exceeds an even share; `load_entropy` and `router_entropy`, 1 when even
    or undecided; `dropped`, the share of assignments for which there was no room."""

    def by_layer(number: Callable[[LayerReport], Any]) -> list[Any]:
        found = [math.nan if layer is None else float(number(layer)) for layer in report.layers]
        return [round(x, 4) if math.isfinite(x) else None for x in found]

    return {
        "load": [None if x is None else (x.counts / max(x.counts.sum(), 1)).round(4).tolist() for x in report.layers],
        "max_violation": by_layer(lambda layer: metrics.max_violation(layer.counts)),
        "load_entropy": by_layer(lambda layer: metrics.load_entropy(layer.counts)),
        "router_entropy": by_layer(lambda layer: layer.entropy),
        "dropped": by_layer(lambda layer: layer.dropped),
    }


def describe(work: Run) -> str:
    """What is trained on what."""
    settings, params = work.settings, work.state.params
    total, active = sum(parameters_by_part(params).values()), active_parameters(params, settings.model)
    text = (
        f"corpus  {work.source.name}: {work.source.size}, sha256 {work.source.sha256[:16]}\n"
        f"model   {total:,} parameters, {active:,} of them at work on each token: {settings.layers} layers, width "
        f"{settings.width}, {settings.experts} experts, top {settings.top_k}"
    )
    if work.state.step == settings.steps:
        text += f"\nnote    all {settings.steps} steps are done; give --steps above that to train on"
    if settings.steps < settings.decay_steps:
        text += (
            f"\nnote    the learning rate is planned for {settings.decay_steps} steps; add --decay-steps "
            f"{settings.steps} for one that comes down within this run"
        )
    return text


def main(argv: list[str] | None = None) -> int:
    work = prepare(argv)
    folder, settings, state = work.folder, work.settings, work.state
    write_config(folder, settings)
    if state.step:  # killed between the two files, a run may have left a model that is older than its checkpoint
        save_model(folder / MODEL, state.params, settings.model, sparse=settings.sparsity != "none")
    say(describe(work))
    failure = None
    with stop_signals() as stop:
        try:
            fit(work, stop)
        except NotFinite as error:
            failure = error
    plots.draw(folder, work.source.entropy)
    if failure:
        saved = f"the last checkpoint is in {folder}" if (folder / CHECKPOINT).exists() else "nothing was saved yet"
        print(
            f"error: {failure}; {saved}; train with a lower --lr than {settings.lr:g}, a longer --warmup than "
            f"{settings.warmup}, or less of --balance and --weight-decay if they are high",
            file=sys.stderr,
        )
        return 1
    if stop:
        kept = f"step {state.step} is saved" if state.step else "nothing had been learnt"
        resume = f"{python()} -m tinymoe.train --resume {shlex.quote(str(folder))}"
        print(f"stopped: {kept}; go on with {resume}", file=sys.stderr)
        return 2
    if isinstance(work.source, CaptionSource):
        write_sample_captions(work, work.source)
    else:
        write_sample(work)
    if settings.sparsity != "none":
        say(sparsity_report(work))
    pictures = "loss.png, experts.png" if (folder / "experts.png").exists() else "loss.png"
    say(f"results in {folder}: {pictures}, metrics.jsonl, sample.txt, model.safetensors")
    if settings.task == "caption":
        say(f"next: {python()} -m tinymoe.evaluate {shlex.quote(str(folder))}")
        return 0
    say(f'next: {python()} -m tinymoe.generate {shlex.quote(str(folder))} --prompt "The " --tokens 300')
    return 0


def python() -> str:
    """What to type for this Python: its path, unless it is the one that `python` stands for."""
    found = shutil.which("python")
    return (
        "python" if found and Path(found).absolute() == Path(sys.executable).absolute() else shlex.quote(sys.executable)
    )


def sparsity_report(work: Run) -> str:
    """Density and bytes of the matrices that the recipe worked on."""
    params = named(work.state.params)
    found = sparsify.summary({name: params[name] for name in sparsify.chosen(params)})
    return (
        f"sparsity {work.settings.sparsity}: {found['density']:.1%} of the attention and expert weights are not zero, "
        f"{found['csr_bytes']:,} bytes as CSR, {found['dense_bytes']:,} dense"
    )


def write_sample_captions(work: Run, source: CaptionSource) -> None:
    """Print how many captions are exactly right, keep some as sample.txt, and draw them."""
    params, config = work.state.params, work.settings.model
    for name, pictures in (("validation", source.split.val), ("combinations never seen", source.split.held_out)):
        say(f"captions exactly right, {name}: {exact(params, config, pictures, source.longest):.1%}")
    some = source.split.held_out.take(np.arange(min(12, len(source.split.held_out))))
    written = write_captions(params, config, some.images, source.longest)
    lines = [f"{mine}   (it is: {true})" for mine, true in zip(written, some.captions, strict=True)]
    write_atomically(work.folder / "sample.txt", "".join(line + "\n" for line in lines).encode())
    plots.save(work.folder / "captions.png", plots.captioned(some.images, written, some.captions))


def write_sample(work: Run) -> None:
    """Print a text by the trained model, and keep it as sample.txt."""
    settings, rng = work.settings, np.random.default_rng(work.settings.seed)
    prompt = np.frombuffer(b"\n", np.uint8).astype(np.int64)
    tokens = generate(work.state.params, settings.model, prompt, settings.sample_tokens, 0.8, 0.95, rng)
    text = "".join(decoded(tokens))
    write_atomically(work.folder / "sample.txt", text.encode())
    if text:
        say(f"\n{text}\n")


if __name__ == "__main__":
    run(main)
