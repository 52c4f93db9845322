"""The shape of a language model and its parameters: dataclasses of arrays, which gradients are made of too."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .picture import VisionConfig

Array = np.ndarray

EXPERT_KINDS: dict[str, Any] = {"relu": ops.relu, "gelu": ops.gelu, "gelu_exact": ops.gelu_exact, "swiglu": ops.silu}
NORMS = ("rms", "layer")
POSITIONS = ("rotary", "learned", "sinusoidal", "none")

ROUTERS = {  # how each of them chooses is in `routers.py` and `ops/gates.py`
    "softmax": "the top-k of a softmax over all experts (Mixtral, Switch)",
    "noisy": "the top-k of noisy logits, the noise learned (Shazeer 2017)",
    "gshard": "the best expert and, at random in training, the second best (GShard); top-k 2",
    "sigmoid": "the top-k of sigmoids plus a bias, within the best groups (DeepSeek-V3)",
    "sinkhorn": "in training the top-k of a matrix balanced by Sinkhorn's iteration (Megatron)",
    "base": "in training an assignment with equal shares, at the best total score (BASE); top-k 1",
    "expert-choice": "each expert takes its best tokens: not causal (Zhou 2022)",
    "soft": "each expert computes weighted means of the tokens of a sequence: not causal (Soft MoE)",
    "dense": "all experts, weighed by a softmax",
    "hash": "a fixed random table from token to expert (Hash Layers); top-k 1",
    "partition": "consecutive token ids share an expert; top-k 1",
}
ONE_CHOICE = ("base", "hash", "partition")
ARCHITECTURES = {  # what mixes positions; kinds with a state read a text of any length in chunks
    "transformer": "causal attention, over at most the context",
    "rnn": "a tanh of the input and the state before (Elman 1990)",
    "gru": "a gated recurrent unit (Cho et al. 2014)",
    "lstm": "long short-term memory (Hochreiter & Schmidhuber 1997)",
}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}
SCORES = ("dot", "cosine", "mlp")
SHARED = ("plain", "gated", "residual")


CHOICES: dict[str, Any] = {
    "architecture": ARCHITECTURES,
    "expert_kind": EXPERT_KINDS,
    "norm": NORMS,
    "position": POSITIONS,
    "router": ROUTERS,
    "scores": SCORES,
    "router_float": ("model", "float32", "float64"),
    "drop": ops.PRIORITIES,
    "shared": SHARED,
}


@dataclass(frozen=True)
class LanguageConfig:
    """The shape of a model. Raises ValueError for a combination that can't be built."""

    vocabulary: int = 256  # V
    context: int = 64  # longest T; only learned and sinusoidal positions are bound to it
    layers: int = 4
    width: int = 128  # D
    heads: int = 4  # H
    kv_heads: int = 4  # G
    experts: int = 8  # E
    top_k: int = 2  # K
    expert_width: int = 128  # F; a dense layer is one expert of width K·F, the same work per token
    architecture: str = "transformer"
    expert_kind: str = "swiglu"
    renormalize: bool = True  # for K > 1; a single weight that is always 1 would teach the router nothing
    router: str = "softmax"
    scores: str = "dot"
    router_float: str = "model"  # or float32, float64: the type in which scores and gate are computed
    jitter: float = 0.0  # in training the router's input is multiplied by numbers in [1−ε, 1+ε]
    groups: int = 1  # sigmoid: experts in so many groups, of which a token may use the best `kept_groups`
    kept_groups: int = 1
    routed_scale: float = 1.0  # times the gate weights
    capacity_factor: float = 0.0  # in training an expert takes ceil(factor·K·N/E) tokens at most; 0 for no limit
    drop: str = "choice"  # who is served first where capacity ends
    shared_experts: int = 0  # of width F, visited by every token
    shared: str = "plain"  # how they are added
    dense_layers: tuple[int, ...] = ()  # the layers without a router, counted from 0
    norm: str = "rms"
    position: str = "rotary"
    shift: bool = False  # each half of a block also sees the token before; transformer only
    tied: bool = True  # the output projection is the embedding table
    dropout: float = 0.0  # on the embedding and on what each half of a block adds
    vision: VisionConfig | None = None  # an image encoder, for a model of texts about pictures

    def __post_init__(self) -> None:
        for name in (
            "vocabulary",
            "context",
            "layers",
            "width",
            "heads",
            "kv_heads",
            "experts",
            "top_k",
            "expert_width",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.top_k > self.experts:
            raise ValueError(
                f"top_k is {self.top_k}, but there are only {self.experts} experts; lower top_k or add experts"
            )
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads are not divisible by {self.kv_heads} key/value heads; change one of them"
            )
        if self.position == "rotary" and self.width // self.heads % 2:
            raise ValueError(
                f"rotary positions need an even width per head, not {self.width // self.heads}; "
                "change width or heads, or choose another position"
            )
        if any(not 0 <= layer < self.layers for layer in self.dense_layers):
            raise ValueError(
                f"dense_layers is {list(self.dense_layers)}; the layers are numbered 0 to {self.layers - 1}"
            )
        for name in ("dropout", "jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        self._check_router()
        if self.vision is not None and self.vision.width != self.width:
            raise ValueError(f"the image encoder has width {self.vision.width}; it must be the model's, {self.width}")

    def _check_router(self) -> None:
        wanted = 1 if self.router in ONE_CHOICE else 2 if self.router == "gshard" else self.top_k
        if self.top_k != wanted:
            raise ValueError(
                f"router {self.router} sends each token to {wanted}, not to top_k {self.top_k}; set top_k {wanted}"
            )
        if self.groups < 1 or self.experts % self.groups or not 1 <= self.kept_groups <= self.groups:
            raise ValueError(
                f"groups is {self.groups} and kept_groups {self.kept_groups}: groups must divide the {self.experts} experts, "
                "and kept_groups lie between 1 and groups"
            )
        if self.groups > 1 and (self.router != "sigmoid" or self.experts // self.groups < 2):
            raise ValueError("groups of experts are for router sigmoid, and hold at least two experts each")
        if self.top_k > self.experts // self.groups * self.kept_groups:
            raise ValueError(
                f"top_k is {self.top_k}, but {self.kept_groups} of {self.groups} groups hold only "
                f"{self.experts // self.groups * self.kept_groups} experts; keep more groups or lower top_k"
            )
        if self.scores != "dot" and self.router in ("soft", "hash", "partition"):
            raise ValueError(
                f"router {self.router} has no scores of its own to compute by {self.scores}; leave scores at dot"
            )
        for name in ("routed_scale", "capacity_factor", "shared_experts"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and not negative")
        if self.shared != "plain" and not self.shared_experts:
            raise ValueError(
                f"shared is {self.shared!r}, but there is no shared expert; set shared_experts to 1 or more"
            )

    @property
    def recurrent(self) -> bool:
        """Whether a state is carried along instead of attending to what went before."""
        return self.architecture != "transformer"

    @property
    def slots(self) -> int:
        """Slots of each expert of Soft MoE: as many in all as a context's tokens have choices."""
        return max(1, round(self.top_k * self.context / self.experts))


@dataclass
class Norm:
    gain: Array  # (D,)
    bias: Array | None  # (D,), layer norm only


@dataclass
class Attention:
    query: Array  # (D, H·P)
    key: Array  # (D, G·P)
    value: Array  # (D, G·P)
    output: Array  # (H·P, D)


@dataclass
class Recurrent:
    input: Array  # (D, G·D), G the number of gates: 1 rnn, 3 gru, 4 lstm
    recurrent: Array  # (D, G·D)
    bias: Array  # (G·D,)
    inner_bias: Array | None  # (D,), gru only: added before the reset gate
    output: Array  # (D, D)


@dataclass
class Experts:
    up: Array  # (E, D, F)
    down: Array  # (E, F, D)
    gate: Array | None  # (E, D, F), SwiGLU only


@dataclass
class Router:
    weight: Array | None  # (D, E), Soft MoE (D, E·S), scores by an MLP (D, E) behind `hidden`; None for a table
    hidden: Array | None  # (D, D), scores by an MLP only
    scale: Array | None  # (1,), cosine scores and Soft MoE only
    noise: Array | None  # (D, E), noisy only
    bias: Array | None  # (E,), sigmoid only: moved by the trainer according to the load, without a gradient


@dataclass
class Shared:
    experts: Experts  # one of width S·F
    gate: Array | None  # (D, 1) gated, (D, 2) residual
    bias: Array | None  # (2,), residual only


@dataclass
class Mixture:
    router: Router | None  # None in a dense layer, which is one expert that every token visits
    experts: Experts
    shared: Shared | None


@dataclass
class Block:
    attention_norm: Norm
    attention_shift: Array | None  # (D,), token shift only
    attention: Attention | Recurrent  # what mixes positions
    mixture_norm: Norm
    mixture_shift: Array | None  # (D,), token shift only
    mixture: Mixture


@dataclass
class Language:
    embedding: Array  # (V, D)
    positions: Array | None  # (context, D), learned positions only
    blocks: tuple[Block, ...]
    norm: Norm
    head: Array | None  # (D, V); None when tied to the embedding
    vision: "Vision | None" = None  # the image encoder of a model of texts about pictures


@dataclass
class Vision:
    projection: Array  # (S·S·C, D)
    positions: Array  # (R, D)
    blocks: tuple[Block, ...]  # none in a linear encoder
    norm: Norm
    output: Array  # (D, D)


def initialize(config: LanguageConfig, rng: np.random.Generator, dtype: Any = np.float32) -> Language:
    """Random parameters.

    Normal with standard deviation 1/√(inputs), so that products keep their size; what writes into the residual stream
    divided by √(2·layers) more (Radford et al. 2019, §2.3); the output projection, tied or not, 0.02, so that the first
    guess is an even one; an embedding of its own 0.5; gains 1; shares of token shift 0.3.
    """
    D, F = config.width, config.expert_width
    P = D // config.heads
    residual = (2 * config.layers) ** -0.5

    def normal(*shape: int, std: float | None = None) -> Array:
        return (rng.standard_normal(shape) * (shape[-2] ** -0.5 if std is None else std)).astype(dtype)

    def norm() -> Norm:
        return Norm(np.ones(D, dtype), np.zeros(D, dtype) if config.norm == "layer" else None)

    def feed_forward(E: int, width: int) -> Experts:
        return Experts(
            normal(E, D, width),
            normal(E, width, D, std=residual * width**-0.5),
            normal(E, D, width) if config.expert_kind == "swiglu" else None,
        )

    def scores() -> Router:
        E, kind = config.experts, config.router
        if kind in ("hash", "partition"):
            return Router(None, None, None, None, None)
        std = 0.0 if kind == "noisy" else None  # at first the noise alone decides
        return Router(
            normal(D, E * config.slots if kind == "soft" else E, std=std),
            normal(D, D) if config.scores == "mlp" else None,
            np.array([1.0 if kind == "soft" else 10.0], dtype) if kind == "soft" or config.scores == "cosine" else None,
            np.zeros((D, E), dtype) if kind == "noisy" else None,
            np.zeros(E, dtype) if kind == "sigmoid" else None,
        )

    def recurrent() -> Recurrent:
        gates = GATES[config.architecture]
        bias = np.zeros(gates * D, dtype)
        if config.architecture == "lstm":
            bias[D : 2 * D] = 1  # the forget gate: at first, remember
        inner = np.zeros(D, dtype) if config.architecture == "gru" else None
        return Recurrent(normal(D, gates * D), normal(D, gates * D), bias, inner, normal(D, D, std=residual * D**-0.5))

    def block(layer: int) -> Block:
        attention = (
            recurrent()
            if config.recurrent
            else Attention(
                normal(D, D),
                normal(D, config.kv_heads * P),
                normal(D, config.kv_heads * P),
                normal(D, D, std=residual * D**-0.5),
            )
        )
        dense = layer in config.dense_layers
        E, width = (1, config.top_k * F) if dense else (config.experts, F)
        experts, router = feed_forward(E, width), None if dense else scores()
        shared = None
        if config.shared_experts and not dense:
            gates = {"plain": 0, "gated": 1, "residual": 2}[config.shared]
            shared = Shared(
                feed_forward(1, config.shared_experts * F),
                normal(D, gates) if gates else None,
                np.zeros(2, dtype) if gates == 2 else None,
            )
        mix = [np.full(D, 0.3, dtype) if config.shift and not config.recurrent else None for _ in range(2)]
        return Block(norm(), mix[0], attention, norm(), mix[1], Mixture(router, experts, shared))

    params = Language(
        normal(config.vocabulary, D, std=0.02 if config.tied else 0.5),
        normal(config.context, D, std=0.02) if config.position == "learned" else None,
        tuple(block(layer) for layer in range(config.layers)),
        norm(),
        None if config.tied else normal(D, config.vocabulary, std=0.02),
    )
    if config.vision is not None:
        params.vision = initialize_vision(config.vision, rng, dtype)
    return params


def initialize_vision(config: VisionConfig, rng: np.random.Generator, dtype: Any = np.float32) -> Vision:
    """Random parameters.

    Normal with standard deviation 1/√(inputs), so that products keep their size; positions 0.5, beside which the patches
    of a dark picture are no larger; blocks as in `initialize`; gains 1.
    """

    def normal(*shape: int, std: float) -> Array:
        return (std * rng.standard_normal(shape)).astype(dtype)

    D = config.width
    return Vision(
        normal(config.pixels, D, std=config.pixels**-0.5),
        normal(config.rows, D, std=0.5),
        () if config.encoder == "linear" else initialize(encoder_blocks(config), rng, dtype).blocks,
        Norm(np.ones(D, dtype), None),
        normal(D, D, std=D**-0.5),
    )


def encoder_blocks(config: VisionConfig) -> LanguageConfig:
    """The encoder's blocks as those of a language model without words, whose layers are all dense."""
    return LanguageConfig(
        vocabulary=1,
        context=1,
        layers=config.layers,
        width=config.width,
        heads=config.heads,
        kv_heads=config.heads,
        experts=1,
        top_k=1,
        expert_width=config.hidden,
        expert_kind="gelu",
        dense_layers=tuple(range(config.layers)),
        position="none",
    )
