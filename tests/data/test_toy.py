"""The generated text: its labels, its distribution, and the entropy that is said to be exact."""

import math
from collections import Counter, defaultdict
from itertools import product

import numpy as np
import pytest

from tinymoe.data import toy

BY_NAME = {dialect.name: dialect for dialect in toy.DIALECTS}
MARKS = {"sums": "+", "words": "|", "clauses": ".", "rows": ",", "brackets": "([{<"}  # one or more in a line


def labelled_lines(text):
    lines = text.text.splitlines()
    starts = np.cumsum([0] + [len(line) + 1 for line in lines[:-1]])
    return [(text.names[label], line) for label, line in zip(text.domains[starts], lines, strict=True)]


@pytest.fixture(scope="module")
def sample():
    """(dialect, line, ln P(line)) of about 8000 lines."""
    lines = labelled_lines(toy.generate(100_000, np.random.default_rng(5)))
    return [(name, line, toy.log_probability(line)) for name, line in lines]


def ambiguous(patterns):
    """Whether two derivations write the same draft, by following all derivations of every prefix at once.

    A run is (pattern, slot, text, characters of it written). Two ways into one run, or two runs that end
    together, are two derivations of one draft; without either, every draft has one.
    """
    start = frozenset((pattern, -1, "", 0) for pattern in range(len(patterns)))
    todo, seen = [start], {start}
    while todo:
        ended, after = 0, defaultdict(list)
        for p, slot, text, at in todo.pop():
            if at < len(text):
                after[text[at]].append((p, slot, text, at + 1))
            elif slot + 1 < len(patterns[p]):
                for new in patterns[p][slot + 1]:
                    after[new[0]].append((p, slot + 1, new, 1))
            else:
                ended += 1
        if ended > 1 or any(len(set(runs)) < len(runs) for runs in after.values()):
            return True
        new_sets = {frozenset(runs) for runs in after.values()} - seen
        seen |= new_sets
        todo += new_sets
    return False


@pytest.mark.parametrize(
    "patterns, expected",
    [
        ([({"a", "ab"}, {"c", "bc"})], True),  # a bc, ab c
        ([({"a", "ab"}, {"c", "cb"})], False),  # not prefix-free, yet unambiguous
        ([({"a"}, {"b"}), ({"ab"},)], True),  # two patterns
        ([({"1", "11"}, {"1", "11"})], True),  # numbers without a separator
        ([({"1", "11"}, {"+"}, {"1", "11"})], False),
    ],
)
def test_the_check_of_ambiguity_is_right(patterns, expected):
    assert ambiguous(patterns) is expected


@pytest.mark.parametrize("name", BY_NAME)
def test_no_two_choices_write_the_same_line(name, sample):
    """Within a dialect drafts are unambiguous and can be read back; a mark tells dialects apart."""
    dialect = BY_NAME[name]
    assert not ambiguous([pattern for _, pattern in dialect.patterns])
    texts = {text for _, pattern in dialect.patterns for slot in pattern for text in slot}
    written = set("".join(texts)) | {mark for which, line, _ in sample if which == name for mark in line}
    for other, marks in MARKS.items():
        if other != name:
            assert not written & set(marks)
    for _, pattern in dialect.patterns:
        assert any(all(set(text) & set(MARKS[name]) for text in slot) for slot in pattern)
    for which, line, _ in sample:
        assert which != name or dialect.finish(dialect.draft(line)) == line


def test_all_probabilities_add_up_to_one():
    assert math.isclose(sum(dialect.probability for dialect in toy.DIALECTS), 1)
    for dialect in toy.DIALECTS:
        assert math.isclose(sum(p for p, _ in dialect.patterns), 1)
        for slot in (slot for _, pattern in dialect.patterns for slot in pattern):
            assert math.isclose(sum(slot.values()), 1) and min(slot.values()) > 0


def every_sum():
    return [f"{a}+{b}={a + b}" for a in range(100) for b in range(100)]


def every_row():
    return [
        f"{city}{count},{price},{count * price}"
        for city in toy.CITIES
        for count in range(1, 10)
        for price in range(10, 100)
    ]


@pytest.mark.parametrize("name, lines", [("sums", every_sum()), ("rows", every_row())])
def test_a_dialect_written_out_in_full(name, lines):
    """Entropy and length from the probabilities of all its lines, which add up to that of the dialect."""
    chance = np.exp([toy.log_probability(line) for line in lines])
    assert len(set(lines)) == len(lines)
    assert math.isclose(chance.sum(), BY_NAME[name].probability, rel_tol=1e-10)
    chance /= chance.sum()
    assert math.isclose(-(chance * np.log(chance)).sum(), toy.line_entropy(BY_NAME[name]), rel_tol=1e-10)
    length = np.array([len(line) + 1 for line in lines])
    assert math.isclose(chance @ length, toy.mean_length(BY_NAME[name]), rel_tol=1e-10)


def test_brackets_and_words_in_closed_form():
    """n pairs: Catalan(n) shapes with 4**n kinds, 2n + 1 bytes. n syllables: 70**n words, 4n + 2 bytes."""
    catalan = (1, 2, 5, 14, 42, 132)
    entropy = math.log(6) + sum(math.log(shapes) + n * math.log(4) for n, shapes in enumerate(catalan, 1)) / 6
    assert math.isclose(toy.line_entropy(BY_NAME["brackets"]), entropy, rel_tol=1e-10)
    assert math.isclose(toy.mean_length(BY_NAME["brackets"]), 8, rel_tol=1e-10)
    assert math.isclose(toy.line_entropy(BY_NAME["words"]), math.log(3) + 3 * math.log(70), rel_tol=1e-10)
    assert math.isclose(toy.mean_length(BY_NAME["words"]), 14, rel_tol=1e-10)


def balanced(line):
    waiting: list[str] = []
    for mark in line:
        if mark in ")]}>":
            if not waiting or "([{<".index(waiting.pop()) != ")]}>".index(mark):
                return False
        else:
            waiting.append(mark)
    return not waiting


@pytest.mark.parametrize("kinds, size", [("()[]{}<>", 2), ("()[]{}", 4), ("()", 10)])
def test_of_all_strings_of_brackets_the_balanced_ones_are_possible(kinds, size):
    strings = ["".join(marks) for marks in product(kinds, repeat=size)]
    chance = np.exp([toy.log_probability(line) for line in strings])
    assert ((chance > 0) == [balanced(line) for line in strings]).all()
    only_these_kinds = (len(kinds) / 8) ** (size // 2)
    assert math.isclose(chance.sum(), BY_NAME["brackets"].probability / 6 * only_these_kinds, rel_tol=1e-10)


@pytest.mark.parametrize(
    "line",
    [
        "12+7=18",
        "12+7=",
        "012+7=19",
        "100+1=101",
        "12+7=19\n",
        "",
        "(",
        "(]",
        "(_",
        "()" * 7,
        "tokari|irako",
        "toka|kato",
        "to|ot",
        "the cat see a bird.",
        "the cats sees a bird.",
        "a cats see a bird.",
        "the cat sees a bird",
        "OSLO,FR,3,45,135",
        "OSLO,NO,3,45,136",
        "OSLO,NO,0,45,0",
        "=",
        "|",
        ",",
        ".",
    ],
)
def test_lines_that_are_never_written(line):
    assert toy.log_probability(line) == -math.inf


def test_the_probability_of_four_lines_by_hand():
    harmonic = sum(1 / rank for rank in range(1, 11))
    nouns, verbs = harmonic, sum(1 / rank for rank in range(1, 9))
    assert math.isclose(toy.log_probability("12+7=19"), math.log(0.25 / 100 / 100))
    assert math.isclose(toy.log_probability("{[]<>}"), math.log(0.25 / 6 / 5 / 4**3))
    assert math.isclose(toy.log_probability("toka|akot"), math.log(0.2 / 3 / 70**2))
    the_cat, two_red_kings = 0.6 * 0.7 / 3 / (2 * nouns), 0.4 * 0.3 / 3 / 6 / nouns
    clause = math.log(0.12 * the_cat / verbs * two_red_kings)
    assert math.isclose(toy.log_probability("the cat sees two red kings."), clause)


def test_two_ways_to_write_a_draft_add_up():
    pattern = {"a": 0.5, "ab": 0.5}, {"c": 0.25, "bc": 0.75}
    assert toy._chance("abc", pattern) == 0.5 * 0.75 + 0.5 * 0.25
    assert toy._chance("ac", pattern) == 0.5 * 0.25
    assert toy._chance("a", pattern) == toy._chance("ab", pattern) == toy._chance("abcc", pattern) == 0


def test_the_largest_uniform_number_picks_the_last_option():
    """Running totals may end just below 1; a pick must not fall off the end."""

    class Largest(np.random.Generator):
        def random(self, *args, **options):
            return math.nextafter(1, 0)

    for n in range(1, 200):
        slot = toy.uniform(range(n))
        assert toy._pick(toy._table(slot, slot.values()), Largest(np.random.PCG64())) == str(n - 1)


def test_sampled_lines_cost_the_entropy(sample):
    """The means of -ln P and of the length are within four standard errors, overall and by dialect."""

    def agree(seen, exact):
        assert abs(seen.mean() - exact) <= 4 * seen.std() / math.sqrt(len(seen)) + 1e-9

    length, cost = np.array([(len(line) + 1, -logp) for _, line, logp in sample]).T
    agree(cost - toy.entropy_rate() * length, 0)
    names = np.array([name for name, _, _ in sample])
    for name, dialect in BY_NAME.items():
        here = names == name
        agree(length[here], toy.mean_length(dialect))
        agree(cost[here], toy.line_entropy(dialect) - math.log(dialect.probability))
        agree(cost[here] - toy.entropy_by_dialect()[name] * length[here], 0)


def test_dialects_and_slots_come_as_often_as_stated(sample):
    def close(counts, slot):
        n = sum(counts.values())
        assert set(counts) <= set(slot)
        for text, p in slot.items():
            assert abs(counts[text] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))

    close(Counter(name for name, _, _ in sample), {d.name: d.probability for d in toy.DIALECTS})
    rows = [line.split(",") for name, line, _ in sample if name == "rows"]
    close(Counter(f"{city},{country}," for city, country, *_ in rows), toy.ROW[0])
    close(Counter(count for _, _, count, _, _ in rows), toy.ROW[1])
    pairs = Counter(str(len(line) // 2) for name, line, _ in sample if name == "brackets")
    close(pairs, toy.uniform(range(1, 7)))
    close(Counter(line[0] for name, line, _ in sample if name == "brackets"), toy.uniform("([{<"))
    last = Counter(line.split()[-1][:-1] for name, line, _ in sample if name == "clauses")
    nouns = toy.zipf(toy.NOUNS)
    close(last, {f"{noun}{end}": p * q for noun, p in nouns.items() for end, q in (("", 0.6), ("s", 0.4))})


def test_floors_by_dialect_average_to_the_rate():
    length = {name: dialect.probability * toy.mean_length(dialect) for name, dialect in BY_NAME.items()}
    told, mixed = toy.entropy_by_dialect(told=True), toy.entropy_by_dialect()
    total = sum(length.values())
    average = sum(length[name] * mixed[name] for name in mixed) / total
    assert math.isclose(average, toy.entropy_rate(), rel_tol=1e-12)
    choice = -sum(dialect.probability * math.log(dialect.probability) for dialect in toy.DIALECTS)
    gap = sum(length[name] * (mixed[name] - told[name]) for name in mixed)
    assert math.isclose(gap, choice, rel_tol=1e-12)
    assert math.isclose(told["sums"] * toy.mean_length(BY_NAME["sums"]), 2 * math.log(100), rel_tol=1e-10)
    assert all(0.15 - 0.005 < part / total < 0.26 for part in length.values())


def test_labels_lie_on_the_bytes_of_their_line():
    text = toy.generate(20_000, np.random.default_rng(1))
    assert text.text.isascii() and text.text.endswith("\n") and text.names == tuple(BY_NAME)
    assert text.domains.dtype == np.uint8 and text.domains.shape == (len(text.text),)
    at = 0
    for line in text.text.splitlines(keepends=True):
        (label,) = set(text.domains[at : at + len(line)].tolist())
        assert set(line) & set(MARKS[text.names[label]])
        at += len(line)


@pytest.mark.parametrize("n_bytes", [0, 1, 2, 50, 1000])
def test_text_stops_at_the_first_line_end_that_is_far_enough(n_bytes):
    text = toy.generate(n_bytes, np.random.default_rng(2)).text
    assert len(text) >= n_bytes
    assert not text or text[:-1].rfind("\n") + 1 < n_bytes


def test_text_depends_on_the_generator_alone():
    short, long = (toy.generate(n_bytes, np.random.default_rng(3)).text for n_bytes in (500, 9000))
    assert long.startswith(short)
    assert not long.startswith(toy.generate(500, np.random.default_rng(4)).text)
    rng = np.random.default_rng(3)
    assert toy.generate(500, rng).text == short != toy.generate(500, rng).text
