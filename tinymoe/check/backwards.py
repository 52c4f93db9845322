"""Which functions carry gradients back: those that the source holds, found by reading it, and those that ran.

A function or lambda is a backward if it has the form that the package gives them:

    its name is `backward`, or ends in `_backward`;  or it is returned last in a tuple, `return y, back`;  or it takes `dy`
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = {"systems/museum": "it keeps wrong ones on purpose"}

Place = tuple[str, int]  # a file, by its path from the package's folder, and the line where a function begins


class Written(NamedTuple):
    """A backward, as it stands in a file."""

    file: str
    line: int
    name: str  # with the functions around it: attention.heads.backward

    @property
    def place(self) -> Place:
        return self.file, self.line

    def __str__(self) -> str:
        return f"tinymoe/{self.file}:{self.line} {self.name}"


def written() -> list[Written]:
    """Every backward in the files of the package, but for what is `LEFT_OUT`."""
    files = {file.relative_to(PACKAGE).as_posix(): file for file in sorted(PACKAGE.rglob("*.py"))}
    return [
        Written(name, *found)
        for name, file in files.items()
        if not any(name.startswith(folder + "/") for folder in LEFT_OUT)
        for found in in_source(file.read_text(encoding="utf-8"))
    ]


def in_source(text: str) -> list[tuple[int, str]]:
    """(first line, name) of every backward in a file."""
    tree = ast.parse(text)
    last = {node for function in ast.walk(tree) for node in _returned_last(function)}
    found = []

    def visit(node: ast.AST, around: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = around
            if isinstance(child, ast.FunctionDef | ast.Lambda | ast.ClassDef):
                name = "lambda" if isinstance(child, ast.Lambda) else child.name
                inside = f"{around}.{name}".lstrip(".")
                if child in last or _looks_like_one(child):
                    decorators = [] if isinstance(child, ast.Lambda) else child.decorator_list
                    found.append((min(n.lineno for n in (child, *decorators)), inside))
            visit(child, inside)

    visit(tree, "")
    return found


def _looks_like_one(node: ast.AST) -> bool:
    named = isinstance(node, ast.FunctionDef) and (node.name == "backward" or node.name.endswith("_backward"))
    return named or (isinstance(node, ast.FunctionDef | ast.Lambda) and "dy" in [a.arg for a in node.args.args])


def _returned_last(function: ast.AST) -> Iterator[ast.AST]:
    """The functions written inside this one that stand last in a tuple that it returns."""
    if not isinstance(function, ast.FunctionDef | ast.Lambda):
        return
    inside = list(ast.walk(function))[1:]
    returns = [node.value for node in inside if isinstance(node, ast.Return)]
    for value in _branches([function.body] if isinstance(function, ast.Lambda) else returns):
        for last in _branches(value.elts[-1:] if isinstance(value, ast.Tuple) else []):
            if isinstance(last, ast.Lambda):
                yield last
            elif isinstance(last, ast.Name):
                yield from (node for node in inside if isinstance(node, ast.FunctionDef) and node.name == last.id)


def _branches(values: Iterable[ast.expr | None]) -> Iterator[ast.expr | None]:
    """The values themselves, and of `a if c else b` both that it may be."""
    for value in values:
        yield from _branches([value.body, value.orelse]) if isinstance(value, ast.IfExp) else [value]


@contextmanager
def running() -> Iterator[set[Place]]:
    """A set that fills with the places of the package's functions that are called meanwhile."""
    called: set[tuple[str, int]] = set()
    ran: set[Place] = set()

    def note(frame, event, _) -> None:
        if event == "call":
            called.add((frame.f_code.co_filename, frame.f_code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield ran
    finally:
        sys.setprofile(before)
        for name, line in called:
            if Path(name).is_relative_to(PACKAGE):
                ran.add((Path(name).relative_to(PACKAGE).as_posix(), line))
