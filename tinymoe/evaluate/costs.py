"""What a trained model costs: parameters, memory, time."""

import numpy as np

from ..models.accounting import active_parameters, parameters_by_part
from ..models.evaluation import Measured
from ..runs.folder import MODEL, read_metrics
from ..tree import named
from .sheet import Sheet
from .trained import Trained


def add_parameters(report: Sheet, work: Trained) -> None:
    """How many there are, and how many work."""
    config, leaves = work.settings.model, named(work.params)
    parts = parameters_by_part(work.params)
    report.add(
        "parameters",
        ("total", sum(parts.values()), "numbers"),
        ("active per token", active_parameters(work.params, config), "numbers"),
        *[(part, size, "numbers") for part, size in parts.items() if size],
    )
    if work.settings.sparsity.on:
        report.add("parameters", ("not zero", sum(int(np.count_nonzero(p)) for p in leaves.values()), "numbers"))
    report.add(
        "memory",
        ("parameters", sum(p.nbytes for p in leaves.values()), "bytes"),
        (MODEL, (work.folder / MODEL).stat().st_size, "bytes"),
    )


def add_costs(report: Sheet, work: Trained, validation: Measured) -> None:
    """Time."""
    report.add("time", ("forward", validation.tokens / validation.seconds, "tokens/s on one core"))
    steps = [record for record in read_metrics(work.folder) if "seconds" in record]
    if steps:
        report.add("time", ("training", steps[-1]["seconds"], f"s for {steps[-1]['step']} steps"))
