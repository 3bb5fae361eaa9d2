"""Training of a differentiable search index: one plain loop.

The loop dispatches step t, then looks at the figures of step t - 1, so that it never waits for the
device; the batch of step t + 1 is made while the device computes.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from dsi_jax import lenders, preflight
from dsi_jax.progress import Progress
from dsi_jax.run import Run, TrainConfig, set_up
from dsi_jax.training import checkpoints, partitioning
from dsi_jax.training import state as state_lib

logger = logging.getLogger(__name__)

# Entries of the metadata that a checkpoint and the run that resumes it must share.
_IDENTITY = ("model", "docid_table_hash", "tokenizer_hash")
PREEMPTED = 143  # 128 + SIGTERM: the exit status of a run that saved and can be resumed


def train(config: TrainConfig, *, config_text: str = "", dry_run: bool = False) -> int:
    """Trains an index, or goes on where the last checkpoint in MODEL_DIR stands.

    Args:
      config: the run.
      config_text: kept as `config.gin` in MODEL_DIR.
      dry_run: check everything, print the plan and stop; nothing is written.

    Returns:
      The process's exit status: 0, or 143 after SIGTERM (saved; the same command resumes).

    Raises:
      ValueError, OSError: bad input, named, before anything long begins.
      progress.NonFiniteLoss: the loss became NaN or infinite.
    """
    run = set_up(config, write=not dry_run)
    logger.info("%s", run.plan)
    if dry_run:
        return 0
    preflight.check_disk(run.directory, run.plan.checkpoint_bytes * (run.periods.keep + 1))
    if jax.process_index() == 0:
        _write_text(run.directory / "config.gin", config_text)
        _write_text(run.directory / "model-info.txt", run.model_info)
    checkpointer = checkpoints.Checkpointer(run.directory, keep=run.periods.keep)
    with contextlib.closing(checkpointer):
        state = _first_state(run, checkpointer)
        state, step, progress = _loop(run, state, checkpointer)
    if step < run.train_steps:
        logger.info(
            "SIGTERM: saved step %s of %s in %s; the same command resumes it",
            f"{step:,}",
            f"{run.train_steps:,}",
            run.directory,
        )
        return PREEMPTED
    run.evaluations.finish(state.params, step, train_seconds=progress.seconds)
    return 0


def _first_state(run: Run, checkpointer: checkpoints.Checkpointer) -> state_lib.TrainState:
    """The newest whole checkpoint's state, or a new one, with borrowed weights where asked."""
    identity = {name: run.metadata[name] for name in _IDENTITY}
    restored = checkpointer.restore_latest(run.shapes, expected=identity)
    if restored is not None:
        run.stream.restore(restored.data)
        logger.info("resumed from step %s", f"{restored.step:,}")
        return restored.state
    state = state_lib.init_state(
        run.model,
        run.transformation,
        run.stream.batch_shapes(),
        run.config.random_seed,
        run.mesh,
        run.rules,
    )
    if run.lender is not None:
        borrower = lenders.Borrower(run.model.config, run.prepared.table, run.prepared.tokenizer)
        params = run.lender.lend(borrower, state.params, run.config.assignment_map)
        state = state.replace(params=params)
    return state


def _loop(
    run: Run, state: state_lib.TrainState, checkpointer: checkpoints.Checkpointer
) -> tuple[state_lib.TrainState, int, Progress]:
    """Steps until the run is over or SIGTERM comes; the last state is always saved."""
    step = saved = int(state.step)
    progress = Progress(
        run.directory / "train",
        first_step=step,
        last_step=run.train_steps,
        period=run.periods.log,
        write=jax.process_index() == 0,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(progress))
        stop = stack.enter_context(_sigterm())
        evaluate = stack.enter_context(_evaluations(run))
        while step < run.train_steps and not stop.is_set():
            batch = partitioning.shard_batch(next(run.stream), run.mesh)
            state, metrics = run.step(state, batch)
            step += 1
            progress.add(step, metrics)
            if step % run.periods.checkpoint == 0 or step == run.train_steps:
                progress.settle()  # a state that is not finite is not saved
                checkpointer.save(step, state, data=run.stream.state(), metadata=run.metadata)
                saved = step
            if step % run.periods.evaluate == 0 or step == run.train_steps:
                with progress.paused():
                    evaluate(state.params, step)
        progress.settle()
        if saved != step:
            checkpointer.save(step, state, data=run.stream.state(), metadata=run.metadata)
        checkpointer.wait()
    return state, step, progress


@contextlib.contextmanager
def _evaluations(run: Run) -> Iterator[Callable[[Any, int], None]]:
    """What is measured while training goes on: the held-out loss, and the ranking of documents."""
    if run.config.evaluation is None:
        yield lambda params, step: None
        return

    def evaluate(params: Any, step: int) -> None:
        held_out.run(params, step)
        if step < run.train_steps:  # the last ranking is part of the report
            run.evaluations.run(params, step)

    held_out = run.new_held_out_loss(write=jax.process_index() == 0)
    with contextlib.closing(held_out):
        yield evaluate


@contextlib.contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the loop can end at a step's boundary."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.rename(path)
