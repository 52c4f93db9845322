"""Is a hand-written backward right? `check_gradients(op, *inputs)` compares it with slopes measured on the forward."""

from .checker import TOLERANCE, InputReport, MarginError, Report, check_gradients

__all__ = ["TOLERANCE", "InputReport", "MarginError", "Report", "check_gradients"]
