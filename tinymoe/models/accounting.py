"""What a language model costs: parameters, how many of them work on a token, and how many operations that takes.

Parameters and operations go by the same parts, so that they can stand side by side: experts hold most of the parameters
but only a few of them have work, and attention has work, scores and means, for which it needs no parameters.
"""

from ..tree import named
from .config import GATES, LanguageConfig, encoder_blocks
from .parameters import Language


def parameters_by_part(params: Language) -> dict[str, int]:
    """How many parameters each part has; 0 for a part that the model lacks, such as a head tied to the embedding."""

    def size(*trees: object) -> int:
        return sum(leaf.size for tree in trees for leaf in named(tree).values())

    mixtures = [block.mixture for block in params.blocks]
    parts = {
        "embedding": size(params.embedding, params.positions),
        "attention": size(*[block.attention for block in params.blocks]),
        "routers": size(*[m.router for m in mixtures]),
        "experts": size(*[m.experts for m in mixtures if m.router is not None]),
        "shared experts": size(*[m.shared for m in mixtures]),
        "dense layers": size(*[m.experts for m in mixtures if m.router is None]),
        "head": size(params.head),
        "image encoder": size(params.vision),
    }
    return {**parts, "norms and shifts": size(params) - sum(parts.values())}


def experts_per_token(config: LanguageConfig) -> float:
    """How many of a layer's routed experts work on a token if none is dropped; where experts choose tokens, the mean."""
    if config.router in ("dense", "soft"):
        return config.experts
    if config.router == "expert-choice":
        return min((config.capacity_factor or 1.0) * config.top_k, config.experts)
    return config.top_k


def active_parameters(params: Language, config: LanguageConfig) -> int:
    """All parameters but those of the experts that a token does not visit.

    The embedding counts in full, as usual, though a token reads one row of it: that is how Mixtral 8x7B comes to use 12.9
    of 46.7 billion.
    """
    parts = parameters_by_part(params)
    idle = 1 - experts_per_token(config) / config.experts
    return sum(parts.values()) - round(idle * parts["experts"])


def flops_by_part(config: LanguageConfig, context: int, *, masked: bool = False) -> dict[str, float]:
    """Floating-point operations per token of the forward pass over sequences of T = `context` tokens.

    Of matrix products only, a multiply-add being two operations. In multiply-adds, a layer each:

        attention       2 D² + 2 D G P for projections, 2 D keys for scores and means; keys = (T + 1) / 2 on average
        recurrent       2 G D² + D², G the number of gates (1 RNN, 3 GRU, 4 LSTM), instead of attention
        routers         D E, or D² + D E for an MLP; D E more for the noise's; none for a table
        experts         K (m + D): m = 2 D F, or 3 D F with a gate, and D to weigh what an expert returns
        shared experts  m each, and D for each gate
        dense layers    K m
        Soft MoE        S slots in all: D S for scores; 2 D S for slots' inputs and tokens' outputs, and S m / T

    What acts on one number at a time (norms, activations, softmax) is left out: it doesn't grow with D². With
    `masked`, keys = T: `ops.causal_attention` computes the scores that it masks, too. In training the backward pass takes
    twice as much again, and capacity may save a little of the experts' part.

    Source: Kaplan et al. 2020, §2.1 (two operations per parameter of a matrix, and attention besides).
    """
    D, E, T = config.width, config.experts, context
    keys = T if masked else (T + 1) / 2
    mlp = (3 if config.expert_kind == "swiglu" else 2) * D * config.expert_width
    dense = len(set(config.dense_layers))
    sparse = config.layers - dense
    gates = {"plain": 0, "gated": 1, "residual": 2}[config.shared]
    if config.router == "soft":
        slots = E * config.slots
        router, experts = D * slots, 2 * D * slots + slots * mlp / T
    else:
        table = config.router in ("hash", "partition")
        products = (config.router == "noisy") + (not table)
        router = products * D * E + (D * D if config.scores == "mlp" and not table else 0)
        experts = experts_per_token(config) * (mlp + D)
    if config.recurrent:
        mixing: float = (2 * GATES[config.architecture] + 1) * D * D
    else:
        mixing = 2 * D * D + 2 * D * config.kv_heads * (D // config.heads) + 2 * D * keys
    per_layer = {
        "attention": config.layers * mixing,
        "routers": sparse * router,
        "experts": sparse * experts,
        "shared experts": sparse * (config.shared_experts * mlp + gates * D),
        "dense layers": dense * config.top_k * mlp,
        "head": D * config.vocabulary,
    }
    return {part: 2.0 * multiply_adds for part, multiply_adds in per_layer.items()}


def flops_per_token(config: LanguageConfig, context: int) -> float:
    """Floating-point operations per token of the forward pass over sequences of `context` tokens: all parts together."""
    return sum(flops_by_part(config, context).values())


def flops_per_caption(config: LanguageConfig, length: int) -> float:
    """Floating-point operations of the forward pass over a picture and a caption of T = `length` tokens.

    The encoder's R rows see each other; in front of the text they go through the language model, too, all but its head.
    """
    vision = config.vision
    if vision is None:
        raise ValueError("the model has no image encoder")
    seen = length + (vision.rows if vision.fusion == "prefix" else 0)
    text, encoder = flops_by_part(config, seen), flops_by_part(encoder_blocks(vision), vision.rows, masked=True)
    blocks = 0.0 if vision.encoder == "linear" else sum(encoder.values()) - encoder["head"]
    projections = 2.0 * (vision.pixels * vision.width + vision.width**2)
    language = seen * (sum(text.values()) - text["head"]) + length * text["head"]
    return language + vision.rows * (blocks + projections)
