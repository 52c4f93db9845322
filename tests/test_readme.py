"""What the README shows is what the code is and does."""

import inspect
import re
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise

from tests.conftest import ROOT
from tests.test_layout import ROOMS
from tinymoe import ops
from tinymoe.models.config import ROUTERS
from tinymoe.systems.museum import MUSEUM

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)


def test_the_operation_is_that_of_the_package():
    source = inspect.getsource(ops.rms_norm)
    without_docstring = re.sub(r'    """.*?"""\n', "", source, count=1, flags=re.S)
    assert ("python", without_docstring) in BLOCKS


def test_the_checker_says_what_is_printed():
    code, text = next((a[1], b[1]) for a, b in pairwise(BLOCKS) if b[0] == "text")
    with redirect_stdout(StringIO()) as printed:
        exec(code, {})
    assert printed.getvalue() == text


def test_the_map_names_every_room_and_the_numbers_are_right():
    rooms = set(re.findall(r"`(\w+)(?:/|\.py)`", README.partition("## A map")[2].partition("**One idea")[0]))
    assert rooms >= set(ROOMS) - {"types", "errors"}  # which need no place on a map
    numbers = {"Eleven of them": len(ROUTERS) == 11, "26 bugs": len(MUSEUM) == 26}
    lessons = len(list((ROOT / "lessons/src").glob("*.py")))
    for text, right in (numbers | {f"{lessons} lessons": True}).items():
        assert text in README and right, text
