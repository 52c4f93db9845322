"""What a run does so that its experts get even loads."""

from dataclasses import dataclass

from ..options import check_options, option
from .config import LanguageConfig
from .routers import LOSSES, Balancing, applicable


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
