"""Reads the metrics of earlier evaluations of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsi_jax.evaluation.config import Metrics


def history(output_dir: Path, name: str, last_step: int) -> list[Metrics]:
    """Returns the metrics of a target's evaluations by step; a repeated step's last line wins.

    Steps beyond `last_step` are of a run that was taken back to an earlier checkpoint.
    """
    path = output_dir / f"{name}-metrics.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    by_step = {line["step"]: line for line in lines if line["step"] <= last_step}
    return [by_step[step] for step in sorted(by_step)]


def mean_and_best(lines: Sequence[Metrics], metric: str, last: int) -> tuple[float, float]:
    """(mean over the last evaluations, best of all) of one metric."""
    values = [line[metric] for line in lines if metric in line]
    return float(np.mean(values[-last:])), float(np.max(values))
