"""Build the lessons: from src/NN_name.py the student's notebook, the solved one, and README.md, the course's page.

    python lessons/build.py               all
    python lessons/build.py 01 04         those whose names begin so, and the page
    python lessons/build.py --check       builds nothing; exits 1 if a source gives another product, outputs apart
    python -m pytest -m slow              executes all again; fails if one shows something else than what is kept

A source is a script in jupytext's percent format, and the only file to edit. What its header and the tags of its cells
mean is said in source.py; by what rule outputs are compared, in compare.py.
"""

import argparse
import asyncio
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from compare import machine
from page import PAGE, page
from source import LESSONS, Lesson, read, sources, tags, variant

LARGEST = 300_000  # bytes of a notebook
VARIES = re.compile(rf"0x[0-9a-f]{{6,}}|{re.escape(str(LESSONS.parent))}|{re.escape(str(Path.home()))}/")


def notebook(lesson: Lesson, solved: bool) -> Any:
    """The product before it is executed. The same source gives the same bytes."""
    up = "../" if solved else ""
    other = f"[without the solutions](../{lesson.name}.ipynb)" if solved else f"[solved](solutions/{lesson.name}.ipynb)"
    heading = f"# {lesson.number} · {lesson.title} {lesson.chinese}{' · solved' if solved else ''}"
    time = f"About {lesson.reading} minutes to read, {lesson.practice} for the exercises"
    about = f"{time} · [the course]({up}README.md) · this lesson {other}"
    cells = [nbformat.v4.new_markdown_cell(f"{heading}\n\n{about}")]
    if solved:
        setup = 'import sys\n\nsys.path.append("..")  # where lesson_tools.py is'
        cells.append(nbformat.v4.new_code_cell(setup, metadata={"tags": ["setup"]}))
    for cell in variant(lesson.cells, "solution" if solved else "exercise"):
        if cell.cell_type == "markdown":
            text = re.sub(r"\]\((?!https?:|#)", f"]({up}", cell.source)  # links, from where the product is
            cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            kept = {"tags": list(cell.metadata["tags"])} if "tags" in cell.metadata else {}
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata=kept))
    for position, cell in enumerate(cells):
        cell.id = f"cell-{position}"
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata())


def metadata() -> dict[str, Any]:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"kernelspec": kernel, "language_info": {"name": "python"}}


def executed(product: Any, folder: Path) -> Any:
    """The notebook with its outputs, run in a fresh kernel in the folder where it belongs."""
    client = NotebookClient(
        product,
        timeout=300,  # seconds a cell
        kernel_name="python3",
        extra_arguments=["--log-level=40"],  # errors only
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    environment = os.environ | {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    asyncio.run(client.async_execute(env=environment))  # `execute` would leave its event loop open
    return cleaned(product)


def cleaned(product: Any) -> Any:
    """An executed notebook without what differs from one execution to the next.

    Raises ValueError for a warning or another message on stderr, an address in memory, or a place on this machine.
    """
    for cell in product.cells:
        for output in cell.get("outputs", []):
            shown = str(output.get("text", output.get("data", {}).get("text/plain")))
            if output.get("name") == "stderr":
                raise ValueError(f"{cell.id} says on stderr: {shown}")
            if found := VARIES.search(shown):
                raise ValueError(f"{cell.id} shows {found[0]!r}, which is not the same everywhere")
            if "execution_count" in output:
                output.execution_count = None
        if cell.cell_type == "code":
            cell.execution_count = None
    product.metadata = nbformat.from_dict(metadata())
    return product


def made(lesson: Lesson, solved: bool) -> Any:
    """The product as it is kept: executed, and in the student's what the reader is to guess without output."""
    product = executed(notebook(lesson, solved), lesson.product(solved).parent)
    product.metadata["made_with"] = machine()
    for cell in product.cells:
        if "guess" in tags(cell) and not solved:
            cell.outputs = []
    return product


def build(lesson: Lesson) -> None:
    for solved in (False, True):
        file, start = lesson.product(solved), time.perf_counter()
        file.parent.mkdir(exist_ok=True)
        text = nbformat.writes(made(lesson, solved)) + "\n"
        if len(text.encode()) > LARGEST:
            raise ValueError(f"{file.name} would have {len(text.encode())} bytes; at most {LARGEST} are allowed")
        file.write_text(text, encoding="utf-8")
        seconds = time.perf_counter() - start
        print(f"{file.relative_to(LESSONS)}  {len(text.encode()) // 1000} kB, {seconds:.0f} s")


def is_stale(lesson: Lesson, solved: bool) -> bool:
    """Whether a product is missing, or is not, but for its outputs, what the source gives."""
    file = lesson.product(solved)
    if not file.exists():
        return True
    product = nbformat.read(file, as_version=4)
    product.metadata.pop("made_with", None)
    for cell in product.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return bool(product != notebook(lesson, solved))


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the lessons from their sources.")
    parser.add_argument("names", nargs="*", help="beginnings of the names of lessons; all if none is given")
    parser.add_argument("--check", action="store_true", help="build nothing, exit 1 if a product is stale")
    arguments = parser.parse_args()
    lessons = [read(path) for path in sources()]
    names = tuple(arguments.names) or ("",)
    chosen = [lesson for lesson in lessons if lesson.name.startswith(names)]
    if not chosen:
        parser.error(f"no lesson begins with {' or '.join(names)}; there are {', '.join(p.stem for p in sources())}")
    if not arguments.check:
        for lesson in chosen:
            build(lesson)
        PAGE.write_text(page(lessons), encoding="utf-8")
    stale = [lesson.product(solved) for lesson in chosen for solved in (False, True) if is_stale(lesson, solved)]
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page(lessons):
        stale.append(PAGE)
    for file in stale:
        print(f"{file.relative_to(LESSONS)} is stale: python lessons/build.py")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
