"""The lessons: each runs without answers, with wrong ones and with right ones; its notebooks are fresh, small and complete."""

import re
import subprocess
import sys
from typing import Any

import nbformat
import numpy as np
import pytest

from tests.conftest import ROOT

LESSONS = ROOT / "lessons"
sys.path.insert(0, str(LESSONS))

import build  # noqa: E402
from lesson_tools import check_exercise, new_figure, show  # noqa: E402
from page import PAGE, page  # noqa: E402
from rehearse import VERDICT, rehearse  # noqa: E402
from source import Lesson, read, role, sources, tags, variant  # noqa: E402

from tinymoe import ops  # noqa: E402

HEADINGS = [
    "You will",
    "You need",
    "Picture",
    "Formula",
    "By hand",
    "Code",
    "The same in tinymoe",
    "Backward by hand",
    "What the document gets wrong",
    "Spot the bug",
    "Exercises",
    "Next",
]
OPTIONAL = {"What the document gets wrong"}
QUESTIONS = "17_seven_questions"  # answers of an interview, in its order
ASKS = re.compile(r"^## Spot the bug|\bguess (before|first)|before you (run|open)\b|by reading\b", re.M | re.I)
FOLDED = re.compile("<summary>(?!Hint)")  # an answer
FORBIDDEN = re.compile(r"^ *[!%]|https?://|\b(urllib|requests|socket|subprocess|pip|plt)\b", re.M)
SOURCES = sources()
FIRST = LESSONS / "src" / "01_numbers_and_gradients.py"  # the one that planted mistakes are tried on
every_lesson = pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])


def problems(lesson):
    """What breaks the rules for a source, in words."""
    text = [cell.source for cell in lesson.cells if cell.cell_type == "markdown"]
    code = [cell.source for cell in lesson.cells if cell.cell_type == "code"]
    found = re.findall(r"^## (.*)$", "\n".join(text), re.M)
    headings = [h for h in HEADINGS if h in found or h not in OPTIONAL]
    if lesson.name == QUESTIONS:
        found, headings = [h.partition(" · ")[0] for h in found], [*HEADINGS[:2], *"1234567", *HEADINGS[-2:]]
    if headings != found:
        yield f"the sections are {found}; they must be {headings}"
    exercises = sum(role(cell) == "exercise" for cell in lesson.cells)
    if not 2 <= exercises <= 4:
        yield f"there are {exercises} exercises; allowed are 2 to 4"
    if len(lesson.exercises) != exercises:
        yield f"the titles of exercises are {lesson.exercises}; write ### 1 · Title"
    if "\n".join(text).partition("## Exercises")[2].count("<summary>Hint") < exercises:
        yield "an exercise has no hint"
    for source in code:
        if (lines := source.count("\n") + 1) > 25:
            yield f"a cell has {lines} lines, at most 25 are allowed: {source.splitlines()[0]}"
        if forbidden := FORBIDDEN.search(source):
            yield f"{forbidden[0]!r} has no place in a cell"
    for english, (chinese, meaning) in lesson.terms.items():
        if not all(word.lower() in "\n".join(text).lower() for word in (english, chinese)):
            yield f"the term {english} {chinese} is not in the text"
        if not meaning:
            yield f"the term {english} has no meaning"


def verdicts(notebook):
    """What the checkers of a product have printed."""
    cells = [cell for cell in notebook.cells if role(cell) == "check"]
    return [
        VERDICT.findall("".join(output.text for output in cell.outputs if output.output_type == "stream"))
        for cell in cells
    ]


def repeated_numbers(notebook):
    """Numbers with two or more decimals that the prose repeats from an output: they part when the output changes."""
    printed = [o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    prose = re.sub(r"^## By hand$.*?(^## |\Z)", "", text, flags=re.M | re.S)  # these are repeated on purpose
    return {number for number in re.findall(r"\d+\.\d\d+", prose) if number in "".join(printed)}


def given_away(notebook):
    """Cells of a solved notebook whose output answers what the text before them asks, and which are not marked `guess`.

    A question is open until the first output, and where its section has folded answers, until that behind the last.
    """
    sections: list[list[Any]] = [[]]
    for cell in notebook.cells:
        for part in [cell] if cell.cell_type == "code" else re.split("^(?=## )", cell.source, flags=re.M):
            if isinstance(part, str) and part.startswith("## "):
                sections.append([])
            if isinstance(part, str) or part.outputs:
                sections[-1].append(part)
    for section in sections:
        last = max((i for i, part in enumerate(section) if isinstance(part, str) and FOLDED.search(part)), default=0)
        asked = False
        for i, part in enumerate(section):
            if isinstance(part, str):
                asked = asked or bool(ASKS.search(part))
            elif asked:
                if "guess" not in tags(part):
                    yield part.id
                asked = i < last


def broken_links(file):
    cells = nbformat.read(file, as_version=4).cells if file.suffix == ".ipynb" else []
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown") or file.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text)
    return [target for target in targets if not (file.parent / target).exists()]


@every_lesson
def test_every_variant_runs_and_the_checkers_say_what_they_should(path):
    run = subprocess.run(
        [sys.executable, LESSONS / "rehearse.py", path.stem], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr


@every_lesson
def test_a_source_follows_the_rules(path):
    assert not list(problems(read(path)))


@every_lesson
@pytest.mark.parametrize("solved", [False, True], ids=["student", "solved"])
def test_a_product_is_fresh_small_and_executed(path, solved):
    lesson = read(path)
    file = lesson.product(solved)
    assert not build.is_stale(lesson, solved), f"python lessons/build.py {lesson.name}"
    assert file.stat().st_size <= build.LARGEST
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert not any(role(cell) == "wrong" for cell in notebook.cells)
    assert all(set(found) == {"ok" if solved else "todo"} for found in verdicts(notebook))
    assert any("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))
    assert not broken_links(file)
    assert not repeated_numbers(notebook)


@every_lesson
def test_what_the_reader_is_to_guess_is_marked_and_shown_in_the_solved_notebook_only(path):
    student, solved = (nbformat.read(read(path).product(answers), as_version=4) for answers in (False, True))
    assert not list(given_away(solved))
    for notebook, shown in ((student, False), (solved, True)):
        assert all(bool(cell.outputs) == shown for cell in notebook.cells if "guess" in tags(cell))


def test_the_page_of_the_course_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == page([read(path) for path in SOURCES])
    assert not broken_links(PAGE)


def test_no_product_is_without_a_source():
    names = {path.stem for path in SOURCES}
    assert {file.stem for file in LESSONS.rglob("*.ipynb") if ".ipynb_checkpoints" not in file.parts} == names


# the builder


SOURCE = """{header}

# %% [markdown]
# [a](../tinymoe/tree.py) [b](https://example.org)
# %% tags=["exercise"]
stub
# %% tags=["solution"]
right
# %% tags=["wrong"]
first
# %% tags=["wrong"]
second
# %% tags=["check"]
check
"""


def written(folder, edit=lambda text: text):
    """A source with the header of the first lesson and four lines of code."""
    header = FIRST.read_text(encoding="utf-8").partition("\n\n")[0]
    path = folder / "77_small.py"
    path.write_text(edit(SOURCE.format(header=header)), encoding="utf-8")
    return path


def test_each_variant_has_one_answer(tmp_path):
    cells = read(written(tmp_path)).cells[1:]

    def texts(*answer):
        return [cell.source for cell in variant(cells, *answer)]

    assert texts("exercise") == ["stub", "check"]
    assert texts("solution") == ["right", "check"]
    assert texts("wrong") == ["first", "check"]
    assert texts("wrong", 1) == texts("wrong", 2) == ["second", "check"]


def test_what_is_said_to_mypy_reaches_no_reader(tmp_path):
    lesson = read(written(tmp_path, lambda text: text.replace("stub\n", "stub  # type: ignore[operator]  # why\n")))
    assert [cell.source for cell in lesson.cells if role(cell) == "exercise"] == ["stub  # why"]


def test_minutes_count_what_a_reader_reads_and_does():
    """150 words and 20 lines of code a minute, to the nearest 5; answers are not read, exercises take 8 minutes each."""

    def cell(text, kind="code", tags=()):
        new = nbformat.v4.new_code_cell if kind == "code" else nbformat.v4.new_markdown_cell
        return new(text, metadata={"tags": list(tags)})

    cells = [cell("word " * 1500, "markdown"), cell("line\n" * 200)]
    answers = [cell("line\n" * 1000, tags=[name]) for name in ("solution", "wrong")]
    exercise = cell("stub", tags=["exercise"])
    lesson = Lesson("01_x", [*cells, exercise, exercise, *answers], "t", "t", "b", [], [], [], {})
    assert (lesson.reading, lesson.practice) == (20, 15)


def test_links_lead_to_the_same_place_from_both_notebooks(tmp_path):
    lesson = read(written(tmp_path))
    student, solved = build.notebook(lesson, False), build.notebook(lesson, True)
    assert student.cells[1].source == "[a](../tinymoe/tree.py) [b](https://example.org)"
    assert solved.cells[2].source == "[a](../../tinymoe/tree.py) [b](https://example.org)"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('tags=["solution"]', "", "cells tagged exercise, solution, wrong"),
        ('tags=["solution"]', 'tags=["solved"]', r"\['solved'\] are no tags of a cell"),
        ('# %% tags=["check"]\ncheck\n', "", "cells tagged exercise, solution, wrong"),
        ("builds:", "makes:", "it must have"),
        ("tinymoe/gradcheck/slopes.py", "tinymoe/slope.py", "do not exist"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path, old, new, said):
    def edit(text):
        assert old in text
        return text.replace(old, new)

    with pytest.raises(ValueError, match=said):
        read(written(tmp_path, edit))


def test_unknown_rows_and_terms_brought_in_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no row 'M99'"):
        page([read(written(tmp_path, lambda text: text.replace("[M7]", "[M99]")))])
    with pytest.raises(ValueError, match="'weight' is a term of lesson 1 and of 77"):
        page([read(FIRST), read(written(tmp_path))])


@pytest.mark.parametrize(
    ("name", "text"),
    [("stderr", "DeprecationWarning"), ("stdout", "<object at 0x7f83404>"), ("stdout", f"{LESSONS}/README.md")],
)
def test_outputs_that_no_product_may_have_are_refused(name, text):
    output = nbformat.v4.new_output("stream", name=name, text=text)
    cell = nbformat.v4.new_code_cell("f()", id="cell-0", outputs=[output], execution_count=3)
    with pytest.raises(ValueError, match="cell-0"):
        build.cleaned(nbformat.v4.new_notebook(cells=[cell]))


def test_an_edited_product_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr("source.LESSONS", tmp_path)
    (tmp_path / "solutions").mkdir()
    lesson = Lesson("01_x", [], "t", "t", "b", [], [], [], {})
    assert build.is_stale(lesson, True)  # missing
    product = build.notebook(lesson, True)
    nbformat.write(product, lesson.product(True))
    assert not build.is_stale(lesson, True)
    product.cells[0].source += "edited"
    nbformat.write(product, lesson.product(True))
    assert build.is_stale(lesson, True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# ## Picture", "# ## Pictures", "the sections are"),
        ("# ## Next", "# ### Next", "the sections are"),
        ("<summary>Hint</summary>", "<summary>?</summary>", "no hint"),
        ("w, wide = 0.0, 1.0", "!pip install x", "'!' has no place"),
        ("w, wide = 0.0, 1.0", "import requests", "'requests' has no place"),
        ("w, wide = 0.0, 1.0", "#\n" * 20, "lines, at most 25"),
        ("slope: [斜率", "slope: [斜度", "the term slope 斜度"),
        ('斜率, "how much a result changes for a unit of change in an input"]', '斜率, ""]', "slope has no meaning"),
        ("# ### 1 · A better", "# ### A better", "the titles of exercises are"),
    ],
)
def test_a_broken_rule_is_found(tmp_path, old, new, said):
    text = FIRST.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / FIRST.name
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert any(said in problem for problem in problems(read(path)))


def test_numbers_repeated_in_prose_are_found():
    output = nbformat.v4.new_output("stream", name="stdout", text="loss 0.337\n")
    cells = [
        nbformat.v4.new_markdown_cell("## By hand\n\n0.337"),
        nbformat.v4.new_markdown_cell("## Code\n\nFrom 0.250 to 0.337."),
        nbformat.v4.new_code_cell("f()", outputs=[output]),
    ]
    assert repeated_numbers(nbformat.v4.new_notebook(cells=cells)) == {"0.337"}
    assert not repeated_numbers(nbformat.v4.new_notebook(cells=[cells[0], cells[2]]))


def test_an_output_that_gives_away_what_is_asked_is_found():
    def text(source):
        return nbformat.v4.new_markdown_cell(source)

    def code(name, *marks, shown=True):
        outputs = [nbformat.v4.new_output("stream", text="5")] * shown
        return nbformat.v4.new_code_cell("f()", id=name, metadata={"tags": list(marks)}, outputs=outputs)

    def found(*cells):
        return list(given_away(nbformat.from_dict({"cells": cells})))

    answer = text("<details><summary>The bug</summary>")
    bug, end = text("## Code\n\n## Spot the bug"), text("## Exercises")
    assert found(text("## Code\n\nGuess before you run."), code("silent", shown=False), code("a"), code("b")) == ["a"]
    assert found(text("Guess first."), code("a", "guess"), code("b"), end, code("c")) == []
    assert found(bug, code("a", "guess"), code("b"), answer, code("c"), code("d"), end, code("e")) == ["b", "c"]
    assert found(bug, code("a"), answer, answer, code("b", "guess"), text("The museum."), code("c"), end) == ["a"]
    assert found(text("## Code"), code("a"), answer, code("b")) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({}, []),
        ({"right": "[wrong]"}, ["exercise 1, solution: it must say [ok] and says '[wrong]'"]),
        ({"stub": "[ok]"}, ["exercise 1, exercise: it must say [todo] and says '[ok]'"]),
        ({"second": "[todo]"}, ["exercise 1, wrong answer 2: it must say [wrong] and says '[todo]'"]),
        ({"right": ""}, ["exercise 1, solution: it must say [ok] and says ''"]),
    ],
    ids=str,
)
def test_a_rehearsal_finds_verdicts_that_are_wrong(tmp_path, planted, said):
    marks = {"stub": "[todo]", "right": "[ok]", "first": "[wrong]", "second": "[wrong]"} | planted

    def edit(text):
        for name, mark in marks.items():
            text = text.replace(f"\n{name}\n", f"\nmark = {mark!r}\n")
        return text.replace("\ncheck\n", "\nprint(mark)\n")

    assert list(rehearse(read(written(tmp_path, edit)))) == [f"77_small, {problem}" for problem in said]


# the checker of exercises


X = np.random.default_rng(0).standard_normal((3, 4))


def operation(forward, derivative):
    def op(x):
        return forward(x), lambda dy: derivative(x, dy)

    return op


def raising(error):
    def function(x):
        raise error

    return function


def forgetful(x):
    def backward(dy):
        dx = np.where(x > 0, dy, 0)
        dx[2, 1] += 1e-3 * dy[2, 1]
        return (dx,)

    return ops.relu(x)[0], backward


def writing(x):
    x *= x > 0
    return x, lambda dy: (dy * (x > 0),)


FORWARD = ops.relu(X)[0]
LEARNERS = {
    "right": (ops.relu, "[ok]    exercise 7"),
    "a body of dots": (lambda x: None, "[todo]  exercise 7"),
    "not implemented": (raising(NotImplementedError), "[todo]  exercise 7"),
    "computes with dots": (lambda x: x * ..., "[todo]  exercise 7"),
    "dots returned": (operation(lambda x: ..., lambda x, dy: (...,)), "[todo]  exercise 7"),
    "dots in backward": (
        operation(lambda x: FORWARD, lambda x, dy: (...,)),
        "[todo]  exercise 7: y is right; now back",
    ),
    "no backward yet": (operation(lambda x: FORWARD, lambda x, dy: None), "[todo]  exercise 7: y is right; now back"),
    "dots times dy": (operation(lambda x: FORWARD, lambda x, dy: (dy * ...,)), "[todo]  exercise 7"),
    "y wrong": (operation(np.abs, lambda x, dy: (dy,)), "[wrong] exercise 7: y at [0, 1] is 0.132105; expected 0"),
    "y of another shape": (operation(lambda x: x[0], None), "[wrong] exercise 7: y has shape (4,); expected (3, 4)"),
    "dx wrong": (operation(lambda x: ops.relu(x)[0], lambda x, dy: (dy,)), "[wrong] exercise 7: dx at ["),
    "dx slightly wrong": (forgetful, "[wrong] exercise 7: dx at [2, 1]: the measured slope is "),
    "no tuple": (operation(lambda x: ops.relu(x)[0], lambda x, dy: dy), "it must return a tuple (dx,)"),
    "writes to x": (writing, "[wrong] exercise 7: an array that was passed in is written to"),
    "only y": (lambda x: x, "[wrong] exercise 7: the function must return two things: y, backward"),
    "raises": (lambda x: (1 / 0, x), "[wrong] exercise 7: ZeroDivisionError: division by zero (line "),
    "takes no x": (lambda: None, "[wrong] exercise 7: TypeError"),
    "no function": (None, "[wrong] exercise 7: TypeError: 'NoneType' object is not callable"),
}


@pytest.mark.parametrize(("function", "said"), LEARNERS.values(), ids=LEARNERS)
def test_the_checker_says_what_is_the_matter(function, said, capsys):
    check_exercise(7, function, X, like=ops.relu)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert said in printed


@pytest.mark.parametrize(
    ("result", "expected", "said"),
    [
        (np.array([1, 2, 3]), np.array([1, 2, 3]), "[ok]"),
        (np.array([1, 3, 2]), np.array([1, 2, 3]), "the result at [1] is 3; expected 2"),
        ([[1.0, 2.0], [3.0, 5.0]], np.array([[1.0, 2.0], [3.0, 4.0]]), "the result at [1, 1] is 5; expected 4"),
        (1.0 + 1e-12, 1.0, "[ok]"),
        (1.1, 1.0, "the result is 1.1; expected 1"),
        (1.000001, 1.0, "the result is 1.000001; expected 1"),
        (1.0000002, 1.0, "the result is 1.0000002; expected 1"),
        (np.array([np.nan, np.inf]), np.array([np.nan, np.inf]), "[ok]"),
        (np.array([0.0, np.nan]), np.array([0.0, 1.0]), "the result at [1] is nan; expected 1"),
        (np.array([0.0, -np.inf]), np.array([0.0, np.inf]), "the result at [1] is -inf; expected inf"),
        ((1.0, np.array([True, False])), (1.0, np.array([True, True])), "the result[1] at [1] is 0; expected 1"),
        (1.0, (1.0, 2.0), "the result must have 2 parts, not 1"),
        ((1.0, print), 1.0, "the result must be one value, not 2 parts"),
        ("cat", "cat", "[ok]"),
        ("cat", "dog", "the result is 'cat'; expected 'dog'"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "[ok]"),
        ((1.0, None), (1.0, 2.0), "[todo]"),
    ],
)
def test_the_checker_compares_values(result, expected, said, capsys):
    check_exercise(1, lambda: result, like=lambda: expected, gradients=False)
    assert said in capsys.readouterr().out


def test_a_learner_can_not_pass_by_writing_to_the_inputs(capsys):
    """Each call has its own copies, so a function that zeroes its input doesn't zero the reference's."""

    def zeroing(x):
        x[:] = 0
        return x

    check_exercise(1, zeroing, X, like=lambda x: x + 1 - 1, gradients=False)
    assert "[wrong]" in capsys.readouterr().out
    assert X.all()


# pictures


def test_a_picture_is_the_same_bytes_every_time(capsys, monkeypatch):
    shown: list[Any] = []
    monkeypatch.setattr("lesson_tools.display", shown.append)
    for _ in range(2):
        figure, axes = new_figure()
        axes.plot([1, 2])
        axes.set(xlabel="step", ylabel="loss in nats")
        show(figure, alt="a line")
    assert shown[0].data == shown[1].data
    assert shown[0].data[:4] == b"\x89PNG"


def test_axes_of_categories_are_shown(monkeypatch):
    shown: list[Any] = []
    monkeypatch.setattr("lesson_tools.display", shown.append)
    figure, axes = new_figure()
    axes.bar(["dense", "sparse"], [1, 2])
    axes.set(xlabel="model", ylabel="loss in nats")
    show(figure, alt="two bars")
    assert len(shown) == 1


def test_axes_without_a_name_are_refused():
    figure, axes = new_figure(2, sharex=True)
    axes[0].set(ylabel="loss in nats")  # its x axis has no numbers, the lower one's are shared
    axes[1].set(ylabel="share")
    with pytest.raises(ValueError, match="x axis has numbers and no label"):
        show(figure, alt="")
    axes[1].set(xlabel="step")
    show(figure, alt="")
