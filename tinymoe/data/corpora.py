"""Text to train on, all of it already on the machine."""

import ast
import hashlib
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError
from . import toy


class CorpusError(UserError):
    """A corpus that can't be used; the message says why and what to do."""


class Corpus(NamedTuple):
    name: str
    text: str
    entropy: float | None = None  # nats per byte, where it is known


class Split(NamedTuple):
    """Text as tokens, (n,) uint8: its UTF-8 bytes, a vocabulary of 256 that fits any text."""

    name: str
    train: np.ndarray
    val: np.ndarray  # never trained on
    sha256: str
    entropy: float | None


VALIDATION = 0.1  # the last tenth of each corpus


def load_split(names: tuple[str, ...], context: int, seed: int = 0) -> Split:
    """Read corpora and join them, the last tenth of each as validation text.

    Raises CorpusError when either part is too short for one window of `context` tokens and its targets.
    """
    corpora = [load(name, seed) for name in names]
    tokens = [np.frombuffer(c.text.encode(), np.uint8) for c in corpora]
    cuts = [len(t) - int(len(t) * VALIDATION) for t in tokens]
    train = np.concatenate([t[:cut] for t, cut in zip(tokens, cuts, strict=True)])
    val = np.concatenate([t[cut:] for t, cut in zip(tokens, cuts, strict=True)])
    if min(len(train), len(val)) <= context:
        raise CorpusError(
            f"the text has {len(train) + len(val)} bytes; with windows of {context} its last tenth, which is "
            f"kept for validation, needs at least {context + 1}: give more text or a smaller --context"
        )
    digest = hashlib.sha256(b"".join(t.tobytes() for t in tokens)).hexdigest()
    entropy = corpora[0].entropy if len(corpora) == 1 else None
    return Split("+".join(c.name for c in corpora), train, val, digest, entropy)


def is_name(corpus: str) -> bool:
    """Whether a corpus is known by name, and not the path of a file."""
    return corpus in ("pydoc", "toy") or corpus.startswith("docstrings:")


def load(name: str, seed: int = 0) -> Corpus:
    """Read a corpus by name.

    name   `pydoc`, `toy`, `docstrings:PACKAGE`, or the path of a UTF-8 text file or of a folder of such files

    Raises CorpusError, with one sentence, for anything that is missing, empty, or not text.
    """
    if name == "pydoc":
        corpus = _pydoc()
    elif name == "toy":
        corpus = _toy(seed)
    elif name.startswith("docstrings:"):
        corpus = Corpus(name, _docstrings(name.removeprefix("docstrings:")))
    else:
        corpus = Corpus(name, _read(Path(name)))
    if not corpus.text.strip():
        raise CorpusError(f"the corpus {name} is empty; name a file with text in it")
    return corpus


def _pydoc() -> Corpus:
    """The standard library's own documentation; a few distributions leave it out, and then the toy text serves."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        print("pydoc_data is not installed with this Python; training on the generated toy corpus instead")
        return load("toy")
    return Corpus("pydoc", "\n\n".join(topics[key] for key in sorted(topics)))


def _toy(seed: int) -> Corpus:
    return Corpus("toy", toy.generate(1_000_000, np.random.default_rng(seed)).text, toy.entropy_rate())


def _docstrings(package: str) -> str:
    """The docstrings of an installed package, read from its source; what this Python can't parse is left out."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise CorpusError(f"no package {package!r} is installed here, so it has no docstrings to read")
    source = spec.origin if spec.has_location else getattr(spec.loader_state, "filename", None)  # the latter for os
    if source is None or not Path(source).is_file():
        raise CorpusError(f"the package {package!r} has no source file whose docstrings could be read")
    folder = Path(source).parent if spec.submodule_search_locations else None
    found = []
    for file in sorted(folder.rglob("*.py")) if folder else [Path(source)]:
        try:
            module = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, or a file for another Python
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) for node in ast.walk(module) if isinstance(node, documented)]
    return "\n\n".join(text for text in found if text)


def _read(path: Path) -> str:
    try:
        return "\n\n".join(_read_file(file) for file in (_files(path) if path.is_dir() else [path]))
    except (OSError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(
            f"can't read the corpus {path}: {getattr(error, 'strerror', None) or error}; name a file or folder of text, "
            "or pydoc, toy or docstrings:PACKAGE"
        ) from None


def _files(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their names, but for hidden ones. Raises OSError for what can't be read."""

    def give_up(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _read_file(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file} is not UTF-8 text (byte {error.start}); convert it, or name only text files"
        ) from None
    if "\0" in text:
        raise CorpusError(f"{file} is binary (it has a zero byte at {text.index(chr(0))}); name only text files")
    return text
