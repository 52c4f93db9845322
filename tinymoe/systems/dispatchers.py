"""Six ways to send tokens to their experts and back. They compute the same layer and the same gradients:

    y_n = Σ_{j kept} w_nj expert_{i_nj}(x_n)

    loop_dispatch        one token and one choice at a time: the definition
    one_hot_dispatch     every expert works on every token; masks cancel what was not asked for
    grouped_dispatch     sort the assignments by expert, one product per expert: what the models here use
    padded_dispatch      a buffer of equal length for each expert, one batched product
    csr_dispatch         products with a sparse matrix and its transpose
    all_to_all_dispatch  tokens and experts live on several machines, which swap buffers

One example through all of them. There are three tokens of width 1, x = 1, 2, 3, and two experts of width 1, with up = 1
and down = 10 and 100: expert 0 multiplies by 10, expert 1 by 100. Token 0 goes to both; tokens 1 and 2 go to expert 0,
and their second choice is dropped.

    indices  1 0    weights  3 1    kept  yes yes        y_0 = 3·100·1 + 1·10·1 = 310
             0 1             2 5          yes no         y_1 = 2·10·2           =  40
             0 1             4 6          yes no         y_2 = 4·10·3           = 120

    loop        four visits, token → expert: 0→1, 0→0, 1→0, 2→0; they add 300, 10, 40, 120
    one_hot     expert 0 sees 1 2 3 and returns 10 20 30; expert 1 sees 1 0 0 and returns 100 0 0
                y = (1 2 4) ⊙ (10 20 30) + (3 0 0) ⊙ (100 0 0)
    grouped     the visits sorted by expert: rows 1 2 3 | 1, counts 3 1, outputs 10 20 30 | 100
    padded      capacity 3, the largest count: buffers 1 2 3 and 1 0 0, the two zeros are padding
    csr         dispatch  1 0 0    times x is 1 2 3 1;    combine  1 0 0 3    times 10 20 30 100 is y
                          0 1 0                                    0 2 0 0
                          0 0 1                                    0 0 4 0
                          1 0 0
    all_to_all  two ranks: token 0 and expert 0 on rank 0, tokens 1, 2 and expert 1 on rank 1
                rank 0 keeps 1 and sends 1;  rank 1 sends 2 3 and keeps nothing
                rank 0 now holds 1 | 2 3 and returns 10 | 20 30;  rank 1 holds 1 and returns 100

With dy = 1, 1, 1 all six return dx = 310, 20, 40; dweights = 100 10, 20 0, 30 0; dup = 170, 300; ddown = 17, 3.

What all have in common:

    x        (N, D)
    weights  (N, K)     gate weights
    up       (E, D, F)
    down     (E, F, D)
    gate     (E, D, F)  or None
    indices  (N, K)     int, the experts chosen
    kept     (N, K)     bool, False for a dropped assignment and for padding; None keeps all
    y        (N, D)

    backward(dy) → dx, dweights, dup, ddown (and dgate, where there is a gate)

A dropped assignment adds nothing and its weight gets gradient 0; the others are not renormalised. What stands in its
weight and index is never looked at, nor is a row of x or dy whose token has nothing kept: padding may hold NaN, y and
dx are 0 there. All raise ValueError when x, weights and indices don't fit together, or a kept index is no expert.
"""

from itertools import pairwise

import numpy as np

from ..ops import combine, dispatch, dispatch_matrix, experts, group_by_expert, relu, sparse_matmul
from ..ops.masks import as_mask


def loop_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu):
    """The definition, one token and one choice at a time. See the module for the shapes.

    y_n += w_nj expert_e(x_n)        dw_nj = dy_n · expert_e(x_n),   expert e gets w_nj dy_n,   dx_n += what it returns

    Source: Shazeer et al. 2017, eq. 1.
    """
    matrices = (up, down) if gate is None else (up, down, gate)
    visits = []  # (token, choice, expert, what it returned, its backward)
    for n, j in np.argwhere(_mask(x, weights, indices, kept, len(up))).tolist():
        e = int(indices[n, j])
        one = [m[e : e + 1] for m in matrices]
        visits.append((n, j, e, *experts(x[n : n + 1], *one, counts=[1], activation=activation)))
    y = np.zeros(x.shape, np.result_type(x, weights, *matrices))
    for n, j, _, output, _ in visits:
        y[n] += weights[n, j] * output[0]

    def backward(dy):
        dx, dweights, *dmatrices = (np.zeros_like(a) for a in (x, weights, *matrices))
        for n, j, e, output, expert_back in visits:
            dweights[n, j] = output[0] @ dy[n]
            drow, *own = expert_back(weights[n, j] * dy[n : n + 1])
            dx[n] += drow[0]
            for total, part in zip(dmatrices, own, strict=True):
                total[e] += part[0]
        return dx, dweights, *dmatrices

    return y, backward


def one_hot_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu):
    """Every expert works on a copy of all tokens, zero where one is not for it. No sort, no gather: E/K times the work.

        sent_en = does n go to e?        mix_en = Σ_j w_nj [i_nj = e]        y_n = Σ_e mix_en expert_e(sent_en x_n)
        dmix_en = dy_n · expert_e(…)     dw_nj = dmix_en at e = i_nj         dx_n = Σ_e sent_en (through expert e)

    Zeros are selected, not multiplied in: 0 · NaN is NaN, and padding may hold it.

    Source: Lepikhin et al. 2020 (GShard), algorithm 2, without its axis of capacity.
    """
    valid = _mask(x, weights, indices, kept, len(up))
    chosen = (indices[..., None] == np.arange(len(up))) & valid[..., None]  # (N, K, E)
    sent = chosen.any(1).T[..., None]  # (E, N, 1)
    mix = np.where(chosen, weights[..., None], 0).sum(1).T[..., None]  # (E, N, 1)
    outputs, experts_back = batched_experts(np.where(sent, x, 0), up, down, gate, activation=activation)
    y = (mix * outputs).sum(0)

    def backward(dy):
        dcopies = np.where(sent, dy, 0)  # (E, N, D)
        dmix = np.vecdot(outputs, dcopies).T  # (N, E)
        drows, *dmatrices = experts_back(mix * dcopies)
        return np.where(sent, drows, 0).sum(0), np.vecdot(chosen, dmix[:, None]), *dmatrices

    return y, backward


def grouped_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu):
    """Sort the kept assignments by expert; each expert multiplies its consecutive rows. No padding, no waste.

        copies = one row of x for each kept assignment        rows = copies, sorted by expert
        y_n = Σ of the rows of n in combine(experts(rows), w)

    With a row for each assignment, the operations of `ops.routing` see tokens with a single choice. Copying rows and
    adding them up again are each other's backward.

    Source: Gale et al. 2022 (MegaBlocks), §4.
    """
    matrices = (up, down) if gate is None else (up, down, gate)
    valid = _mask(x, weights, indices, kept, len(up))
    assignment = group_by_expert(indices[valid][:, None], len(up))
    rows, dispatch_back = dispatch(_copy(x, valid), assignment)
    outputs, experts_back = experts(rows, *matrices, counts=assignment.counts, activation=activation)
    weighted, combine_back = combine(outputs, weights[valid][:, None], assignment)
    y = _fill(weighted, valid).sum(1)

    def backward(dy):
        doutputs, dvalid = combine_back(_copy(dy, valid))
        drows, *dmatrices = experts_back(doutputs)
        (dcopies,) = dispatch_back(drows)
        return _fill(dcopies, valid).sum(1), _fill(dvalid[:, 0], valid), *dmatrices

    return y, backward


def padded_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu, capacity=None):
    """A buffer of C rows for each expert, filled from the front, the rest zeros; all experts in one batched product.

        buffer[e, c] = the token of the c-th assignment to e, in token order        (E, C, D)
        y_n = Σ_j w_nj outputs[e, c] at the place of assignment nj                  back from the same places

    C is the largest count, or the given capacity, which drops nothing: dropping is said by `kept`. Even load wastes
    nothing; with one expert overloaded much of the buffer is padding.

    Raises ValueError also when the capacity is below the largest count.
    Source: Lepikhin et al. 2020 (GShard), §2.2; Fedus et al. 2021 (Switch), §2.2.
    """
    valid = _mask(x, weights, indices, kept, len(up))
    expert = indices[valid]  # (M,) of each kept assignment, in token order
    assignment = group_by_expert(expert[:, None], len(up))
    slot = assignment.inverse - (np.cumsum(assignment.counts) - assignment.counts)[expert]  # its rank at that expert
    largest = int(assignment.counts.max(initial=0))
    length = largest if capacity is None else capacity
    if length < largest:
        raise ValueError(f"the capacity is {capacity}; an expert has {largest} tokens, so it must be at least that")
    buffer = np.zeros((len(up), length, x.shape[1]), x.dtype)
    buffer[expert, slot] = _copy(x, valid)
    outputs, experts_back = batched_experts(buffer, up, down, gate, activation=activation)
    y, add_back = _weigh_and_add(outputs[expert, slot], weights, valid)

    def backward(dy):
        dreturned, dweights = add_back(dy)
        doutputs = np.zeros(buffer.shape, dreturned.dtype)
        doutputs[expert, slot] = dreturned
        dbuffer, *dmatrices = experts_back(doutputs)
        return _fill(dbuffer[expert, slot], valid).sum(1), dweights, *dmatrices

    return y, backward


def csr_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu):
    """Routing as a sparse matrix: dispatch is a product with it, combine one with its transpose and the weights.

        rows = S x,   S (M, N), row m has a 1 at the token of the m-th assignment in the order of experts
        y = C outputs,   C (N, M) = Sᵀ with the gate weights as values        dw = the values of dC

    Source: Gale et al. 2022 (MegaBlocks), §4, for the sparse view of the layer; here it is the routing that is sparse.
    """
    matrices = (up, down) if gate is None else (up, down, gate)
    valid = _mask(x, weights, indices, kept, len(up))
    single = group_by_expert(indices[valid][:, None], len(up))  # its tokens are numbers of assignments
    assignment = single._replace(tokens=np.nonzero(valid)[0][single.order])
    spread = dispatch_matrix(assignment, len(x), x.dtype)
    gather = spread.T
    entry = assignment.order[gather.indices]  # (M,) the assignment, in token order, of each stored value of `gather`
    rows, dispatch_back = sparse_matmul(spread.data, x, spread)
    outputs, experts_back = experts(rows, *matrices, counts=assignment.counts, activation=activation)
    y, combine_back = sparse_matmul(weights[valid][entry], outputs, gather)

    def backward(dy):
        dvalues, doutputs = combine_back(dy)
        drows, *dmatrices = experts_back(doutputs)
        _, dx = dispatch_back(drows)  # the ones of S are constants
        dvalid = np.empty_like(dvalues)
        dvalid[entry] = dvalues
        return dx, _fill(dvalid, valid), *dmatrices

    return y, backward


def all_to_all_dispatch(x, weights, up, down, gate=None, *, indices, kept=None, activation=relu, ranks=2):
    """Expert parallelism: tokens and experts are spread over `ranks` machines, simulated as lists of buffers.

        1. rank r puts its copies for the experts of rank s into send[r][s]        2. all-to-all: s gets send[:][s]
        3. s runs its own experts        4. all-to-all back        5. r weighs and adds up what its tokens get

    Backward is the same journey the other way, so a layer costs four exchanges; `exchanged_bytes` says how large. A
    rank may have no tokens or no experts.

    Raises ValueError also unless there is at least one rank.
    Source: Lepikhin et al. 2020 (GShard), §3; Rajbhandari et al. 2022 (DeepSpeed-MoE).
    """
    matrices = (up, down) if gate is None else (up, down, gate)
    valid = _mask(x, weights, indices, kept, len(up))
    goes = _journeys(indices, valid, len(up), ranks)
    homes = even_parts(len(up), ranks)
    send = [[_copy(x, g) for g in row] for row in goes]
    numbers = [[indices[g] - home.start for g, home in zip(row, homes, strict=True)] for row in goes]
    work = [
        _own_experts(buffers, ids, [m[home] for m in matrices], activation)
        for buffers, ids, home in zip(all_to_all(send), all_to_all(numbers), homes, strict=True)
    ]
    experts_backs = [back for _, back in work]
    returned = all_to_all([outputs for outputs, _ in work])
    y, add_back = _weigh_and_add(_unpack(returned, goes)[valid], weights, valid)

    def backward(dy):
        dreturned, dweights = add_back(dy)
        dhome = _fill(dreturned, valid)  # (N, K, D)
        arrived = all_to_all([[dhome[g] for g in row] for row in goes])
        dwork = [back(buffers) for back, buffers in zip(experts_backs, arrived, strict=True)]
        dsend = all_to_all([dbuffers for dbuffers, *_ in dwork])
        dmatrices = (np.concatenate(parts) for parts in zip(*(own for _, *own in dwork), strict=True))
        return _unpack(dsend, goes).sum(1), dweights, *dmatrices

    return y, backward


DISPATCHERS = {
    "loop": loop_dispatch,
    "one_hot": one_hot_dispatch,
    "grouped": grouped_dispatch,
    "padded": padded_dispatch,
    "csr": csr_dispatch,
    "all_to_all": all_to_all_dispatch,
}


def batched_experts(x, up, down, gate=None, *, activation=relu):
    """`ops.experts` when every expert has the same number of rows: plain products of stacks.

        h = activation(x Up)  or  activation(x Gate) ⊙ (x Up)        y = h Down

    x     (E, C, D)
    up    (E, D, F)
    down  (E, F, D)
    gate  (E, D, F)  or None
    y     (E, C, D)
    """
    u = x @ up
    a, activation_back = activation(u if gate is None else x @ gate)
    h = a if gate is None else a * u
    y = h @ down

    def backward(dy):
        dh, ddown = dy @ down.mT, h.mT @ dy
        if gate is None:
            (du,) = activation_back(dh)
            return du @ up.mT, x.mT @ du, ddown
        du = dh * a
        (dg,) = activation_back(dh * u)
        return du @ up.mT + dg @ gate.mT, x.mT @ du, ddown, x.mT @ dg

    return y, backward


def all_to_all(buffers):
    """buffers[r][s] is what rank r sends to rank s; returns, for each rank s, the list of what it got from every r."""
    return [list(received) for received in zip(*buffers, strict=True)]


def even_parts(n, ranks):
    """`ranks` consecutive slices of range(n) whose lengths differ by one at most. ValueError without a rank."""
    if ranks < 1:
        raise ValueError(f"there are {ranks} ranks; at least 1 is needed")
    bounds = [n * r // ranks for r in range(ranks + 1)]
    return [slice(first, last) for first, last in pairwise(bounds)]


def exchanged_bytes(indices, n_experts, row_bytes, *, ranks, kept=None):
    """(R, R) int: the bytes of rows that rank r sends to rank s before the experts run; row_bytes is D times 4 or 8.

    What stays on its rank counts 0. The way back is the transpose, and backward repeats both: a layer and its gradient
    move four times the sum. The numbers of the experts, which travel along once, are not counted.
    """
    valid = as_mask(indices.shape, kept)
    rows = np.array([[g.sum() for g in row] for row in _journeys(indices, valid, n_experts, ranks)])
    np.fill_diagonal(rows, 0)
    return rows * row_bytes


def _mask(x, weights, indices, kept, n_experts):
    """`kept`, or all of them; raises ValueError for shapes that don't fit and for kept indices that are no expert."""
    if not indices.ndim == 2 or not indices.shape == weights.shape or len(x) != len(indices):
        raise ValueError(
            f"indices have shape {indices.shape}, weights {weights.shape} and x {x.shape}; the first two must be (N, K) "
            "and x (N, D)"
        )
    valid = as_mask(indices.shape, kept)
    used = indices[valid]
    if used.size and not 0 <= used.min() <= used.max() < n_experts:
        raise ValueError(f"indices span {used.min()} to {used.max()}; allowed are 0 to {n_experts - 1}")
    return valid


def _copy(x, mask):
    """(M, D): the row of its token for every assignment in `mask` (N, K), in token order."""
    return x[np.nonzero(mask)[0]]


def _fill(values, mask):
    """(N, K) or (N, K, D): the values at the assignments in `mask`, in token order, and 0 at the others."""
    filled = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    filled[mask] = values
    return filled


def _weigh_and_add(returned, weights, valid):
    """y_n = Σ_{j kept} w_nj returned_nj; `returned` (M, D) has a row for each kept assignment, in token order."""
    w = weights[valid][:, None]
    y = _fill(w * returned, valid).sum(1)

    def backward(dy):
        dcopies = _copy(dy, valid)
        return w * dcopies, _fill(np.vecdot(returned, dcopies), valid)

    return y, backward


def _journeys(indices, valid, n_experts, ranks):
    """goes[r][s] (N, K) bool: the kept assignments of the tokens of rank r to the experts of rank s."""
    token = np.arange(len(indices))[:, None]
    return [
        [
            valid & (t.start <= token) & (token < t.stop) & (e.start <= indices) & (indices < e.stop)
            for e in even_parts(n_experts, ranks)
        ]
        for t in even_parts(len(indices), ranks)
    ]


def _unpack(buffers, goes):
    """(N, K, D): every row of buffers[r][s] at the assignment in goes[r][s] that it belongs to, 0 elsewhere."""
    return sum(_fill(b, g) for pair in zip(buffers, goes, strict=True) for b, g in zip(*pair, strict=True))


def _own_experts(buffers, numbers, matrices, activation):
    """What one rank does: its experts on the rows from all ranks, with the answers in buffers of the same sizes.

    It is the whole layer again, with one choice per row and weight 1, in the padded form.
    """
    rows = np.concatenate(buffers)
    ends = np.cumsum([len(b) for b in buffers])[:-1]
    ones = np.ones((len(rows), 1), rows.real.dtype)
    ids = np.concatenate(numbers)[:, None]
    outputs, layer_back = padded_dispatch(rows, ones, *matrices, indices=ids, activation=activation)

    def backward(doutputs):
        drows, _, *dmatrices = layer_back(np.concatenate(doutputs))
        return np.split(drows, ends), *dmatrices

    return np.split(outputs, ends), backward
