"""What a training run shows while it goes on, and how it is asked to stop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import say
from ..optim.trainer import StepReport


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """While inside, Ctrl-C, SIGTERM and SIGHUP are noted in the list, to be acted on between steps.

    A second one interrupts, but for SIGHUP, which a closing terminal may send twice. Where it is ignored, as under nohup,
    it stays so.
    """
    noted: list[int] = []
    hangup = getattr(signal, "SIGHUP", None)  # there is none on Windows

    def note(number: int, _: Any) -> None:
        if noted and number != hangup:
            raise KeyboardInterrupt
        noted.append(number)

    wanted = [signal.SIGINT, signal.SIGTERM]
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        wanted.append(hangup)
    before = {s: signal.signal(s, note) for s in wanted}
    try:
        yield noted
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


class Progress:
    """The line that runs along while training, and a lasting line at each evaluation."""

    def __init__(self, steps: int, step: int, tokens: int, experts: int) -> None:
        """`step` of `steps` are done; a step sees so many tokens, and a layer has so many experts."""
        self.steps, self.tokens = steps, tokens
        self.began, self.first = time.perf_counter(), step
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None, dynamic_ncols=True)
        self.loss, self.load = 0.0, np.zeros(experts)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, step: int, report: StepReport) -> None:
        done = step - self.first
        weight = max(1 / done, 0.02)  # a running mean over about 50 steps
        self.loss += weight * (report.loss - self.loss)
        routed = [layer.counts for layer in report.details.layers if layer is not None]
        if routed:
            self.load = self.load + weight * (np.mean([c / c.sum() for c in routed], 0) - self.load)
        self.bar.set_postfix_str(self._numbers(step), refresh=False)
        self.bar.update()

    def evaluated(self, step: int, loss: float) -> None:
        left = (time.perf_counter() - self.began) / (step - self.first) * (self.steps - step)
        line = (
            f"step {step:>5}/{self.steps}  validation {loss:.4f}  {self._numbers(step)}, "
            f"{int(left) // 60}:{int(left) % 60:02} left"
        )
        with self.bar.external_write_mode():
            say(line)

    def _numbers(self, step: int) -> str:
        rate = (step - self.first) * self.tokens / (time.perf_counter() - self.began)
        load = f", expert load {self.load.min():.0%} to {self.load.max():.0%}" if self.load.any() else ""
        return f"training {self.loss:.3f}, {rate:,.0f} tokens/s{load}"
