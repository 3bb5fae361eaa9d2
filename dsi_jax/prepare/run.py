"""Sets a training run up, phase by phase; nothing is compiled, and nothing is on a device yet."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

import dsi_jax
from dsi_jax.data.batches import pipeline as pipeline_lib
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.evaluation import validation_loss
from dsi_jax.evaluation.run_evaluator import RunEvaluator
from dsi_jax.methods.base import Collection, Method, Stream
from dsi_jax.models.dsi import TEXT_SPACE
from dsi_jax.prepare import preflight
from dsi_jax.prepare.assets import (
    OpenedAssets,
    complete_assets,
    in_text_space,
    open_assets,
    with_lexical_index,
)
from dsi_jax.prepare.model import Initial, ResolvedModel, open_initial, resolve
from dsi_jax.prepare.program import build, indexing_strategy, new_mesh
from dsi_jax.prepare.train_config import ScheduleConfig, TrainConfig, check
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.training import partitioning
from dsi_jax.training import program as program_lib
from dsi_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run computes and writes.

    Attributes:
      directory: MODEL_DIR.
      mesh: the devices.
    """

    directory: Path
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was set up: nothing is on the devices yet.

    Attributes:
      config: what was asked for; what it left open is decided in the other attributes.
      directory: MODEL_DIR.
      initial: what the parameters start from, unless MODEL_DIR has a checkpoint.
      assets: corpus, tokenizer, docid table and tasks.
      resolved: what is trained, and how long.
      collection: the documents as the method reads and ranks them.
      stream: batches.
      program: model, mesh, shapes and training step, not compiled.
      evaluations: rankings while training and at the end.
      metadata: what each checkpoint says of itself.
      plan: the run in figures.
    """

    config: TrainConfig
    directory: Path
    initial: Initial
    assets: RunAssets
    resolved: ResolvedModel
    collection: Collection
    stream: Stream
    program: program_lib.Program
    evaluations: RunEvaluator
    metadata: dict[str, Any]
    plan: preflight.Plan

    @property
    def schedule(self) -> ScheduleConfig:
        """Steps, batches and periods, none of them None."""
        return self.resolved.schedule

    def new_validation_loss(self, *, write: bool) -> validation_loss.ValidationLoss:
        """Reads the held-out sample; its loss is measured at each evaluation."""
        program = self.program
        tasks = validation_loss.validation_tasks(self.assets.mixture_or_task_name)
        return validation_loss.ValidationLoss(
            {
                task: _stream(
                    self.config,
                    self.resolved,
                    self.collection,
                    program.mesh,
                    task,
                    split=split,
                    shuffle=True,
                )
                for task, split in tasks.items()
            },
            num_batches=self.schedule.periods.eval_steps,
            eval_step=step_lib.make_eval_step(
                program.model,
                mesh=program.mesh,
                rules=program.rules,
                loss=self.resolved.method.eval_loss,
            ),
            put=lambda batch: partitioning.shard_batch(batch, program.mesh),
            directory=ModelDir(self.directory).training_eval,
            write=write,
        )


def set_up(config: TrainConfig, *, write: bool) -> Run:
    """Checks, reads and lowers all that the run needs.

    Args:
      config: the run.
      write: whether what is missing is written to MODEL_DIR; False: a dry run.

    Raises:
      ValueError, OSError: bad input, named; before anything long begins where that can be known.
    """
    place = _check(config)
    initial = open_initial(config, place.directory)
    opened = open_assets(config.data, place.directory, write=write)
    resolved = resolve(config, initial, opened.num_documents, place.mesh)
    _preflight(config, place, initial, opened, resolved)
    assets = _complete(config, initial, opened, write=write)
    return _build(config, place, initial, resolved, assets, write=write)


def _check(config: TrainConfig) -> Place:
    """Checks the configuration against itself and the devices; nothing is read."""
    check(config)
    directory = model_directory(config.model_dir)
    preflight.check_hosts()
    return Place(directory, new_mesh(config))


def _preflight(
    config: TrainConfig,
    place: Place,
    initial: Initial,
    opened: OpenedAssets,
    resolved: ResolvedModel,
) -> None:
    """Checks what is known before anything is written: the vocabulary and the space on the disk."""
    if opened.tokenizer is not None:
        initial.text_vocab_size(opened.tokenizer)
    needed = resolved.least_checkpoint_bytes(config.optimizer)
    preflight.check_disk(place.directory, needed * (config.schedule.periods.keep + 1))


def _complete(
    config: TrainConfig, initial: Initial, opened: OpenedAssets, *, write: bool
) -> RunAssets:
    """Completes the assets, with word weights or docids in text tokens where the run asks so."""
    assets = complete_assets(opened, write=write)
    if config.lexical_head is not None:
        return with_lexical_index(
            assets, opened.directory, config.lexical_head, seed=config.data.seed, write=write
        )
    if config.data.space != TEXT_SPACE:
        return assets
    vocab_size = initial.text_vocab_size(assets.tokenizer)
    return in_text_space(assets, opened.directory, vocab_size, write=write)


def _build(
    config: TrainConfig,
    place: Place,
    initial: Initial,
    resolved: ResolvedModel,
    assets: RunAssets,
    *,
    write: bool,
) -> Run:
    """Builds the program, and what feeds and evaluates it."""
    collection = resolved.collection(assets)
    stream = _stream(config, resolved, collection, place.mesh, assets.mixture_or_task_name)
    program = build(
        config,
        resolved,
        collection,
        stream,
        place.mesh,
        text_vocab_size=initial.text_vocab_size(assets.tokenizer),
        lexical=assets.lexical,
    )
    evaluations = RunEvaluator(
        config.evaluation,
        directory=place.directory,
        method=resolved.method,
        model=program.model,
        assets=assets,
        collection=collection,
        write=write and jax.process_index() == 0,
    )
    return Run(
        config=config,
        directory=place.directory,
        initial=initial,
        assets=assets,
        resolved=resolved,
        collection=collection,
        stream=stream,
        program=program,
        evaluations=evaluations,
        metadata=_metadata(resolved.method, program.model, collection, assets.table_path),
        plan=_plan(assets, stream, program, resolved.schedule),
    )


def _stream(
    config: TrainConfig,
    resolved: ResolvedModel,
    collection: Collection,
    mesh: Mesh,
    name: str,
    *,
    split: str = "train",
    shuffle: bool | None = None,
) -> Stream:
    """Returns this host's part of the batches of a mixture or task, by default to train on."""
    parts, num_parts = partitioning.process_parts(mesh)
    stream = pipeline_lib.TrainPipeline(
        name,
        table=collection.table,
        inputs=collection.inputs,
        batch_size=resolved.schedule.batch_size,
        seed=config.random_seed,
        split=split,
        parts=parts,
        num_parts=num_parts,
        microbatches=resolved.schedule.microbatches,
        use_cached=config.use_cached_tasks,
        shuffle=config.shuffle_train_examples if shuffle is None else shuffle,
        strategy=indexing_strategy(config, collection.tokenizer),
    )
    return resolved.method.batches(stream, collection)


def _plan(
    assets: RunAssets, stream: Stream, program: program_lib.Program, schedule: ScheduleConfig
) -> preflight.Plan:
    """Lowers the step and gives the run's figures."""
    return preflight.plan(
        program.shapes,
        program.lower(),
        lines=(
            *assets.lines(),
            *stream.lines(),
            preflight.mesh_line(program.mesh),
            f"training     {schedule.train_steps:,} steps of {schedule.batch_size} examples",
        ),
    )


def _metadata(
    method: Method, model: nn.Module, collection: Collection, table_path: Path
) -> dict[str, Any]:
    """Returns what a checkpoint says of itself, so that it can be served without gin."""
    lexical, vocabulary = {}, collection.lexical_vocabulary
    if vocabulary is not None:
        lexical = {
            "lexical_vocabulary": vocabulary.spec(),
            "lexical_vocabulary_hash": vocabulary.hash,
        }
    return lexical | {
        "dsi_jax_version": dsi_jax.__version__,
        "method": method.kind,
        "model": model.config.to_json(),
        "tokenizer": collection.tokenizer.spec(),
        "tokenizer_hash": collection.tokenizer.hash,
        "docid_table": str(table_path.resolve()),
        "docid_table_hash": collection.table.hash,
        "docid_kind": collection.table.kind,
        "task_feature_lengths": dict(collection.lengths),
        "image_size": collection.image_size,
        "image_canvas": collection.image_canvas,
    }
