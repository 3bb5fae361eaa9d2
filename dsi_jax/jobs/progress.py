"""Follows a running training: curves, a line of progress, and the alarm for NaN."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from dsi_jax.evaluation.scalar_writer import ScalarWriter
from dsi_jax.training import step as step_lib

logger = logging.getLogger(__name__)


class NonFiniteLoss(ArithmeticError):
    """The loss or its gradient became NaN or infinite; nothing of that state is saved."""


class Progress:
    """Takes each step's metrics as it is dispatched and looks at them one step later.

    Args:
      directory: where the curves go.
      first_step: steps that the state had when the run began.
      last_step: steps of the whole run.
      period: steps between two lines, each the mean over those steps.
      seconds_before: spent by the runs that this one resumes.
      write: False on all hosts but one.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first_step: int,
        last_step: int,
        period: int,
        seconds_before: float = 0.0,
        write: bool,
    ) -> None:
        self._writer = ScalarWriter(directory, lead=write)
        self._write = write
        self._last_step, self._period = last_step, period
        self._pending: tuple[int, step_lib.Metrics] | None = None
        self._totals: step_lib.Metrics | None = None
        self._began = time.perf_counter()
        self._seconds_before = self._seconds = seconds_before
        self._step = first_step
        # The first lap begins with the first settled step: the time before it is compilation.
        self._lap_step: int | None = None
        self._lap_began = 0.0
        self._pauses = self._lap_pauses = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last settled step, evaluations left out."""
        return self._seconds

    def add(self, step: int, metrics: step_lib.Metrics) -> None:
        """Takes the metrics of `step`, which may still run, and looks at those before it.

        Raises:
          NonFiniteLoss: the loss or the gradient of the step before is not finite.
        """
        self.settle()
        self._pending = (step, metrics)

    def settle(self) -> None:
        """Waits for the last step that was added and looks at its metrics.

        Raises:
          NonFiniteLoss: its loss or its gradient is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        metrics = jax.device_get(metrics)
        # A gradient can be NaN where the loss is finite: the parameters are NaN then.
        if not np.isfinite([metrics[name].total for name in ("loss", "grad_norm")]).all():
            raise NonFiniteLoss(_where_to_look(step, metrics))
        self._totals = (
            metrics if self._totals is None else jax.tree.map(np.add, self._totals, metrics)
        )
        self._step = step
        now = time.perf_counter()
        self._seconds = self._seconds_before + now - self._began - self._pauses
        if step % self._period == 0 or step == self._last_step:
            self._report(now)
        elif self._lap_step is None:
            self._begin_lap(now)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of steps/s and of the time left."""
        self.settle()
        began = time.perf_counter()
        yield
        self._pauses += time.perf_counter() - began
        self._lap_pauses += time.perf_counter() - began

    def close(self) -> None:
        """Writes what is still buffered."""
        self._writer.close()

    def _report(self, now: float) -> None:
        metrics = step_lib.summarize(self._totals)
        if self._lap_step is not None:
            seconds = max(now - self._lap_began - self._lap_pauses, 1e-9)
            metrics["steps_per_second"] = (self._step - self._lap_step) / seconds
        self._writer.write(self._step, metrics)
        if self._write:
            logger.info("%s", _line(self._step, self._last_step, metrics))
        self._totals = None
        self._begin_lap(now)

    def _begin_lap(self, now: float) -> None:
        self._lap_began, self._lap_step, self._lap_pauses = now, self._step, 0.0


def _line(step: int, last_step: int, metrics: dict[str, float]) -> str:
    parts = [f"step {step:>7,}/{last_step:,}", f"loss {metrics['loss']:.4f}"]
    parts += [
        f"{name} {metrics[key]:.4f}"
        for name, key in (("indexing", "loss_indexing"), ("retrieval", "loss_retrieval"))
        if key in metrics
    ]
    if "steps_per_second" in metrics:
        parts.append(f"{metrics['steps_per_second']:.1f} steps/s")
        parts.append(f"left {_duration((last_step - step) / metrics['steps_per_second'])}")
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def _where_to_look(step: int, metrics: step_lib.Metrics) -> str:
    loss, norm, rate = (
        float(metrics[name].total / metrics[name].count)
        for name in ("loss", "grad_norm", "learning_rate")
    )
    return (
        f"step {step} is not finite: loss {loss:.3g}, gradient norm {norm:.3g}, learning rate "
        f"{rate:.3g}; the last good checkpoint is kept. Look at the curves of "
        "grad_norm in train/metrics.jsonl: if it grew, lower the learning rate, lengthen the "
        "warmup or set max_grad_norm; if it did not, try float32 instead of bfloat16"
    )
