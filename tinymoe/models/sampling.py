"""Text from a language model, one token at a time."""

import codecs
from collections.abc import Iterable, Iterator

import numpy as np

from ..errors import UserError
from ..types import Array
from .config import LanguageConfig
from .language import forward
from .parameters import Language


def next_token(logits: Array, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Draw a token from softmax(logits / temperature), cut to the most likely that together have probability top_p.

    logits  (V,)
    temperature 0 takes the most likely token (the lowest of equals).
    Source: Holtzman et al. 2020, §3.1 (nucleus sampling).
    """
    if not np.isfinite(logits).all():
        raise UserError(
            "the model's scores are not numbers: its training has diverged; train it anew with a lower --lr"
        )
    if temperature == 0:
        return int(np.argmax(logits))
    with np.errstate(over="ignore"):  # a tiny temperature is as good as 0
        z = (logits.astype(np.float64) - logits.max()) / temperature
    order = np.argsort(-z, kind="stable")
    p = np.exp(z[order])
    p /= p.sum()
    kept = p[: int(np.searchsorted(np.cumsum(p), top_p)) + 1]
    return int(order[rng.choice(len(kept), p=kept / kept.sum())])


def generate(
    params: Language,
    config: LanguageConfig,
    prompt: Array,
    tokens: int,
    temperature: float,
    top_p: float,
    rng: np.random.Generator,
) -> Iterator[int]:
    """Yield `tokens` further tokens after the prompt (n,) int, n ≥ 1; the model sees the last `context` of them."""
    seen = list(prompt)
    for _ in range(tokens):
        with np.errstate(over="ignore", invalid="ignore"):
            (logits, _, _), _ = forward(params, config, np.array([seen[-config.context :]]))
        seen.append(next_token(logits[-1], temperature, top_p, rng))
        yield seen[-1]


def decoded(tokens: Iterable[int]) -> Iterator[str]:
    """Bytes to text as they come; what is not UTF-8 becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(bytes([token]))
    yield decoder.decode(b"", final=True)
