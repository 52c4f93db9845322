"""Bugs of balancing losses, and of the counts they are made of.

Several checks use one example that can be computed in the head: two experts, every token at the same one and with
probabilities 0.9 and 0.1, so that the loss is E Σ f P = 2 · 1 · 0.9 = 1.8, where 1 is perfect balance.
"""

import numpy as np

from ...gradcheck import check_gradients
from ...ops import expert_shares, load_balance, softmax
from ...ops.top_k_gate import pick
from ..conventions import balance_loss
from .exhibit import Exhibit, require

FIRST, SECOND = np.log([[0.9, 0.1]] * 6), np.log([[0.1, 0.9]] * 6)  # logits of six tokens that want one expert
TO_FIRST, TO_SECOND = np.zeros((6, 1), int), np.ones((6, 1), int)


def require_collapse(loss, what):
    require(np.isclose(loss, 1.8), f"{what} must give 1.8; here it is {loss:.3g}")


def double_softmax(logits, indices):
    """The router returns probabilities under the name `router_logits`, and the loss applies softmax to them again.
    Probabilities differ by 1 at most, so their softmax is nearly even: the loss stays near its best value whatever
    happens, and its gradient shrinks to about 1/E. Balancing is switched off without a word."""
    probabilities, softmax_back = softmax(logits)
    loss, loss_back = load_balance(probabilities, indices)

    def backward(dloss):
        return softmax_back(*loss_back(dloss))

    return loss, backward


def check_collapse_of_one_layer(balance):
    require_collapse(balance(FIRST, TO_FIRST)[0], "all tokens at one expert, with probability 0.9,")


def probabilities_of_the_chosen(logits, indices):
    """P, the mean probability of an expert, is taken of the gate weights, which are 0 for everyone not chosen. The
    experts that should become more likely get no gradient; with one choice, whose weight is always 1, nobody gets any."""
    n, n_experts = logits.shape
    chosen, pick_back = pick(logits, indices)
    weights, softmax_back = softmax(chosen)
    f = n_experts / max(n, 1) * expert_shares(indices, n_experts)[indices]  # (N, K)
    loss = (f * weights).sum()

    def backward(dloss):
        return pick_back(*softmax_back(dloss * f))

    return loss, backward


def check_unchosen_are_taught(balance):
    logits = np.random.default_rng(0).standard_normal((5, 3))
    indices = logits.argmax(1)[:, None]
    (dlogits,) = balance(logits, indices)[1](1.0)
    np.put_along_axis(dlogits, indices, 0, 1)
    require(dlogits.any(), "experts that were not chosen get no gradient, so nothing makes them more likely")


def detached_loss(logits, indices):
    """The loss is computed, logged, looks sensible, and is not connected to the router: the function that should attach
    its gradient to the weights returned a new tensor, and the caller went on with the old one."""
    loss, _ = load_balance(logits, indices)

    def backward(dloss):
        return (np.zeros_like(logits),)

    return loss, backward


def check_gradient_of_balance(balance):
    logits = np.random.default_rng(0).standard_normal((5, 3))
    report = check_gradients(balance, logits, np.argsort(-logits, 1)[:, :2])
    require(report.ok, str(report))


def shares_not_divided_by_k(logits, indices):
    """The counts of all K choices are divided by the tokens, not by the assignments: the loss and its gradient are K times
    those of the paper, a perfect router has K, and a coefficient copied from one system is K times too much in another."""
    k = indices.shape[1]
    loss, loss_back = load_balance(logits, indices)

    def backward(dloss):
        return loss_back(k * dloss)

    return k * loss, backward


def check_even_is_one(balance):
    for indices in ([[0], [1], [2], [3]], [[0, 1], [2, 3], [1, 0], [3, 2]]):
        loss, _ = balance(np.zeros((4, 4)), np.array(indices))
        require(
            np.isclose(loss, 1), f"perfect balance with {len(indices[0])} choices must give 1; here it is {loss:.3g}"
        )


def layers_pooled(logits, indices):
    """Counts and probabilities of all layers are put together before they are multiplied. Two layers that have collapsed,
    each on another expert, look perfectly even together."""
    loss, loss_back = load_balance(logits.reshape(-1, logits.shape[-1]), indices.reshape(-1, indices.shape[-1]))

    def backward(dloss):
        (dlogits,) = loss_back(dloss)
        return (dlogits.reshape(logits.shape),)

    return loss, backward


def check_collapse_of_every_layer(balance):
    loss, _ = balance(np.stack([FIRST, SECOND]), np.stack([TO_FIRST, TO_SECOND]))
    require_collapse(loss, "two layers, each collapsed on another expert,")


def padding_counted(logits, indices, *, mask):
    """Padding is routed like text and counted like text. All of it looks alike and goes to the same experts, so the
    loss depends on how full the batch is: it pushes text away from those experts, or hides that all text is at others."""
    return load_balance(logits, indices)


def check_padding_changes_nothing(balance):
    mask = np.arange(12) < 6
    loss, _ = balance(np.vstack([FIRST, SECOND]), np.vstack([TO_FIRST, TO_SECOND]), mask=mask)
    require_collapse(loss, "text at one expert and as much padding at the other")


def dropped_counted_as_first(logits, indices, *, kept):
    """Who went where is read off the one-hot matrix after dropped tokens have been erased from it. Their rows are all
    zero, and argmax of zeros is 0: every dropped token counts as one of expert 0. The fuller another expert, the more."""
    one_hot = (indices == np.arange(logits.shape[1])) & kept  # (N, E), one choice each
    return load_balance(logits, one_hot.argmax(1)[:, None])


def dropped_through_a_view(logits, indices, *, kept):
    """`first`, the first choices that the loss will count, is a view of the matrix of all choices, not a copy. Capacity then
    erases the dropped ones from that matrix in place. An overfull expert counts as no more than full: the more tokens
    are lost, the smaller the loss."""
    choices = (indices[..., None] == np.arange(logits.shape[1])).astype(float)  # (N, K, E)
    first = choices[:, 0]
    choices *= kept[..., None]
    return load_balance(logits, indices, shares=first.mean(0))


def wishes_counted(logits, indices, *, kept):
    return load_balance(logits, indices)


def check_dropping_hides_no_collapse(balance):
    kept = np.arange(6)[:, None] < 2  # the capacity is 2
    require_collapse(balance(SECOND, TO_SECOND, kept=kept)[0], "all tokens at one expert, four of six dropped,")


def counted_twice(choices, n_experts, *, recompute):
    """The forward pass adds to a counter of tokens per expert. To save memory its activations are thrown away and the
    backward pass runs it a second time: it counts a second time, too."""
    total = np.zeros(n_experts, int)

    def forward(indices):
        total[:] += np.bincount(indices.reshape(-1), minlength=n_experts)

    for indices in choices:
        forward(indices)
        if recompute:
            forward(indices)
    return total


def counted_once(choices, n_experts, *, recompute):
    """The forward pass returns its counts, and who runs it again does not add them again."""

    def forward(indices):
        return np.bincount(indices.reshape(-1), minlength=n_experts)

    total = np.zeros(n_experts, int)
    for indices in choices:
        total += forward(indices)
        if recompute:
            forward(indices)
    return total


def check_counts_ignore_recomputation(count):
    choices = np.random.default_rng(0).integers(0, 4, (3, 5, 1))
    for recompute in (False, True):
        found = int(count(choices, 4, recompute=recompute).sum())
        require(found == 15, f"15 tokens must be 15, recomputed or not; recompute = {recompute} counts {found}")


LOSSES = (
    Exhibit(
        "double softmax",
        "huggingface/transformers #45120, mended by #45131",
        right=load_balance,
        buggy=double_softmax,
        check=check_collapse_of_one_layer,
    ),
    Exhibit(
        "P of the chosen only",
        "paiml/aprender #2162; the code of nanoMoE",
        right=load_balance,
        buggy=probabilities_of_the_chosen,
        check=check_unchosen_are_taught,
    ),
    Exhibit(
        "detached balance loss",
        "NVIDIA-NeMo/Automodel #1408, mended by #1412",
        right=load_balance,
        buggy=detached_loss,
        check=check_gradient_of_balance,
    ),
    Exhibit(
        "f not divided by k",
        "allenai/OLMoE #45, on huggingface/transformers",
        right=load_balance,
        buggy=shares_not_divided_by_k,
        check=check_even_is_one,
    ),
    Exhibit(
        "layers pooled",
        "huggingface/transformers #28255",
        right=balance_loss,
        buggy=layers_pooled,
        check=check_collapse_of_every_layer,
    ),
    Exhibit(
        "padding counted",
        "huggingface/transformers #28505, mended by #28517; NVIDIA/Megatron-LM #1984, #2121",
        right=load_balance,
        buggy=padding_counted,
        check=check_padding_changes_nothing,
    ),
    Exhibit(
        "dropped tokens counted as expert 0",
        "the Switch router of huggingface/transformers 4.57.1",
        right=wishes_counted,
        buggy=dropped_counted_as_first,
        check=check_dropping_hides_no_collapse,
    ),
    Exhibit(
        "counts changed through a view",
        "the code of lucidrains/st-moe-pytorch",
        right=wishes_counted,
        buggy=dropped_through_a_view,
        check=check_dropping_hides_no_collapse,
    ),
    Exhibit(
        "counts doubled by recomputation",
        "NVIDIA/Megatron-LM #1330, #1331; pytorch/torchtitan #1593, which halves them",
        right=counted_once,
        buggy=counted_twice,
        check=check_counts_ignore_recomputation,
    ),
)
