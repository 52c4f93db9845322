"""What is evaluated: a run, its text or pictures, and texts that it was not trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data import corpora
from ..data.sources import CaptionSource
from ..errors import UserError
from ..models.parameters import Language
from ..runs.checkpoint import load_arrays
from ..runs.folder import CHECKPOINT, CONFIG, MODEL
from ..runs.settings import Settings, resolve
from ..runs.state import load_model
from ..types import Array


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
    for name in dict.fromkeys(map(corpora.absolute, chosen)):
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
