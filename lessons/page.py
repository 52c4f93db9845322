"""README.md, the course's page: the way through the course, where everything stands, the exercises, the glossary."""

import re

from source import LESSONS, Lesson

PAGE, DOCUMENTS = LESSONS / "README.md", LESSONS / "DOCUMENTS.md"


def page(lessons: list[Lesson]) -> str:
    """README.md: the way through the course, where everything stands, and the glossary."""
    rows = [
        f"| {lesson.number} | [{lesson.title}]({lesson.name}.ipynb) {lesson.chinese} | {lesson.reading} + {lesson.practice} "
        f"| {lesson.builds} | [solved](solutions/{lesson.name}.ipynb) |"
        for lesson in lessons
    ]
    places = [
        f"- **{lesson.number} · {lesson.title}**: " + "; ".join(filter(None, references(lesson))) for lesson in lessons
    ]
    exercises = [f"- **{lesson.number} · {lesson.title}**: {' · '.join(lesson.exercises)}" for lesson in lessons]
    glossary = [
        f"| {english} | {chinese} | {meaning} | [{lesson.number}]({lesson.name}.ipynb) |"
        for english, chinese, meaning, lesson in terms(lessons)
    ]
    return TEMPLATE.format(
        rows="\n".join(rows),
        reading=sum(lesson.reading for lesson in lessons),
        practice=sum(lesson.practice for lesson in lessons),
        count=sum(len(lesson.exercises) for lesson in lessons),
        exercises="\n".join(exercises),
        places="\n".join(places),
        glossary="\n".join(glossary),
    )


def references(lesson: Lesson) -> list[str]:
    code = ", ".join(f"[`{file}`](../{file})" for file in lesson.code)
    rows = ", ".join(f"[{row}](DOCUMENTS.md#{anchor(row)})" for row in lesson.documents)
    return [code, rows and f"documents {rows}", *lesson.papers]


def anchor(row: str) -> str:
    """Where GitHub puts the heading of a row of DOCUMENTS.md. Raises ValueError if there is no such row."""
    heading = re.search(rf"^#+ ({row} · .*)$", DOCUMENTS.read_text(encoding="utf-8"), re.M)
    if not heading:
        raise ValueError(f"DOCUMENTS.md has no row {row!r}; name rows such as L1 or M14")
    return re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")


def terms(lessons: list[Lesson]) -> list[tuple[str, str, str, Lesson]]:
    """(English, Chinese, meaning, the lesson that brings it in), by alphabet. Raises ValueError if two bring in the same."""
    found: dict[str, tuple[str, str, str, Lesson]] = {}
    for lesson in lessons:
        for english, (chinese, meaning) in lesson.terms.items():
            if english in found:
                raise ValueError(f"{english!r} is a term of lesson {found[english][-1].number} and of {lesson.number}")
            found[english] = (english, chinese, meaning, lesson)
    return sorted(found.values(), key=lambda term: term[0].lower())


TEMPLATE = """<!-- Made by build.py from the headers of src/*.py; edit those. -->
# The course

Notebooks that run on a laptop, with no data to download. Each but the last begins with a picture and a formula,
computes it by hand, in a loop and with the library, derives its gradient and checks it, shows a bug that somebody really
had, and ends with exercises that check themselves; the last answers questions. Install and open them, from the
project's folder:

```sh
python3 -m venv .venv && .venv/bin/pip install -e '.[lessons]' && .venv/bin/jupyter lab lessons
```

To see it whole first: [`one_file.py`](one_file.py), a sparse mixture of experts in 200 lines, from the bytes to a sample.

| | lesson | minutes to read + for exercises | what you build | |
| --- | --- | --- | --- | --- |
{rows}

Together about {reading} minutes to read and {practice} for the exercises. An exercise prints `[todo]`, `[ok]`, or `[wrong]`
and where. Every lesson is here twice: with the exercises open, and solved. What would give away a bug that you are asked to
spot, or a result that you are asked to guess, is shown in the solved one only: run the cell when you have made up your mind.

To run it all, from an empty machine to every notebook made anew:

```sh
python3 -m venv .venv && .venv/bin/pip install -e '.[lessons]' && .venv/bin/python lessons/build.py
```

Teachers: the notebooks are made from scripts. Edit `src/`; `python lessons/rehearse.py` then tries a lesson as a learner
with no answer, with wrong answers and with right ones, and `python lessons/build.py` makes the notebooks and this page.
Cells have tags ([`source.py`](source.py)): `exercise`, `solution`, `wrong` and `check`, `guess` for what the student's
notebook doesn't show, `timed` and `trained` for numbers that aren't the same everywhere. `python -m pytest -m slow` executes
all notebooks again, in minutes, and compares what they show with what is kept ([`compare.py`](compare.py) has the rule).

## Where it stands

In the code, in the [five documents](DOCUMENTS.md), in the papers:

{places}

## The {count} exercises

{exercises}

## Glossary 词汇表

| English | 中文 | meaning | lesson |
| --- | --- | --- | --- |
{glossary}
"""
