"""Public systems' balance losses and capacities: one fixed batch, computed by loops from their definitions."""

import math
import struct
from dataclasses import replace

import numpy as np
import pytest

from tinymoe.ops.balance import load_balance
from tinymoe.systems.conventions import BALANCE, CAPACITY, BalanceConvention, balance_loss

L, T, E, K = 2, 16, 8, 2
LOGITS = np.random.default_rng(7).standard_normal((L, T, E))
INDICES = np.argsort(-LOGITS, -1, kind="stable")[..., :K]

PER_LAYER = {  # of each layer alone, and when all is even
    "tinymoe": (1.12573, 1.01986, 1),
    "switch": (1.22530, 1.07272, 1),
    "deepseek-moe": (1.12573, 1.01986, 1),
    "megatron": (1.12573, 1.01986, 1),
    "olmo-core": (1.12573, 1.01986, 1),
    "megablocks": (1.12573, 1.01986, 1),
    "deepspeed": (1.22530, 1.07272, 1),
    "deepspeed-top-k": (1.12573, 1.01986, 1),
    "mesh": (1.22530, 1.07272, 1),
    "lucidrains": (1.22530, 1.07272, 1),
    "tutel": (1.22530, 1.07272, 1),
    "vmoe": (1.22530, 1.07272, 1),
    "labml": (1.12573, 1.01986, 1),
    "flaxformer": (2.25147, 2.03972, K),
    "nanomoe": (2.62094, 2.14532, K),
    "hf-switch": (2.25147, 2.03972, K),
    "hf": (2.25147, 2.03972, K),
    "hf-5.0.0": (2.03494, 2.00593, K),
}
BOTH_LAYERS = {"hf": 2.09797, "hf-switch": 2.09797, "hf-5.0.0": 2.01381} | {
    name: (first + second) / (2 if BALANCE[name].layers == "mean" else 1)
    for name, (first, second, _) in PER_LAYER.items()
    if not name.startswith("hf")
}


def value(name, logits, indices, **options):
    return float(balance_loss(logits, indices, BALANCE[name], **options)[0])


def probabilities(row):
    e = [math.exp(z) for z in row]
    return [x / sum(e) for x in e]


def megatron(logits, indices):
    """aggregated probabilities · tokens per expert · E / (T² k), a layer"""
    total = 0.0
    for layer, choices in zip(logits, indices, strict=True):
        p = [probabilities(row) for row in layer]
        for e in range(E):
            total += sum(row[e] for row in p) * sum(e in c for c in choices.tolist()) * E / (T * T * K)
    return total


def mesh(logits, indices):
    """mean over experts of density_1 · density_1_proxy, · E², a layer"""
    total = 0.0
    for layer, choices in zip(logits, indices, strict=True):
        p = [probabilities(row) for row in layer]
        products = [sum(c[0] == e for c in choices) / T * (sum(row[e] for row in p) / T) for e in range(E)]
        total += sum(products) / E * E * E
    return total


def flaxformer(logits, indices):
    """mean over experts of the multi-hot mean · probabilities, · E², the mean over layers"""
    total = 0.0
    for layer, choices in zip(logits, indices, strict=True):
        p = [probabilities(row) for row in layer]
        for e in range(E):
            multi_hot = [1 if e in c else 0 for c in choices.tolist()]
            total += sum(multi_hot) / T * sum(row[e] for row in p) / T / E * E**2
    return total / L


def hugging_face(logits, indices, twice=False):
    """The routers of all layers joined; tokens per (choice, expert) · probability of the expert, summed, · E"""
    rows, chosen = logits.reshape(-1, E), indices.reshape(-1, K)
    p = [probabilities(probabilities(row)) if twice else probabilities(row) for row in rows]
    total = 0.0
    for j in range(K):
        for e in range(E):
            total += sum(c[j] == e for c in chosen) / len(rows) * sum(row[e] for row in p) / len(rows)
    return total * E


def nano_moe(logits, indices):
    """−inf everywhere but at the top k, softmax, then E · Σ of means; added over layers"""
    total = 0.0
    for layer, choices in zip(logits, indices, strict=True):
        for e in range(E):
            gates, hits = 0.0, 0
            for row, c in zip(layer, choices.tolist(), strict=True):
                if e in c:
                    hits += 1
                    gates += math.exp(row[e]) / sum(math.exp(row[other]) for other in c)
            total += E * gates / T * hits / T
    return total


LOOPS = {
    "megatron": megatron,
    "mesh": mesh,
    "flaxformer": flaxformer,
    "hf": hugging_face,
    "hf-5.0.0": lambda logits, indices: hugging_face(logits, indices, twice=True),
    "nanomoe": nano_moe,
}


def test_the_batch():
    counts = [np.bincount(layer.reshape(-1), minlength=E).tolist() for layer in INDICES]
    assert counts == [[2, 4, 7, 1, 2, 5, 4, 7], [3, 5, 4, 2, 5, 3, 5, 5]]


@pytest.mark.parametrize("name", BALANCE)
def test_values_of_the_batch(name):
    for layer in range(L):
        alone = value(name, LOGITS[layer : layer + 1], INDICES[layer : layer + 1])
        assert alone == pytest.approx(PER_LAYER[name][layer], abs=5e-6)
    assert value(name, LOGITS, INDICES) == pytest.approx(BOTH_LAYERS[name], abs=1e-5)


@pytest.mark.parametrize("name", LOOPS)
def test_values_equal_loops_written_from_the_systems(name):
    assert value(name, LOGITS, INDICES) == pytest.approx(LOOPS[name](LOGITS, INDICES), rel=1e-13)


@pytest.mark.parametrize("name", BALANCE)
def test_perfect_balance(name):
    """Token t prefers expert t, then t + 1: counts, first choices, gates and probabilities are all even."""
    logits = np.stack([np.roll([2.0, 1, 0, 0, 0, 0, 0, 0], t) for t in range(E)])
    indices = np.stack([[t, (t + 1) % E] for t in range(E)])
    balanced = PER_LAYER[name][2]
    assert value(name, logits[None], indices[None]) == pytest.approx(balanced, rel=1e-14)
    layers = 3 if BALANCE[name].layers == "sum" else 1
    stack = np.tile(logits, (3, 1, 1)), np.tile(indices, (3, 1, 1))
    assert value(name, *stack) == pytest.approx(layers * balanced, rel=1e-14)


def test_the_packages_own_loss_is_the_first_preset():
    each = [load_balance(z, i)[0] for z, i in zip(LOGITS, INDICES, strict=True)]
    loss, backward = balance_loss(LOGITS, INDICES)
    assert loss == pytest.approx(np.mean(each), rel=1e-15)
    gradients = [load_balance(z, i)[1](0.5)[0] for z, i in zip(LOGITS, INDICES, strict=True)]
    np.testing.assert_allclose(backward(1.0)[0], gradients, rtol=1e-13)


def test_pooling_hides_collapse():
    """Each layer sends everything to one expert, at p = .9 and .1, but another one: 1.8 per layer, 1 pooled."""
    logits = np.stack([np.log([[0.9, 0.1]] * 6), np.log([[0.1, 0.9]] * 6)])
    indices = logits.argmax(-1)[..., None]
    per_layer, backward = balance_loss(logits, indices, BALANCE["tinymoe"])
    pooled, pooled_back = balance_loss(logits, indices, BALANCE["hf"])
    assert per_layer == pytest.approx(1.8, rel=1e-14)
    assert pooled == pytest.approx(1.0, rel=1e-14)
    assert np.abs(backward(1.0)[0]).min() > 0.01
    assert np.abs(pooled_back(1.0)[0]).max() < 1e-16  # and nothing pulls the layers away from there


@pytest.mark.parametrize(("n_experts", "factor"), [(8, 0.16), (64, 0.020), (128, 0.0098)])
def test_a_second_softmax_all_but_switches_the_loss_off(n_experts, factor):
    logits = 2 * np.random.default_rng(0).standard_normal((2, 2000, n_experts))
    indices = np.argsort(-logits, -1)[..., :2]
    sizes = [np.linalg.norm(balance_loss(logits, indices, BALANCE[name])[1](1.0)[0]) for name in ("hf-5.0.0", "hf")]
    assert sizes[0] / sizes[1] == pytest.approx(factor, rel=0.05)


def test_gates_that_are_always_one_teach_nothing():
    """nanoMoE at K = 1. With K = 2 only the chosen logits learn; with a softmax over all experts every one does."""
    (gradient,) = balance_loss(LOGITS, INDICES[..., :1], BALANCE["nanomoe"])[1](1.0)
    assert (gradient == 0).all()
    (gradient,) = balance_loss(LOGITS, INDICES, BALANCE["nanomoe"])[1](1.0)
    chosen = (INDICES[..., None] == np.arange(E)).any(2)
    assert (gradient[~chosen] == 0).all()
    assert np.count_nonzero(gradient[chosen]) > 32
    (gradient,) = balance_loss(LOGITS, INDICES[..., :1], BALANCE["flaxformer"])[1](1.0)
    assert np.count_nonzero(gradient) == L * T * E


@pytest.mark.parametrize("name", BALANCE)
def test_padding_counts_nowhere_and_may_hold_anything(name):
    real = np.arange(T) % 3 != 1
    expected, expected_back = balance_loss(LOGITS[:, real], INDICES[:, real], BALANCE[name])
    logits, indices = LOGITS.copy(), INDICES.copy()
    logits[:, ~real], indices[:, ~real] = np.nan, -7
    loss, backward = balance_loss(logits, indices, BALANCE[name], mask=real)
    assert loss == pytest.approx(expected, rel=1e-14)
    (gradient,) = backward(1.0)
    np.testing.assert_allclose(gradient[:, real], expected_back(1.0)[0], rtol=1e-12, atol=1e-16)
    assert (gradient[:, ~real] == 0).all()


def test_every_system_has_a_note_and_a_wrong_switch_is_an_error():
    assert set(PER_LAYER) == set(BALANCE)
    assert all(c.note for c in (*BALANCE.values(), *CAPACITY.values()))
    assert replace(BALANCE["hf"], probabilities="twice") == BALANCE["hf-5.0.0"]
    with pytest.raises(ValueError, match="layers is 'max'; choose one of mean, sum, pooled"):
        BalanceConvention(layers="max")


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("tinymoe", 5),
        ("switch", 3),
        ("mesh", 4),
        ("flaxformer", 4),
        ("deepspeed", 5),
        ("megatron", 5),
        ("megablocks", 5),
        ("makemoe", 5),
        ("tutel", 4),
        ("nanomoe", 6),
        ("vmoe", 8),
        ("vmoe-expert-choice", 4),
        ("labml", 2),
    ],
)
def test_capacity_of_16_tokens_8_experts_2_choices_and_factor_1_25(name, places):
    assert CAPACITY[name](16, 8, 2, 1.25) == places


def test_capacities_at_their_edges():
    assert CAPACITY["hf-switch"](16, 8, 1, 64) == 64
    assert CAPACITY["megablocks"](16, 8, 2, 0) == CAPACITY["tutel"](16, 8, 2, 0) == 16
    assert CAPACITY["tutel"](16, 8, 2, -1.5) == 6
    assert CAPACITY["tutel"](16, 8, 2, -100) == 16
    assert CAPACITY["tutel"](17, 8, 1, 1.0) == 3
    assert (
        CAPACITY["mesh"](3, 8, 2, 1.0) == CAPACITY["deepspeed"](3, 8, 2, 1.0) == CAPACITY["nanomoe"](3, 8, 2, 1.0) == 4
    )
    assert CAPACITY["mesh"](64, 4, 2, 9.0) == 64
    assert CAPACITY["nanomoe"](64, 8, 1, 1.0) == 8
    assert CAPACITY["flaxformer"](64, 8, 2, 1.14) == 9
    assert set(CAPACITY) >= {"tinymoe", "switch", "hf-switch"}


def float32(number):
    return struct.unpack("f", struct.pack("f", number))[0]


def deepspeed_places(tokens, experts, k, factor):
    """`_capacity`: a float32 tensor of capacity_factor·k, times the scalar num_tokens / num_experts; min_capacity 4."""
    exact = float32(tokens / experts) * float32(factor * k)  # 48 bits, so that it is rounded once
    return max(math.ceil(float32(exact)), 4)


def megablocks_places(tokens, experts, k, factor):
    """`expert_capacity`, with world_size = 1."""
    tokens_per_expert = k * tokens * 1 / experts
    return int(factor * tokens_per_expert)


def vmoe_places(tokens, experts, k, factor):
    """`compute_capacity` of num_tokens = group_size·num_selected_experts, multiple_of 4."""
    num_tokens = tokens * k
    places = math.ceil(num_tokens * factor / experts)
    return places + -places % 4


def megatron_places(tokens, experts, k, factor):
    """`get_capacity` of num_tokens·topk."""
    routed = tokens * k
    return math.ceil((routed / experts) * factor)


PLACES = {
    "deepspeed": deepspeed_places,
    "megablocks": megablocks_places,
    "vmoe": vmoe_places,
    "vmoe-expert-choice": lambda tokens, experts, k, factor: vmoe_places(tokens, experts, 1, factor),
    "megatron": megatron_places,
}


@pytest.mark.parametrize("name", PLACES)
def test_capacities_equal_the_systems_own_expressions(name):
    """Operand by operand: written another way, 1.2 · 35 / 3 is 14 instead of 13.999999999999998."""
    sizes = [*range(1, 40), *range(40, 1000, 30), 4096]
    factors = [0.3, 0.5, 0.7, 1.0, 1.1, 1.2, 1.25, 1.4, 1.7, 2.0, 2.2, 2.3]
    for tokens in sizes:
        for experts in (2, 3, 5, 7, 8, 10, 60, 64):
            for k in (1, 2, 3):
                for factor in factors:
                    expected = PLACES[name](tokens, experts, k, factor)
                    assert CAPACITY[name](tokens, experts, k, factor) == expected, (tokens, experts, k, factor)


def test_capacities_where_the_last_bit_decides():
    assert CAPACITY["megablocks"](35, 3, 1, 1.2) == 13
    assert CAPACITY["vmoe"](100, 3, 3, 2.2) == 220
    assert CAPACITY["deepspeed"](250, 10, 2, 1.1) == 55
    assert CAPACITY["megatron"](100, 3, 3, 2.2) == 221
