"""Processes that share arrays, and that a batch cut in shards has the gradient of the whole batch."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinymoe.data.windows import Batch
from tinymoe.errors import UserError
from tinymoe.optim import team as team_module
from tinymoe.optim.team import Team
from tinymoe.runs.settings import Settings
from tinymoe.runs.state import new_state, new_trainer
from tinymoe.tree import named

SETTINGS = Settings.of(layers=1, width=8, heads=2, kv_heads=1, experts=3, expert_width=4, balance_weight=0.0, clip=0.0)


def settings(**changes):
    return SETTINGS.but(**changes)


def test_all_members_see_what_one_writes_and_errors_come_back():
    with Team(3, {"a": np.zeros(2), "b": np.ones((2, 3), np.float32)}) as team:
        names = [["a"], [], ["b"]]
        team.run(np_double, names)
        team.run(np_double, names)
        assert team.arrays["b"].tolist() == [[4, 4, 4]] * 2
        assert team.arrays["a"].tolist() == [0, 0]
        with pytest.raises(KeyError):
            team.run(np_double, [[], ["missing"], []])


def np_double(arrays, names):
    for name in names:
        arrays[name] *= 2


@pytest.mark.parametrize(("workers", "accumulate"), [(1, 3), (2, 1), (3, 2), (2, 5)])
def test_shards_add_up_to_the_batch(workers, accumulate):
    """Without the balance loss, which is a property of a shard; and with a batch that does not divide evenly."""
    batch = Batch(*np.random.default_rng(0).integers(0, 256, (2, 5, 6)))
    whole, cut = new_state(settings(workers=1)), new_state(settings(workers=1))
    with new_trainer(whole, settings(workers=1)) as one:
        expected = one.step(batch)
    with new_trainer(cut, settings(workers=workers, accumulate=accumulate)) as several:
        found = several.step(batch)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.norm == pytest.approx(expected.norm, rel=1e-4)
    assert [x.counts.tolist() for x in found.details.layers] == [x.counts.tolist() for x in expected.details.layers]
    for name, p in named(whole.params).items():
        difference = np.abs(named(cut.params)[name] - p)
        assert np.median(difference) < 1e-7, name


def test_no_process_is_left_when_the_first_is_killed():
    code = (
        "import numpy as np, time\nfrom tinymoe.optim.team import Team\n"
        "team = Team(2, {'a': np.zeros(3)})\nprint(team._members[0].pid, flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    member = int(process.stdout.readline())
    process.kill()
    process.communicate()
    for _ in range(200):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(member)], capture_output=True, text=True).stdout.strip()
        if not state or state.startswith("Z"):
            return
        time.sleep(0.05)
    pytest.fail("the second process is still there")


KILLED_AT_EACH_LINE = """
import os, signal, sys
if sys.argv[1] == "on the disk":
    del os.memfd_create
import numpy as np
from tinymoe.optim.team import Team

def new_team(last):
    lines = 0
    def trace(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("optim/team.py", "/tempfile.py")):
            return None
        lines += event == "line"
        if lines == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    Team(2, {"a": np.zeros(100_000)})
    sys.settrace(None)

last = 1
while True:
    child = os.fork()
    if not child:
        new_team(last)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        break
    last += int(sys.argv[2])
assert status == 0
print(last)
os._exit(0)
"""


@pytest.mark.parametrize("place", ["in memory", "on the disk"])
def test_nothing_is_left_behind_by_a_kill_at_any_line(tmp_path, place):
    """The shared file has no name at any time: from the first line to the last one, here every third."""
    memory = Path("/dev/shm")
    before = set(memory.iterdir()) if memory.is_dir() else set()
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_AT_EACH_LINE, place, "3"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100
    assert not list(tmp_path.iterdir())
    for _ in range(100):  # other programs may have something there for a moment
        left = [path for path in (memory.iterdir() if memory.is_dir() else ()) if path not in before]
        if not left:
            return
        time.sleep(0.05)
    pytest.fail(f"left in memory: {left}")


def test_a_team_that_does_not_fit_is_refused_before_memory_is_asked_for():
    huge = np.broadcast_to(np.float32(0), (1 << 44,))
    with pytest.raises(UserError, match=r"no room for the 70368.7 GB .* GB of memory are free\); .* --workers 1"):
        Team(2, {"a": huge})


def test_a_full_disk_is_said_in_one_sentence(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"no room for the 0.0 GB .*\(No space left on device\)"):
        Team(2, {"a": np.zeros(3)})


def answer(_, argument):
    what, size = argument
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "work":
        worked(1.3)
    elif what == "doze":  # asleep whenever one looks, or nearly so
        for _ in range(10):
            time.sleep(0.2)
            worked(0.01)
    else:
        time.sleep(what)
    return bytes(size)


def worked(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(team_module, "PATIENCE", 0.8)
    monkeypatch.setattr(team_module, "LOOK", 0.1)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="without /proc nobody looks")


@needs_proc
@pytest.mark.parametrize("of_the_member", [("stop", 0), (60, 0)])
def test_a_member_that_stands_still_is_found(impatient, of_the_member):
    begin = time.monotonic()
    with Team(2, {"a": np.zeros(3)}) as team, pytest.raises(UserError, match=r"stood still for 0.8 s .* --resume"):
        team.run(answer, [(0, 0), of_the_member])
    assert time.monotonic() - begin < 5


@needs_proc
def test_a_stopped_member_is_found_when_it_does_not_take_what_it_is_sent(impatient):
    """More than a pipe holds."""
    with Team(2, {"a": np.zeros(3)}) as team:
        team._members[0].send_signal(signal.SIGSTOP)
        with pytest.raises(UserError, match="stood still"):
            team.run(np_double, [[], ["a"] * 1_000_000])


def test_a_member_that_takes_long_is_not_mistaken(impatient):
    """At work itself; with nothing to do while the first is; and with an answer that the first does not take yet."""
    with Team(3, {"a": np.zeros(3)}) as team:
        assert team.run(answer, [(0, 0), ("work", 0), (0, 1_000_000)])[2] == bytes(1_000_000)
        team.run(answer, [(1.3, 0), (0, 1_000_000), (0, 0)])
        team.run(answer, [(0, 0), ("doze", 0), (0, 0)])
        time.sleep(1.3)
        team.run(np_double, [[], ["a"], []])


def test_a_signal_is_acted_on_while_a_stopped_member_is_waited_for(impatient):
    """As Ctrl-C is: what its handler raises leaves the wait, and closing the team ends the member."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1])
    try:
        with Team(2, {"a": np.zeros(3)}) as team:
            sender.start()
            with pytest.raises(KeyboardInterrupt):
                team.run(answer, [(0, 0), ("stop", 0)])
        assert team._members[0].returncode == -signal.SIGKILL
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_member_that_is_killed_within_its_answer_is_said_in_one_sentence():
    with Team(2, {"a": np.zeros(3)}) as team:
        killer = threading.Timer(0.5, team._members[0].kill)
        killer.start()
        with pytest.raises(UserError, match="was ended from outside"):
            team.run(answer, [(1, 0), (0, 1_000_000)])


def test_after_an_error_of_the_first_no_answer_is_left_for_the_next_call():
    with Team(2, {"a": np.ones(1)}) as team:
        with pytest.raises(KeyError):
            team.run(np_double, [["missing"], []])
        assert team.run(answer, [(0, 1), (0, 2)]) == [bytes(1), bytes(2)]
