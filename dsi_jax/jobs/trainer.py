"""Training, of a differentiable search index or a baseline: one plain loop.

The loop dispatches step t, then looks at the metrics of step t - 1, so that it never waits for the
device; the batch of step t + 1 is made while the device computes. Whatever is saved is saved before
anything long, so that SIGTERM may come at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsi_jax.evaluation import evaluator
from dsi_jax.evaluation.config import Metrics
from dsi_jax.evaluation.final_report import BaselineResult
from dsi_jax.evaluation.predictor import Interrupted
from dsi_jax.evaluation.run_evaluator import RunEvaluator
from dsi_jax.jobs.progress import Progress
from dsi_jax.methods.dsi import DSI
from dsi_jax.prepare import lexical_head, preflight, warm_start
from dsi_jax.prepare.run import Run, set_up
from dsi_jax.prepare.train_config import BaselineConfig, TrainConfig
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import checkpoints, partitioning
from dsi_jax.training import state as state_lib
from dsi_jax.utils import atomic_files

logger = logging.getLogger(__name__)

# Entries of the metadata that a checkpoint and the run that resumes it must share, the most telling
# first, and fields of the architecture that change no parameter.
_IDENTITY = ("tokenizer_hash", "docid_table_hash", "lexical_vocabulary_hash", "model")
_NO_IDENTITY = ("dropout_rate", "remat", "dtype")
_LATER_OPTIONS = ("scan_layers", "relpos_per_layer")  # a checkpoint of before them has neither
_AGREE_EVERY = 10  # steps between two questions to the other hosts
PREEMPTED = 143  # 128 + SIGTERM: the exit status of a run that saved and can be resumed


class _Stop:
    """Whether SIGTERM came, on any host: all leave at the same step."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self._agreed = False

    def set(self) -> None:
        """Says that it came to this host."""
        self._came.set()

    def agree(self) -> bool:
        """Whether to stop; all processes ask at the same point and get the same answer."""
        if not self._agreed:
            came = self._came.is_set()
            if jax.process_count() > 1:
                came = bool(multihost_utils.process_allgather(np.array(came)).any())
            self._agreed = came
        return self._agreed

    def agree_at(self, step: int) -> bool:
        """As `agree`; several hosts ask each other only now and then, as it makes them wait."""
        if jax.process_count() == 1 or step % _AGREE_EVERY == 0:
            return self.agree()
        return self._agreed


def train(config: TrainConfig, *, config_text: str = "", dry_run: bool = False) -> int:
    """Trains a model, or goes on where the last checkpoint in MODEL_DIR stands.

    Args:
      config: the run.
      config_text: kept as `config.gin` in MODEL_DIR.
      dry_run: check everything, print the plan and stop; nothing is written.

    Returns:
      The process's exit status: 0, or 143 after SIGTERM (saved; the same command resumes).

    Raises:
      ValueError, OSError: bad input, named, before anything long begins.
      progress.NonFiniteLoss: the loss or its gradient became NaN or infinite.
    """
    run = set_up(config, write=not dry_run)
    logger.info("%s", run.plan)
    return 0 if dry_run else _train(run, config_text)


def _train(run: Run, config_text: str, stop: _Stop | None = None) -> int:
    """Trains what was set up, see `train`.

    Args:
      run: the run.
      config_text: kept as `config.gin` in MODEL_DIR.
      stop: of a run that this one is part of; None: SIGTERM's own.
    """
    preflight.check_disk(run.directory, run.plan.checkpoint_bytes * (run.schedule.periods.keep + 1))
    with contextlib.ExitStack() as stack:
        checkpointer = checkpoints.Checkpointer(run.directory, keep=run.schedule.periods.keep)
        stack.enter_context(contextlib.closing(checkpointer))
        state, seconds = _first_state(run, checkpointer)
        if jax.process_index() == 0:  # now that MODEL_DIR is known to be of this run
            atomic_files.write_text(ModelDir(run.directory).config, config_text)
            atomic_files.write_text(ModelDir(run.directory).model_info, run.program.model_info())
        stop = stop or stack.enter_context(_sigterm())
        evaluations = run.evaluations.on(run.program.mesh, run.program.rules, stop.agree)
        state, step, seconds = _loop(run, state, checkpointer, evaluations, stop, seconds)
        if step >= run.schedule.train_steps:
            with contextlib.suppress(Interrupted):
                baselines = _baseline(run, config_text, stop)
                evaluations.finish(state.params, step, train_seconds=seconds, baselines=baselines)
                return 0
    logger.info(
        "SIGTERM: saved step %s of %s in %s; the same command resumes it",
        f"{step:,}",
        f"{run.schedule.train_steps:,}",
        run.directory,
    )
    return PREEMPTED


def _baseline(run: Run, config_text: str, stop: _Stop) -> dict[str, BaselineResult]:
    """Trains the baseline in MODEL_DIR/baseline, if there is one, for as many steps.

    Returns:
      The systems that the lead host reports with the run, by name.

    Raises:
      evaluator.Interrupted: SIGTERM came; the same command goes on.
    """
    if run.config.baseline.method is None or run.config.evaluation is None:
        return {}
    config = _baseline_config(run)
    title = config.method.title
    found = {}
    if config.encoders.checkpoint is not None:
        found[f"{title}, zero-shot"] = BaselineResult(_zero_shot(config, stop), 0.0)
    report = ModelDir(Path(config.model_dir)).report
    if partitioning.lead_says(not report.exists()):  # others may not see the lead's files
        logger.info("\nbaseline: %s, in %s", title, config.model_dir)
        baseline = set_up(config, write=True)
        logger.info("%s", baseline.plan)
        if _train(baseline, config_text, stop) != 0:
            raise Interrupted
    if jax.process_index() == 0:  # it alone wrote that report, and writes this run's
        summary = json.loads(report.read_text("utf-8"))
        found[title] = BaselineResult(summary["test"], summary["train_seconds"])
    return found


def _baseline_config(run: Run) -> TrainConfig:
    """The baseline as a run of its own, on the documents and queries of `run`."""
    config, assets = run.config, run.assets
    pairs = assets.tasks and assets.tasks.pairs
    return dataclasses.replace(
        config,
        model_dir=str(ModelDir(run.directory).baseline.path),
        data=dataclasses.replace(
            config.data,
            docid_table=str(assets.table_path),
            vocabulary=config.data.vocabulary or str(run.directory),
            mixture_or_task_name=pairs or assets.mixture_or_task_name,
        ),
        # Groups are of the parts of a DSI.
        optimizer=config.baseline.optimizer or dataclasses.replace(config.optimizer, groups=()),
        method=config.baseline.method,
        lexical_head=None,
        baseline=BaselineConfig(),
        schedule=dataclasses.replace(
            config.schedule,
            train_steps=config.baseline.steps or run.schedule.train_steps,
            batch_size=run.schedule.batch_size,
            microbatches=1,
        ),
        initialization=dataclasses.replace(config.initialization, checkpoint=None),
        evaluation=config.evaluation.of_baseline(),
    )


def _zero_shot(config: TrainConfig, stop: _Stop) -> dict[str, Metrics]:
    """Returns the metrics of a baseline's pretrained towers before any training, by target.

    Raises:
      evaluator.Interrupted: SIGTERM came.
    """
    directory = ModelDir(Path(config.model_dir)).zero_shot.path
    run = set_up(dataclasses.replace(config, model_dir=str(directory)), write=True)
    program = run.program
    params = program.init(config.random_seed).params
    params = run.initial.pretrained_towers.initialize(program.model.config, params)
    return run.evaluations.on(program.mesh, program.rules, stop.agree).reported(params)


def _first_state(
    run: Run, checkpointer: checkpoints.Checkpointer
) -> tuple[state_lib.TrainState, float]:
    """The state to begin with, and the seconds of training behind it.

    It is that of the newest whole checkpoint, or a new one, with borrowed weights where asked.
    """
    restored = checkpointer.restore_latest(run.program.shapes, expected=_identity(run.metadata))
    if restored is not None:
        run.stream.restore(restored.data)
        logger.info("resumed from step %s", f"{restored.step:,}")
        return restored.state, restored.metadata.get("train_seconds", 0.0)
    state = run.program.init(run.config.random_seed)
    if run.initial.pretrained is not None:
        new_model = warm_start.NewModel(
            run.program.model.config, run.assets.table, run.assets.tokenizer
        )
        params = run.initial.pretrained.initialize(
            new_model, state.params, run.config.initialization.assignment_map
        )
        state = state.replace(params=params)
    if run.initial.pretrained_towers is not None:
        params = run.initial.pretrained_towers.initialize(run.program.model.config, state.params)
        state = state.replace(params=params)
    if run.assets.lexical is not None:
        params = lexical_head.initialize(state.params, run.assets.lexical, run.assets.table)
        state = state.replace(params=params)
    return state, 0.0


def _identity(metadata: Mapping[str, Any]) -> dict[str, Any]:
    identity = {name: metadata[name] for name in _IDENTITY if name in metadata}
    if metadata["method"] != DSI.kind:  # which a checkpoint of before there were others has not
        identity = {"method": metadata["method"]} | identity
    return identity | {"model": _architecture(metadata["model"])}


def _architecture(model: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's configuration what decides its parameters."""
    return {
        name: _architecture(value) if isinstance(value, Mapping) else value
        for name, value in model.items()
        if name not in _NO_IDENTITY and (value or name not in _LATER_OPTIONS)
    }


def _metadata(run: Run) -> dict[str, Any]:
    """What a checkpoint says of itself, its corpus and the queries that it may not train on."""
    corpus = run.assets.corpus
    if corpus is None:
        return run.metadata
    return run.metadata | {
        "corpus": corpus.name,
        "corpus_hash": corpus.hash,
        "corpus_seed": run.config.data.seed,
        "queries_hash": evaluator.queries_hash(corpus),
    }


def _loop(
    run: Run,
    state: state_lib.TrainState,
    checkpointer: checkpoints.Checkpointer,
    evaluations: RunEvaluator,
    stop: _Stop,
    seconds: float,
) -> tuple[state_lib.TrainState, int, float]:
    """Steps until the run is over or SIGTERM comes; the last state is always saved.

    Returns:
      (state, its step, seconds of training of this run and those that it resumes).
    """
    step = int(state.step)
    metadata = _metadata(run)
    progress = Progress(
        ModelDir(run.directory).train,
        first_step=step,
        last_step=run.schedule.train_steps,
        period=run.schedule.periods.log,
        seconds_before=seconds,
        write=jax.process_index() == 0,
    )

    def save() -> None:
        progress.settle()  # a state that is not finite is not saved
        checkpointer.save(
            step,
            state,
            data=run.stream.state(),
            metadata=metadata | {"train_seconds": progress.seconds},
        )

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(progress))
        evaluate = stack.enter_context(_evaluate(run, evaluations))
        while step < run.schedule.train_steps and not stop.agree_at(step):
            batch = partitioning.shard_batch(next(run.stream), run.program.mesh)
            state, metrics = run.program.step(state, batch)
            step += 1
            progress.add(step, metrics)
            checkpointer.check_for_errors()
            is_evaluated = evaluate is not None and (
                step % run.schedule.periods.evaluate == 0 or step == run.schedule.train_steps
            )
            if is_evaluated or step % run.schedule.periods.checkpoint == 0:
                save()
            if is_evaluated:
                with progress.paused():
                    evaluate(state.params, step)
        save()
        checkpointer.wait()
    return state, step, progress.seconds


@contextlib.contextmanager
def _evaluate(run: Run, evaluations: RunEvaluator) -> Iterator[Callable[[Any, int], None] | None]:
    """Yields what is measured while training goes on: the validation loss, then rankings."""
    if run.config.evaluation is None:
        yield None
        return

    def evaluate(params: Any, step: int) -> None:
        validation_loss.run(params, step)
        if step < run.schedule.train_steps:  # the last ranking is part of the report
            with contextlib.suppress(Interrupted):  # the loop ends then
                evaluations.run(params, step)

    validation_loss = run.new_validation_loss(write=jax.process_index() == 0)
    with contextlib.closing(validation_loss):
        yield evaluate


@contextlib.contextmanager
def _sigterm() -> Iterator[_Stop]:
    """A `_Stop` that SIGTERM sets, so that a run can end between two steps or batches."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
