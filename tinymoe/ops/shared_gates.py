"""Gates that look at more than one token at a time, or at no scores at all.

    sinkhorn_gate, base_gate    all tokens are shared out at once     Megatron; BASE layers
    expert_choice_gate          experts choose tokens                 Zhou 2022
    table_gate                  a table says, nothing is learned      Hash Layers

By scores, what a token gets depends on the others, so a causal model may use the first two in training only, and expert
choice not at all if it is to be honest about what comes next.
"""

import numpy as np

from ..types import Array, Backward
from .ids import check_ids
from .pointwise import sigmoid
from .read_only import read_only
from .softmax import softmax
from .top_k_gate import choose, pick


def sinkhorn_gate(
    logits: Array, k, *, balanced=True, tolerance=1e-4, iterations=100
) -> tuple[tuple[Array, Array], Backward]:
    """Choose from a plan that gives all experts about the same, but weigh by the router's own score.

        S = the k largest of sinkhorn(z)_n (training), of z_n (balanced = False: evaluation)
        k = 1:  w = sigmoid(z_i),  dz_i = dw w (1 − w), 0 else
        k > 1:  w_i = p_i,  p = softmax(z), not renormalised,  dz_j = p_j (dw_j 1[j∈S] − Σ_{i∈S} dw_i p_i) for all j

    The plan only chooses: no gradient goes through the iteration. Its choices are nearly, not exactly, balanced, so no
    balancing loss is added. A token's plan depends on all tokens of the batch, later ones too: it is not causal.

    logits   (N, E)
    weights  (N, K)
    indices  (N, K)  int, best first by the plan

    Raises ValueError unless 1 ≤ k ≤ E.
    Source: Clark et al. 2022 (S-BASE); weights and constants as in Megatron-LM.
    """
    plan = sinkhorn(logits.real, tolerance=tolerance, iterations=iterations) if balanced else logits
    indices = choose(plan, k)
    scores, scores_back = (sigmoid if k == 1 else softmax)(logits)
    weights, pick_back = pick(scores, indices)

    def backward(dweights):
        return scores_back(*pick_back(dweights))

    return (weights, indices), backward


def sinkhorn(logits, *, tolerance=1e-4, iterations=100):
    """The matrix closest to exp(logits), in relative entropy, in which all tokens send and all experts receive the same.

        plan_ne = a_n exp(z_ne) b_e,   a_n = 1/N / (Σ_e b_e exp(z_ne) + 1e-8),   b_e = 1/E / (Σ_n a_n exp(z_ne) + 1e-8)

    in turn, from b = 1, until b changes by `tolerance` or less on average, or `iterations` are over. Subtracting a row's
    maximum first divides exp(z_n) by a number that a_n multiplies again: the plan stays, and nothing overflows. Where
    every token puts an expert more than some 18 = ln 1e8 below another, 1e-8 is no longer small: that expert gets less,
    and from about twice that on nothing.

    logits  (N, E)
    plan    (N, E)  rows add up to 1/N and columns to 1/E, once converged

    Source: Cuturi 2013, algorithm 1; 1e-8 and the stopping rule as in Megatron-LM.
    """
    n, n_experts = logits.shape
    cost = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    a, b = np.ones(n), np.ones(n_experts)
    for _ in range(iterations):
        a = 1 / (max(n, 1) * (cost @ b + 1e-8))
        before, b = b, 1 / (n_experts * (a @ cost + 1e-8))
        if np.abs(b - before).mean() <= tolerance:
            break
    return a[:, None] * cost * b


def base_gate(scores: Array, *, balanced=True) -> tuple[tuple[Array, Array], Backward]:
    """One expert for each token and ⌊N/E⌋ or ⌈N/E⌉ tokens for each expert, such that the sum of all scores is largest.

        indices = balanced_assignment(scores) (training), argmax (balanced = False: evaluation)
        w = sigmoid(score of the choice)        dscore = dw w (1 − w), 0 for the others

    In the paper each expert is a residual network, y = x + w ff(x): with w = 0 the token passes unchanged. The router
    learns through w alone. The assignment depends on all tokens of the batch, later ones too: it is not causal.

    scores   (N, E)  x W
    weights  (N, 1)
    indices  (N, 1)  int

    Raises ValueError where SciPy is not installed, which solves the assignment.
    Source: Lewis et al. 2021 (BASE layers), §3.
    """
    indices = read_only(balanced_assignment(scores.real)[:, None]) if balanced else choose(scores, 1)
    chosen, pick_back = pick(scores, indices)
    weights, sigmoid_back = sigmoid(chosen)

    def backward(dweights):
        return pick_back(*sigmoid_back(dweights))

    return (weights, indices), backward


def balanced_assignment(scores):
    """The expert (N,) of each token, so that every expert gets ⌊N/E⌋ or ⌈N/E⌉ and the sum of scores (N, E) is largest.

    Each expert has ⌈N/E⌉ places. Where N is not a multiple of E that is too many, and dummies take the rest; they are
    only allowed on an expert's last place, so that no expert gets two. The time grows as N³.

    Raises ValueError where SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise ValueError("SciPy solves the balanced assignment and is not installed: pip install scipy") from None
    n, n_experts = scores.shape
    rounds = -(-n // n_experts)  # ⌈N/E⌉
    value = np.zeros((rounds * n_experts, rounds * n_experts))  # place j is at expert j mod E
    value[:n] = np.tile(scores, rounds)
    value[n:, :-n_experts] = -np.inf
    return linear_sum_assignment(value, maximize=True)[1][:n] % n_experts


def expert_choice_gate(logits: Array, capacity) -> tuple[tuple[Array, Array, Array], Backward]:
    """Experts choose tokens: each takes the `capacity` best of the batch, so all have the same to do.

        p = softmax(z) over experts        kept_ne = n is among the best of column p_·e        w = p ⊙ kept
        (ties go to the lowest token)
        dz_j = p_j (dw_j kept_j − Σ_i dw_i kept_i p_i) for all j

    A token may have many experts or none. Who is taken depends on later tokens too: it is not causal, and a language
    model that trains with it sees its future.

    logits    (N, E)
    capacity  int    tokens per expert; N if that is less
    weights   (N, E)  0 where not kept
    indices   (N, E)  int, 0 … E−1 in every row
    kept      (N, E)  bool

    Raises ValueError for a negative capacity.
    Source: Zhou et al. 2022 (Expert Choice), §3.2.
    """
    if capacity < 0:
        raise ValueError(f"the capacity is {capacity}; it must be 0 or more")
    p, softmax_back = softmax(logits)
    best = np.argsort(-p.real, axis=0, kind="stable")[:capacity]
    kept = np.zeros(p.shape, bool)
    np.put_along_axis(kept, best, True, 0)
    weights = p * kept
    indices = np.tile(np.arange(p.shape[1]), (len(p), 1))

    def backward(dweights):
        return softmax_back(dweights * kept)

    return (weights, indices, read_only(kept)), backward


def table_gate(ids, table, dtype=np.float32):
    """The expert that a table names for each token id, with weight 1: (weights (N, 1), indices (N, 1)). No gradient.

    ids    (N,)  int in [0, V)
    table  (V,)  int, see `hash_table` and `partition_table`

    Raises IndexError for an id outside the table (NumPy would count negative ids from the end).
    Source: Roller et al. 2021 (Hash Layers).
    """
    check_ids("ids", ids, len(table), "the table has rows")
    return np.ones((len(ids), 1), dtype), table[ids][:, None]


def hash_table(vocabulary, n_experts, rng):
    """A random expert for each id (V,), drawn once and kept for good."""
    return rng.integers(n_experts, size=vocabulary)


def partition_table(vocabulary, n_experts):
    """Equal runs of consecutive ids, one for each expert (V,): 《稀疏专家模型》 §4.3, each handles a part of the input.

    The lengths of two runs differ by one at most.
    """
    return np.arange(vocabulary) * n_experts // vocabulary
