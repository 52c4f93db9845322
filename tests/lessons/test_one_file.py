"""lessons/one_file.py: its loss, its gradients, its choices and its optimiser are the package's; it is short, and it runs."""

import ast
import re
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import ROOT
from tinymoe.data.windows import Batch
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import skeleton
from tinymoe.models.language import loss
from tinymoe.optim.updates import adamw, new_slots
from tinymoe.tree import named, with_leaves

FILE = ROOT / "lessons" / "one_file.py"
TEXT = FILE.read_text(encoding="utf-8")

BUGS = {  # what stands there, and what a hasty writer might have put
    "no gradient of the balance loss": ("dz = p_back(dbalance * E * f / N)", "dz = np.zeros_like(z)"),
    "no router term in dx": ("dn += dz @ router.T", "pass"),
}


def module(text):
    """The file, or a copy of it with a bug, as a module."""
    found = ModuleType("one_file")
    exec(compile(text, FILE, "exec"), vars(found))
    return found


@pytest.fixture
def one_file(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the file does, but to be undone
    return module(TEXT)


def by_name(params):
    """Its parameters, or their gradients, by the package's names."""
    (embedding,), *blocks, (head,) = params
    found = {"embedding": embedding, "head": head}
    for i, (qkv, output, router, up, down) in enumerate(blocks):
        query, key, value = np.split(qkv, 3, axis=1)
        attention = {"query": query, "key": key, "value": value, "output": output}
        mixture = {"router.weight": router, "experts.up": up, "experts.down": down}
        found |= {f"blocks.{i}.attention.{name}": array for name, array in attention.items()}
        found |= {f"blocks.{i}.mixture.{name}": array for name, array in mixture.items()}
    return found


def check_against_the_package(file, monkeypatch, *, T, H, K, L, D, E, F, V):
    """Loss, parts, choices and all gradients, on a random batch. The package's norms have gains, the file's have none: 1."""
    for name, value in {"T": T, "H": H, "K": K}.items():
        monkeypatch.setattr(file, name, value)
    rng = np.random.default_rng(0)
    params = file.init(rng, V=V, L=L, D=D, E=E, F=F, dtype=np.float64)
    ids, targets = rng.integers(0, V, (2, 3, T))
    shape = {"vocabulary": V, "context": T, "layers": L, "width": D, "heads": H, "kv_heads": H}
    experts = {"experts": E, "top_k": K, "expert_width": F, "expert_kind": "relu"}
    config = LanguageConfig(**shape, **experts, shift=False, tied=False)
    empty = skeleton(config, np.float64)
    gains = {name: np.ones_like(array) for name, array in named(empty).items() if name.endswith("gain")}
    language = with_leaves(empty, gains | by_name(params))

    (its_loss, its_cross_entropy, its_choices, _), its_backward = file.model(params, ids.ravel(), targets.ravel())
    (total, parts), backward = loss(language, config, Batch(ids, targets))
    np.testing.assert_allclose(its_loss, total, rtol=1e-13)
    np.testing.assert_allclose(its_cross_entropy, parts.cross_entropy, rtol=1e-13)
    for chosen, routed in zip(its_choices, parts.routed, strict=True):
        np.testing.assert_array_equal(chosen, routed.indices)
    its, ours = by_name(its_backward()), named(backward())
    assert its.keys() == ours.keys() - gains.keys()
    for name, gradient in its.items():
        np.testing.assert_allclose(gradient, ours[name], rtol=0, atol=1e-12 * np.abs(ours[name]).max(), err_msg=name)


SHAPES = {
    "as it is": {"T": 64, "H": 2, "K": 2, "L": 2, "D": 64, "E": 8, "F": 128, "V": 256},
    "small": {"T": 5, "H": 1, "K": 3, "L": 3, "D": 6, "E": 4, "F": 5, "V": 7},
    "idle experts": {"T": 2, "H": 2, "K": 2, "L": 1, "D": 4, "E": 16, "F": 3, "V": 3},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_choices_and_gradients_are_the_packages(one_file, monkeypatch, shape):
    check_against_the_package(one_file, monkeypatch, **shape)


def test_adamw_is_the_packages(one_file):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 4))
    m, v = np.zeros_like(w), np.zeros_like(w)
    parameter, slots = w.copy(), new_slots("adamw", w)
    for t in range(1, 6):
        gradient, rate = rng.standard_normal(w.shape), 0.1 / t
        one_file.adamw(w, gradient, m, v, t, rate, decay=0.3)
        adamw(parameter, gradient, slots, lr=rate, step=t, weight_decay=0.3)
        np.testing.assert_allclose(w, parameter, rtol=1e-12)


def test_it_is_short_and_needs_nothing_but_numpy():
    roots = set()
    for node in ast.walk(ast.parse(TEXT)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"numpy"}
    assert len(TEXT.splitlines()) <= 200


def test_it_runs_from_anywhere_and_its_gradients_are_right(tmp_path):
    run = subprocess.run(
        [sys.executable, "-I", "-W", "error", FILE, "3"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert not run.stderr
    assert "bytes of Python's documentation" in run.stdout
    losses = re.findall(r"\d\.\d{3}", run.stdout)
    assert 5 < float(losses[0]) < 7  # ln 256 is 5.5
    error = re.search(r"worst relative error of a gradient: (\S+)", run.stdout)
    assert error is not None
    assert float(error[1]) < 1e-7


@pytest.mark.parametrize(("right", "wrong"), BUGS.values(), ids=BUGS)
def test_a_planted_bug_is_found_by_its_own_check_and_by_ours(one_file, monkeypatch, right, wrong):
    assert TEXT.count(right) == 1
    copy = module(TEXT.replace(right, wrong))
    assert copy.check_gradients() > 1e-5
    with pytest.raises(AssertionError, match="Mismatched elements"):
        check_against_the_package(copy, monkeypatch, **SHAPES["small"])
