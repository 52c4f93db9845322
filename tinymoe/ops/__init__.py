"""Operations: arrays in, `y, backward` out.

    y, backward = op(x, w)        forward, and a closure that remembers what the derivative needs
    dx, dw = backward(dy)         one gradient per float input, in the order of the signature

`dx` is the gradient of the loss with respect to x. Where y is a tuple, `backward` takes one gradient per float
array in it; integers and records in it are information without gradient. Every operation is pure: nothing passed in
is written to, and a `backward` can be called again.

Axes: B sequences · T positions · N = B·T rows (tokens) · D model width · H heads · G key/value heads · P width per
head · E experts · K experts per token · M = N·K assignments · F expert width · V vocabulary.

Reading order: pointwise, linear, norm, softmax, positions, shift, attention, fusion, recurrent, scores, top_k_gate,
gates, shared_gates, routing, capacity, balance, sparse, experts, moe, soft, likelihood, distillation.
"""

from .attention import causal_attention, full_attention
from .balance import (
    bias_update,
    device_balance,
    expert_shares,
    importance,
    load_balance,
    sequence_balance,
    squared_variation,
    z_loss,
)
from .capacity import PRIORITIES, capacity, keep_within_capacity, renormalize_kept
from .distillation import distillation
from .experts import experts, grouped_linear
from .fusion import fuse_additive, fuse_prefix, text_rows
from .gates import gshard_gate, noisy_top_k_gate, sigmoid_gate, top_k_softmax
from .likelihood import half_squared_errors, mixture_likelihood
from .linear import embedding, linear
from .moe import Routing, moe, routed_experts
from .norm import layer_norm, rms_norm
from .pointwise import dropout, gelu, gelu_exact, relu, sigmoid, silu, softplus, tanh
from .positions import add_positions, rotary, sinusoidal
from .recurrent import gru, lstm, rnn
from .routing import Assignment, combine, dispatch, group_by_expert
from .scores import cast, cosine_scores, jitter, mlp_scores
from .shared_gates import base_gate, expert_choice_gate, hash_table, partition_table, sinkhorn_gate, table_gate
from .shift import token_shift
from .soft import soft_moe, soft_routing
from .softmax import cross_entropies, cross_entropy, log_sum_exp, softmax
from .sparse import (
    combine_matrix,
    dispatch_matrix,
    grouped_sparse_linear,
    one_hot,
    routing_matrix,
    sparse_linear,
    sparse_matmul,
)
from .top_k_gate import choose, pick, top_k_gate

OPERATIONS = (
    relu,
    sigmoid,
    tanh,
    softplus,
    silu,
    gelu,
    gelu_exact,
    dropout,
    linear,
    embedding,
    rms_norm,
    layer_norm,
    softmax,
    log_sum_exp,
    cross_entropy,
    add_positions,
    rotary,
    token_shift,
    causal_attention,
    full_attention,
    fuse_prefix,
    fuse_additive,
    text_rows,
    rnn,
    gru,
    lstm,
    sparse_matmul,
    sparse_linear,
    grouped_sparse_linear,
    cosine_scores,
    mlp_scores,
    jitter,
    cast,
    pick,
    top_k_gate,
    top_k_softmax,
    gshard_gate,
    noisy_top_k_gate,
    sigmoid_gate,
    sinkhorn_gate,
    base_gate,
    expert_choice_gate,
    renormalize_kept,
    dispatch,
    combine,
    load_balance,
    device_balance,
    sequence_balance,
    importance,
    squared_variation,
    z_loss,
    grouped_linear,
    experts,
    routed_experts,
    moe,
    soft_routing,
    soft_moe,
    half_squared_errors,
    cross_entropies,
    mixture_likelihood,
    distillation,
)  # everything that has a backward

__all__ = [
    "OPERATIONS",
    "PRIORITIES",
    "Assignment",
    "Routing",
    "bias_update",
    "capacity",
    "choose",
    "combine_matrix",
    "dispatch_matrix",
    "expert_shares",
    "group_by_expert",
    "hash_table",
    "keep_within_capacity",
    "one_hot",
    "partition_table",
    "routing_matrix",
    "sinusoidal",
    "table_gate",
    *(op.__name__ for op in OPERATIONS),
]
