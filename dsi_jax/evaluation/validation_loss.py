"""Measures the validation loss: `training_eval/<task>/` in MODEL_DIR, as in T5X."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import seqio

from dsi_jax.data.batches import collate
from dsi_jax.evaluation.config import VALIDATION_SPLITS
from dsi_jax.evaluation.scalar_writer import ScalarWriter
from dsi_jax.methods.base import Stream
from dsi_jax.training import step as step_lib

logger = logging.getLogger(__name__)


class ValidationLoss:
    """Measures the loss on a fixed sample of each task's validation split.

    Args:
      pipelines: task name -> a stream of its validation split; its first batches are the sample.
      num_batches: at most so many batches of each.
      eval_step: from `training.step.make_eval_step`.
      put: places this host's part of a batch on the devices.
      directory: MODEL_DIR/training_eval.
      write: whether this host writes and prints.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Stream],
        *,
        num_batches: int,
        eval_step: Callable[[Any, Any], step_lib.Metrics],
        put: Callable[[Any], Any],
        directory: Path,
        write: bool,
    ) -> None:
        self._batches = {
            task: _first_pass(stream, num_batches) for task, stream in pipelines.items()
        }
        self._eval_step, self._put, self._write = eval_step, put, write
        self._writers = {task: ScalarWriter(directory / task, lead=write) for task in pipelines}

    def run(self, params: Any, step: int) -> dict[str, dict[str, float]]:
        """Writes and returns the metrics of each task."""
        metrics = {}
        for task, batches in self._batches.items():
            sums = [
                jax.device_get(self._eval_step(params, _only_first(self._put(batch), num_rows)))
                for batch, num_rows in batches
            ]
            total = jax.tree.map(lambda *parts: np.sum(parts), *sums)
            metrics[task] = step_lib.summarize(total)
            self._writers[task].write(step, metrics[task])
            if self._write:
                logger.info("  %s  held-out loss %.4f", task, metrics[task]["loss"])
        return metrics

    def close(self) -> None:
        """Writes what is still buffered."""
        for writer in self._writers.values():
            writer.close()


def validation_tasks(mixture_or_task_name: str) -> dict[str, str]:
    """Returns task name -> its validation split, for the tasks of a mixture that have one."""
    tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture_or_task_name))
    return {
        task.name: next(split for split in VALIDATION_SPLITS if split in task.splits)
        for task in tasks
        if any(split in task.splits for split in VALIDATION_SPLITS)
    }


def _first_pass(stream: Stream, limit: int) -> list[tuple[collate.Batch, int]]:
    """At most `limit` batches, each with the number of its rows (of the global batch) that count.

    A stream is endless: the last batch goes on with the second pass, which must not count.
    """
    size = stream.batch_size
    if stream.num_examples is None:
        return [(next(stream), size) for _ in range(limit)]
    starts = range(0, min(stream.num_examples, limit * size), size)
    return [(next(stream), min(size, stream.num_examples - start)) for start in starts]


def _only_first(batch: collate.Batch, num_rows: int) -> collate.Batch:
    """The global batch with `weights` of 0, wherever it has some, for all rows but `num_rows`."""

    def cut(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1] != jax.tree_util.DictKey("weights"):
            return leaf
        counts_B = (np.arange(len(leaf)) < num_rows).astype(np.float32)
        return leaf * counts_B.reshape(-1, *[1] * (leaf.ndim - 1))

    return jax.tree_util.tree_map_with_path(cut, batch)
