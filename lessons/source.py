"""The source of a lesson: src/NN_name.py, a script in jupytext's percent format; its header, its cells and their tags."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jupytext

LESSONS = Path(__file__).resolve().parent
ORDER = re.compile(r"(?:\. |exercise solution (?:wrong )+check )*")  # of the tags; . for none


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
        kept = [cell for cell in self.cells if tag(cell) not in ("solution", "wrong")]
        words = sum(len(cell.source.split()) for cell in kept if cell.cell_type == "markdown")
        lines = sum(len(cell.source.splitlines()) for cell in kept if cell.cell_type == "code")
        return fives(words / 150 + lines / 20)

    @property
    def practice(self) -> int:
        """Minutes for the exercises: 8 each."""
        return fives(8 * sum(tag(cell) == "exercise" for cell in self.cells))

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
    """Raises ValueError if the header or the order of the cells of an exercise is not as it must be."""
    source = jupytext.reads(path.read_text(encoding="utf-8"), "py:percent")
    header = source.metadata.get("lesson", {})
    wanted = [field.name for field in fields(Lesson)][2:]
    if sorted(header) != sorted(wanted):
        raise ValueError(f"{path.name}: the header has {sorted(header)}; it must have {sorted(wanted)}")
    if missing := [file for file in header["code"] if not (LESSONS.parent / file).exists()]:
        raise ValueError(f"{path.name}: the header names {missing}, which do not exist")
    if not ORDER.fullmatch("".join(tag(cell) + " " for cell in source.cells)):
        raise ValueError(f"{path.name}: an exercise is cells tagged exercise, solution, wrong (1 or more), check")
    return Lesson(path.stem, source.cells, **header)


def tag(cell: Any) -> str:
    """`exercise`, `solution`, `wrong`, `check`, or `.` for a cell that belongs to no exercise."""
    return next(iter(cell.metadata.get("tags", [])), ".")


def variant(cells: Iterable[Any], answer: str, number: int = 0) -> list[Any]:
    """The cells with one answer to each exercise: `exercise` for the stub, `solution`, or `wrong` with its number.

    Where an exercise has fewer wrong answers, its last is taken.
    """
    kept: list[Any] = []
    answers: list[Any] = []
    for cell in cells:
        if tag(cell) in ("exercise", "solution", "wrong"):
            answers.append(cell)
            continue
        if answers:
            fitting = [cell for cell in answers if tag(cell) == answer]
            kept.append(fitting[min(number, len(fitting) - 1)])
            answers = []
        kept.append(cell)
    return kept
