"""Six ways to dispatch: an example by hand, all six equal over many shapes, gradients checked, padding harmless."""

from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinymoe import ops
from tinymoe.check.trials.systems import layer, trials
from tinymoe.systems import dispatchers
from tinymoe.systems.dispatchers import (
    DISPATCHERS,
    all_to_all_dispatch,
    batched_experts,
    exchanged_bytes,
    padded_dispatch,
)

WAYS = {**DISPATCHERS, "all_to_all, 3 ranks": partial(all_to_all_dispatch, ranks=3)}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))

X = np.array([[1.0], [2], [3]])
INDICES = np.array([[1, 0], [0, 1], [0, 1]])
WEIGHTS = np.array([[3.0, 1], [2, 5], [4, 6]])
KEPT = np.array([[True, True], [True, False], [True, False]])
UP, DOWN = np.ones((2, 1, 1)), np.array([[[10.0]], [[100]]])


def agree(results):
    """Every array equals the first way's to 1e-13 of its largest element, or of 1, the inputs' size: sums cancel."""
    (_, first), *others = results.items()
    for name, result in others:
        for i, (a, b) in enumerate(zip(first, result, strict=True)):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, i)
            assert np.abs(a - b).max(initial=0) <= 1e-13 * np.abs(a).max(initial=1), (name, i)


def run_all(inputs, dy, indices, kept, activation, ways):
    results = {}
    for name, way in ways.items():
        y, backward = way(*inputs, indices=indices, kept=kept, activation=activation)
        results[name] = (y, *backward(dy))
    return results


@every_way
def test_the_example_of_the_module(way):
    y, backward = way(X, WEIGHTS, UP, DOWN, indices=INDICES, kept=KEPT)
    assert y.tolist() == [[310], [40], [120]]
    dx, dweights, dup, ddown = backward(np.ones((3, 1)))
    assert dx.tolist() == [[310], [20], [40]]
    assert dweights.tolist() == [[100, 10], [20, 0], [30, 0]]
    assert dup.tolist() == [[[170]], [[300]]]
    assert ddown.tolist() == [[[17]], [[3]]]


def calls(monkeypatch, name):
    """What goes in and out of a function of the module while a test runs: a list of (arguments, result)."""
    seen, original = [], getattr(dispatchers, name)

    def spy(*args, **options):
        result = original(*args, **options)
        seen.append((args, result))
        return result

    monkeypatch.setattr(dispatchers, name, spy)
    return seen


def test_the_steps_of_the_example(monkeypatch):
    """The numbers in between, as the module's docstring tells them."""

    def run(name):
        DISPATCHERS[name](X, WEIGHTS, UP, DOWN, indices=INDICES, kept=KEPT)

    experts, batched = calls(monkeypatch, "experts"), calls(monkeypatch, "batched_experts")
    products, exchanges = calls(monkeypatch, "sparse_matmul"), calls(monkeypatch, "all_to_all")

    run("loop")
    assert [(a[0].item(), a[2].item(), r[0].item()) for a, r in experts] == [
        (1, 100, 100),
        (1, 10, 10),
        (2, 10, 20),
        (3, 10, 30),
    ]

    run("one_hot")
    (copies, *_), (outputs, _) = batched.pop()
    assert copies[..., 0].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert outputs[..., 0].tolist() == [[10, 20, 30], [100, 0, 0]]

    run("grouped")
    (rows, *_), (outputs, _) = experts[-1]
    assert (rows[:, 0].tolist(), outputs[:, 0].tolist()) == ([1, 2, 3, 1], [10, 20, 30, 100])

    run("padded")
    (buffers, *_), _ = batched.pop()
    assert buffers[..., 0].tolist() == [[1, 2, 3], [1, 0, 0]]

    run("csr")
    ((_, x, spread), (rows, _)), ((values, _, gather), _) = products
    assert spread.with_data(spread.data).to_dense().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert gather.with_data(values).to_dense().tolist() == [[1, 0, 0, 3], [0, 2, 0, 0], [0, 0, 4, 0]]
    assert (x[:, 0].tolist(), rows[:, 0].tolist()) == ([1, 2, 3], [1, 2, 3, 1])

    run("all_to_all")
    (_, there), _, (_, back) = exchanges  # rows, numbers of experts, answers
    assert [[b[:, 0].tolist() for b in row] for row in there] == [[[1], [2, 3]], [[1], []]]
    assert [[b[:, 0].tolist() for b in row] for row in back] == [[[10], [100]], [[20, 30], []]]


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 9),
    n_experts=st.integers(1, 6),
    k=st.integers(1, 6),
    share=st.sampled_from([None, 0.0, 0.3, 0.8]),
    ranks=st.integers(1, 4),
    gated=st.booleans(),
    extra=st.integers(0, 2),
    seed=st.integers(0, 99),
)
@example(n=0, n_experts=3, k=2, share=None, ranks=2, gated=True, extra=0, seed=0)
@example(n=2, n_experts=6, k=1, share=None, ranks=4, gated=False, extra=0, seed=0)
@example(n=7, n_experts=5, k=5, share=0.8, ranks=3, gated=True, extra=1, seed=0)
@example(n=5, n_experts=1, k=1, share=0.0, ranks=4, gated=False, extra=0, seed=0)
def test_all_six_are_equal(n, n_experts, k, share, ranks, gated, extra, seed):
    """Forward and every gradient, over drops, idle experts, more experts than tokens, and ranks that don't divide."""
    rng = np.random.default_rng(seed)
    inputs, indices = layer(rng, n, n_experts, min(k, n_experts), gated)
    kept = None if share is None else rng.random(indices.shape) < share
    counts = np.bincount(indices[slice(None) if kept is None else kept].reshape(-1), minlength=n_experts)
    roomy = partial(padded_dispatch, capacity=int(counts.max()) + extra)
    ways = DISPATCHERS | {"all_to_all": partial(all_to_all_dispatch, ranks=ranks), "roomy": roomy}
    dy = rng.standard_normal(inputs[0].shape)
    agree(run_all(inputs, dy, indices, kept, ops.silu if gated else ops.gelu, ways))


@pytest.mark.parametrize("activation", [ops.relu, ops.gelu, ops.sigmoid])
def test_all_to_one_and_a_repeated_choice(activation):
    """Sigmoid because it is not 0 at 0: padding must not leak into the gradients. A token may name an expert twice."""
    rng = np.random.default_rng(1)
    for indices in (np.full((6, 1), 2), np.array([[1, 1], [0, 1], [1, 0], [3, 3], [1, 1], [1, 1]])):
        inputs, _ = layer(rng, 6, 4, indices.shape[1], gated=False)
        agree(run_all(inputs, rng.standard_normal((6, 3)), indices, None, activation, WAYS))


def test_without_drops_it_is_the_moe_layer():
    """`ops.moe` with the same choices: y, and the gradients of the experts."""
    rng = np.random.default_rng(2)
    (x, _, *matrices), _ = layer(rng, 8, 5, 2, gated=True)
    router, dy = rng.standard_normal((3, 5)), rng.standard_normal((8, 3))
    (y, _, routing), layer_back = ops.moe(x, router, *matrices, k=2, activation=ops.silu)
    mine = run_all([x, routing.weights, *matrices], dy, routing.indices, None, ops.silu, WAYS)
    _, _, *dmatrices = layer_back(dy, 0.0)
    for way, (own_y, _, _, *own) in mine.items():
        np.testing.assert_allclose(own_y, y, rtol=1e-12, err_msg=way)
        for a, b in zip(own, dmatrices, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14, err_msg=way)


@pytest.mark.parametrize("method", ["central", "complex"])
@pytest.mark.parametrize("trial", list(trials(np.random.default_rng(3))), ids=str)
def test_gradients(trial, method):
    report = trial.report(method, seed=0)
    assert report.ok, report
    assert report.error < (1e-12 if method == "complex" else 1e-7)


@pytest.mark.parametrize("rows", [3, 1, 0])
def test_experts_in_one_product_are_those_of_the_library(rows):
    rng = np.random.default_rng(4)
    x, up, gate = (rng.standard_normal(shape) for shape in ((2, rows, 3), (2, 3, 4), (2, 3, 4)))
    down = rng.standard_normal((2, 4, 3))
    for matrices, activation in (((up, down), ops.gelu), ((up, down, gate), ops.silu)):
        y, _ = batched_experts(x, *matrices, activation=activation)
        flat, _ = ops.experts(x.reshape(-1, 3), *matrices, counts=[rows, rows], activation=activation)
        np.testing.assert_allclose(y.reshape(-1, 3), flat, rtol=1e-12, atol=1e-14)


BUGS = [
    ("dx[n] += drow[0]", "dx[n] = drow[0]"),  # the last expert's share only
    (
        "expert_back(weights[n, j] * dy[n : n + 1])",
        "expert_back(dy[n : n + 1])",
    ),  # the gate is forgotten on the way back
    ("sent = chosen.any(1).T", "sent = chosen[:, 0].T"),  # first choices only
    ("experts_back(mix * dcopies)", "experts_back(dcopies)"),
    ("np.vecdot(outputs, dcopies).T", "np.vecdot(mix * outputs, dcopies).T"),  # the weight counts twice
    ("(dcopies,) = dispatch_back(drows)", "dcopies = drows"),  # still in the order of experts
    ("outputs[expert, slot], weights", "outputs[expert, slot[::-1]], weights"),
    ("doutputs[expert, slot] = dreturned", "doutputs[expert, slot] = _copy(dy, valid)"),
    ("weights[valid][entry]", "weights[valid]"),  # the gate in token order, the values in the matrix's
    ("dvalid[entry] = dvalues", "dvalid = dvalues"),
    (
        "arrived = all_to_all([[dhome[g] for g in row] for row in goes])",
        "arrived = [[dhome[g] for g in r] for r in goes]",
    ),
    ("dsend = all_to_all([dbuffers for dbuffers, *_ in dwork])", "dsend = [dbuffers for dbuffers, *_ in dwork]"),
    ("indices[g] - home.start", "indices[g] % len(up[home])"),  # right only where the parts are equally long
    ("return du @ up.mT + dg @ gate.mT,", "return du @ up.mT,"),
    ("return w * dcopies, _fill", "return dcopies, _fill"),
]


@pytest.mark.parametrize(("right", "wrong"), BUGS)
def test_the_comparison_finds_planted_bugs(right, wrong):
    source = Path(dispatchers.__file__).read_text()
    assert source.count(right) == 1, "the line has changed; change the bug too"
    broken = ModuleType("broken")
    broken.__package__ = "tinymoe.systems"
    exec(source.replace(right, wrong), broken.__dict__)
    rng = np.random.default_rng(5)
    inputs, indices = layer(rng, 7, 5, 3, gated=True)
    kept = rng.random(indices.shape) < 0.8
    ways = {"right": DISPATCHERS["grouped"], **broken.DISPATCHERS}
    with pytest.raises((AssertionError, IndexError, ValueError)):
        agree(run_all(inputs, rng.standard_normal((7, 3)), indices, kept, ops.silu, ways))


@every_way
def test_padding_and_drops_are_never_looked_at(way):
    """NaN in x, dy and weights, and no such experts, where nothing is kept: exact zeros, and the rest to the bit."""
    rng = np.random.default_rng(6)
    inputs, indices = layer(rng, 6, 4, 2, gated=True)
    dy = rng.standard_normal((6, 3))
    kept = np.array([[1, 1], [0, 0], [1, 0], [0, 1], [0, 0], [1, 1]], bool)
    y, backward = way(*inputs, indices=indices, kept=kept, activation=ops.silu)
    clean = backward(dy)
    spoiled, experts, ddirty = [a.copy() for a in inputs], indices.copy(), dy.copy()
    padding = ~kept.any(1)
    spoiled[0][padding], ddirty[padding] = np.nan, np.nan
    spoiled[1][~kept], experts[~kept] = np.nan, [-1, 4, 99, -5, 7, -1]
    again, backward = way(*spoiled, indices=experts, kept=kept, activation=ops.silu)
    np.testing.assert_array_equal(again, y)
    for a, b in zip(backward(ddirty), clean, strict=True):
        np.testing.assert_array_equal(a, b)
    dx, dweights, *_ = clean
    assert not y[padding].any()
    assert not dx[padding].any()
    assert not dweights[~kept].any()
    assert y[~padding].all()


@every_way
def test_float32_stays_float32_and_nothing_is_written_to(way):
    rng = np.random.default_rng(7)
    inputs, indices = layer(rng, 5, 4, 2, gated=True)
    arrays = [a.astype(np.float32) for a in inputs]
    kept = rng.random(indices.shape) < 0.7
    for a in (*arrays, indices, kept):
        a.flags.writeable = False
    y, backward = way(*arrays, indices=indices, kept=kept, activation=ops.silu)
    gradients = backward(np.ones_like(y))
    assert y.dtype == np.float32
    assert [(g.dtype, g.shape) for g in gradients] == [(a.dtype, a.shape) for a in arrays]


@pytest.mark.parametrize(("ranks", "n"), [(1, 9), (2, 9), (3, 9), (4, 2), (4, 0)])
def test_exchanged_bytes_are_those_of_the_buffers(monkeypatch, ranks, n):
    """Forward there and back, backward there and back; what stays on its rank is not sent."""
    rng = np.random.default_rng(8)
    inputs, indices = layer(rng, n, 3, 2, gated=False)
    kept = rng.random(indices.shape) < 0.8
    exchanges = calls(monkeypatch, "all_to_all")
    _, backward = all_to_all_dispatch(*inputs, indices=indices, kept=kept, ranks=ranks)
    backward(np.ones((n, 3)))
    sent = [
        [[0 if r == s else b.nbytes for s, b in enumerate(row)] for r, row in enumerate(buffers)]
        for (buffers,), _ in exchanges
        if buffers[0][0].dtype == np.float64  # not the numbers of the experts
    ]
    there = exchanged_bytes(indices, 3, row_bytes=3 * 8, ranks=ranks, kept=kept)
    for matrix, expected in zip(sent, (there, there.T, there, there.T), strict=True):
        np.testing.assert_array_equal(matrix, expected)
    if ranks == 1:
        assert not there.any()


def test_bytes_of_the_example():
    assert exchanged_bytes(INDICES, 2, 8, ranks=2, kept=KEPT).tolist() == [[0, 8], [16, 0]]
    assert exchanged_bytes(INDICES, 2, 8, ranks=2).tolist() == [[0, 8], [16, 0]]  # the drops would have stayed home


@pytest.mark.parametrize(("n", "ranks"), [(0, 3), (2, 4), (7, 3), (8, 4), (5, 1)])
def test_even_parts_cover_everything_and_differ_by_one_at_most(n, ranks):
    parts = dispatchers.even_parts(n, ranks)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = [len(range(n)[part]) for part in parts]
    assert len(parts) == ranks
    assert max(lengths) - min(lengths) <= 1


@every_way
def test_errors(way):
    with pytest.raises(ValueError, match="indices span 0 to 2; allowed are 0 to 1"):
        way(X, WEIGHTS, UP, DOWN, indices=INDICES + (INDICES == 1) * KEPT)
    with pytest.raises(ValueError, match=r"weights \(3, 1\)"):
        way(X, WEIGHTS[:, :1], UP, DOWN, indices=INDICES)
    with pytest.raises(ValueError, match=r"x \(2, 1\)"):
        way(X[:2], WEIGHTS, UP, DOWN, indices=INDICES)
    with pytest.raises(ValueError, match=r"type int64; it must be bool, one for each of \(3, 2\) assignments"):
        way(X, WEIGHTS, UP, DOWN, indices=INDICES, kept=KEPT.astype(np.int64))


def test_errors_of_one_way():
    with pytest.raises(ValueError, match="capacity is 2; an expert has 3 tokens"):
        padded_dispatch(X, WEIGHTS, UP, DOWN, indices=INDICES, kept=KEPT, capacity=2)
    with pytest.raises(ValueError, match="0 ranks"):
        all_to_all_dispatch(X, WEIGHTS, UP, DOWN, indices=INDICES, ranks=0)
