"""A team of processes that share arrays: data parallelism on one machine.

    with Team(2, arrays) as team:
        results = team.run(task, [argument_of_the_first, argument_of_the_second])

`task(team.arrays, argument)` runs on every member at once, the first of which is this process; what one writes into the
arrays, all see. Processes rather than threads, because between NumPy's loops Python lets only one thread run: with two
threads a training step of a four-layer model took 1.3 times as long (docs/search.md).

Why not `multiprocessing.shared_memory`: it finds memory by a name, which outlives a process that is killed, unless a third
process, its resource tracker, is still there to take it away; and up to Python 3.12 each process that attaches starts a
tracker that may take it away from the others. Here the file loses its name as soon as all members have mapped it, and the
memory ends with the last of them.
"""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..types import Array
from .one_core import one_core

Task = Callable[[dict[str, Array], Any], Any]  # a function at the top of a module
Layout = dict[str, tuple[tuple[int, ...], str]]  # shapes and dtypes by name


class Team:
    """`size` processes that share copies of `arrays`; a single one works on `arrays` itself. BLAS uses one thread in each."""

    def __init__(self, size: int, arrays: Mapping[str, Array]) -> None:
        self.size = size
        self._members: list[subprocess.Popen[bytes]] = []
        self._closing = ExitStack()
        self._closing.enter_context(one_core())
        if size == 1:
            self.arrays = dict(arrays)
            return
        layout = {name: (a.shape, a.dtype.str) for name, a in arrays.items()}
        with tempfile.TemporaryDirectory(dir=_memory_folder(arrays), ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "arrays"
            path.touch()
            self.arrays = _mapped(path, layout)
            for name, a in arrays.items():
                self.arrays[name][...] = a
            self._members = [_started() for _ in range(size - 1)]
            for member in self._members:
                self._closing.callback(_end, member)
            for member in self._members:
                self._send(member, (path, layout))
            for member in self._members:
                self._receive(member)  # it has mapped the file, which can now lose its name

    def run(self, task: Task, arguments: list[Any]) -> list[Any]:
        """The results of `task(arrays, argument)`, one argument for each member. An exception is raised here too."""
        for member, argument in zip(self._members, arguments[1:], strict=True):
            self._send(member, (task, argument))
        results = [task(self.arrays, arguments[0])]
        for member in self._members:
            result = self._receive(member)
            if isinstance(result, Exception):
                raise result
            results.append(result)
        return results

    def _send(self, member: "subprocess.Popen[bytes]", message: Any) -> None:
        assert member.stdin
        try:
            pickle.dump(message, member.stdin)
            member.stdin.flush()
        except BrokenPipeError:
            raise _ended(member) from None

    def _receive(self, member: "subprocess.Popen[bytes]") -> Any:
        assert member.stdout
        try:
            return pickle.load(member.stdout)
        except EOFError:
            raise _ended(member) from None

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()  # a member ends when it finds nothing more to read


def _end(member: "subprocess.Popen[bytes]") -> None:
    """Leave it nothing more to read, and wait until it has ended."""
    for stream in (member.stdin, member.stdout):
        with suppress(OSError):  # it may have ended by itself, with something still unsent
            assert stream
            stream.close()
    member.wait()


def _ended(member: "subprocess.Popen[bytes]") -> UserError:
    return UserError(
        f"a worker process was ended from outside (status {member.wait()}), perhaps because memory was short; go on from "
        "the last checkpoint with --resume, or choose smaller sizes"
    )


def _started() -> "subprocess.Popen[bytes]":
    """A further process, in a session of its own: Ctrl-C is for the first to act on."""
    places = os.pathsep.join(filter(None, sys.path))  # whatever can be imported here, tasks among it, can be there
    return subprocess.Popen(
        [sys.executable, "-c", "from tinymoe.optim.team import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places},
        start_new_session=True,
    )


def _serve() -> None:
    """The life of a further process: tasks until the first one closes the pipe, or is no more."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not get among the replies
    with one_core():
        try:
            arrays = _mapped(*pickle.load(requests))
        except (EOFError, OSError):
            return
        result: Any = "ready"
        while True:
            try:
                pickle.dump(result, replies)
                replies.flush()
                task, argument = pickle.load(requests)
            except (EOFError, OSError):
                os._exit(0)  # the first process is no more, or has closed the pipe
            try:
                result = task(arrays, argument)
            except Exception as error:
                result = error


def _memory_folder(arrays: Mapping[str, Array]) -> Path | None:
    """A folder in memory with room for the arrays, if there is one."""
    folder = Path("/dev/shm")
    needed = sum(a.nbytes + 64 for a in arrays.values())
    usable = folder.is_dir() and os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2 * needed
    return folder if usable else None


def _mapped(path: Path, layout: Layout) -> dict[str, Array]:
    """Arrays that live side by side in a file, each beginning on a cache line."""
    offsets, end = {}, 0
    for name, (shape, dtype) in layout.items():
        offsets[name] = end
        end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64
    with open(path, "r+b") as file:
        file.truncate(end)
        if hasattr(os, "posix_fallocate") and end:
            os.posix_fallocate(file.fileno(), 0, end)  # fail here, with a sentence, and not in the middle of a sum
    memory = np.memmap(path, np.uint8, "r+", shape=(end,)).view(np.ndarray)
    return {name: np.ndarray(shape, dtype, memory, offsets[name]) for name, (shape, dtype) in layout.items()}
