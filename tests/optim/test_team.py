"""Processes that share arrays, and that a batch cut in shards has the gradient of the whole batch."""

import subprocess
import sys
import time

import numpy as np
import pytest

from tinymoe.data.windows import Batch
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
