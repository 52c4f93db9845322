"""python -m tinymoe.evaluate: what a trained model is worth, and what it costs.

Accuracy: loss, perplexity and next-token accuracy on the validation text. Generalisation: the same on text that it was
trained on, and on text of another domain. Complexity: parameters, operations and time per token.

Source: 《稀疏专家模型》 §9.5.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import corpora
from ..data.sources import CaptionSource
from ..data.windows import evaluation_batches
from ..errors import Parser, UserError, run, say
from ..models.accounting import active_parameters, flops_by_part, flops_per_caption, parameters_by_part
from ..models.captions import balance_by_modality, exact
from ..models.evaluation import Measured, measure
from ..models.long_text import chunk_losses, overlapping_loss
from ..models.parameters import Language
from ..ops import metrics
from ..optim.one_core import one_core
from ..runs.checkpoint import load_arrays, write_atomically
from ..runs.folder import CHECKPOINT, CONFIG, MODEL, read_metrics
from ..runs.settings import Settings, resolve
from ..runs.state import load_model
from ..tree import named

Array = np.ndarray
Row = tuple[str, float, str]  # name, number, unit


@dataclass
class Report:
    """Numbers with names and units, in groups. Any kind of model can fill one in; this file does it for language models."""

    subject: str
    groups: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, group: str, *rows: Row) -> None:
        if rows:  # a group without numbers would be a heading over nothing
            self.groups.setdefault(group, []).extend(rows)

    def value(self, group: str, name: str) -> float:
        return next(value for found, value, _ in self.groups[group] if found == name)

    def table(self) -> str:
        """For people: a line for each number, values flush right in one column."""
        rows = [(name, _shown(value), unit) for group in self.groups.values() for name, value, unit in group]
        wide = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
        lines = [self.subject]
        for group, numbers in self.groups.items():
            lines += ["", group]
            for name, value, unit in numbers:
                lines.append(f"  {name:<{wide[0]}}  {_shown(value):>{wide[1]}}  {unit}".rstrip())
        return "\n".join(lines)

    def plain(self) -> dict[str, Any]:
        """For JSON: subject, and {group: {name: {value, unit}}}, null for a value that is not finite."""
        groups = {
            group: {
                name: {"value": value if math.isfinite(value) else None, "unit": unit} for name, value, unit in rows
            }
            for group, rows in self.groups.items()
        }
        return {"subject": self.subject, "numbers": groups}


def _shown(value: float) -> str:
    """Whole numbers and large ones without decimals, others to four digits."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:#.4g}"


class Trained(NamedTuple):
    """A training run: what it was to do, the model it has left, and its text."""

    folder: Path
    settings: Settings
    params: Language
    corpus: corpora.Split | CaptionSource


def load_run(folder: Path) -> Trained:
    """Read a folder that `tinymoe.train` has written. Raises UserError where something is missing, damaged or changed."""
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} is not the folder of a run (it has no {CONFIG}); name one that tinymoe.train has made"
        )
    settings = resolve({}, folder / CONFIG)
    if not (folder / MODEL).exists():
        raise UserError(f"{folder} has no {MODEL} yet; go on with python -m tinymoe.train --resume {folder}")
    params, config = load_model(folder / MODEL)
    if config != settings.model:
        raise UserError(f"{folder / CONFIG} and the {MODEL} beside it are not of the same run; restore one of them")
    corpus: corpora.Split | CaptionSource
    if settings.data.task == "caption":
        corpus = CaptionSource(settings.data, settings.run.seed)
    else:
        corpus = corpora.load_split(settings.data.corpus, settings.model.context, settings.run.seed)
    if (folder / CHECKPOINT).exists():
        trained_on = load_arrays(folder / CHECKPOINT)[1].get("corpus_sha256")
        if trained_on != corpus.sha256:
            raise UserError(
                f"the corpus {corpus.name} is not the text that {folder} was trained on, so there is no telling which part "
                "of it the model has seen; restore it"
            )
    return Trained(folder, settings, params, corpus)


class Text(NamedTuple):
    name: str
    tokens: Array  # (n,) uint8
    entropy: float | None = None  # nats per token, where it is known


def other_texts(names: Sequence[str], work: Trained) -> list[Text]:
    """Text of other domains: all of it, or, of a corpus that was among those trained on, the tenth that was held out.

    Without names it is what the model was not trained on of the toy text and Python's documentation.
    Raises UserError for a corpus that can't be read or is shorter than a window.
    """
    data, context, seed = work.settings.data, work.settings.model.context, work.settings.run.seed
    texts = []
    chosen = names or [name for name in ("toy", "pydoc") if name not in work.corpus.name.split("+")]
    for name in dict.fromkeys(n if corpora.is_name(n) else str(Path(n).resolve()) for n in chosen):
        if name in data.corpus:
            split = corpora.load_split((name,), context, seed)
            texts.append(Text(f"{name}, held out", split.val, split.entropy))
            continue
        corpus = corpora.load(name, seed)
        tokens = np.frombuffer(corpus.text.encode(), np.uint8)
        if len(tokens) <= context:
            raise UserError(
                f"the corpus {name} has {len(tokens)} bytes; the model's windows of {context} need at least "
                f"{context + 1}"
            )
        texts.append(Text(corpus.name, tokens, corpus.entropy))
    return texts


def language_report(work: Trained, others: Sequence[Text], windows: int | None = None) -> Report:
    """Measure a language model on its validation text, as much of its training text, and as much of each other text.

    `windows` limits how much that is; without it, it is all of the validation text. The gap compares two texts: where the
    validation text happens to be the easier one, it is negative.
    """
    config, split = work.settings.model, work.corpus
    context = config.context
    assert isinstance(split, corpora.Split)
    limit = len(range(0, len(split.val) - context, context))
    limit = limit if windows is None else min(limit, windows)

    def on(tokens: Array) -> Measured:
        return measure(work.params, config, evaluation_batches(tokens, context, max(1024 // context, 1), limit))

    with one_core():  # so that the times are those of one
        validation, training = on(split.val), on(split.train)
        elsewhere = [on(text.tokens) for text in others]
        chunks = long_text(work, split.val[: limit * context + 1])
    report = Report(
        f"{work.folder}: language model of {config.layers} layers, width {config.width}, {config.experts} experts, router "
        f"{config.router}, trained on {split.name}"
    )
    report.add("validation text", *quality(validation, split.entropy))
    report.add("training text", *quality(training, split.entropy))
    report.add("generalisation", ("train–validation gap", validation.loss - training.loss, "nats/token"))
    report.add("validation text in chunks of the context", *chunks)
    for text, found in zip(others, elsewhere, strict=True):
        report.add(f"other text: {text.name}", *quality(found, text.entropy))
        further = found.loss - validation.loss
        report.add("generalisation", (f"to {text.name}", further, "nats/token above the validation loss"))
    report.add("expert load on the validation text", *load(validation.counts))
    add_parameters(report, work)
    flops = flops_by_part(config, context)
    report.add(
        f"operations per token, forward, mean over {context} positions",
        ("total", sum(flops.values()), "FLOPs"),
        *[(part, count, "FLOPs") for part, count in flops.items() if count],
    )
    add_costs(report, work, validation)
    return report


def caption_report(work: Trained, most: int | None = None) -> Report:
    """Measure a captioning model on new pictures, on pictures that it was trained on, and on combinations it never saw.

    `most` limits the number of pictures of each kind; without it, 400.
    """
    config, source, params = work.settings.model, work.corpus, work.params
    assert isinstance(source, CaptionSource)
    report = Report(f"{work.folder}: captions of {source.name}, {config.layers} layers, width {config.width}")
    kinds = {"new pictures": source.split.val, "pictures trained on": source.split.train}
    kinds["combinations never seen"] = source.split.held_out
    shares = {}
    with one_core():
        began, count = time.perf_counter(), 0
        for name, pictures in kinds.items():
            some = pictures.take(np.arange(min(most or 400, len(pictures))))
            count += len(some)
            shares[name] = exact(params, config, some, source.longest)
            report.add(name, ("captions exactly right", shares[name], f"of {len(some)} pictures"))
        seconds = time.perf_counter() - began
        batch = next(iter(source.evaluation(50)))
        found = measure(params, config, [batch])
        balances = balance_by_modality(params, config, batch)
    report.add("new pictures", ("loss", found.loss, "nats/token"), ("next-token accuracy", found.accuracy, "of tokens"))
    gap = shares["pictures trained on"] - shares["new pictures"]
    further = shares["new pictures"] - shares["combinations never seen"]
    report.add("generalisation", ("train–validation gap", gap, "of captions"), ("to new combinations", further, "lost"))
    for layer, balance in enumerate(balances):
        if balance is not None:
            for kind, share, violation in zip(("picture", "text"), balance.share, balance.max_violation, strict=True):
                if share:
                    report.add(
                        "expert load by modality", (f"layer {layer}, {kind} rows, MaxVio", violation, "0 is even")
                    )
    add_parameters(report, work)
    report.add("operations, forward", ("a picture and its caption", flops_per_caption(config, source.longest), "FLOPs"))
    report.add("time", ("captions", count / seconds, "a second on one core, byte by byte and without a cache"))
    return report


def long_text(work: Trained, tokens: Array) -> list[Row]:
    """What it gains to know what went before a chunk."""
    config = work.settings.model
    context = config.context
    with np.errstate(over="ignore", invalid="ignore"):
        losses = chunk_losses(work.params, config, tokens, context)
        rows: list[Row] = [("each by itself", losses["apart"], "nats/token")]
        if "carried" in losses:
            rows.append(("state carried over", losses["carried"], "nats/token"))
        else:
            found = overlapping_loss(work.params, config, tokens, context)
            rows.append(("overlapping by half", found, "nats/token, of targets with half a context or more"))
    return rows


def quality(found: Measured, entropy: float | None) -> list[Row]:
    """How well a text was predicted. A token is a byte, so nats per token and bits per byte differ by ln 2."""
    rows: list[Row] = [
        ("loss", found.loss, "nats/token"),
        ("perplexity", math.exp(found.loss) if found.loss < 700 else math.inf, "equally likely tokens"),
        ("bits per byte", found.loss / math.log(2), "bits"),
        ("next-token accuracy", found.accuracy, "of tokens"),
        ("predicted", found.tokens, "tokens"),
    ]
    if entropy is not None:
        rows.append(("entropy of the source", entropy, "nats/token, no model's expected loss is less"))
    return rows


def load(counts: Iterable[Array | None]) -> list[Row]:
    """How evenly the experts of each layer with a router were used, over all tokens together."""
    rows: list[Row] = []
    for layer, found in enumerate(counts):
        if found is not None:
            rows.append((f"layer {layer}, MaxVio", float(metrics.max_violation(found)), "0 is even"))
            rows.append((f"layer {layer}, entropy", float(metrics.load_entropy(found)), "1 is even"))
    return rows


def add_parameters(report: Report, work: Trained) -> None:
    """How many there are, and how many work."""
    config, leaves = work.settings.model, named(work.params)
    parts = parameters_by_part(work.params)
    report.add(
        "parameters",
        ("total", sum(parts.values()), "numbers"),
        ("active per token", active_parameters(work.params, config), "numbers"),
        *[(part, size, "numbers") for part, size in parts.items() if size],
    )
    if work.settings.sparsity.on:
        report.add("parameters", ("not zero", sum(int(np.count_nonzero(p)) for p in leaves.values()), "numbers"))
    report.add(
        "memory",
        ("parameters", sum(p.nbytes for p in leaves.values()), "bytes"),
        (MODEL, (work.folder / MODEL).stat().st_size, "bytes"),
    )


def add_costs(report: Report, work: Trained, validation: Measured) -> None:
    """Time."""
    report.add("time", ("forward", validation.tokens / validation.seconds, "tokens/s on one core"))
    steps = [record for record in read_metrics(work.folder) if "seconds" in record]
    if steps:
        report.add("time", ("training", steps[-1]["seconds"], f"s for {steps[-1]['step']} steps"))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.evaluate",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a training run")
    parser.add_argument(
        "--corpus",
        action="append",
        default=[],
        metavar="TEXT",
        help="text of another domain: pydoc, toy, docstrings:PACKAGE, or a UTF-8 text file or folder; repeat the flag for "
        "several (default: toy and pydoc, as far as the model was not trained on them)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    parser.add_argument(
        "--windows",
        type=int,
        metavar="N",
        help="measure on at most so many windows of each text, evenly spread (default: all of the validation text), or, of a "
        "captioning model, so many pictures of each kind (default: 400)",
    )
    given = parser.parse_args(argv)
    if given.windows is not None and given.windows < 1:
        raise UserError(f"--windows is {given.windows}; it must be at least 1")
    if given.json and not given.json.parent.is_dir():
        raise UserError(f"there is no folder {given.json.parent} to write --json {given.json} to; make it first")
    work = load_run(given.folder)
    if work.settings.data.task == "caption":
        if given.corpus:
            raise UserError(f"{given.folder} holds a model of captions, which has no use for --corpus; leave it out")
        report = caption_report(work, given.windows)
    else:
        report = language_report(work, other_texts(given.corpus, work), given.windows)
    say(report.table())
    if given.json:
        write_atomically(given.json, (json.dumps(report.plain(), ensure_ascii=False, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    run(main)
