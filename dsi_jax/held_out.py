"""The loss on held-out queries: `training_eval/<task>/` in MODEL_DIR, as in T5X."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import seqio

from dsi_jax.data import pipeline as pipeline_lib
from dsi_jax.metric_writers import ScalarWriter
from dsi_jax.training import step as step_lib

logger = logging.getLogger(__name__)

HELD_OUT_SPLITS = ("dev", "validation")


class HeldOutLoss:
    """Measures the teacher-forced loss on a fixed sample of each task's held-out split.

    Args:
      pipelines: task name -> a pipeline of its held-out split that does not shuffle.
      num_batches: at most so many batches of each.
      eval_step: from `training.step.make_eval_step`.
      put: places this host's part of a batch on the devices.
      directory: MODEL_DIR/training_eval.
      write: whether this host writes.
    """

    def __init__(
        self,
        pipelines: Mapping[str, pipeline_lib.TrainPipeline],
        *,
        num_batches: int,
        eval_step: Callable[[Any, Any], step_lib.Metrics],
        put: Callable[[Any], Any],
        directory: Path,
        write: bool,
    ) -> None:
        # A pipeline is endless: what is kept is the first pass, so that nothing counts twice.
        self._batches = {
            task: [next(stream) for _ in range(_num_batches(task, stream, num_batches))]
            for task, stream in pipelines.items()
        }
        self._eval_step, self._put = eval_step, put
        self._writers = {task: ScalarWriter(directory / task, lead=write) for task in pipelines}

    def run(self, params: Any, step: int) -> dict[str, dict[str, float]]:
        """Writes and returns the figures of each task."""
        figures = {}
        for task, batches in self._batches.items():
            metrics = [jax.device_get(self._eval_step(params, self._put(b))) for b in batches]
            total = jax.tree.map(lambda *parts: np.sum(parts), *metrics)
            figures[task] = step_lib.summarize(total)
            self._writers[task].write(step, figures[task])
            logger.info("  %s  held-out loss %.4f", task, figures[task]["loss"])
        return figures

    def close(self) -> None:
        """Writes what is still buffered."""
        for writer in self._writers.values():
            writer.close()


def held_out_tasks(mixture_or_task_name: str) -> dict[str, str]:
    """Task name -> its held-out split, for the tasks of a mixture that have one."""
    tasks = seqio.get_subtasks(seqio.get_mixture_or_task(mixture_or_task_name))
    return {
        task.name: next(split for split in HELD_OUT_SPLITS if split in task.splits)
        for task in tasks
        if any(split in task.splits for split in HELD_OUT_SPLITS)
    }


def _num_batches(task: str, stream: pipeline_lib.TrainPipeline, limit: int) -> int:
    examples = seqio.TaskRegistry.get(task).num_input_examples(stream.split)
    return limit if examples is None else min(limit, max(1, examples // stream.batch_size))
