"""Bugs of the layer: what the experts see, what comes back, and which gradients arrive."""

import numpy as np

from ...gradcheck import check_gradients
from ...ops import group_by_expert, jitter, keep_within_capacity, linear, moe, relu, softmax, top_k_gate
from ...ops.top_k_gate import pick
from ..dispatchers import grouped_dispatch, one_hot_dispatch
from .exhibit import Exhibit, require


def example(n_experts=3):
    """x (6, 4), router (4, E), up (E, 4, 5), down (E, 5, 4)."""
    normal = np.random.default_rng(0).standard_normal
    return normal((6, 4)), normal((4, n_experts)), normal((n_experts, 4, 5)), normal((n_experts, 5, 4))


def dropped_pass_inside(x, weights, up, down, *, indices, kept):
    """A token that finds no place gets p·x from the layer instead of 0. The layer stands on a residual path, x + layer(x),
    which already carries the token on unchanged: now it arrives as (1 + p) x."""
    y, layer_back = grouped_dispatch(x, weights, up, down, indices=indices, kept=kept)
    lost = np.where(kept, 0, weights).sum(1, keepdims=True)

    def backward(dy):
        dx, dweights, *dexperts = layer_back(dy)
        return dx + lost * dy, dweights + np.where(kept, 0, np.vecdot(x, dy)[:, None]), *dexperts

    return y + lost * x, backward


def check_dropped_get_nothing(layer):
    x, router, up, down = example()
    (weights, indices), _ = top_k_gate(x @ router, 1, renormalize=False)
    kept = np.arange(6)[:, None] % 3 > 0
    y, _ = layer(x, weights, up, down, indices=indices, kept=kept)
    require(not y[~kept[:, 0]].any(), "a token whose only choice was dropped must get exactly 0 from the layer")


def dropped_teach_the_router(x, weights, up, down, *, indices, kept):
    """Instead of being left out, a dropped assignment is computed and weighed by 0. The output is right, and so is every
    test of it. But the gradient of a weight is what its expert returned, and that isn't 0: the router learns from
    experts that were never asked."""
    y, layer_back = grouped_dispatch(x, np.where(kept, weights, 0), up, down, indices=indices)

    def backward(dy):
        return layer_back(dy)

    return y, backward


def check_dropped_teach_nobody(layer):
    x, router, up, down = example()
    (weights, indices), _ = top_k_gate(x @ router, 2)
    kept = np.arange(12).reshape(6, 2) % 3 > 0
    y, backward = layer(x, weights, up, down, indices=indices, kept=kept)
    _, dweights, *_ = backward(np.ones_like(y))
    require(not dweights[~kept].any(), "the weight of a dropped assignment changes nothing, so its gradient must be 0")


def jitter_for_all(x, router, up, down, *, k, factors):
    """To make the router explore, its input is multiplied by random factors, in place or under the same name, and the next
    line hands that x to the experts. They are trained on noise that evaluation doesn't have."""
    shaken, jitter_back = jitter(x, factors=factors)
    (y, _, _), moe_back = moe(shaken, router, up, down, k=k)

    def backward(dy):
        dshaken, *dweights = moe_back(dy, np.zeros((), dy.dtype))
        return *jitter_back(dshaken), *dweights

    return y, backward


def jitter_for_the_router(x, router, up, down, *, k, factors):
    shaken, jitter_back = jitter(x, factors=factors)
    logits, router_back = linear(shaken, router)
    (weights, indices), gate_back = top_k_gate(logits, k)
    y, experts_back = grouped_dispatch(x, weights, up, down, indices=indices)

    def backward(dy):
        dx_experts, dweights, *dexperts = experts_back(dy)
        dshaken, drouter = router_back(*gate_back(dweights))
        (dx_router,) = jitter_back(dshaken)
        return dx_experts + dx_router, drouter, *dexperts

    return y, backward


def check_experts_see_no_jitter(layer):
    x, *weights = example(n_experts=1)  # one expert has weight 1, whatever the router sees
    shaken, still = np.random.default_rng(1).uniform(0.9, 1.1, x.shape), np.ones_like(x)
    ys = [layer(x, *weights, k=1, factors=factors)[0] for factors in (shaken, still)]
    require(
        np.array_equal(*ys), "with a single expert there is nothing to route, and yet the jitter changes the output"
    )


def detached_scores(x, router, up, down, *, k):
    """The scores are put into a new tensor, cut off from the graph, before they choose and weigh the experts. The layer
    runs, the experts learn, and the router stays what it was at the start: random. In the document that shows it, the
    scores don't even weigh."""
    (weights, indices), _ = top_k_gate(x @ router, k)
    y, experts_back = grouped_dispatch(x, weights, up, down, indices=indices)

    def backward(dy):
        dx, _, *dexperts = experts_back(dy)
        return dx, np.zeros_like(router), *dexperts

    return y, backward


def router_term_missing(x, router, up, down, *, k):
    """x reaches the output by two ways, through the experts and through the router, and a backward pass written by hand
    returns the first: dx lacks R dz. All weights of this layer get right gradients; every layer below gets wrong ones."""
    logits, router_back = linear(x, router)
    (weights, indices), gate_back = top_k_gate(logits, k)
    y, experts_back = grouped_dispatch(x, weights, up, down, indices=indices)

    def backward(dy):
        dx_experts, dweights, *dexperts = experts_back(dy)
        _, drouter = router_back(*gate_back(dweights))
        return dx_experts, drouter, *dexperts

    return y, backward


def layer_output(x, router, up, down, *, k):
    (y, _, _), moe_back = moe(x, router, up, down, k=k)

    def backward(dy):
        return moe_back(dy, np.zeros((), dy.dtype))

    return y, backward


def check_gradient_of_layer(layer):
    report = check_gradients(layer, *example(), k=2)
    require(report.ok, str(report))


def sent_where_weight_is_not_zero(weights, indices, n_experts):
    """The dispatch mask is derived from the weights, as `combine.bool()`. In float32 exp(−104) is 0: an expert that was
    chosen with so small a weight isn't chosen any more, and counts and capacity no longer fit the choice."""
    combine = np.zeros((len(weights), n_experts), weights.dtype)
    np.put_along_axis(combine, indices, weights, 1)
    return combine.astype(bool).sum(0)


def sent_where_chosen(weights, indices, n_experts):
    return group_by_expert(indices, n_experts).counts


def check_tiny_weights_are_sent(count):
    (weights, indices), _ = top_k_gate(np.array([[0, -200]], np.float32), 2)
    counts = count(weights, indices, 2).tolist()
    require(
        counts == [1, 1], f"a token with two choices among two experts must be sent to both; the counts are {counts}"
    )


def every_expert_runs(x, weights, up, down, *, indices, activation=relu):
    """Each expert receives the whole batch, and what isn't for it is multiplied by 0 afterwards. Output and gradients are
    right. It has the parameters of a sparse layer, and the cost of running them all."""
    return one_hot_dispatch(x, weights, up, down, indices=indices, activation=activation)


def check_rows_computed(layer):
    x, router, up, down = example(n_experts=8)
    (weights, indices), _ = top_k_gate(x @ router, 2)
    rows = []

    def counting(u):
        rows.append(u.size // u.shape[-1])
        return relu(u)

    layer(x, weights, up, down, indices=indices, activation=counting)
    wanted = indices.size
    require(sum(rows) == wanted, f"6 tokens with 2 choices are {wanted} rows of work; the experts computed {sum(rows)}")


def logits_as_priority(logits, indices, capacity):
    """Each expert keeps the tokens that rank highest in its column of a matrix which holds the logits of those who chose
    it, and 0 for all others. Negative logits rank below those zeros: places go to tokens that never asked, and the
    tokens that did are dropped from a half-empty expert. With probabilities, which are positive, it works."""
    asked = np.zeros(logits.shape)
    np.put_along_axis(asked, indices, np.take_along_axis(logits, indices, 1), 1)
    best = np.argsort(-asked, axis=0, kind="stable")[:capacity]  # (C, E)
    served = np.zeros(logits.shape, bool)
    np.put_along_axis(served, best, True, 0)
    return np.take_along_axis(served, indices, 1)


def probabilities_as_priority(logits, indices, capacity):
    weights, _ = pick(softmax(logits)[0], indices)
    return keep_within_capacity(indices, logits.shape[1], capacity, priority="probability", weights=weights)


def check_nothing_dropped_from_experts_with_room(keep):
    logits = np.array([[-1.0, -2.0], [-1.0, -2.0], [-2.0, -1.0], [-2.0, -1.0]])
    kept = keep(logits, logits.argmax(1)[:, None], 2)
    require(kept.all(), f"two tokens per expert and two places each: all must be kept; here {kept.sum()} of 4 are")


LAYERS = (
    Exhibit(
        "dropped tokens not zero",
        "huggingface/transformers #37017, mended by #37123; the code of labml",
        right=grouped_dispatch,
        buggy=dropped_pass_inside,
        check=check_dropped_get_nothing,
    ),
    Exhibit(
        "dropped assignments teach the router",
        "huggingface/transformers #48687, mended by #48689",
        right=grouped_dispatch,
        buggy=dropped_teach_the_router,
        check=check_dropped_teach_nobody,
    ),
    Exhibit(
        "jitter reaches the experts",
        "huggingface/transformers #33969",
        right=jitter_for_the_router,
        buggy=jitter_for_all,
        check=check_experts_see_no_jitter,
    ),
    Exhibit(
        "detached gate scores",
        "the PyTorch example of the untitled document on the 稀疏门控 (sparse gate), §5",
        right=layer_output,
        buggy=detached_scores,
        check=check_gradient_of_layer,
    ),
    Exhibit(
        "router term missing in dx",
        "no public report known; the first thing to forget in a backward pass written by hand",
        right=layer_output,
        buggy=router_term_missing,
        check=check_gradient_of_layer,
    ),
    Exhibit(
        "a gate that underflows",
        "the code of DeepSpeed and nanoMoE",
        right=sent_where_chosen,
        buggy=sent_where_weight_is_not_zero,
        check=check_tiny_weights_are_sent,
    ),
    Exhibit(
        "every expert runs on every token",
        "kyegomez/SwitchTransformers #17",
        right=grouped_dispatch,
        buggy=every_expert_runs,
        check=check_rows_computed,
    ),
    Exhibit(
        "logits where probabilities are needed",
        "mended by deepspeedai/DeepSpeed #7986",
        right=probabilities_as_priority,
        buggy=logits_as_priority,
        check=check_nothing_dropped_from_experts_with_room,
    ),
)
