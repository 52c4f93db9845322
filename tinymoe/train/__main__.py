"""python -m tinymoe.train: train a model with sparse experts on text, or on pictures and what they show.

The six steps of training are here: prepare the data and design the model (`prepare`), choose optimiser and loss
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
from ..models.accounting import active_parameters, parameters_by_part
from ..models.captioning import exact, write_captions
from ..models.objective import LayerReport, Routed
from ..models.sampling import decoded, generate
from ..ops import metrics
from ..optim import sparsify
from ..optim.hyperparameters import NotFinite
from ..runs import plots
from ..runs.files import write_atomically
from ..runs.folder import CHECKPOINT, MODEL, Metrics, write_config
from ..runs.state import new_trainer, save_model, save_state
from ..tree import named, with_role
from .arguments import Prepared, prepare
from .progress import Progress, stop_signals

EVALUATION_WINDOWS = 400  # per evaluation along the way; the last one takes the whole validation text


def fit(work: Prepared, stop: list[int]) -> None:
    """Train to the last step or until `stop` is filled, with records, evaluations and checkpoints on the way."""
    run, training = work.settings.run, work.settings.training
    state, source = work.state, work.source
    tokens = training.batch_size * source.context  # in a step
    began = time.perf_counter() - state.seconds

    with (
        new_trainer(state, work.settings) as trainer,
        Metrics(work.folder, state.step) as log,
        Progress(run.steps, state.step, tokens, work.settings.model.experts) as progress,
    ):
        while state.step < run.steps and not stop:
            report = trainer.step(source.batch(state.step + 1, training.batch_size))
            state.seconds = time.perf_counter() - began
            where = {
                "step": state.step,
                "tokens": state.step * tokens,
                "seconds": round(state.seconds, 3),
            }
            log.add(
                **where,
                split="train",
                loss=report.loss,
                balance=report.details.balance,
                gradient_norm=report.norm,
                **load_statistics(report.details),
            )
            progress.add(state.step, report)
            last = state.step == run.steps
            if last or state.step % run.eval_every == 0:
                loss, count = trainer.evaluate(source.evaluation(0 if last else EVALUATION_WINDOWS))
                if not math.isfinite(loss):
                    raise NotFinite(f"the validation loss is {loss} at step {state.step}")
                log.add(**where, split="val", loss=loss, predicted=count)
                progress.evaluated(state.step, loss)
            if last or state.step % run.checkpoint_every == 0:
                save_state(work.folder, state, work.settings, source.sha256)
        if stop and state.step:
            save_state(work.folder, state, work.settings, source.sha256)


def load_statistics(routed: Routed) -> dict[str, Any]:
    """What the routers did, by layer (null where there is none): `load`, each expert's share of the assignments;
    `max_violation`, by how much the busiest expert exceeds an even share; `load_entropy` and `router_entropy`, 1 when even
    or undecided; `dropped`, the share of assignments for which there was no room."""

    def by_layer(number: Callable[[LayerReport], Any]) -> list[Any]:
        found = [math.nan if layer is None else float(number(layer)) for layer in routed.layers]
        return [round(x, 4) if math.isfinite(x) else None for x in found]

    return {
        "load": [None if x is None else (x.counts / max(x.counts.sum(), 1)).round(4).tolist() for x in routed.layers],
        "max_violation": by_layer(lambda layer: metrics.max_violation(layer.counts)),
        "load_entropy": by_layer(lambda layer: metrics.load_entropy(layer.counts)),
        "router_entropy": by_layer(lambda layer: layer.entropy),
        "dropped": by_layer(lambda layer: layer.dropped),
    }


def describe(work: Prepared) -> str:
    """What is trained on what."""
    run, model, training, params = work.settings.run, work.settings.model, work.settings.training, work.state.params
    total, active = sum(parameters_by_part(params).values()), active_parameters(params, model)
    text = (
        f"corpus  {work.source.name}: {work.source.size}, sha256 {work.source.sha256[:16]}\n"
        f"model   {total:,} parameters, {active:,} of them at work on each token: {model.layers} layers, width "
        f"{model.width}, {model.experts} experts, top {model.top_k}"
    )
    if work.state.step == run.steps:
        text += f"\nnote    all {run.steps} steps are done; give --steps above that to train on"
    if run.steps < training.decay_steps:
        text += (
            f"\nnote    the learning rate is planned for {training.decay_steps} steps; add --decay-steps "
            f"{run.steps} for one that comes down within this run"
        )
    return text


def main(argv: list[str] | None = None) -> int:
    work = prepare(argv)
    with work.held:
        return train(work)


def train(work: Prepared) -> int:
    """The run, from its config.toml to its sample; returns the status of the command."""
    folder, settings, state = work.folder, work.settings, work.state
    write_config(folder, settings)
    if state.step:  # killed between the two files, a run may have left a model that is older than its checkpoint
        save_model(folder / MODEL, state.params, settings.model, sparse=settings.sparsity.on)
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
            f"error: {failure}; {saved}; train with a lower --lr than {settings.training.lr:g}, a longer --warmup than "
            f"{settings.training.warmup}, or less of --balance and --weight-decay if they are high",
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
    if settings.sparsity.on:
        say(sparsity_report(work))
    pictures = "loss.png, experts.png" if (folder / "experts.png").exists() else "loss.png"
    say(f"results in {folder}: {pictures}, metrics.jsonl, sample.txt, model.safetensors")
    if settings.data.task == "caption":
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


def sparsity_report(work: Prepared) -> str:
    """Density and bytes of the matrices that the recipe worked on."""
    params = named(work.state.params)
    found = sparsify.summary({name: params[name] for name in with_role(work.state.params, "sparsifiable")})
    return (
        f"sparsity {work.settings.sparsity.sparsity}: {found['density']:.1%} of the attention and expert weights are not zero, "
        f"{found['csr_bytes']:,} bytes as CSR, {found['dense_bytes']:,} dense"
    )


def write_sample_captions(work: Prepared, source: CaptionSource) -> None:
    """Print how many captions are exactly right, keep some as sample.txt, and draw them."""
    params, config = work.state.params, work.settings.model
    for name, pictures in (("validation", source.split.val), (source.unseen, source.split.held_out)):
        say(f"captions exactly right, {name}: {exact(params, config, pictures, source.longest):.1%}")
    some = source.split.held_out.take(np.arange(min(12, len(source.split.held_out))))
    written = write_captions(params, config, some.images, source.longest)
    lines = [f"{mine}   (it is: {true})" for mine, true in zip(written, some.captions, strict=True)]
    write_atomically(work.folder / "sample.txt", "".join(line + "\n" for line in lines).encode())
    plots.save(work.folder / "captions.png", plots.captioned(some.images, written, some.captions))


def write_sample(work: Prepared) -> None:
    """Print a text by the trained model, and keep it as sample.txt."""
    settings, rng = work.settings, np.random.default_rng(work.settings.run.seed)
    prompt = np.frombuffer(b"\n", np.uint8).astype(np.int64)
    tokens = generate(work.state.params, settings.model, prompt, settings.run.sample_tokens, 0.8, 0.95, rng)
    text = "".join(decoded(tokens))
    write_atomically(work.folder / "sample.txt", text.encode())
    if text:
        say(f"\n{text}\n")


if __name__ == "__main__":
    run(main, patient=True)
