"""Text to train on, all of it already on the machine."""

import ast
import hashlib
import os
import stat
import warnings
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import UserError, say
from . import toy


class CorpusError(UserError):
    """A corpus that can't be used; the message says why and what to do."""


class NotText(CorpusError):
    """A file that is none of text; in a folder it is passed over."""


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
NAMED = 5  # at most so many files that are passed over are named


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


def absolute(corpus: str) -> str:
    """The corpus as it can be named from any folder."""
    return corpus if is_name(corpus) else os.path.realpath(corpus)


def load(name: str, seed: int = 0) -> Corpus:
    """Read a corpus by name.

    name   `pydoc`, `toy`, `docstrings:PACKAGE`, or the path of a UTF-8 text file or of a folder with such files

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
    """The docstrings of an installed package or module, read from its source: nothing of it or of what it lies in is run."""
    found = []
    for file in _sources(package):
        try:
            with warnings.catch_warnings(action="ignore"):  # about what is written in it
                module = ast.parse(_bytes(file))
        except (SyntaxError, ValueError, RecursionError, MemoryError, NotText):
            continue  # a template, a file for another Python, or one nested too deep for the parser
        except OSError as error:
            raise CorpusError(f"can't read {file} of the package {package!r}: {error.strerror}") from None
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found += [ast.get_docstring(node) for node in ast.walk(module) if isinstance(node, documented)]
    text = "\n\n".join(text for text in found if text)
    return text.encode("utf-8", "ignore").decode()  # an escape can make half of a character, which no file can hold


def _sources(package: str) -> list[Path]:
    """The Python files of a package or module, found as an import would find them, but without importing its parents.

    `importlib.util.find_spec` would run them. Here each name is looked for in the folders of the one before it, the
    first on sys.path. Only folders and files are asked: what else may be among the finders of this Python can run code.
    """
    spec, folders = None, None
    for name in package.split("."):
        spec = PathFinder.find_spec(name, folders) if name.isidentifier() else None
        if spec is None:
            raise CorpusError(
                f"no package {package!r} is found in the folders of sys.path, so it has no docstrings to read"
            )
        folders = list(spec.submodule_search_locations or ())
    if folders:
        files = [file for folder in folders for file in sorted(Path(folder).rglob("*.py")) if file.is_file()]
    else:
        files = [Path(spec.origin)] if spec and isinstance(spec.loader, SourceFileLoader) and spec.origin else []
    if not files:
        raise CorpusError(f"the package {package!r} has no Python source whose docstrings could be read")
    return files


def _read(path: Path) -> str:
    """The text of a file, or of all the files of a folder that are text; the others are named."""
    try:
        if not path.is_dir():
            return _read_file(path)
        texts, others = [], []
        for file in _files(path):
            try:
                texts.append(_read_file(file))
            except NotText:
                others.append(str(file.relative_to(path)))
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"can't read the corpus {path}: {getattr(error, 'strerror', None) or error}; name a file or folder of text, "
            "or pydoc, toy or docstrings:PACKAGE"
        ) from None
    if not texts:
        raise CorpusError(
            f"no file in the folder {path} is UTF-8 text; name a file with text in it, or a folder of such"
        )
    if others:
        names = ", ".join(map(repr, others[:NAMED])) + (f" and {len(others) - NAMED} more" if others[NAMED:] else "")
        count = "1 file that is" if len(others) == 1 else f"{len(others)} files that are"
        say(f"passed over {count} not UTF-8 text in {path}: {names}")
    return "\n\n".join(texts)


def _files(folder: Path) -> list[Path]:
    """All files below a folder, in the order of their names, but for hidden ones and links that lead nowhere.

    Raises OSError for a folder that can't be read.
    """

    def give_up(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=give_up):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.exists())


def _read_file(file: Path) -> str:
    """Raises NotText, and OSError for what can't be read."""
    try:
        text = _bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotText(f"{file} is not UTF-8 text (byte {error.start}); convert it, or name only text files") from None
    if "\0" in text:
        raise NotText(f"{file} is binary (it has a zero byte at {text.index(chr(0))}); name only text files")
    return text


def _bytes(file: Path) -> bytes:
    """What a file holds. A device or a pipe is not even opened: it could block, have no end, or do something."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise NotText(f"{file} is not a regular file, which can be read again on --resume; put the text into one")
    return file.read_bytes()
