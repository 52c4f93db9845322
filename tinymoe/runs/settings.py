"""The settings of a training run, in parts that check themselves; flags, help and config.toml are made from them.

A part stands beside the code that it is for: what a model is made of in `models.config`, what the optimiser goes by in
`optim.hyperparameters`. Users see one flat list of names, the same for flags and for config.toml.

The way from fields to flags is argparse and `dataclasses.fields`. Compared on a small copy of this: tyro (4 packages, boxes
for errors, can't tell which flags were given), simple-parsing (3, needs a second parser to tell), cattrs (3, turns 3.7 into 3
where nothing forbids it) and msgspec (1, sound, would save the ten lines of `_typed`).
"""

import re
import tomllib
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from ..data.sources import PICTURES, Data
from ..errors import UserError, check_options, option, options_of
from ..models.balancing import Balance
from ..models.config import LanguageConfig, VisionConfig
from ..models.objective import LanguageObjective
from ..optim.hyperparameters import Training
from ..optim.sparsify import Sparsity


@dataclass(frozen=True)
class Run:
    """How long a run goes on, and what it does on the way."""

    preset: str = option("default", "the settings to start from; see the list at the end", "run")
    seed: int = option(0, "draws the parameters, the order of the batches and the sample", "run", least=0)
    steps: int = option(2800, "stop after this many optimiser steps; a resumed run may raise it", "run")
    eval_every: int = option(
        500,
        "measure the validation loss every so many steps (on part of the validation text; at the end on all of it)",
        "run",
    )
    checkpoint_every: int = option(500, "save model and optimiser every so many steps", "run")
    workers: int = option(
        2,
        "processes that share the work on a batch; balancing (but for --balance global and bias), capacity and noise are "
        "those of each share of it, so another number gives slightly other numbers",
        "run",
    )
    sample_tokens: int = option(400, "length of the sample written at the end, 0 for none", "run", least=0)

    def __post_init__(self) -> None:
        check_options(self)
        if self.workers > 64:
            raise ValueError(f"workers is {self.workers}; more than 64 processes on one machine is surely a mistake")


@dataclass(frozen=True)
class Settings:
    """The settings of a run. `Settings.of` makes them from a flat list of options; `flat` gives it back."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: LanguageConfig = field(default_factory=LanguageConfig)  # with `vision` where pictures are captioned
    vision: VisionConfig = field(default_factory=VisionConfig)  # of the encoder, if there were one
    balance: Balance = field(default_factory=Balance)
    training: Training = field(default_factory=Training)
    sparsity: Sparsity = field(default_factory=Sparsity)

    @classmethod
    def of(cls, **given: Any) -> "Settings":
        """Settings from options by name, the others at their defaults. Raises UserError for what makes no sense, together
        or each by itself."""
        try:
            run, data, model = (_part(kind, given) for kind in (Run, Data, LanguageConfig))
            image = {"image": PICTURES[data.pictures], "width": model.width, "heads": model.heads}
            vision = VisionConfig(**image, hidden=2 * model.width, **_own(VisionConfig, given))
            model = replace(model, vision=vision if data.task == "caption" else None)
            balance, training, sparsity = (_part(kind, given) for kind in (Balance, Training, Sparsity))
            balance.check(model)
        except ValueError as error:
            raise UserError(_with_flag(str(error))) from None
        if run.preset not in PRESETS:
            raise UserError(f"there is no preset {run.preset!r}; choose one of {', '.join(PRESETS)}")
        if not training.decay_steps:
            training = replace(training, decay_steps=max(PRESETS[run.preset].get("steps", 0), run.steps))
        return cls(run, data, model, vision, balance, training, sparsity)

    def flat(self) -> dict[str, Any]:
        """Every option by its name."""
        parts = [getattr(self, f.name) for f in fields(self)]
        return {name: getattr(part, f.name) for part in parts for name, f in options_of(part)}

    def but(self, **changes: Any) -> "Settings":
        """These settings with some options changed, and all checked again."""
        return Settings.of(**{**self.flat(), **changes})

    @property
    def objective(self) -> LanguageObjective:
        """What training minimises."""
        bias_rate = self.balance.bias_rate if "bias" in self.balance.balance else 0.0
        return LanguageObjective(self.model, self.balance.of(self.model), bias_rate)


PARTS: tuple[type[Any], ...] = (Run, Data, LanguageConfig, VisionConfig, Balance, Training, Sparsity)
OPTIONS: dict[str, Field[Any]] = {name: f for part in PARTS for name, f in options_of(part)}


def _own(part: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a part among those given, by the names of its fields."""
    return {f.name: given[name] for name, f in options_of(part) if name in given}


def _part(part: type[Any], given: dict[str, Any]) -> Any:
    return part(**_own(part, given))


def _with_flag(message: str) -> str:
    """The sentence of a part, beginning with the flag where it began with the option's name."""
    name = re.match(r"\w+(?= is )", message)
    return flag(name[0]) + message[name.end() :] if name and name[0] in OPTIONS else message


PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "steps": 2800,
        "layers": 3,
        "heads": 2,
        "kv_heads": 2,
        "expert_width": 192,
        "shift": True,
        "tied": False,
    },
    "quick": {
        "steps": 200,
        "layers": 2,
        "width": 64,
        "heads": 2,
        "kv_heads": 2,
        "experts": 4,
        "expert_width": 64,
        "shift": True,
        "tied": False,
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
    "default": "two minutes on two cores; docs/search.md tells how it was found",
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
    return Settings.of(**{**PRESETS.get(preset, {}), **chosen, "preset": preset})


def read_toml(path: Path) -> dict[str, Any]:
    """Settings from a file in which every key is a flag's name, with - or _. Raises UserError for anything else."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't read the config {path}: {error.strerror}") from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise UserError(f"the config {path} is not valid TOML: {error}") from None
    return from_plain(given, f"the config {path}")


def from_plain(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Check names and types of settings that come from a file, and turn lists into tuples."""
    types = {name: f.type for name, f in OPTIONS.items()}
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
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.flat().items()}
