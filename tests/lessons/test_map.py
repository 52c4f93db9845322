"""lessons/DOCUMENTS.md is complete, and all that it names exists. `python -m tests.lessons.test_map` prints its index anew."""

import ast
import re
from functools import cache

import pytest

from tests.conftest import ROOT

MAP = ROOT / "lessons" / "DOCUMENTS.md"
COUNTS = {"L": 9, "M": 14, "S": 12, "V": 3, "O": 6}
IDS = [f"{group}{n}" for group, count in COUNTS.items() for n in range(1, count + 1)]
ERRATA = set("L1 L3 L9 M3 M4 M7 M8 M9 M12 S2 S3 S4 S8 S10 S11 V1 O6".split())
FIELDS = ["Wrong there", "Code", "Test", "Lesson", "Not yet"]  # in this order; the first and the last may be missing
LINK = re.compile(r"\[`?([^`\]]+)`?\]\(([^)]+)\)")
NAMED = re.compile(LINK.pattern + r"((?:,?\s+`[\w.]+`)*)")  # a link, and the names that follow it


def sections(text):
    """(id, body) of each row, in the order of the file."""
    parts = re.split(r"^##+ (?:([LMSVO]\d+) · )?.*\n", text, flags=re.M)
    return [(row, body) for row, body in zip(parts[1::2], parts[2::2], strict=True) if row]


def fields(body):
    """The bullets of a row by their bold names, as one line each."""
    _, *parts = re.split(r"^- \*\*(.+?)\*\*: ", body, flags=re.M)
    return {name: " ".join(value.split()) for name, value in zip(parts[::2], parts[1::2], strict=True)}


def places(body):
    """(document, section) of each place a row names in its first line: *D2 §4.1 heading, D2 title*."""
    where = re.match(r"\s*\*(.+?)\*\n", body, flags=re.S)
    assert where, f"a row begins with its places, not with {body[:40]!r}"
    return re.findall(r"\b(D[0-4]) (§[\d.]+(?= \S)|title)", where[1])


def index(text):
    """The lines that lead from a document's section to its rows."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row, body in sections(text):
        for place in places(body):
            rows.setdefault(place, []).append(row)

    def order(section):
        return [int(n) for n in re.findall(r"\d+", section)]  # the title, without numbers, comes first

    for document in sorted({document for document, _ in rows}):
        of_this = sorted((section for d, section in rows if d == document), key=order)
        yield f"- **{document}** " + " · ".join(f"{s} {', '.join(rows[document, s])}" for s in of_this)


@cache
def definitions(file):
    """What a module defines: functions, classes, methods as `Class.method`."""
    kinds = ast.FunctionDef | ast.ClassDef
    top = [node for node in ast.parse(file.read_text()).body if isinstance(node, kinds)]
    methods = [f"{c.name}.{m.name}" for c in top if isinstance(c, ast.ClassDef) for m in c.body if isinstance(m, kinds)]
    return {node.name for node in top} | set(methods)


def wrong_links(text):
    for label, target in LINK.findall(text):
        if target.startswith(("http:", "https:", "#")):
            yield f"{target} does not lead to a file of this project"
        elif not (MAP.parent / target).is_file():
            yield f"{target} is no file"
        elif label.endswith(".py") and not target.endswith(f"/{label}"):
            yield f"{label} leads to {target}"


def wrong_names(field, value):
    """What a row says of code or tests, and isn't so."""
    found = NAMED.findall(value)
    names = [name for *_, listed in found for name in re.findall(r"`([\w.]+)`", listed)]
    if not names:
        yield f"{field} names nothing"
    if loose := value.count("`") // 2 - len(names) - len(found):
        yield f"{field} has {loose} names without a link before them"
    for _, target, listed in found:
        file = MAP.parent / target
        names = re.findall(r"`([\w.]+)`", listed)
        if not names:
            yield f"{target} is there without a name"
        if target.startswith("../tests/") != (field == "Test"):
            yield f"{target} is no place for {field}"
        for name in names:
            if file.is_file() and (name not in definitions(file) or (field == "Test" and name[:5] != "test_")):
                yield f"{name} is not in {target}"


def problems(text):
    """All that is wrong with the map."""
    rows = sections(text)
    if (found := [row for row, _ in rows]) != IDS:
        odd = sorted({row for row in IDS + found if found.count(row) != IDS.count(row)})
        yield f"rows missing, twice or unknown: {odd}, or in another order than {IDS}"
    yield from wrong_links(text)
    listed = " ".join(text.partition("\nLessons: ")[2].partition("\n\n")[0].split())
    lessons = [LINK.sub(r"\1", lesson) for lesson in listed.split(" · ")]
    for row, body in rows:
        given = fields(body)
        if list(given) != [name for name in FIELDS if name in given] or not {"Code", "Test", "Lesson"} <= set(given):
            yield f"{row}: fields {list(given)}"
            continue
        for field in ("Code", "Test"):
            yield from (f"{row}: {problem}" for problem in wrong_names(field, given[field]))
        if LINK.sub(r"\1", given["Lesson"]) not in lessons:
            yield f"{row}: no lesson {given['Lesson']!r}"
        if ("Wrong there" in given) != (row in ERRATA):
            yield f"{row}: {'an erratum is missing' if row in ERRATA else 'not known as an erratum'}"
        if not places(body):
            yield f"{row}: no place in a document"
    if "\n".join(index(text)) not in text:
        yield "the index is old; print it anew: python -m tests.lessons.test_map"


def test_the_map_is_true():
    assert not list(problems(MAP.read_text()))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("../tinymoe/ops/linear.py", "../tinymoe/ops/linea.py", "linea.py is no file"),
        ("../docs/crossover.png", "../docs/crossing.png", "crossing.png is no file"),
        ("../docs/crossover.png", "https://example.org", "does not lead to a file"),
        ("[`ops/linear.py`]", "[`ops/sparse.py`]", "ops/sparse.py leads to ../tinymoe/ops/linear.py"),
        ("`embedding`", "`embeddings`", "L1: embeddings is not in ../tinymoe/ops/linear.py"),
        ("`LSTMExperts.fit`", "`LSTMExperts.fits`", "L9: LSTMExperts.fits is not in"),
        ("`test_relu`", "`test_rely`", "L2: test_rely is not in ../tests/documents/test_documents.py"),
        ("`test_relu`", "`pytest`", "L2: pytest is not in"),
        (" `test_relu`,", "", "L2: ../tests/documents/test_documents.py is there without a name"),
        ("`test_relu`", "and `test_relu`", "L2: Test has 1 names without a link"),
        (" `test_the_output_layer`", "", "L3: Test names nothing"),
        ("../tests/models/test_long_text.py", "../tinymoe/models/long_text.py", "long_text.py is no place for Test"),
        ("### L3 · ", "### ", "'L3'"),
        ("### L4 · ", "### L3 · ", "'L3', 'L4'"),
        ("- **Lesson**: ", "- ", "L1: fields ['Wrong there', 'Code', 'Test']"),
        ("- **Lesson**: ", "- **Lesson**: about ", "L1: no lesson 'about "),
        ("- **Wrong there**: the answer is 14", "- the answer is 14", "M3: an erratum is missing"),
        ("successors.\n\n", "successors.\n\n- **Wrong there**: all.\n", "L2: not known as an erratum"),
        ("*D2 §4.2 隐藏层*", "*D2*", "L2: no place in a document"),
        ("*D2 §4.2 隐藏层*", "*D2 §4.3 输出层*", "the index is old"),
    ],
)
def test_a_planted_mistake_is_found(old, new, said):
    text = MAP.read_text()
    assert old in text
    found = list(problems(text.replace(old, new, 1)))
    assert any(said in problem for problem in found), found


PAPERS = {  # a part of the title that the documents alter, or the whole; and whose it is
    "Attention Is All You Need": "Vaswani et al. 2017",
    "Application of Dropout in Recurrent Neural Networks": "Gal and Ghahramani 2016",
    "The Sparsely-Gated Mixture-of-Experts Layer": "Shazeer et al. 2017",
    "Switch Transformers: Scaling": "Fedus, Zoph and Shazeer 2021",
    "BERT: Pre-training": "Devlin et al. 2019",
    "Distillation Through Attention": "Touvron et al. 2021",
}


def test_papers_are_cited_as_they_are():
    """The documents alter titles and authors (row O6); neither the map nor the code takes that over."""
    row = " ".join(dict(sections(MAP.read_text()))["O6"].split())
    for title, authors in PAPERS.items():
        assert re.search(rf"{re.escape(title)}[^*]*\*, {re.escape(authors)}", row), title
    years = {"Vaswani": "2017", "Shazeer": "2017", "Fedus": "2021", "Devlin": "2019", "Touvron": "2021"}
    altered = re.compile(r"Sparsity Challenge|\bYin et al|The Switch Transformer:|Simple Transformers that")
    for file in [*ROOT.glob("tinymoe/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]:
        text = file.read_text()
        assert not altered.search(text), file
        for author, year in re.findall(rf"\b({'|'.join(years)}) et al\. (\d{{4}})", text):
            assert year == years[author], f"{file}: {author} et al. {year}"


if __name__ == "__main__":
    print(*index(MAP.read_text()), sep="\n")
