"""Operations: arrays in, `y, backward` out.

    y, backward = op(x, w)        forward, and a closure that remembers what the derivative needs
    dx, dw = backward(dy)         one gradient per float input, in the order of the signature

`dx` is the gradient of the loss with respect to x. Where y is a tuple, `backward` takes one gradient per float
array in it; integers and records in it are information without gradient. Every operation is pure: nothing passed in
is written to, and a `backward` can be called again.

Axes: B sequences · T positions · N = B·T rows (tokens) · D model width · H heads · G key/value heads · P width per
head · E experts · K experts per token · M = N·K assignments · F expert width · V vocabulary.

Reading order: pointwise, linear, norm, softmax, positions, shift, attention, routing, balance, sparse,
experts, moe.
"""

from .attention import causal_attention
from .balance import load_balance
from .experts import experts, grouped_linear
from .linear import embedding, linear
from .moe import Routing, moe
from .norm import layer_norm, rms_norm
from .pointwise import dropout, gelu, gelu_exact, relu, sigmoid, silu, softplus, tanh
from .positions import add_positions, rotary, sinusoidal
from .routing import Assignment, combine, dispatch, group_by_expert, top_k_gate
from .shift import token_shift
from .softmax import cross_entropy, log_sum_exp, softmax
from .sparse import (
    combine_matrix,
    dispatch_matrix,
    grouped_sparse_linear,
    one_hot,
    routing_matrix,
    sparse_linear,
    sparse_matmul,
)

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
    sparse_matmul,
    sparse_linear,
    grouped_sparse_linear,
    top_k_gate,
    dispatch,
    combine,
    load_balance,
    grouped_linear,
    experts,
    moe,
)  # everything that has a backward

__all__ = [
    "OPERATIONS",
    "Assignment",
    "Routing",
    "combine_matrix",
    "dispatch_matrix",
    "group_by_expert",
    "one_hot",
    "routing_matrix",
    "sinusoidal",
    *(op.__name__ for op in OPERATIONS),
]
