"""What a captioning model is worth."""

import time

import numpy as np

from ..data.sources import CaptionSource
from ..models.accounting import flops_per_caption
from ..models.captioning import balance_by_modality, exact
from ..models.evaluation import measure
from ..optim.one_core import one_core
from .costs import add_parameters
from .sheet import Sheet
from .trained import Trained


def caption_report(work: Trained, most: int | None = None) -> Sheet:
    """Measure a captioning model on new pictures, on pictures that it was trained on, and on those held out.

    `most` limits the number of pictures of each kind; without it, 400.
    """
    config, source, params = work.settings.model, work.corpus, work.params
    assert isinstance(source, CaptionSource)
    report = Sheet(f"{work.folder}: captions of {source.name}, {config.layers} layers, width {config.width}")
    kinds = {"new pictures": source.split.val, "pictures trained on": source.split.train}
    kinds[source.unseen] = source.split.held_out
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
    further = shares["new pictures"] - shares[source.unseen]
    report.add("generalisation", ("train–validation gap", gap, "of captions"), (f"to {source.unseen}", further, "lost"))
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
