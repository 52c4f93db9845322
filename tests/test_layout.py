"""The architecture: imports point one way, no framework comes in, and importing the package is light."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinymoe
from tinymoe import __main__ as front_door
from tinymoe.errors import UserError

PACKAGE = Path(tinymoe.__file__).parent
PROJECT = PACKAGE.parent
LAYERS = ["types", "errors", "sparse", "ops", "tree", "gradcheck", "data", "optim", "models", "runs"]
BUILT = ["estimator", "documents", "systems"]
COMMANDS = ["golden", "train", "evaluate", "recipes", "generate", "study", "bench", "check"]  # the last runs all
ROOMS = [*LAYERS, *BUILT, *COMMANDS]  # of the package, each knowing only those before it
FORBIDDEN = {"torch", "tensorflow", "jax", "keras", "autograd", "cupy", "numba", "mxnet", "flax", "tinygrad", "theano"}

Sources = dict[Path, str]


def sources() -> Sources:
    """The text of every Python file of the package and of the lessons, by its path from the project's root."""
    files = [*PACKAGE.rglob("*.py"), *(PROJECT / "lessons").rglob("*.py")]
    return {file.relative_to(PROJECT): file.read_text(encoding="utf-8") for file in sorted(files)}


def imported(file: Path, text: str) -> tuple[set[str], set[str]]:
    """Dotted names that a file imports, at any depth of its code, for types only or not: (ours, the roots of others)."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = list(file.parts[: len(file.parts) - node.level]) if node.level else []
            base = ".".join(above + ([node.module] if node.module else []))
            names |= {f"{base}.{alias.name}" for alias in node.names}
    ours = {name for name in names if name.split(".")[0] == "tinymoe" or (file.parts[0] == "lessons")}
    return ours, {name.split(".")[0] for name in names}


def graph(texts: Sources) -> dict[Path, set[Path]]:
    """The files that each file imports."""

    def file_of(name: str, importer: Path) -> Path | None:
        """Where a dotted name leads: a module, the folder of one, or something in a module."""
        path = Path(*name.split("."))
        beside = [Path("lessons")] if importer.parts[0] == "lessons" else []
        for place in [*beside, Path()]:
            for whole in (place / path, place / path.parent):
                for file in (whole.parent / f"{whole.name}.py", whole / "__init__.py"):
                    if file in texts:
                        return file
        return None

    return {
        file: {found for name in imported(file, text)[0] if (found := file_of(name, file)) and found != file}
        for file, text in texts.items()
    }


def room(file: Path) -> str | None:
    """Of a file of the package; None for its front door (what it is and which commands it has) and for the lessons."""
    inside = file.parts[0] == "tinymoe" and file.parts[1] not in ("__init__.py", "__main__.py")
    return file.with_suffix("").parts[1] if inside else None


def problems(texts: Sources) -> list[str]:
    """Imports that run back up, and circles, in words."""
    arrows, found = graph(texts), []
    for file, others in arrows.items():
        for other in others:
            here, there = room(file), room(other)
            if here and there and here != there and ROOMS.index(there) > ROOMS.index(here):
                found.append(f"{file} imports {other}, which does not stand above it")
            if file.parts[0] == "tinymoe" and other.parts[0] == "lessons":
                found.append(f"{file} imports a lesson, {other}")
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        found.append("a circle: " + " → ".join(map(str, error.args[1])))
    return found


def test_imports_point_one_way():
    assert not problems(sources())


def test_every_room_is_listed_and_they_are_few():
    here = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert here - {"__init__", "__main__"} == set(ROOMS)
    assert len(ROOMS) <= 21  # and the front door, `__init__`


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("tinymoe/recipes/search.py", "from .commands import Job"),  # recipes ↔ search
        ("lessons/page.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from build import Lesson"),
        ("tinymoe/sparse/base.py", "def to_csr():\n    from .formats import CSR"),
        ("tinymoe/ops/linear.py", "from ..models import config"),
        ("tinymoe/optim/updates.py", "import tinymoe.train.arguments"),
    ],
)
def test_a_circle_or_an_import_that_runs_back_up_is_found(file, planted):
    texts = sources()
    texts[Path(file)] += "\n" + planted + "\n"
    assert problems(texts)


@pytest.mark.parametrize("file", [file for file in sources() if file.parts[0] == "tinymoe"], ids=str)
def test_no_framework_is_imported(file):
    assert not imported(file, sources()[file])[1] & FORBIDDEN


def test_importing_the_package_and_its_operations_loads_numpy_and_nothing_heavy():
    code = "import tinymoe, tinymoe.ops, sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "numpy" in loaded
    assert not {"matplotlib", "scipy", "tqdm", "safetensors"} & set(loaded)


def test_the_front_door_lists_every_command_with_what_it_does():
    """With -OO too, which takes docstrings away: they are read from the source."""
    shown = subprocess.run(
        [sys.executable, "-OO", "-m", "tinymoe"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    found = dict(re.findall(r"^  (\w+) +(\S.+)$", shown, re.M))
    assert set(found) == set(COMMANDS)
    for name in COMMANDS:
        file = PACKAGE / name / "__main__.py" if (PACKAGE / name).is_dir() else PACKAGE / f"{name}.py"
        text = file.read_text(encoding="utf-8")
        assert re.match(rf'"""python -m tinymoe\.{name}\b.*: {re.escape(found[name])}\n', text), name
        assert '\nif __name__ == "__main__":\n' in text, name


def test_a_command_given_to_the_front_door_is_answered_with_how_to_run_it():
    with pytest.raises(UserError, match=r"'train' is not taken here; .* python -m tinymoe\.train"):
        front_door.main(["train", "--steps", "3"])
