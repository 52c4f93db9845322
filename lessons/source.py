"""The source of a lesson: src/NN_name.py, a script in jupytext's percent format; its header, its cells and their tags.

The header says what the course's page needs to know (`Lesson`). A code cell may have tags, `# %% tags=["guess"]`:

    exercise, solution, wrong, check    an exercise is a run of such cells: the stub, its solution, one or more answers
                                        that `check` must refuse (no product shows them), and the cell that checks
    guess                               its output gives away what the text asks the reader to find out first: the
                                        student's notebook has it without output, the solved one with
    timed                               it prints what the clock has measured
    trained                             it prints what training in single precision has led to

compare.py says what the last two are for. mypy reads the sources as scripts, blanks of stubs (`...`) and bugs to spot
included. A `# type: ignore[…]` behind these is for it alone: no product shows it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jupytext

LESSONS = Path(__file__).resolve().parent
ROLES = {"exercise", "solution", "wrong", "check"}  # in an exercise
TAGS = ROLES | {"guess", "timed", "trained"}
FOR_MYPY = re.compile(r"  # type: ignore\[[\w-]+\]")
ORDER = re.compile(r"(?:\. |exercise solution (?:wrong )+check )*")  # of the roles; . for none


@dataclass(frozen=True)
class Lesson:
    """A source: its name, its header, its cells."""

    name: str
    cells: list[Any]
    title: str
    chinese: str
    builds: str  # what the learner has in the end
    code: list[str]  # files of the project, from its root
    documents: list[str]  # rows of DOCUMENTS.md
    papers: list[str]  # Markdown
    terms: dict[str, list[str]]  # those it brings in, for the glossary: English to Chinese and meaning

    @property
    def number(self) -> int:
        return int(self.name[:2])

    @property
    def reading(self) -> int:
        """Minutes to read it: 150 words and 20 lines of code a minute; answers are not there to be read."""
        kept = [cell for cell in self.cells if role(cell) not in ("solution", "wrong")]
        words = sum(len(cell.source.split()) for cell in kept if cell.cell_type == "markdown")
        lines = sum(len(cell.source.splitlines()) for cell in kept if cell.cell_type == "code")
        return fives(words / 150 + lines / 20)

    @property
    def practice(self) -> int:
        """Minutes for the exercises: 8 each."""
        return fives(8 * sum(role(cell) == "exercise" for cell in self.cells))

    @property
    def exercises(self) -> list[str]:
        text = "\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")
        return re.findall(r"^### \d+ · (.+)$", text.partition("## Exercises")[2], re.M)

    def product(self, solved: bool) -> Path:
        return LESSONS / ("solutions" if solved else "") / f"{self.name}.ipynb"


def fives(minutes: float) -> int:
    return 5 * round(minutes / 5)


def sources() -> list[Path]:
    return sorted((LESSONS / "src").glob("[0-9][0-9]_*.py"))


def read(path: Path) -> Lesson:
    """Raises ValueError if the header, a tag, or the order of the cells of an exercise is not as it must be."""
    source = jupytext.reads(FOR_MYPY.sub("", path.read_text(encoding="utf-8")), "py:percent")
    header = source.metadata.get("lesson", {})
    wanted = [field.name for field in fields(Lesson)][2:]
    if sorted(header) != sorted(wanted):
        raise ValueError(f"{path.name}: the header has {sorted(header)}; it must have {sorted(wanted)}")
    if missing := [file for file in header["code"] if not (LESSONS.parent / file).exists()]:
        raise ValueError(f"{path.name}: the header names {missing}, which do not exist")
    if unknown := set().union(*map(tags, source.cells)) - TAGS:
        raise ValueError(f"{path.name}: {sorted(unknown)} are no tags of a cell; there are {sorted(TAGS)}")
    if not ORDER.fullmatch("".join(role(cell) + " " for cell in source.cells)):
        raise ValueError(f"{path.name}: an exercise is cells tagged exercise, solution, wrong (1 or more), check")
    return Lesson(path.stem, source.cells, **header)


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def role(cell: Any) -> str:
    """`exercise`, `solution`, `wrong`, `check`, or `.` for a cell that belongs to no exercise."""
    return next((name for name in cell.metadata.get("tags", []) if name in ROLES), ".")


def variant(cells: Iterable[Any], answer: str, number: int = 0) -> list[Any]:
    """The cells with one answer to each exercise: `exercise` for the stub, `solution`, or `wrong` with its number.

    Where an exercise has fewer wrong answers, its last is taken.
    """
    kept: list[Any] = []
    answers: list[Any] = []
    for cell in cells:
        if role(cell) in ("exercise", "solution", "wrong"):
            answers.append(cell)
            continue
        if answers:
            fitting = [cell for cell in answers if role(cell) == answer]
            kept.append(fitting[min(number, len(fitting) - 1)])
            answers = []
        kept.append(cell)
    return kept
