"""What stands around the code: one version, links and names that lead somewhere, a workflow that has nothing of its own."""

import importlib.util
import re
from pathlib import Path

import pytest

import tinymoe
from tests.test_layout import BUILT, COMMANDS, LAYERS

PROJECT = Path(__file__).parents[1]
PAGES = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md")]


def read(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def test_there_is_one_version():
    assert re.findall(r"^version: (.+)$", read("CITATION.cff"), re.M) == [tinymoe.__version__]
    assert re.findall(r"^## ([\d.]+)", read("CHANGELOG.md"), re.M)[0] == tinymoe.__version__


def test_type_checkers_are_told_that_the_package_has_types():
    assert (Path(tinymoe.__file__).parent / "py.typed").is_file()


def test_the_workflow_only_runs_what_anybody_can_run():
    assert re.findall(r"run: (.+)", read(".github/workflows/ci.yml")) == ["bash .ci/run"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    """In code quotes, from the project's root, in full."""
    names = re.findall(r"`((?:tinymoe|tests|lessons|docs|\.ci)/[\w./]*)`", page.read_text(encoding="utf-8"))
    assert not [name for name in names if not (PROJECT / name).exists()]


def test_the_house_is_described_as_it_is():
    (rooms,) = re.findall(r"```text\n(.*?)```", read("CONTRIBUTING.md"), re.S)
    assert [line.split()[1:] for line in rooms.splitlines()] == [LAYERS, BUILT, COMMANDS]


def test_tests_that_are_named_are_there():
    named = set(re.findall(r"`(test_\w+)`", read("CONTRIBUTING.md")))
    tests = "\n".join(file.read_text(encoding="utf-8") for file in PROJECT.glob("tests/**/*.py"))
    assert named
    assert named <= set(re.findall(r"^def (test_\w+)", tests, re.M))


def test_what_is_said_to_be_in_a_file_is_defined_there():
    said = re.findall(r"`(\w+)`\s+(?:in|of)\s+\[`([\w./]+)`\]", read("CONTRIBUTING.md"))
    assert len(said) > 5
    assert not [(name, file) for name, file in said if not re.search(rf"^(def |class )?{name}\b", read(file), re.M)]


def test_modules_that_moved_are_where_the_changelog_says():
    moves = re.findall(r"^\| `tinymoe.*\| (`tinymoe.*)\|$", read("CHANGELOG.md"), re.M)
    modules = re.findall(r"`(tinymoe[\w.]*)`", "".join(moves))
    assert len(modules) > 30
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
