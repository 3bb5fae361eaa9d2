"""A training run: its configuration, and its setting up (read, checked, lowered; not yet begun)."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

import dsi_jax
from dsi_jax.data.batches import indexing_strategies
from dsi_jax.data.batches import pipeline as pipeline_lib
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.docids import text_space
from dsi_jax.evaluation import validation_loss
from dsi_jax.evaluation.run_evaluator import RunEvaluator
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.base import Collection, Method, Stream
from dsi_jax.prepare import assets as assets_lib
from dsi_jax.prepare import autosize, preflight, warm_start
from dsi_jax.prepare.model import _least_checkpoint_bytes, _origin, fitting, towers_of, with_options
from dsi_jax.prepare.train_config import Periods, TrainConfig, check
from dsi_jax.storage import model_dir as model_dir_lib
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import partitioning
from dsi_jax.training import program as program_lib
from dsi_jax.training import step as step_lib

if typing.TYPE_CHECKING:
    from dsi_jax.prepare.warm_start_towers import PretrainedTowers


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was set up: nothing is on the devices yet.

    Attributes:
      config: what was asked for; what it left open is decided in the other attributes.
      directory: MODEL_DIR.
      assets: corpus, tokenizer, docid table and tasks.
      collection: the documents as the method reads and ranks them.
      program: model, mesh, shapes and training step, not compiled.
      stream: batches.
      train_steps: steps in all.
      periods: how often to log, save and evaluate.
      metadata: what each checkpoint says of itself.
      pretrained: weights to start from; None: random ones, or the checkpoint's of a resumed run.
      pretrained_towers: likewise of the towers.
      evaluations: rankings while training and at the end.
      plan: the run in figures.
    """

    config: TrainConfig
    directory: Path
    assets: RunAssets
    collection: Collection
    program: program_lib.Program
    stream: Stream
    train_steps: int
    periods: Periods
    metadata: dict[str, Any]
    pretrained: warm_start.Pretrained | None
    pretrained_towers: PretrainedTowers | None
    evaluations: RunEvaluator
    plan: preflight.Plan

    def new_validation_loss(self, *, write: bool) -> validation_loss.ValidationLoss:
        """Reads the held-out sample; its loss is measured at each evaluation."""
        program = self.program
        tasks = validation_loss.validation_tasks(self.assets.mixture_or_task_name)
        return validation_loss.ValidationLoss(
            {
                task: _stream(
                    self.config,
                    self.assets,
                    self.collection,
                    program.mesh,
                    self.stream.batch_size,
                    name=task,
                    split=split,
                    shuffle=True,
                )
                for task, split in tasks.items()
            },
            num_batches=self.periods.eval_steps,
            eval_step=step_lib.make_eval_step(
                program.model,
                mesh=program.mesh,
                rules=program.rules,
                loss=self.config.method.eval_loss,
            ),
            put=lambda batch: partitioning.shard_batch(batch, program.mesh),
            directory=ModelDir(self.directory).training_eval,
            write=write,
        )


def set_up(config: TrainConfig, *, write: bool) -> Run:
    """Reads, checks and lowers all that the run needs.

    Raises:
      ValueError, OSError: bad input, named; before anything long begins where that can be known.
    """
    check(config)
    directory = model_dir_lib.model_directory(config.model_dir)
    preflight.check_hosts()
    mesh = partitioning.make_mesh(config.mesh)
    if config.batch_size is not None:
        partitioning.check_batch_size(config.batch_size, mesh, config.microbatches)
    stored, pretrained = _origin(config, directory)
    towers, clip = towers_of(config)
    if clip is not None:
        config = dataclasses.replace(config, method=clip.suit(config.method))
    given = config.model or stored or (pretrained.t5 if pretrained is not None else None)

    def check_disk(num_documents: int) -> None:
        t5 = with_options(given or autosize.choose(num_documents).model, config)
        needed = _least_checkpoint_bytes(t5, towers, config)
        preflight.check_disk(directory, needed * (config.periods.keep + 1))

    def text_vocab_size(tokenizer: Tokenizer) -> int:
        if clip is not None and clip.text is not None:
            clip.check_tokenizer(tokenizer)
        if pretrained is None or towers is not None:  # a T5 then lends its decoder alone
            return tokenizer.vocab_size
        return pretrained.vocab_size_for(tokenizer)

    assets = assets_lib.prepare(
        config.data,
        directory,
        write=write,
        check=check_disk,
        text_vocab_size=text_vocab_size,
    )
    size = autosize.choose(assets.table.num_documents, config.batch_size)
    lengths = dict(config.task_feature_lengths or size.task_feature_lengths)
    batch_size = config.batch_size or partitioning.round_batch_size(
        size.batch_size, mesh, config.microbatches
    )
    train_steps = config.train_steps or size.train_steps
    vocab_size = stored.vocab_size if stored else text_vocab_size(assets.tokenizer)
    t5 = dataclasses.replace(with_options(given or size.model, config), vocab_size=vocab_size)

    image_size = towers and towers.image and towers.image.image_size
    collection = assets.collection(lengths, image_size, config.image_canvas)
    stream = _stream(config, assets, collection, mesh, batch_size)
    towers = fitting(towers, stream, assets.tokenizer, lengths["inputs"])
    model = config.method.new_model(t5, assets.table, towers)
    if config.baseline is not None:  # which is trained last: what cannot be is said first
        config.baseline.new_model(t5, assets.table, towers)
    program = program_lib.build(
        model,
        config.optimizer,
        mesh,
        stream.batch_shapes(),
        train_steps=train_steps,
        microbatches=config.microbatches,
        loss=config.method.train_loss,
        augment=config.augmentation,
    )
    plan = preflight.plan(
        program.shapes,
        program.lower(),
        lines=(
            *assets.lines(),
            *stream.lines(),
            preflight.mesh_line(mesh),
            f"training     {train_steps:,} steps of {batch_size} examples",
        ),
    )
    metadata = _metadata(config.method, model, collection, assets.table_path)
    periods = config.periods.resolve(train_steps)
    return Run(
        config=config,
        directory=directory,
        assets=assets,
        collection=collection,
        program=program,
        stream=stream,
        train_steps=train_steps,
        periods=periods,
        metadata=metadata,
        pretrained=pretrained,
        pretrained_towers=clip,
        evaluations=RunEvaluator(
            config.evaluation,
            directory=directory,
            method=config.method,
            model=model,
            assets=assets,
            collection=collection,
            write=write and jax.process_index() == 0,
        ),
        plan=plan,
    )


def _stream(
    config: TrainConfig,
    assets: RunAssets,
    collection: Collection,
    mesh: Mesh,
    batch_size: int,
    *,
    name: str | None = None,
    split: str = "train",
    shuffle: bool | None = None,
) -> Stream:
    """This host's part of the batches of a mixture or task, by default those to train on."""
    parts, num_parts = partitioning.process_parts(mesh)
    stream = pipeline_lib.TrainPipeline(
        name or assets.mixture_or_task_name,
        table=collection.table,
        inputs=collection.inputs,
        batch_size=batch_size,
        seed=config.random_seed,
        split=split,
        parts=parts,
        num_parts=num_parts,
        microbatches=config.microbatches,
        use_cached=config.use_cached_tasks,
        shuffle=config.shuffle_train_examples if shuffle is None else shuffle,
        strategy=indexing_strategies.Strategy(
            config.data.indexing_strategy,
            seed=config.random_seed,
            first_sentinel=text_space.first_sentinel(assets.tokenizer),
        ),
    )
    return config.method.batches(stream, collection)


def _metadata(
    method: Method, model: nn.Module, collection: Collection, table_path: Path
) -> dict[str, Any]:
    """What a checkpoint says of itself, so that it can be served without gin."""
    return {
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
