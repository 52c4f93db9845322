"""What can be done so that experts get even loads: the losses that go with a router, and a run's choice among them."""

from dataclasses import dataclass
from typing import NamedTuple

from ..errors import check_options, option
from .config import LanguageConfig

LOSSES = {
    "switch": "f·P of a pass (Switch, Megatron): 1 when even",
    "global": "f of the whole batch, over all passes and processes, P of the part (Qwen): 1 when even",
    "sequence": "f·P of each sequence, on normalised sigmoids (DeepSeek-V3): 1 when even",
    "importance": "squared variation of the sums of gate weights (Shazeer 2017): 0 when even",
    "load": "squared variation of the smooth load of router noisy (Shazeer 2017): 0 when even",
}


def applicable(config: LanguageConfig) -> tuple[str, ...]:
    """The losses that mean something for a router, the usual one first: none where the choice itself evens the load, or
    where there is nothing to learn."""
    if config.router not in ("softmax", "noisy", "gshard", "sigmoid"):
        return ()
    usual = {"noisy": "importance", "sigmoid": "sequence"}.get(config.router, "switch")
    fitting = [
        name for name in LOSSES if name != "load" or (config.router == "noisy" and config.top_k < config.experts)
    ]
    return (usual, *(name for name in fitting if name != usual))


class Balancing(NamedTuple):
    """Which losses are added to the cross-entropy, and how much of them."""

    losses: tuple[str, ...] = ("switch",)
    weight: float = 0.01
    z_weight: float = 0.0  # of the mean square of log Σ exp(logits)


SWITCH = Balancing()
UNBALANCED = Balancing((), 0.0)


@dataclass(frozen=True)
class Balance:
    """Raises ValueError for numbers out of bounds; `check` for what doesn't go with a model."""

    balance: tuple[str, ...] = option(
        ("auto",),
        "what keeps the load even: a loss or several, bias (router sigmoid), or none; auto is the router's usual loss; "
        "see the list at the end; repeat the flag for several",
        "routing",
        metavar="NAME",
    )
    balance_weight: float = option(0.01, "weight of the balancing losses", "routing", least=0.0)
    z_weight: float = option(0.0, "weight of the router's z-loss (ST-MoE: 0.001)", "routing", least=0.0)
    bias_rate: float = option(
        1e-3, "balance bias: how far an expert's bias moves in a step towards an even load", "routing", least=0.0
    )

    def __post_init__(self) -> None:
        check_options(self)

    def check(self, config: LanguageConfig) -> None:
        """Raises ValueError for a loss that doesn't go with the model."""
        fitting = (*applicable(config), *(["bias"] if config.router == "sigmoid" else []))
        for name in self.balance:
            if name not in fitting and (name not in ("auto", "none") or len(self.balance) > 1):
                raise ValueError(
                    f"--balance {name} does not go with the other settings; with router {config.router} choose auto, none"
                    + "".join(f", {other}" for other in fitting)
                )

    def of(self, config: LanguageConfig) -> Balancing:
        """The losses of a model."""
        losses = applicable(config)[:1] if self.balance == ("auto",) else self.balance
        return Balancing(tuple(name for name in losses if name in LOSSES), self.balance_weight, self.z_weight)
