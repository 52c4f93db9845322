"""Notebooks that can't go stale: executed again, each shows what it is kept with; and what a comparison lets pass."""

import base64
import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest

from tests.conftest import ROOT

LESSONS = ROOT / "lessons"
sys.path.insert(0, str(LESSONS))

from build import is_stale, made  # noqa: E402
from compare import agree, close, differences, machine  # noqa: E402
from source import read, sources  # noqa: E402

QUICK, TIMED = read(sources()[1]), read(sources()[15])


def kept(lesson, solved):
    return nbformat.read(lesson.product(solved), as_version=4)


def problems(lesson, solved):
    """What a product, executed again, shows in another way than it is kept with."""
    file = lesson.product(solved)
    if is_stale(lesson, solved):
        return [f"{file.relative_to(LESSONS)} is stale: python lessons/build.py"]
    old, new = kept(lesson, solved), made(lesson, solved)
    here = old.metadata.made_with == new.metadata.made_with
    return [f"{file.relative_to(LESSONS)}, {problem}" for problem in differences(new, old, here)]


@pytest.mark.slow
@pytest.mark.parametrize("path", sources(), ids=[path.stem for path in sources()])
def test_executed_again_both_notebooks_show_what_they_are_kept_with(path):
    lesson = read(path)
    with ThreadPoolExecutor() as pool:  # each waits for a kernel of its own
        student, solved = pool.map(problems, [lesson, lesson], [False, True])
    assert not student + solved


@pytest.mark.slow
def test_the_notebooks_are_compared_to_the_letter():
    makers = {kept(read(path), solved).metadata.made_with for path in sources() for solved in (False, True)}
    if others := makers - {machine()}:
        pytest.skip(
            f"here is {machine()}, and notebooks were made with {others}: rounded numbers were allowed to differ"
        )


def test_a_notebook_executed_again_shows_what_it_is_kept_with():
    """In a kernel, where a learner runs it. The other notebooks take minutes: `pytest -m slow`."""
    assert not problems(QUICK, True)


@pytest.mark.parametrize(
    ("new", "old", "here", "elsewhere", "timed"),
    [  # whether they agree: where the old one was made, on another machine, in a cell tagged `timed`
        ("loss 0.337", "loss 0.337", True, True, True),
        ("loss 0.337", "loss 0.338", False, True, True),
        ("loss 0.337", "loss 0.339", False, False, True),
        ("loss 0.337", "cost 0.337", False, False, False),
        ("loss 0.337", "loss 0.337 nats", False, False, False),
        ("loss 0.337", "", False, False, False),
        ("loss -0.001", "loss  0.000", False, True, True),
        ("gain +0.021", "gain -0.021", False, False, True),
        ("3 of 12", "4 of 12", False, False, True),
        ("expert 3", "expert 30", False, False, True),
        ("1,443 rows", "1,444 rows", False, False, True),
        ("1,443.5 kB", "1,443.6 kB", False, True, True),
        ("error 1.5e-12", "error 9.6e-12", False, True, True),
        ("error 1.5e-06", "error 1.7e-06", False, False, True),
        ("error 1e-06", "error 2e-06", False, True, True),
        ("1.1235608051967718", "1.123560805196773", False, True, True),
        ("1.1235608", "1.1235618", False, False, True),
        ("[0.5  1.  ]", "[0.5 0.99]", False, True, True),
        ("took  9.81 ms", "took 10.02 ms", False, False, True),
        ("matrix W1", "matrix W2", False, False, False),
    ],
)
def test_lines_agree_by_the_rule(new, old, here, elsewhere, timed):
    assert agree(new, old, exact=True, timed=False) == here
    assert agree(new, old, exact=False, timed=False) == elsewhere
    assert agree(new, old, exact=True, timed=True) == agree(new, old, exact=False, timed=True) == timed


def test_numbers_that_are_written_in_two_ways_are_one():
    assert close("1,443", "1443") and close("−2", "-2") and close("4.", "4") and close("5e-03", "0.005")


def text(words):
    return nbformat.v4.new_output("stream", text=words)


def picture(width=700, dots=b"", alt="a falling line"):
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + width.to_bytes(4) + (320).to_bytes(4) + dots
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": "<IPython.core.display.Image object>"}
    return nbformat.v4.new_output("display_data", data=data, metadata={"image/png": {"alt": alt}})


def found(new, old, *marks, here=True):
    """What `differences` says of a cell that shows the outputs `new` and is kept with `old`."""

    def notebook(outputs):
        metadata = {"tags": list(marks)}
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(id="a", metadata=metadata, outputs=outputs)])

    return list(differences(notebook(new), notebook(old), here))


def test_what_has_changed_is_found_in_its_cell():
    new, old = [text("step 1\nloss 0.5\n")], [text("step 1\nloss 0.7\n")]
    said = ["a prints 'loss 0.5', and is kept with 'loss 0.7'"]
    assert found(new, old) == found(new, old, here=False) == found(new, old, "trained") == said
    assert found(new, old, "timed") == found(new, old, "trained", here=False) == []
    assert found(new, [text("step 1\n")]) == ["a prints 'loss 0.5', and is kept with ''"]


@pytest.mark.parametrize("marks", [(), ("timed",), ("trained",)], ids=str)
def test_pictures_and_kinds_of_outputs_are_compared_in_every_cell(marks):
    assert found([text("x"), picture(dots=b"other")], [text("x"), picture()], *marks, here=False) == []
    for changed in ([picture(width=701)], [picture(alt="a rising line")], [text("x")], []):
        (said,) = found(changed, [picture()], *marks, here=False)[:1]
        assert said.startswith("a shows ")


@pytest.mark.parametrize(
    ("start", "caught"), [("(1) 2.25 bits", True), ("loss ", True), ("mixture            median", False)]
)
def test_in_a_kept_notebook_a_changed_number_is_found_and_a_changed_time_is_not(start, caught):
    old = kept(TIMED, True)
    new = copy.deepcopy(old)
    (output,) = (o for cell in new.cells for o in cell.get("outputs", []) if o.get("text", "").startswith(start))
    output.text = output.text.translate(str.maketrans("0123456789", "1234567890"))
    assert bool(list(differences(new, old, here=True))) == caught
