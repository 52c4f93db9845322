"""The checker is proved with planted bugs: each is a mistake that somebody has made, and each must be caught."""

import contextlib

import numpy as np
import pytest

from tinymoe import ops
from tinymoe.data.windows import Batch
from tinymoe.gradcheck import MarginError, check_gradients
from tinymoe.models import language
from tinymoe.models.balancing import Balancing
from tinymoe.models.config import LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.tree import named, with_leaves

RNG = np.random.default_rng(0)
X, W = RNG.standard_normal((6, 4)), RNG.standard_normal((4, 3))


def wrong_transpose(x, w):
    def backward(dy):
        return dy @ w.T, (x.T @ dy) * 1.0001

    return x @ w, backward


def lost_repeated_id(ids, table):
    def backward(dy):
        dtable = np.zeros_like(table)
        dtable[ids] += dy  # the last of equal ids wins
        return (dtable,)

    return table[ids], backward


def in_place_dy(x):
    y = np.tanh(x)

    def backward(dy):
        dy *= 1 - y * y
        return (dy,)

    return y, backward


def in_place_saved(x):
    y = np.tanh(x)
    slope = 1 - y * y

    def backward(dy):
        slope[...] *= dy  # right once
        return (slope.copy(),)

    return y, backward


def writes_to_input(x):
    x *= 2

    def backward(dy):
        return (2 * dy,)

    return x, backward


def late_binding(x, w1, w2):
    y, backs = x, []
    for w in (w1, w2):
        before, y = y, y @ w
        backs.append(lambda dy: (dy @ w.T, before.T @ dy))  # noqa: B023 (the bug)

    def backward(dy):
        dy, dw2 = backs[1](dy)
        dx, dw1 = backs[0](dy)
        return dx, dw1, dw2

    return y, backward


MEMORY: dict[str, np.ndarray] = {}


def memory_between_calls(x):
    MEMORY["x"] = x

    def backward(dy):
        return (2 * MEMORY["x"] * dy,)

    return x * x, backward


def norm_without_mean_term(x):
    scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True))

    def backward(dy):
        return (dy * scale,)

    return x * scale, backward


def softmax_diagonal_only(x):
    y, _ = ops.softmax(x)

    def backward(dy):
        return (dy * y * (1 - y),)

    return y, backward


def not_linear(x):
    def backward(dy):
        return (2 * x * dy + 1e-9 * dy * dy,)

    return x * x, backward


def one_gradient_short(x, w):
    def backward(dy):
        return (dy @ w.T,)

    return x @ w, backward


def wrong_shape(x, b):
    def backward(dy):
        return dy, dy

    return x + b, backward


def router_forgotten(x, router, up, down):
    (y, balance, routing), moe_back = ops.moe(x, router, up, down, k=2)

    def backward(dy, dbalance):
        dx, drouter, dup, ddown = moe_back(dy, dbalance)
        dx_router, _ = ops.linear(x, router)[1](np.zeros_like(routing.logits) + 1e-3)
        return dx - dx_router, drouter, dup, ddown

    return (y, balance, routing), backward


def balance_gradient_dropped(x, router, up, down):
    (y, balance, routing), moe_back = ops.moe(x, router, up, down, k=2)

    def backward(dy, dbalance):
        return moe_back(dy, np.zeros_like(dbalance))

    return (y, balance, routing), backward


def gate_gradient_dropped(x, router, up, down):
    def backward(dy, dbalance):
        dx, drouter, dup, ddown = moe_back(dy, dbalance)
        return dx, np.zeros_like(drouter), dup, ddown

    y, moe_back = ops.moe(x, router, up, down, k=2)
    return y, backward


EXPERTS = (RNG.standard_normal((4, 5)), RNG.standard_normal((5, 4, 3)), RNG.standard_normal((5, 3, 4)))
BUGS = [
    (wrong_transpose, (X, W), "dw"),
    (lost_repeated_id, (np.array([1, 0, 1, 1]), RNG.standard_normal((3, 2))), "dtable"),
    (in_place_dy, (X,), "written to"),
    (in_place_saved, (X,), "called again"),
    (writes_to_input, (X,), "written to"),
    (late_binding, (X, RNG.standard_normal((4, 4)), RNG.standard_normal((4, 4))), "dw1"),
    (memory_between_calls, (X,), "called again"),
    (norm_without_mean_term, (X,), "dx"),
    (softmax_diagonal_only, (X,), "dx"),
    (not_linear, (X,), "not linear"),
    (one_gradient_short, (X, W), "must return a tuple (dx, dw)"),
    (wrong_shape, (X, X[0]), "db has shape (6, 4)"),
    (router_forgotten, (X, *EXPERTS), "dx"),
    (balance_gradient_dropped, (X, *EXPERTS), "drouter"),
    (gate_gradient_dropped, (X, *EXPERTS), "drouter"),
]


@pytest.mark.parametrize(("function", "inputs", "said"), BUGS, ids=[b[0].__name__ for b in BUGS])
def test_a_planted_bug_is_caught_and_named(function, inputs, said):
    report = check_gradients(function, *inputs)
    assert not report.ok
    assert said in str(report)


def test_the_report_names_input_index_expected_and_found():
    def sign_error(x, b):
        def backward(dy):
            dx = 2 * x * dy
            dx[2, 1] *= -1
            return dx, dy.sum(0)

        return x * x + b, backward

    report = check_gradients(sign_error, X, X[0])
    (dx, db) = report.inputs
    assert dx.wrong_at == (2, 1)
    assert dx.expected == pytest.approx(-dx.found, rel=1e-6)
    assert db.wrong_at is None
    assert "at [2, 1]: expected" in str(report)


def test_a_right_operation_passes_also_with_integers_options_and_float32():
    assert check_gradients(ops.rms_norm, X.astype(np.float32), X[0], eps=1e-3).ok
    assert check_gradients(ops.embedding, np.array([1, 1]), W).ok


def test_a_gate_without_margin_is_refused():
    logits = np.array([[0.5, 0.5, 0.1], [1.0, 0.0, -1.0]])
    with pytest.raises(MarginError, match="choice"):
        check_gradients(ops.top_k_gate, logits, 1)


def test_a_kink_is_refused():
    with pytest.raises(MarginError, match="kink"):
        check_gradients(ops.relu, np.array([0.0, 1.0]))


def test_a_hidden_choice_is_refused():
    def hard_switch(x):
        def backward(dy):
            return (dy * np.where(x > 0, 1.0, 2.0),)

        return np.where(x > 0, x + 1, 2 * x), backward

    assert check_gradients(hard_switch, X).ok
    with pytest.raises(MarginError):
        check_gradients(hard_switch, np.array([1e-9, 1.0]))


@pytest.mark.parametrize(
    "place", ["embedding", "blocks.0.mixture.router.weight", "blocks.1.attention.key", "norm.gain"]
)
def test_a_bug_anywhere_in_the_whole_model_is_caught_under_its_name(place):
    config = LanguageConfig(vocabulary=7, layers=2, width=8, heads=2, kv_heads=1, experts=3, expert_width=3)
    rng = np.random.default_rng(1)
    params = initialize(config, rng, np.float64)
    leaves = named(params)
    ids, targets = rng.integers(0, 7, (2, 2, 5))

    def model(*arrays):
        tree = with_leaves(params, dict(zip(leaves, arrays, strict=True)))
        y, backward = language.loss(tree, config, Batch(ids, targets), Balancing(weight=0.1))

        def planted(dloss):
            gradients = named(backward(dloss))
            gradients[place] = gradients[place] * (1 + 1e-5)
            return tuple(gradients.values())

        return y, planted

    report = check_gradients(model, *leaves.values(), names=list(leaves))
    assert [i.name for i in report.inputs if i.error > report.tolerance] == [place]


def scaled(function, slope):
    """y, backward of an elementwise function with whatever slope one claims."""

    def op(x):
        def backward(dy):
            return (dy * slope(x),)

        return function(x), backward

    return op


HUGE = np.where(RNG.random((32, 32)) < 0.5, 1.0, 0.0)
HIDDEN = [
    (
        "masked with -1e9",
        scaled(lambda x: np.where(HUGE > 0, x, -1e9), lambda x: 2 * HUGE),
        RNG.standard_normal((32, 32)),
    ),
    (
        "masked with the least float32",
        scaled(lambda x: np.where(HUGE > 0, x, np.finfo(np.float32).min), lambda x: 2 * HUGE),
        RNG.standard_normal((32, 32)),
    ),
    ("a large constant", scaled(lambda x: x + 1e11, lambda x: 2 + 0 * x), X),
    ("large inputs", scaled(lambda x: x * x, lambda x: 3 * x), 1e12 * X),
    ("larger inputs", scaled(lambda x: x * x, lambda x: 0 * x), 1e14 * X),
    ("one large input", scaled(lambda x: x * 1, lambda x: 0 * x), np.array([1.0, 2.0, 1e10])),
    ("sine far out", scaled(np.sin, lambda x: 0 * x), 1e20 * X),
    ("flat spot", scaled(lambda x: x * x, lambda x: 0 * x + 1), np.zeros(3)),
]


@pytest.mark.parametrize(("function", "x"), [pytest.param(f, x, id=name) for name, f, x in HIDDEN])
def test_a_wrong_gradient_is_never_ok_however_well_it_hides(function, x):
    with contextlib.suppress(MarginError):  # can't tell, and says so
        assert not check_gradients(function, x).ok


@pytest.mark.parametrize(
    ("function", "x"),
    [
        pytest.param(
            scaled(lambda x: np.where(HUGE > 0, x, -1e9), lambda x: HUGE), RNG.standard_normal((32, 32)), id="-1e9"
        ),
        pytest.param(
            scaled(lambda x: np.where(HUGE > 0, x, -np.inf), lambda x: HUGE), RNG.standard_normal((32, 32)), id="-inf"
        ),
        pytest.param(scaled(np.sin, np.cos), 1e5 * X, id="sine"),
        pytest.param(scaled(lambda x: x**4, lambda x: 4 * x**3), np.zeros(3), id="flat"),
        pytest.param(scaled(lambda x: x * x, lambda x: 2 * x), 1e-6 * X, id="small"),
    ],
)
def test_a_right_gradient_in_a_difficult_place_is_ok(function, x):
    report = check_gradients(function, x)
    assert report.ok, report


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [
        (lambda x: x * 2, (X,), "two things"),
        (lambda x: ([1.0], lambda: ()), (X,), "no float array among the outputs"),
        (lambda x: (2.0 * np.asarray(x), lambda dy: ()), ([1.0, 2.0],), "no float array among the inputs"),
        (lambda x: (x, lambda dy: dy), (X,), "must return a tuple"),
        (lambda x: (x, lambda dy: ([1.0],)), (X,), "dx is a list"),
        (lambda x: (x, lambda dy: (dy.astype(np.float32),)), (X,), "dx is float32"),
        (lambda x: (x, lambda dy: (dy + 5j,)), (X,), "dx is complex128"),
        (lambda x: (x, lambda dy: (None,)), (X,), "dx is a NoneType"),
        (lambda x: (x * np.nan, lambda dy: (dy,)), (X,), "NaN"),
    ],
)
def test_what_is_wrong_with_the_form_is_said_in_words(function, inputs, said):
    report = check_gradients(function, *inputs)
    assert not report.ok
    assert said in str(report)


def test_integers_and_options_must_not_be_written_to_either():
    def erases_ids(ids, table):
        ids[...] = 0
        return ops.embedding(ids, table)

    def erases_option(x, *, w):
        w *= 0
        return ops.tanh(x)

    ids, w = np.array([1, 2]), np.ones(3)
    assert "written to" in str(check_gradients(erases_ids, ids, W))
    assert "written to" in str(check_gradients(erases_option, X, w=w))
    assert ids.tolist() == [1, 2]
    assert w.tolist() == [1, 1, 1]


def test_a_function_that_loses_the_imaginary_part_is_refused():
    with pytest.raises(MarginError, match="imaginary"):
        check_gradients(scaled(lambda x: x.real**2, lambda x: 0 * x), X, method="complex")


@pytest.mark.parametrize("options", [{"directions": 0}, {"method": "center"}, {"tolerance": np.inf}, {"names": []}])
def test_a_check_that_checks_nothing_is_refused(options):
    with pytest.raises(ValueError, match=r"allowed|names"):
        check_gradients(ops.tanh, X, **options)
