"""What a language model is worth."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..data import corpora
from ..data.windows import evaluation_batches
from ..models.accounting import flops_by_part
from ..models.evaluation import Measured, measure
from ..models.long_text import chunk_losses, overlapping_loss
from ..ops import metrics
from ..optim.one_core import one_core
from ..types import Array
from .costs import add_costs, add_parameters
from .sheet import Row, Sheet
from .trained import Text, Trained


def language_report(work: Trained, others: Sequence[Text], windows: int | None = None) -> Sheet:
    """Measure a language model on its validation text, and on as much of its training text and of each other text.

    `windows` limits how much that is; without it, it is all of the validation text, or of a shorter one. The gap
    compares two texts: where the validation text happens to be the easier one, it is negative.
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
    report = Sheet(
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
