"""Files written whole or not at all.

A file is written aside, under a name that nobody else has, synced to the disk and renamed over the old one: whoever opens
the name, after a crash or a SIGKILL at any instant, finds the old file or the new one, whole. A kill can leave the file
that was written aside, `.NAME.3f9a01c2.partial`.
"""

import os
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import UserError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """While inside, an OSError that names no file, such as that of a full disk, or the one aside, gets this one's name."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at `path`, or leave it as it was."""
    aside = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
    # made anew, never through a link: whatever stands at that name already stays as it is
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with naming(path):
        number = os.open(aside, flags, 0o666)
        try:
            with open(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()  # a full disk must not be kept full by half a file
            raise
        if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk too
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def check_writable(path: Path) -> None:
    """Raises UserError, before any work is done, where `write_named` is sure to fail."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name a file to write")
    folder = Path(os.path.realpath(path) if os.path.islink(path) else path).parent
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder} to write {path} to; make it first")
    try:
        replaced = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        replaced = True
    except OSError as error:  # a link to itself, a name that is too long
        raise UserError(f"can't write to {path}: {error.strerror}; choose another name") from None
    if replaced and not os.access(folder, os.W_OK):
        raise UserError(f"can't write to the folder {folder}; choose another place for {path.name}")


def write_named(path: Path, data: bytes) -> None:
    """Write to what the user has named.

    A file is replaced whole or stays as it was, also one that a symbolic link leads to. A device, a pipe and what
    standard output or standard error already go to are written to, as any command would, and stay what they are.
    """
    check_writable(path)
    with naming(path):
        try:
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        for stream in (sys.__stdout__, sys.__stderr__):
            if found and stream and not stream.closed and os.path.samestat(found, os.fstat(stream.fileno())):
                stream.flush()
                stream.buffer.write(data)
                stream.buffer.flush()
                return
        if found and not stat.S_ISREG(found.st_mode):
            with open(path, "wb") as file:
                file.write(data)
            return
    write_atomically(Path(os.path.realpath(path)), data)


def check_plain(files: Iterable[Path]) -> None:
    """Raises UserError for the first that is there and is not a file itself, but a link, a folder or a device."""
    for file in files:
        if os.path.lexists(file) and not stat.S_ISREG(os.lstat(file).st_mode):
            raise UserError(f"{file} is not a file itself, but a link, a folder or a device; move it away")


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what kills in the middle of writing have left of the files with these names."""
    for name in names:
        for file in folder.glob(f".{name}*.partial"):
            file.unlink()
