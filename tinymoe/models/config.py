"""The shape of a language model, and of the image encoder it may have: what a user can choose, and what goes together."""

from dataclasses import dataclass
from typing import Any

from .. import ops
from ..errors import check_options, option

EXPERT_KINDS: dict[str, Any] = {"relu": ops.relu, "gelu": ops.gelu, "gelu_exact": ops.gelu_exact, "swiglu": ops.silu}
NORMS = ("rms", "layer")
POSITIONS = ("rotary", "learned", "sinusoidal", "none")

ROUTERS = {  # how each of them chooses is in `routers.py` and the gates of `ops`
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
ENCODERS = {
    "linear": "each patch by itself, projected",
    "transformer": "patches that see each other through blocks of attention",
}
FUSIONS = {
    "prefix": "the rows of the picture stand before the text's",
    "additive": "their mean is added to every row of the text",
}


@dataclass(frozen=True)
class VisionConfig:
    """The shape of an image encoder. Raises ValueError for one that can't be built."""

    image: tuple[int, int, int] = (20, 20, 3)  # H, W, C: height, width, channels
    patch: int = option(5, "pixels on a side of the squares that a picture is cut into", "pictures")  # S
    width: int = 128  # D, of the language model
    encoder: str = option("transformer", "what reads the patches", "pictures", choices=tuple(ENCODERS))
    layers: int = option(2, "blocks of a transformer encoder", "pictures", flag="encoder_layers")
    heads: int = 4
    hidden: int = 256  # F
    fusion: str = option("prefix", "how a picture meets its text", "pictures", choices=tuple(FUSIONS))

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("width", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.image, default=0) < 1 or len(self.image) != 3:
            raise ValueError(
                f"image is {self.image}; it must be three numbers, each at least 1: height, width, channels"
            )
        if self.image[0] % self.patch or self.image[1] % self.patch:
            raise ValueError(
                f"patch is {self.patch}; it must divide both sides of the picture, {self.image[0]} and {self.image[1]}"
            )
        if self.encoder == "transformer" and self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads; change one of them")

    @property
    def rows(self) -> int:
        """R, the patches of a picture."""
        return self.image[0] // self.patch * (self.image[1] // self.patch)

    @property
    def pixels(self) -> int:
        """S·S·C, the numbers in a patch."""
        return self.patch * self.patch * self.image[2]


@dataclass(frozen=True)
class LanguageConfig:
    """The shape of a model. Raises ValueError for a combination that can't be built."""

    vocabulary: int = 256  # V
    context: int = option(
        64, "tokens a window holds (T)", "model"
    )  # only learned and sinusoidal positions are bound to it
    layers: int = option(4, "number of blocks", "model")
    width: int = option(128, "width of the residual stream (D)", "model")
    heads: int = option(4, "query heads (H); they divide the width", "model")
    kv_heads: int = option(4, "key/value heads (G); they divide the query heads", "model")
    experts: int = option(8, "experts in each MoE layer (E)", "model")
    top_k: int = option(2, "experts that a token visits (K)", "model")
    expert_width: int = option(128, "hidden width of one expert (F)", "model")
    architecture: str = option("transformer", "what mixes positions", "model", choices=tuple(ARCHITECTURES))
    expert_kind: str = option("swiglu", "what an expert computes", "model", choices=tuple(EXPERT_KINDS))
    renormalize: bool = option(
        True,
        "routers softmax, sigmoid, dense: make the K gate weights of a token add up to 1 (for K > 1: a weight that is "
        "always 1 teaches nothing)",
        "routing",
    )
    router: str = option(
        "softmax", "how experts are chosen; see the list at the end", "routing", choices=tuple(ROUTERS)
    )
    scores: str = option("dot", "how a router compares a token with an expert", "routing", choices=SCORES)
    router_float: str = option(
        "model", "type in which router and gate compute", "routing", choices=("model", "float32", "float64")
    )
    jitter: float = option(
        0.0, "multiply the router's input by random numbers in [1−ε, 1+ε], in training", "routing", least=0.0, below=1.0
    )
    groups: int = option(1, "router sigmoid: experts in so many groups …", "routing")
    kept_groups: int = option(1, "… of which a token may use only the best so many", "routing")
    routed_scale: float = option(
        1.0, "routers softmax, sigmoid, dense: multiply the gate weights (DeepSeek-V3: 2.5)", "routing", above=0.0
    )
    capacity_factor: float = option(
        0.0,
        "places of an expert in training: ceil(factor·K·N/E) for the N tokens of a pass (K is E for router dense); 0 for no "
        "limit (for 1 with router expert-choice); router soft has none",
        "routing",
        least=0.0,
    )
    drop: str = option(
        "choice",
        "who is served first when room runs out: all first choices, tokens in order, the highest probability, "
        "tokens by their highest probability, or anyone",
        "routing",
        choices=tuple(ops.PRIORITIES),
    )
    shared_experts: int = option(0, "experts of width F that every token visits besides its K", "routing", least=0)
    shared: str = option("plain", "how they are added: as they are, or weighed by a gate", "routing", choices=SHARED)
    dense_layers: tuple[int, ...] = option(
        (),
        "layers, from 0, that get one dense feed-forward of width K·F instead of experts, as much work but for "
        "the router; repeat the flag for several",
        "model",
        metavar="LAYER",
    )
    norm: str = option("rms", "RMS norm or layer norm", "model", choices=NORMS)
    position: str = option("rotary", "how positions enter", "model", choices=POSITIONS)
    shift: bool = option(False, "let each half of a block see the token before, too (transformer only)", "model")
    tied: bool = option(True, "use the embedding table as output projection", "model")
    dropout: float = option(0.0, "share of activations dropped in training", "model", least=0.0, below=1.0)
    vision: VisionConfig | None = None  # an image encoder, for a model of texts about pictures

    def __post_init__(self) -> None:
        check_options(self)
        if self.vocabulary < 1:
            raise ValueError(f"vocabulary is {self.vocabulary}; it must be at least 1")
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
        self._check_router()
        if self.vision is not None and self.vision.width != self.width:
            raise ValueError(f"the image encoder has width {self.vision.width}; it must be the model's, {self.width}")

    def _check_router(self) -> None:
        wanted = 1 if self.router in ONE_CHOICE else 2 if self.router == "gshard" else self.top_k
        if self.top_k != wanted:
            raise ValueError(
                f"router {self.router} sends each token to {wanted}, not to top_k {self.top_k}; set top_k {wanted}"
            )
        if self.experts % self.groups or self.kept_groups > self.groups:
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
        """Slots of each expert of Soft MoE: about as many in all as a context's tokens have choices."""
        return max(1, round(self.top_k * self.context / self.experts))


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
