"""Rehearse lessons: run them as a learner without answers, with each wrong answer, and with the solutions.

    python lessons/rehearse.py 01         lessons whose names begin so; all if no name is given

No notebook and no kernel: the cells run one after another in this process, warnings are errors, and pictures are drawn
but not kept. What stands before the first exercise runs once, the rest once for each variant. Exits 1 if a checker
doesn't say `[todo]`, `[wrong]` and `[ok]` where it should.
"""

import contextlib
import io
import linecache
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from source import LESSONS, Lesson, read, role, sources, variant

VERDICT = re.compile(r"^\[(todo|ok|wrong)\]", re.M)


def rehearse(lesson: Lesson) -> Iterator[str]:
    """What is wrong with the verdicts, in words. A cell that raises, raises."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    roles = [role(cell) for cell in lesson.cells]
    first = roles.index("exercise") if "exercise" in roles else len(roles)
    run(lesson.cells[:first], namespace, lesson.name)
    rest = lesson.cells[first:]
    most = max((len(list(group)) for name, group in groupby(roles) if name == "wrong"), default=0)
    for answer, number, mark in [
        ("exercise", 0, "todo"),
        *(("wrong", i, "wrong") for i in range(most)),
        ("solution", 0, "ok"),
    ]:
        checks = run(variant(rest, answer, number), namespace, f"{lesson.name}, {mark}")
        for exercise, printed in enumerate(checks, 1):
            found = VERDICT.findall(printed)
            if not (mark in found if mark == "wrong" else set(found) == {mark}):
                which = f"wrong answer {number + 1}" if mark == "wrong" else answer
                yield f"{lesson.name}, exercise {exercise}, {which}: it must say [{mark}] and says {printed.strip()!r}"


def run(cells: list[Any], namespace: dict[str, Any], title: str) -> list[str]:
    """Run the code cells in the namespace; what those tagged `check` print."""
    checks = []
    for position, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        file = f"<{title}, cell {position}>"
        linecache.cache[file] = (len(cell.source), None, cell.source.splitlines(keepends=True), file)  # for tracebacks
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell.source, file, "exec"), namespace)
        if role(cell) == "check":
            checks.append(printed.getvalue())
    return checks


def main(names: tuple[str, ...]) -> int:
    problems: list[str] = []
    os.chdir(LESSONS)
    warnings.simplefilter("error")
    for path in sources():
        if path.stem.startswith(names or ("",)):
            start = time.perf_counter()
            problems += rehearse(read(path))
            print(f"{path.stem}  {time.perf_counter() - start:.1f} s")
    print(*problems, sep="\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
