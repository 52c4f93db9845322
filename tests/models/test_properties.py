"""What each router promises, found by trying: docs/routers.md shows the table that this file computes.

python -m tests.models.test_properties        prints the table anew
"""

from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import ROOT, shaken
from tinymoe import ops
from tinymoe.models.blocks import mixture
from tinymoe.models.config import ONE_CHOICE, ROUTERS, LanguageConfig
from tinymoe.models.initialise import initialize
from tinymoe.models.routers import Situation
from tinymoe.tree import named, with_leaves

DOCS = ROOT / "docs" / "routers.md"
B, T, E = 3, 8, 4  # sequences, positions, experts


def top_k(router):
    return 1 if router in ONE_CHOICE else 2


def layer(router, seed=0, k=None, **options):
    """A mixture layer of width 6 with random weights, its configuration, and inputs (B·T, 6) with their token ids."""
    small = LanguageConfig(vocabulary=32, context=T, layers=1, width=6, heads=1, kv_heads=1, expert_width=5)
    config = replace(small, experts=E, router=router, top_k=k or top_k(router), **options)
    rng = np.random.default_rng(seed)
    params = shaken(initialize(config, rng, np.float64), rng, 0.5)
    return params.blocks[0].mixture, config, rng.standard_normal((B * T, 6)), rng.integers(0, 32, B * T)


def run(parts, x=None, ids=None, batch=B, training=False, p=None):
    """(y, backward) of the layer; in training with the same noise every time."""
    mine, config, my_x, my_ids = parts
    rng = np.random.default_rng(7) if training else None
    at = Situation(batch, my_ids if ids is None else ids, rng)
    (y, _, routed), backward = mixture(my_x if x is None else x, p or mine, config, at)
    return y, routed, backward


def same(a, b):
    return np.allclose(a, b, rtol=1e-12, atol=1e-12)


def trials(change, unaffected):
    """Whether for many random changes of some tokens the outputs of the others stay as they were."""

    def holds(router, training):
        for seed in range(20):
            parts = layer(router, seed)
            rng = np.random.default_rng(seed)
            _, _, x, ids = parts
            other = x + change.reshape(-1, 1) * rng.standard_normal(x.shape) * 3
            other_ids = np.where(change, rng.integers(0, 32, len(ids)), ids)
            before, after = (run(parts, a, i, training=training)[0] for a, i in ((x, ids), (other, other_ids)))
            if not same(before[unaffected], after[unaffected]):
                return False
        return True

    return holds


positions, sequences = np.tile(np.arange(T), B), np.repeat(np.arange(B), T)
last_of_first = (positions == T - 1) & (sequences == 0)
causal = trials(last_of_first, (positions < T - 1) & (sequences == 0))
alone = trials(sequences > 0, sequences == 0)


def repeatable(router, training):
    """Without a generator of noise nothing is left to chance; with the same generator nothing differs."""
    parts = layer(router)
    return not training and bool((run(parts)[0] == run(parts)[0]).all())


def teaches(router, training):
    """Whether dy alone, without a balancing loss, gives the router's weights a gradient when K = 1."""
    if router == "gshard":
        return None  # K is 2
    parts = layer(router, k=1)
    y, _, backward = run(parts, training=training)
    _, gradient = backward(np.random.default_rng(1).standard_normal(y.shape), 0.0)
    weight = gradient.router.weight
    return None if weight is None else bool(np.abs(weight).max() > 1e-9)


def equivariant(router, training):
    """Whether renaming the experts, in the router and in the layer, changes nothing."""
    if router in ("hash", "partition"):
        return None  # the table knows experts by their number
    for seed in range(5):
        parts = layer(router, seed)
        p, config, _, _ = parts
        order = np.random.default_rng(seed).permutation(E)
        slots = (order[:, None] * config.slots + np.arange(config.slots)).reshape(-1) if router == "soft" else order

        def renamed(name, leaf, order=order, slots=slots):
            if name in ("router.weight", "router.noise"):
                return leaf[:, slots]
            return leaf[order] if name.startswith("experts") or name == "router.bias" else leaf

        q = with_leaves(p, {name: renamed(name, leaf) for name, leaf in named(p).items()})
        if not same(run(parts)[0], run(parts, p=q)[0]):
            return False
    return True


def dense_at_full_k(router, training):
    """Whether K = E gives the mixture of all experts weighed by the softmax of the logits."""
    if router in (*ONE_CHOICE, "gshard", "soft"):
        return None
    parts = layer(router, k=E)
    p, _, x, _ = parts
    shares, _ = ops.softmax(x @ p.router.weight)
    outputs = np.stack([run_expert(p.experts, e, x) for e in range(E)], 1)  # (N, E, D)
    return same(run(parts, training=training)[0], (shares[:, None] @ outputs)[:, 0])


def run_expert(experts, e, x):
    one = (experts.up[e : e + 1], experts.down[e : e + 1], experts.gate[e : e + 1])
    return ops.experts(x, *one, counts=np.array([len(x)]), activation=ops.silu)[0]


def even(router, training):
    """Whether the load is even by construction: even when all tokens like the same expert."""
    if router == "soft":
        return True  # every expert has the same number of slots
    parts = layer(router)
    _, _, x, ids = parts
    alike = x[:1] + 1e-3 * x
    _, routed, _ = run(parts, alike, ids, training=training)
    return bool(routed.counts.max() - routed.counts.min() <= 1)


PROPERTIES = {  # name: (function, whether it is asked in training, too)
    "causal": (causal, True),
    "independent of the batch": (alone, True),
    "deterministic": (repeatable, False),
    "router learns at K = 1": (teaches, True),
    "experts can be renamed": (equivariant, False),
    "K = E is the dense mixture": (dense_at_full_k, False),
    "even by construction": (even, True),
}
SIGNS = {True: "yes", False: "**no**", None: "–"}


def rows():
    for router in ROUTERS:
        cells = []
        for function, both in PROPERTIES.values():
            evaluation = SIGNS[function(router, False)]
            training = SIGNS[function(router, True)] if both else evaluation
            cells.append(evaluation if training == evaluation else f"{evaluation}, in training {training}")
        yield f"| {router} | " + " | ".join(cells) + " |"


def table():
    heads = "| router | " + " | ".join(PROPERTIES) + " |"
    return "\n".join([heads, "| " + " | ".join(["---"] * (len(PROPERTIES) + 1)) + " |", *rows()])


def test_the_documented_table_is_what_is_found():
    assert table() in DOCS.read_text(), "print it anew: python -m tests.models.test_properties"


@pytest.mark.parametrize("router", ROUTERS)
def test_training_repeats_with_the_same_noise(router):
    parts = layer(router)
    assert (run(parts, training=True)[0] == run(parts, training=True)[0]).all()


if __name__ == "__main__":
    print(table())
