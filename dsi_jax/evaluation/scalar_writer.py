"""Where a run's scalars go: TensorBoard through clu, and one JSON line a step."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from clu import metric_writers


class ScalarWriter:
    """Writes scalars of a step to TensorBoard events and to `metrics.jsonl` in one directory.

    Args:
      directory: made if missing.
      lead: only the lead host writes; the others' calls do nothing.
    """

    def __init__(self, directory: Path, *, lead: bool = True) -> None:
        self._board = self._lines = None
        if lead:
            directory.mkdir(parents=True, exist_ok=True)
            self._board = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(directory)))
            self._lines = (directory / "metrics.jsonl").open("a")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line {"step": 10, "time": seconds, "loss": ...} and the same events."""
        if self._board is None or self._lines is None:
            return
        self._board.write_scalars(step, scalars)
        print(json.dumps({"step": step, "time": time.time(), **scalars}), file=self._lines)
        self._lines.flush()

    def close(self) -> None:
        """Writes what is still buffered."""
        if self._board is not None and self._lines is not None:
            self._board.close()
            self._lines.close()
