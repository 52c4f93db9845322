"""A team of processes that share arrays: data parallelism on one machine.

    with Team(2, arrays) as team:
        results = team.run(task, [argument_of_the_first, argument_of_the_second])

`task(team.arrays, argument)` runs on every member at once, the first of which is this process; what one writes into the
arrays, all see. Processes rather than threads, because between NumPy's loops Python lets only one thread run: with two
threads a training step of a four-layer model took 1.3 times as long (docs/search.md).

The arrays live in a file without a name, in memory where the system has such files (memfd_create), which a member gets as
an open file. It ends with the last process that has it open, however that ends. `multiprocessing.shared_memory` finds
memory by a name, which outlives a process that is killed, unless a third process, its resource tracker, is still there to
take it away; and up to Python 3.12 each process that attaches starts a tracker that may take it away from the others.

A member that stands still is found and ended, and `run` says so: one that is stopped (SIGSTOP), or that sleeps while its
answer is waited for, for `PATIENCE` seconds without any time on a processor and without a page of memory that it asked
for. One that computes, however long, does neither. Where there is no /proc to see this in, nobody looks.
"""

import errno
import math
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import threading
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
Process = subprocess.Popen[bytes]

PATIENCE = 8.0  # seconds
LOOK = 0.5  # seconds between two looks at the members


class Team:
    """`size` processes that share copies of `arrays`; a single one works on `arrays` itself. BLAS uses one thread in each."""

    def __init__(self, size: int, arrays: Mapping[str, Array]) -> None:
        self.size = size
        self._members: list[Process] = []
        self._awaited: Process | None = None  # whose answer, or readiness to be asked, is waited for
        self._asked = 0  # messages so far
        self._still: set[int] = set()  # members that were ended because they stood still
        with ExitStack() as closing:
            closing.enter_context(one_core())
            if size == 1:
                self.arrays = dict(arrays)
            else:
                self._start(arrays, closing)
            self._closing = closing.pop_all()

    def _start(self, arrays: Mapping[str, Array], closing: ExitStack) -> None:
        layout = {name: (a.shape, a.dtype.str) for name, a in arrays.items()}
        file = _shared_file(_places(layout)[1])
        try:
            self.arrays = _mapped(file, layout)
            for name, a in arrays.items():
                self.arrays[name][...] = a
            if Path("/proc/self/stat").exists():
                done = threading.Event()
                watch = threading.Thread(target=self._watch, args=[done], daemon=True)
                watch.start()
                closing.callback(watch.join)
                closing.callback(done.set)  # after the members have ended: until then one may stand still
            for _ in range(self.size - 1):
                self._members.append(_started(file))
                closing.callback(_end, self._members[-1])
        finally:
            os.close(file)  # the mapping stays
        for member in self._members:
            self._send(member, (file, layout))
        for member in self._members:
            self._receive(member)  # it has mapped the file

    def run(self, task: Task, arguments: list[Any]) -> list[Any]:
        """The results of `task(arrays, argument)`, one argument for each member. An exception is raised here too."""
        for member, argument in zip(self._members, arguments[1:], strict=True):
            self._send(member, (task, argument))
        results = [_outcome(task, self.arrays, arguments[0])]
        results += [self._receive(member) for member in self._members]  # all: none is left for the next call
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def _send(self, member: Process, message: Any) -> None:
        assert member.stdin
        self._awaited, self._asked = member, self._asked + 1
        try:
            pickle.dump(message, member.stdin)
            member.stdin.flush()
        except BrokenPipeError:
            raise self._ended(member) from None
        finally:
            self._awaited = None

    def _receive(self, member: Process) -> Any:
        assert member.stdout
        self._awaited, self._asked = member, self._asked + 1
        try:
            return pickle.load(member.stdout)
        except (EOFError, pickle.UnpicklingError):  # nothing, or the beginning of an answer
            raise self._ended(member) from None
        finally:
            self._awaited = None

    def _ended(self, member: Process) -> UserError:
        status = member.wait()
        advice = "go on from the last checkpoint with --resume"
        if member.pid in self._still:
            return UserError(
                f"a worker process stood still for {PATIENCE:g} s (stopped from outside, or hung) and was ended; {advice}"
            )
        return UserError(
            f"a worker process was ended from outside (status {status}), perhaps because memory was short; {advice}, or "
            "choose smaller sizes"
        )

    def _watch(self, done: threading.Event) -> None:
        """End each member that stands still: who waits for it then finds that it has ended."""
        before: dict[int, tuple[Any, int]] = {}
        while not done.wait(LOOK):
            for member in list(self._members):
                state, signs = _life(member.pid)
                seen = state, signs, self._asked
                last, looks = before.get(member.pid, (None, 0))
                still = seen == last and (state == "T" or (state == "S" and self._awaited is member))
                before[member.pid] = seen, looks + 1 if still else 0
                if (looks + 1) * LOOK >= PATIENCE and still:
                    self._still.add(member.pid)
                    member.kill()

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()  # a member ends when it finds nothing more to read


def _life(pid: int) -> tuple[str, list[str]]:
    """A process's state, and what grows while it lives: page faults without and with a disk, time of its own and for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", []  # it has ended
    return fields[0], [fields[i] for i in (7, 9, 11, 12)]


def _end(member: Process) -> None:
    """Leave it nothing more to read, and wait until it has ended; what it still does, nobody asks for any longer."""
    for stream in (member.stdin, member.stdout):
        with suppress(OSError):  # it may have ended by itself, with something still unsent
            assert stream
            stream.close()
    try:
        member.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        member.kill()
        member.wait()


def _started(file: int) -> Process:
    """A further process, in a session of its own: Ctrl-C is for the first to act on. It has the file open too."""
    places = os.pathsep.join(filter(None, sys.path))  # whatever can be imported here, tasks among it, can be there
    return subprocess.Popen(
        [sys.executable, "-c", "from tinymoe.optim.team import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places},
        start_new_session=True,
        pass_fds=[file],
    )


def _serve() -> None:
    """The life of a further process: tasks until the first one closes the pipe, or is no more."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not get among the replies
    with one_core():
        try:
            file, layout = pickle.load(requests)
            arrays = _mapped(file, layout)
            os.close(file)
            result: Any = "ready"
            while True:
                pickle.dump(result, replies)
                replies.flush()
                task, argument = pickle.load(requests)
                result = _outcome(task, arrays, argument)
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)  # the first process is no more, or has closed the pipe


def _outcome(task: Task, arrays: dict[str, Array], argument: Any) -> Any:
    """The task's result, or the exception that it raised."""
    try:
        return task(arrays, argument)
    except Exception as error:
        return error


def _shared_file(size: int) -> int:
    """A file of so many bytes, for all of which there is room, without a name that a killed process could leave behind.

    Raises UserError where there is no room.
    """
    file, free = None, _free_memory()
    try:
        if size > free:
            raise OSError(errno.ENOMEM, f"{free / 1e9:.1f} GB of memory are free")
        file = _unnamed_file()
        os.truncate(file, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)  # fail here, with a sentence, and not in the middle of a sum
    except OSError as error:
        if file is not None:
            os.close(file)
        raise UserError(
            f"there is no room for the {size / 1e9:.1f} GB that the worker processes would share ({error.strerror}); "
            "choose smaller sizes, or --workers 1, which needs no copy of them"
        ) from None
    return file


def _unnamed_file() -> int:
    """In memory; where there is no memfd_create, on the disk.

    Where the disk has no files without a name either (O_TMPFILE is Linux's), it has one for a moment, while it is empty.
    """
    with suppress(AttributeError, OSError):
        return os.memfd_create("tinymoe")
    with suppress(AttributeError, OSError):
        return os.open(os.environ.get("TMPDIR", "/tmp"), os.O_TMPFILE | os.O_RDWR, 0o600)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _free_memory() -> float:
    """Bytes that can be had without taking them from others, swap included; without end where the system doesn't say."""
    with suppress(OSError, KeyError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    return math.inf


def _places(layout: Layout) -> tuple[dict[str, int], int]:
    """Where each array begins, on a cache line, when they lie side by side; and the bytes of all (at least one line)."""
    offsets, end = {}, 0
    for name, (shape, dtype) in layout.items():
        offsets[name] = end
        end += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64
    return offsets, max(end, 64)


def _mapped(file: int, layout: Layout) -> dict[str, Array]:
    """The arrays that lie in a file."""
    offsets, size = _places(layout)
    memory = mmap.mmap(file, size)
    return {name: np.ndarray(shape, dtype, memory, offsets[name]) for name, (shape, dtype) in layout.items()}
