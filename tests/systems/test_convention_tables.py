"""docs/conventions.md shows what the conventions compute: python -m tests.systems.test_convention_tables prints it anew."""

import re

from tests.conftest import ROOT
from tests.systems.test_conventions import INDICES, LOGITS, PER_LAYER, value
from tinymoe.systems.conventions import BALANCE, CAPACITY

DOCS = ROOT / "docs" / "conventions.md"


def balance_table():
    yield "| system | choices counted | f adds up to 1 | layers | P | even, a layer | layer 1 | layer 2 | both | read in |"
    yield "| --- " * 10 + "|"
    for name, c in BALANCE.items():
        one, two = (value(name, LOGITS[i : i + 1], INDICES[i : i + 1]) for i in range(2))
        both = value(name, LOGITS, INDICES)
        switches = f"{c.choices} | {'yes' if c.divided else 'no'} | {c.layers} | {c.probabilities}"
        yield f"| {name} | {switches} | {PER_LAYER[name][2]} | {one:.4f} | {two:.4f} | {both:.4f} | {c.note} |"


def capacity_table():
    yield "| system | places | formula |"
    yield "| --- | --- | --- |"
    for name, convention in CAPACITY.items():
        factor = 64 if name == "hf-switch" else 1.25
        yield f"| {name} | {convention(16, 8, 2, factor)} | {convention.note} |"


def test_the_documented_tables_are_what_is_computed():
    written = DOCS.read_text()
    for table in (balance_table, capacity_table):
        assert "\n".join(table()) in written, "print it anew: python -m tests.systems.test_convention_tables"


def test_the_page_counts_public_systems_without_our_own():
    versions = re.compile("-(top-k|expert-choice|switch|5.0.0)$")  # several rows of one system
    systems = [len({versions.sub("", name) for name in table}) - 1 for table in (BALANCE, CAPACITY)]
    said = f"{len(BALANCE) - 1} balance losses of {systems[0]} public systems, and {len(CAPACITY) - 1} formulas of {systems[1]}"
    assert said in " ".join(DOCS.read_text().split())


if __name__ == "__main__":
    print(*balance_table(), "", *capacity_table(), sep="\n")
