"""Everything a training run depends on: one dataclass, from which the flags, the help and config.toml are made."""

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from ..errors import UserError
from ..models.config import (
    ARCHITECTURES,
    ENCODERS,
    EXPERT_KINDS,
    FUSIONS,
    NORMS,
    POSITIONS,
    ROUTERS,
    SCORES,
    SHARED,
    LanguageConfig,
    VisionConfig,
)
from ..models.routers import LOSSES, Balancing, applicable
from ..ops import PRIORITIES
from ..optim import OPTIMIZERS

TASKS = ("text", "caption")
PICTURES = {  # height, width and channels
    "shapes": (20, 20, 3),
    "two-shapes": (20, 20, 3),
    "glyphs": (20, 20, 1),
    "digits": (8, 8, 1),
}
RECIPES = ("none", "prune", "init", "l1", "l1-proximal", "iht", "rigl", "low-rank")


def _option(default: Any, help: str, group: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": help, "group": group, **more})


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `validated` raises UserError for a combination that can't be run."""

    preset: str = _option("default", "the settings to start from; see the list at the end", "run")
    task: str = _option("text", "what to learn: to write text, or to say what a picture shows", "run", choices=TASKS)
    corpus: tuple[str, ...] = _option(
        ("pydoc",),
        "what to train on: pydoc (the standard library's documentation), toy (generated, entropy known), "
        "docstrings:PACKAGE, or a UTF-8 text file or folder; repeat the flag to join several",
        "run",
        metavar="TEXT",
    )
    seed: int = _option(0, "draws the parameters, the order of the batches and the sample", "run", least=0)
    steps: int = _option(2800, "stop after this many optimiser steps; a resumed run may raise it", "run")
    eval_every: int = _option(
        500,
        "measure the validation loss every so many steps (on part of the validation text; at the end on all of it)",
        "run",
    )
    checkpoint_every: int = _option(500, "save model and optimiser every so many steps", "run")
    workers: int = _option(
        2,
        "processes that share the work on a batch; balancing (but for --balance global), capacity and noise are those of each "
        "share of it, so another number gives slightly other numbers",
        "run",
    )
    sample_tokens: int = _option(400, "length of the sample written at the end, 0 for none", "run", least=0)

    context: int = _option(64, "tokens a window holds (T)", "model")
    architecture: str = _option("transformer", "what mixes positions", "model", choices=tuple(ARCHITECTURES))
    layers: int = _option(3, "number of blocks", "model")
    width: int = _option(128, "width of the residual stream (D)", "model")
    heads: int = _option(2, "query heads (H); they divide the width", "model")
    kv_heads: int = _option(2, "key/value heads (G); they divide the query heads", "model")
    experts: int = _option(8, "experts in each MoE layer (E)", "model")
    top_k: int = _option(2, "experts that each token visits (K)", "model")
    expert_width: int = _option(192, "hidden width of one expert (F)", "model")
    expert_kind: str = _option("swiglu", "what an expert computes", "model", choices=tuple(EXPERT_KINDS))
    dense_layers: tuple[int, ...] = _option(
        (),
        "layers, from 0, that get one dense feed-forward of width K·F instead of experts; repeat the flag for several",
        "model",
        metavar="LAYER",
    )
    norm: str = _option("rms", "RMS norm or layer norm", "model", choices=NORMS)
    position: str = _option("rotary", "how positions enter", "model", choices=POSITIONS)
    shift: bool = _option(True, "let each half of a block see the token before, too", "model")
    tied: bool = _option(False, "use the embedding table as output projection", "model")
    dropout: float = _option(0.0, "share of activations dropped in training, in [0, 1)", "model", least=0.0)

    pictures: str = _option("shapes", "what pictures to caption", "pictures", choices=tuple(PICTURES))
    patch: int = _option(5, "pixels on a side of the squares that a picture is cut into", "pictures")
    encoder: str = _option("transformer", "what reads the patches", "pictures", choices=tuple(ENCODERS))
    encoder_layers: int = _option(2, "blocks of a transformer encoder", "pictures")
    fusion: str = _option("prefix", "how a picture meets its text", "pictures", choices=tuple(FUSIONS))
    image_shift: int = _option(0, "move pictures by up to so many pixels, at random, in training", "pictures", least=0)
    word_drop: float = _option(
        0.0, "share of the words hidden from the model in training, in [0, 1)", "pictures", least=0.0
    )

    router: str = _option(
        "softmax", "how experts are chosen; see the list at the end", "routing", choices=tuple(ROUTERS)
    )
    scores: str = _option("dot", "how a router compares a token with an expert", "routing", choices=SCORES)
    renormalize: bool = _option(
        True,
        "make the K gate weights of a token add up to 1 (for K > 1: a weight that is always 1 teaches nothing)",
        "routing",
    )
    router_float: str = _option(
        "model", "type in which router and gate compute", "routing", choices=("model", "float32", "float64")
    )
    jitter: float = _option(0.0, "multiply the router's input by random numbers in [1−ε, 1+ε]", "routing", least=0.0)
    groups: int = _option(1, "router sigmoid: experts in so many groups …", "routing")
    kept_groups: int = _option(1, "… of which a token may use only the best so many", "routing")
    routed_scale: float = _option(1.0, "multiply the gate weights (DeepSeek-V3: 2.5)", "routing", above=0.0)
    capacity_factor: float = _option(
        0.0,
        "in training no expert takes more than ceil(factor·K·N/E) of the N tokens of a pass; 0 for no limit",
        "routing",
        least=0.0,
    )
    drop: str = _option(
        "choice",
        "who is served first when room runs out: all first choices, tokens in order, the highest probability, "
        "tokens by their highest probability, or anyone",
        "routing",
        choices=tuple(PRIORITIES),
    )
    shared_experts: int = _option(0, "experts of width F that every token visits besides its K", "routing", least=0)
    shared: str = _option("plain", "how they are added: as they are, or weighed by a gate", "routing", choices=SHARED)
    balance: tuple[str, ...] = _option(
        ("auto",),
        "what keeps the load even: a loss or several, bias (router sigmoid), or none; auto is switch where it applies; "
        "see the list at the end; repeat the flag for several",
        "routing",
        metavar="NAME",
    )
    balance_weight: float = _option(0.01, "weight of the balancing losses", "routing", least=0.0)
    z_weight: float = _option(0.0, "weight of the router's z-loss (ST-MoE: 0.001)", "routing", least=0.0)
    bias_rate: float = _option(
        1e-3, "balance bias: how far an expert's bias moves in a step towards an even load", "routing", least=0.0
    )

    batch_size: int = _option(12, "windows per optimiser step (B)", "optimisation")
    accumulate: int = _option(
        1, "compute the batch in so many passes, one after another, to save memory; see --workers", "optimisation"
    )
    optimizer: str = _option("adamw", "AdamW, or SGD with momentum", "optimisation", choices=tuple(OPTIMIZERS))
    lr: float = _option(2e-3, "peak learning rate", "optimisation", above=0.0)
    final_lr: float = _option(
        0.05, "learning rate at the end of the cosine, as a share of the peak", "optimisation", least=0.0
    )
    warmup: int = _option(100, "steps in which the learning rate rises from 0", "optimisation", least=0)
    decay_steps: int = _option(
        0,
        "step at which the cosine ends; 0 means the preset's number of steps, or --steps if "
        "that is more, so that stopping early and resuming changes nothing",
        "optimisation",
        least=0,
    )
    beta1: float = _option(0.9, "AdamW's decay of the mean, SGD's momentum", "optimisation", least=0.0)
    beta2: float = _option(0.95, "AdamW's decay of the mean square", "optimisation", least=0.0)
    weight_decay: float = _option(1.0, "times the learning rate, on matrices only", "optimisation", least=0.0)
    clip: float = _option(1.0, "largest global norm of the gradient; 0 for no limit", "optimisation", least=0.0)

    sparsity: str = _option(
        "none", "make weights sparse: a recipe from the list at the end", "sparsity", choices=RECIPES
    )
    sparsity_level: float = _option(0.9, "share of zeros to reach, in [0, 1)", "sparsity", least=0.0)
    sparsity_scope: str = _option(
        "layer",
        "what prune compares: the weights of a layer, of all layers (global), or N of every M (such as 2:4)",
        "sparsity",
    )
    sparsity_every: int = _option(100, "steps between two revisions of which weights are zero", "sparsity")
    l1: float = _option(1e-5, "weight λ of the L1 penalty", "sparsity", least=0.0)
    rank: int = _option(8, "rank of the dense part in low-rank", "sparsity")
    lazy: bool = _option(
        False,
        "update only the embedding rows and experts that were used; the moments of the others stand still",
        "sparsity",
    )

    @property
    def model(self) -> LanguageConfig:
        shape = {f.name: getattr(self, f.name) for f in fields(LanguageConfig) if hasattr(self, f.name)}
        return LanguageConfig(**shape)

    @property
    def vision(self) -> VisionConfig | None:
        if self.task == "text":
            return None
        shape = PICTURES[self.pictures], self.patch, self.width, self.encoder, self.encoder_layers, self.heads
        return VisionConfig(*shape, hidden=2 * self.width, fusion=self.fusion)

    @property
    def balancing(self) -> Balancing:
        losses = applicable(self.model)[:1] if self.balance == ("auto",) else self.balance
        return Balancing(tuple(name for name in losses if name in LOSSES), self.balance_weight, self.z_weight)

    def validated(self) -> "Settings":
        """These settings with `decay_steps` filled in, or a UserError."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type in (int, float):
                least, above = f.metadata.get("least", 1), f.metadata.get("above")
                if not (value > above if above is not None else value >= least) or value == float("inf"):
                    raise UserError(
                        f"{flag(f.name)} is {value}; it must be a finite number "
                        + (f"above {above:g}" if above is not None else f"at least {least:g}")
                    )
            choices = f.metadata.get("choices")
            if choices and value not in choices:
                raise UserError(f"{flag(f.name)} is {value!r}; choose one of {', '.join(choices)}")
        for name in ("beta1", "beta2", "dropout", "jitter", "word_drop", "sparsity_level"):
            if getattr(self, name) >= 1:
                raise UserError(f"{flag(name)} is {getattr(self, name)}; it must be below 1")
        if not self.corpus or not all(name.strip() and "\0" not in name for name in self.corpus):
            raise UserError("a corpus has no name; give --corpus pydoc, toy, docstrings:PACKAGE, a file or a folder")
        if self.accumulate > self.batch_size:
            raise UserError(f"--accumulate is {self.accumulate}, more than the {self.batch_size} windows of a batch")
        if self.workers > 64:
            raise UserError(f"--workers is {self.workers}; more than 64 processes on one machine is surely a mistake")
        if self.sparsity_scope not in ("layer", "global"):
            n, _, m = self.sparsity_scope.partition(":")
            if not (n.isdecimal() and m.isdecimal() and 1 <= int(n) <= int(m)):
                raise UserError(
                    f"--sparsity-scope is {self.sparsity_scope!r}; choose layer, global, or N:M with 1 ≤ N ≤ M (2:4)"
                )
        try:
            self.model  # noqa: B018 (building it checks the combination)
        except ValueError as error:
            raise UserError(str(error)) from None
        fitting = (*applicable(self.model), *(["bias"] if self.router == "sigmoid" else []))
        for name in self.balance:
            if name not in fitting and (name not in ("auto", "none") or len(self.balance) > 1):
                raise UserError(
                    f"--balance {name} does not go with the other settings; with router {self.router} choose auto, none"
                    + "".join(f", {other}" for other in fitting)
                )
        return replace(self, decay_steps=self.decay_steps or max(PRESETS[self.preset].get("steps", 0), self.steps))


PRESETS: dict[str, dict[str, Any]] = {
    "default": {"steps": 2800},
    "quick": {
        "steps": 200,
        "layers": 2,
        "width": 64,
        "heads": 2,
        "kv_heads": 2,
        "experts": 4,
        "expert_width": 64,
        "eval_every": 50,
        "checkpoint_every": 100,
        "warmup": 20,
        "sample_tokens": 200,
    },
    "caption": {
        "task": "caption",
        "steps": 2600,
        "layers": 2,
        "width": 64,
        "heads": 4,
        "kv_heads": 4,
        "experts": 4,
        "expert_width": 64,
        "tied": True,
        "shift": False,
        "batch_size": 32,
        "lr": 4e-3,
        "final_lr": 0.0,
        "warmup": 50,
        "weight_decay": 1.0,
        "dropout": 0.1,
        "encoder_layers": 1,
        "word_drop": 0.3,
    },
}
PRESETS["digits"] = PRESETS["caption"] | {
    "pictures": "digits",
    "steps": 1500,
    "layers": 1,
    "patch": 2,
    "encoder_layers": 2,
    "lr": 3e-3,
    "weight_decay": 0.3,
    "dropout": 0.0,
    "word_drop": 0.0,
    "image_shift": 1,
}
PRESET_HELP = {
    "default": "the best validation loss that two minutes on two cores gave, see docs/search.md",
    "quick": "a small model, seconds instead of minutes",
    "caption": "for --task caption, which begins with it unless another is named",
    "digits": "likewise with --pictures digits",
}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def resolve(flags: dict[str, Any], config: Path | None = None) -> Settings:
    """Settings from, in rising order: the defaults, the preset, the file, the flags."""
    chosen = {**(read_toml(config) if config else {}), **flags}
    of_pictures = "digits" if chosen.get("pictures") == "digits" else "caption"
    preset = chosen.get("preset", of_pictures if chosen.get("task") == "caption" else "default")
    chosen["preset"] = preset
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    return Settings(**{**PRESETS[preset], **chosen}).validated()


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a file in which every key is a flag's name, with - or _. Raises UserError for anything else."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read the config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the config {path} is not valid TOML: {error}") from None
    return from_plain(given, f"the config {path}")


def from_plain(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Check names and types of settings that come from a file, and turn lists into tuples."""
    types = {f.name: f.type for f in fields(Settings)}
    settings = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in types:
            raise UserError(
                f"{source} has an unknown key {key!r}; the keys are the names of the flags: {', '.join(types)}"
            )
        settings[name] = _typed(value, types[name], f"{key!r} in {source}")
    return settings


def _typed(value: Any, wanted: Any, where: str) -> Any:
    if get_origin(wanted) is tuple:
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_typed(v, get_args(wanted)[0], where) for v in values)
    if wanted is float and type(value) is int and abs(value) < 1 << 1000:
        return float(value)
    if type(value) is not wanted:
        raise UserError(f"{where} is {value!r}; it must be of type {wanted.__name__}")
    return value


def to_plain(settings: Settings) -> dict[str, Any]:
    """For TOML and JSON: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
