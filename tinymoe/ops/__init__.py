"""Operations: arrays in, `y, backward` out.

    y, backward = op(x, w)        forward, and a closure that remembers what the derivative needs
    dx, dw = backward(dy)         one gradient per float array among the positional inputs, in their order

`dx` is the gradient of the loss with respect to x. Where y is a tuple, `backward` takes one gradient per float
array in it; integers and records in it are information without gradient. What is passed by keyword only, such as a
teacher, is a constant. Every operation is pure: nothing passed in is written to, and a `backward` can be called again.
What is returned and read by the backward later is read-only; a gradient is an array of its own, to be written into.
Where lines are numbered, a line of the backward carries gradients through the line of the forward that has its number,
so it reads upwards.

Decisions, such as which score is the largest, look at `x.real`. Of a real array that is the array itself. But the checker
also runs the forward on x + ihv with h = 10⁻²⁰: the imaginary part of y, divided by h, is the slope along v without the
rounding that a difference of two values has. What is decided must not depend on that step. Where the normal distribution
comes in, there is no complex form here: in `gelu_exact`, and in `smooth_load`, which `noisy_top_k_gate` uses.

Axes: B sequences · T positions · N = B·T rows (tokens) · D model width · H heads · G key/value heads · P width per
head · E experts · K experts per token · M = N·K assignments · F expert width · V vocabulary.

Reading order: read_only, pointwise, ids, linear, norm, masks, softmax, positions, shift, attention, fusion, recurrent, scores,
top_k_gate, gates, shared_gates, routing, capacity, balance, sparse, experts, moe, soft, likelihood, distillation; and
metrics.
"""

from collections.abc import Iterator
from importlib import import_module
from inspect import isfunction
from pkgutil import iter_modules
from typing import get_args

from ..types import Backward, Operation
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
from .gates import counted_load, gshard_gate, noisy_top_k_gate, sigmoid_gate, smooth_load, top_k_softmax
from .likelihood import half_squared_errors, mixture_likelihood
from .linear import embedding, linear
from .masks import as_mask, without_padding
from .moe import Routing, moe, moe_layer, routed_experts, top_k_route
from .norm import layer_norm, rms_norm
from .pointwise import dropout, gelu, gelu_exact, relu, sigmoid, silu, softplus, tanh
from .positions import add_positions, rotary, sinusoidal
from .recurrent import gru, lstm, rnn
from .routing import Assignment, combine, dispatch, group_by_expert
from .scores import cast, cosine_scores, jitter, mlp_scores, unit_rows
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


def _operations() -> Iterator[Operation]:
    """Every public function of the files here that says in its signature that it returns a `Backward`."""
    for file in iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for name, value in vars(module).items():
            public = isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
            if public and get_args(value.__annotations__.get("return"))[-1:] == (Backward,):
                yield value


OPERATIONS = tuple(_operations())

__all__ = [
    "OPERATIONS",
    "PRIORITIES",
    "Assignment",
    "Routing",
    "add_positions",
    "as_mask",
    "base_gate",
    "bias_update",
    "capacity",
    "cast",
    "causal_attention",
    "choose",
    "combine",
    "combine_matrix",
    "cosine_scores",
    "counted_load",
    "cross_entropies",
    "cross_entropy",
    "device_balance",
    "dispatch",
    "dispatch_matrix",
    "distillation",
    "dropout",
    "embedding",
    "expert_choice_gate",
    "expert_shares",
    "experts",
    "full_attention",
    "fuse_additive",
    "fuse_prefix",
    "gelu",
    "gelu_exact",
    "group_by_expert",
    "grouped_linear",
    "grouped_sparse_linear",
    "gru",
    "gshard_gate",
    "half_squared_errors",
    "hash_table",
    "importance",
    "jitter",
    "keep_within_capacity",
    "layer_norm",
    "linear",
    "load_balance",
    "log_sum_exp",
    "lstm",
    "mixture_likelihood",
    "mlp_scores",
    "moe",
    "moe_layer",
    "noisy_top_k_gate",
    "one_hot",
    "partition_table",
    "pick",
    "relu",
    "renormalize_kept",
    "rms_norm",
    "rnn",
    "rotary",
    "routed_experts",
    "routing_matrix",
    "sequence_balance",
    "sigmoid",
    "sigmoid_gate",
    "silu",
    "sinkhorn_gate",
    "sinusoidal",
    "smooth_load",
    "soft_moe",
    "soft_routing",
    "softmax",
    "softplus",
    "sparse_linear",
    "sparse_matmul",
    "squared_variation",
    "table_gate",
    "tanh",
    "text_rows",
    "token_shift",
    "top_k_gate",
    "top_k_route",
    "top_k_softmax",
    "unit_rows",
    "without_padding",
    "z_loss",
]
