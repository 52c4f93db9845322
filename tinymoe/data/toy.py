"""A text whose entropy is known exactly: five labelled dialects, one line an item.

    dialect    a line                          chosen at random            forced by what precedes it
    sums       12+7=19                         both numbers                the result
    brackets   {[]<>}                          the shape, the kinds        which kind closes
    words      tokari|irakot                   the word                    all that follows the bar
    clauses    two red cats see every king.    words, number of the nouns  the number of the verb
    rows       OSLO,NO,3,45,135                city, count, price          country, total (count by price)

Each line is drawn independently of the others: a dialect, then a pattern of that dialect, then one text for
each slot of the pattern. A slot is a dictionary from texts to probabilities; fixed text is a slot with one
entry and costs ln 1 = 0. The joined texts are the draft, to which `finish` adds what is forced. In the sum
above: slots {0…99}, {+}, {0…99}, {=}, draft "12+7=", line "12+7=19".

Why the entropy is exact. The choices determine the line, and can be read back from it (no two write the same
line), so H(line) is the entropy of the choices, and the chain rule splits that over the independent ones:

    H(line) = H(dialect) + Σ_d p(d) · [ H(pattern | d) + Σ_q p(q | d) · Σ_slots H(slot) ]

Why it bounds a language model. Its losses over the bytes of a line, with the newline, add up to
-ln q(line | what came before): the chain rule again. In expectation that is at least H(line), whatever q is
(Gibbs). So k lines cost at least k·H(line), and are k·E[length] bytes long. Per byte (renewal-reward):

    entropy rate = H(line) / E[length of line and newline]          nats per byte

This is the ratio of the means, not the mean of the ratios: a long line weighs as much as its bytes. It bounds
the expected loss on fresh text: one sample scatters about it, and a text learnt by heart can cost less.
"""

import math
from bisect import bisect
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, product
from typing import TypeVar

import numpy as np

Slot = dict[str, float]  # possible texts -> probabilities, which add up to 1
Pattern = tuple[Slot, ...]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Dialect:
    """A distribution over lines. `draft` undoes `finish`: draft(finish(text)) == text.

    `key` says on what of each slot's text the length of the finished line depends: only on its length (`len`)
    or, where `finish` calculates, on the text itself (`str`).
    """

    name: str
    probability: float  # that a line is of this dialect
    patterns: tuple[tuple[float, Pattern], ...]  # each with its probability within the dialect
    finish: Callable[[str], str] = str
    draft: Callable[[str], str] = str
    key: Callable[[str], Hashable] = len


@dataclass(frozen=True, eq=False)
class ToyText:
    """A generated text and which dialect each byte comes from; a newline belongs to the line it ends."""

    text: str  # ASCII, whole lines
    domains: np.ndarray  # (len(text),) uint8, indices into names
    names: tuple[str, ...]


def weighted(texts: Iterable[object], weight: Callable[[int], float]) -> Slot:
    """A slot in which the text of rank r = 1, 2, … has probability proportional to weight(r)."""
    weights = {str(text): weight(rank) for rank, text in enumerate(texts, 1)}
    return {text: w / math.fsum(weights.values()) for text, w in weights.items()}


def uniform(texts: Iterable[object]) -> Slot:
    return weighted(texts, lambda rank: 1)


def zipf(texts: Iterable[object]) -> Slot:
    return weighted(texts, lambda rank: 1 / rank)


# --- sums ---------------------------------------------------------------------------------------------------

NUMBER = uniform(range(100))
SUM = (NUMBER, uniform("+"), NUMBER, uniform("="))


def add(draft: str) -> str:
    """12+7= -> 12+7=19"""
    return draft + str(sum(map(int, draft[:-1].split("+"))))


# --- brackets: 1 to 6 pairs, all equally likely; so are the shapes with that many pairs ---------------------

PAIRS = 6
CLOSING = dict(zip("([{<", ")]}>", strict=True))
HIDE = str.maketrans(")]}>", "____")


def shapes(pairs: int) -> Iterator[str]:
    """Every balanced word with that many pairs, once: (inside_ rest, with _ for a closing bracket."""
    if pairs == 0:
        yield ""
    for within in range(pairs):
        for inside, rest in product(shapes(within), shapes(pairs - 1 - within)):
            yield f"({inside}_{rest}"


def bracket_patterns() -> Iterator[tuple[float, Pattern]]:
    slots = {"(": uniform(CLOSING), "_": uniform("_")}
    for same_size in (list(shapes(pairs)) for pairs in range(1, PAIRS + 1)):
        for shape in same_size:
            yield 1 / (PAIRS * len(same_size)), tuple(slots[mark] for mark in shape)


def close(draft: str) -> str:
    """{[_<__ -> {[]<>}: each _ closes the bracket that was opened last."""
    waiting: list[str] = []
    line = ""
    for mark in draft:
        line += waiting.pop() if mark == "_" else mark
        if mark in CLOSING:
            waiting.append(CLOSING[mark])
    return line


# --- words: two, three or four syllables --------------------------------------------------------------------

SYLLABLE = uniform(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
WORDS = tuple((1 / 3, (SYLLABLE,) * syllables + (uniform("|"),)) for syllables in (2, 3, 4))


def mirror(draft: str) -> str:
    """tokari| -> tokari|irakot"""
    return draft + draft[-2::-1]


# --- clauses: subject, verb, object; each noun singular or plural, with or without an adjective -------------

NOUNS = ("king", "cat", "bird", "farmer", "horse", "robot", "sailor", "baker", "dragon", "giant")
VERBS = ("see", "help", "follow", "like", "hear", "find", "paint", "greet")
ADJECTIVE = uniform(("big ", "red ", "shy ", "brave ", "quiet ", "hungry "))


def noun_phrases(articles: tuple[str, ...], ending: str) -> tuple[tuple[float, Pattern], ...]:
    article, noun = uniform(articles), zipf(noun + ending for noun in NOUNS)
    return (0.7, (article, noun)), (0.3, (article, ADJECTIVE, noun))


def clause_patterns() -> Iterator[tuple[float, Pattern]]:
    singular = 0.6, noun_phrases(("a ", "the ", "every "), ""), zipf(f" {verb}s " for verb in VERBS)
    plural = 0.4, noun_phrases(("the ", "two ", "some "), "s"), zipf(f" {verb} " for verb in VERBS)
    for (p, subjects, verb), (q, objects, _) in product((singular, plural), repeat=2):
        for (r, subject), (s, object_) in product(subjects, objects):
            yield p * q * r * s, (*subject, verb, *object_, uniform("."))


# --- rows: city and its country, count, price, total --------------------------------------------------------

CITIES = ("PARIS,FR,", "OSLO,NO,", "LYON,FR,", "ROME,IT,", "MILAN,IT,", "BERGEN,NO,", "LIMA,PE,", "KYOTO,JP,")
ROW = (zipf(CITIES), zipf(range(1, 10)), uniform(","), uniform(range(10, 100)), uniform(","))


def multiply(draft: str) -> str:
    """OSLO,NO,3,45, -> OSLO,NO,3,45,135"""
    _, _, count, price, _ = draft.split(",")
    return draft + str(int(count) * int(price))


# --- the source: short lines come more often, so that each dialect has 15 to 26 % of the bytes --------------

DIALECTS = (
    Dialect("sums", 0.25, ((1, SUM),), add, lambda line: line[: line.find("=") + 1], key=str),
    Dialect("brackets", 0.25, tuple(bracket_patterns()), close, lambda line: line.translate(HIDE)),
    Dialect("words", 0.20, WORDS, mirror, lambda line: line[: line.find("|") + 1]),
    Dialect("clauses", 0.12, tuple(clause_patterns())),
    Dialect("rows", 0.18, ((1, ROW),), multiply, lambda line: line[: line.rfind(",") + 1], key=str),
)


def generate(n_bytes: int, rng: np.random.Generator) -> ToyText:
    """Whole lines, up to the end of the first line at which the text is at least n_bytes long.

    Stopping there biases nothing: whether to go on is decided by the lines so far, so (Wald's identity)
    E[-ln P(text)] = E[lines] · H(line) and E[bytes] = E[lines] · E[length].
    """
    recipes = [
        (label, d.finish, [_table(slot, slot.values()) for slot in pattern])
        for label, d in enumerate(DIALECTS)
        for _, pattern in d.patterns
    ]
    source = _table(recipes, (d.probability * p for d in DIALECTS for p, _ in d.patterns))
    lines, labels, size = [], [], 0
    while size < n_bytes:
        label, finish, slots = _pick(source, rng)
        lines.append(finish("".join([_pick(slot, rng) for slot in slots])) + "\n")
        labels.append(label)
        size += len(lines[-1])
    domains = np.repeat(np.array(labels, np.uint8), np.array([len(line) for line in lines], np.int64))
    return ToyText("".join(lines), domains, tuple(d.name for d in DIALECTS))


def entropy_rate() -> float:
    """Nats per byte: H(line) / E[length]. On fresh text no model's expected loss is lower."""
    nats = _entropy(d.probability for d in DIALECTS) + sum(d.probability * line_entropy(d) for d in DIALECTS)
    return nats / sum(d.probability * mean_length(d) for d in DIALECTS)


def entropy_by_dialect(told: bool = False) -> dict[str, float]:
    """Nats per byte that the source itself, used as the model, loses on each dialect's bytes.

        told          H(line | d) / E[length | d]
        otherwise   ( H(line | d) - ln p(d) ) / E[length | d]

    Told which dialect comes next, nothing does better. In the mixed text a line must also reveal its dialect,
    -ln p(d) nats; those numbers, weighted by the share of bytes, average to `entropy_rate()`. A model can go
    below one of them by betting on that dialect, never below the told one, and pays for it on the others.
    """
    dialect = {d.name: 0.0 if told else -math.log(d.probability) for d in DIALECTS}
    return {d.name: (dialect[d.name] + line_entropy(d)) / mean_length(d) for d in DIALECTS}


def log_probability(line: str) -> float:
    """ln P(line) of a line without its newline; -inf for one that is never written.

    It adds up all ways to write the line, so it does not rely on there being only one.
    """
    chance = 0.0
    for d in DIALECTS:
        draft = d.draft(line)
        if not _alphabet(d).issuperset(draft):
            continue
        here = sum(p * _chance(draft, pattern) for p, pattern in d.patterns)
        if here and d.finish(draft) == line:
            chance += d.probability * here
    return math.log(chance) if chance else -math.inf


@cache
def line_entropy(dialect: Dialect) -> float:
    """H(line | dialect) in nats: the choice of pattern, then of a text for each slot."""
    texts = sum(p * sum(_entropy(slot.values()) for slot in pattern) for p, pattern in dialect.patterns)
    return _entropy(p for p, _ in dialect.patterns) + texts


@cache
def mean_length(dialect: Dialect) -> float:
    """E[bytes in a line and its newline | dialect]: one example finished of each combination of keys."""
    total = 0.0
    for p, pattern in dialect.patterns:
        groups: list[dict[Hashable, tuple[str, float]]] = [{} for _ in pattern]
        for group, slot in zip(groups, pattern, strict=True):
            for text, q in slot.items():
                group[dialect.key(text)] = text, q + group.get(dialect.key(text), ("", 0.0))[1]
        for picks in product(*(group.values() for group in groups)):
            line = dialect.finish("".join(text for text, _ in picks))
            total += p * math.prod(q for _, q in picks) * (len(line) + 1)
    return total


@cache
def _alphabet(dialect: Dialect) -> frozenset[str]:
    return frozenset().union(*(text for _, pattern in dialect.patterns for slot in pattern for text in slot))


def _entropy(probabilities: Iterable[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities)


def _chance(draft: str, pattern: Pattern) -> float:
    """P(draft | pattern): reach[i] is the probability that the slots so far wrote exactly draft[:i]."""
    reach = {0: 1.0}
    for slot in pattern:
        further: dict[int, float] = {}
        for start, p in reach.items():
            for end in {start + len(text) for text in slot}:
                if q := slot.get(draft[start:end]):
                    further[end] = further.get(end, 0.0) + p * q
        if not further:
            return 0.0
        reach = further
    return reach.get(len(draft), 0.0)


def _table(options: Iterable[T], probabilities: Iterable[float]) -> tuple[list[T], list[float]]:
    return list(options), list(accumulate(probabilities))[:-1]  # the last total is 1, up to rounding


def _pick(table: tuple[list[T], list[float]], rng: np.random.Generator) -> T:
    """One option: where a uniform number falls among the running totals. A sole option draws nothing."""
    options, totals = table
    return options[bisect(totals, rng.random())] if totals else options[0]
