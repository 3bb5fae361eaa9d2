"""A training run: its configuration, and its setting up (read, checked, lowered; not yet begun)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

import dsi_jax
from dsi_jax import autosize, held_out, lenders, preflight
from dsi_jax import prepare as prepare_lib
from dsi_jax.data import pipeline as pipeline_lib
from dsi_jax.evaluations import Evaluations
from dsi_jax.evaluator import Evaluation
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import optimizers, partitioning
from dsi_jax.training import state as state_lib
from dsi_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Periods:
    """How often things happen, in steps; None is chosen from the length of the run.

    Attributes:
      log: a line of progress and a point in the curves (a fiftieth of the run).
      checkpoint: a checkpoint is written (a tenth).
      evaluate: documents are ranked for held-out queries (a fifth).
      keep: newest checkpoints kept.
      eval_steps: batches of the held-out loss.
    """

    log: int | None = None
    checkpoint: int | None = None
    evaluate: int | None = None
    keep: int = 3
    eval_steps: int = 20

    def resolve(self, train_steps: int) -> Periods:
        """The same with every None replaced."""
        return dataclasses.replace(
            self,
            log=self.log or max(1, train_steps // 50),
            checkpoint=self.checkpoint or max(1, train_steps // 10),
            evaluate=self.evaluate or max(1, train_steps // 5),
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run; gin fills it from the macros.

    Attributes:
      model_dir: MODEL_DIR; laid out as in T5X.
      sources: corpus, vocabulary and docids.
      optimizer: Adafactor or AdamW with its schedule.
      model: the architecture; its vocabulary size becomes the tokenizer's. None: chosen from the
        size of the corpus, or the lender's where a Hugging Face checkpoint is borrowed.
      task_feature_lengths: tokens kept of each feature, {"inputs": 32}.
      train_steps: steps in all, those before a resumption included; None: from the corpus.
      batch_size: examples a step over all devices; None: from the corpus.
      microbatches: parts of a batch that are computed one after the other.
      mesh: sizes of the mesh's axes.
      random_seed: of parameters, dropout and the order of the data.
      z_loss: weight of T5X's z-loss.
      label_smoothing: probability spread over the other docid tokens.
      initial_checkpoint_path: weights to start from: a checkpoint of ours or a Hugging Face T5
        directory. Ignored once MODEL_DIR has a checkpoint.
      assignment_map: (pattern of our path, lender's path or None) pairs; None: all of the lender's
        weights, those of its docids for the same docid table only.
      use_cached_tasks: read what `seqio_cache_tasks` wrote.
      shuffle_train_examples: shuffle fully, anew in every epoch.
      periods: how often to log, save and evaluate.
      evaluation: how to evaluate; None: never.
    """

    model_dir: str
    sources: prepare_lib.Sources
    optimizer: optimizers.Optimizer
    model: T5Config | None = None
    task_feature_lengths: Mapping[str, int] | None = None
    train_steps: int | None = None
    batch_size: int | None = None
    microbatches: int = 1
    mesh: partitioning.MeshConfig = partitioning.MeshConfig()
    random_seed: int = 42
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    initial_checkpoint_path: str | None = None
    assignment_map: Sequence[tuple[str, str | None]] | None = None
    use_cached_tasks: bool = False
    shuffle_train_examples: bool = True
    periods: Periods = Periods()
    evaluation: Evaluation | None = Evaluation()


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was set up: nothing is on the devices yet.

    Attributes:
      config: what was asked for; what it left open is decided in the other attributes.
      directory: MODEL_DIR.
      prepared: corpus, tokenizer, docid table and tasks.
      mesh: the devices.
      rules: logical axis rules that suit the mesh and the model.
      model: the model.
      transformation: the optimizer.
      shapes: of the train state, with shardings.
      step: the training step, not compiled.
      stream: batches.
      lengths: tokens kept of each feature.
      train_steps: steps in all.
      periods: how often to log, save and evaluate.
      metadata: what each checkpoint says of itself.
      lender: weights to start from.
      evaluations: rankings while training and at the end.
      plan: the run in figures.
      model_info: text of `model-info.txt`.
    """

    config: TrainConfig
    directory: Path
    prepared: prepare_lib.Prepared
    mesh: Mesh
    model: DSIModel
    stream: pipeline_lib.TrainPipeline
    shapes: state_lib.TrainState
    step: step_lib.TrainStep
    rules: partitioning.LogicalRules
    transformation: Any
    train_steps: int
    periods: Periods
    metadata: dict[str, Any]
    lengths: Mapping[str, int]
    lender: lenders.Lender | None
    evaluations: Evaluations
    plan: preflight.Plan
    model_info: str

    def new_held_out_loss(self, *, write: bool) -> held_out.HeldOutLoss:
        """Reads the held-out sample; its loss is measured at each evaluation."""
        tasks = held_out.held_out_tasks(self.prepared.mixture_or_task_name)
        return held_out.HeldOutLoss(
            {
                task: _stream(
                    self.config,
                    self.prepared,
                    self.mesh,
                    self.lengths,
                    self.stream.batch_size,
                    name=task,
                    split=split,
                    shuffle=False,
                )
                for task, split in tasks.items()
            },
            num_batches=self.periods.eval_steps,
            eval_step=step_lib.make_eval_step(self.model, mesh=self.mesh, rules=self.rules),
            put=lambda batch: partitioning.shard_batch(batch, self.mesh),
            directory=self.directory / "training_eval",
            write=write,
        )


def set_up(config: TrainConfig, *, write: bool) -> Run:
    """Reads, checks and lowers all that the run needs."""
    preflight.check_numbers(
        TRAIN_STEPS=config.train_steps,
        BATCH_SIZE=config.batch_size,
        MICROBATCHES=config.microbatches,
    )
    if config.task_feature_lengths is not None:
        preflight.check_lengths(config.task_feature_lengths)
    preflight.check_hosts()
    mesh = partitioning.make_mesh(config.mesh)
    if config.batch_size is not None:
        partitioning.check_batch_size(config.batch_size, mesh, config.microbatches)
    lender = None
    if config.initial_checkpoint_path is not None:
        lender = lenders.open_lender(config.initial_checkpoint_path)
    directory = Path(config.model_dir)
    prepared = prepare_lib.prepare(config.sources, directory, write=write)
    size = autosize.choose(prepared.table.num_documents)
    lengths = dict(config.task_feature_lengths or size.task_feature_lengths)
    batch_size = config.batch_size or partitioning.round_batch_size(
        size.batch_size, mesh, config.microbatches
    )
    train_steps = config.train_steps or size.train_steps
    model = _model(config, prepared, lender, size)

    stream = _stream(config, prepared, mesh, lengths, batch_size)
    batch_shapes = stream.batch_shapes()
    transformation = config.optimizer.build(train_steps)
    boxed = state_lib.param_shapes(model, batch_shapes)
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed, mesh)
    shapes = state_lib.state_shapes(model, transformation, batch_shapes, mesh, rules)
    step = step_lib.make_train_step(
        model,
        transformation,
        state_lib.shardings_of(shapes),
        mesh=mesh,
        rules=rules,
        learning_rate=config.optimizer.learning_rate.build(train_steps),
        microbatches=config.microbatches,
        z_loss=config.z_loss,
        label_smoothing=config.label_smoothing,
    )
    plan = preflight.plan(
        shapes,
        step.lower(shapes, batch_shapes),
        lines=(
            *prepared.lines(),
            *stream.lines(),
            preflight.mesh_line(mesh),
            f"training     {train_steps:,} steps of {batch_size} examples",
        ),
    )
    metadata = _metadata(model.config, prepared, lengths)
    periods = config.periods.resolve(train_steps)
    return Run(
        config=config,
        directory=directory,
        prepared=prepared,
        mesh=mesh,
        model=model,
        stream=stream,
        shapes=shapes,
        step=step,
        rules=rules,
        transformation=transformation,
        train_steps=train_steps,
        periods=periods,
        metadata=metadata,
        lengths=lengths,
        lender=lender,
        evaluations=Evaluations(
            config.evaluation,
            directory=directory,
            model=model,
            prepared=prepared,
            feature_lengths=lengths,
            write=write and jax.process_index() == 0,
        ),
        plan=plan,
        model_info=partitioning.model_info(boxed, state_lib.shardings_of(shapes.params)),
    )


def _stream(
    config: TrainConfig,
    prepared: prepare_lib.Prepared,
    mesh: Mesh,
    lengths: Mapping[str, int],
    batch_size: int,
    *,
    name: str | None = None,
    split: str = "train",
    shuffle: bool | None = None,
) -> pipeline_lib.TrainPipeline:
    """This host's part of the batches of a mixture or task, by default those to train on."""
    part, parts = partitioning.process_slice(mesh)
    return pipeline_lib.TrainPipeline(
        name or prepared.mixture_or_task_name,
        table=prepared.table,
        tokenizer=prepared.tokenizer,
        feature_lengths=lengths,
        batch_size=batch_size,
        seed=config.random_seed,
        split=split,
        process_index=part,
        process_count=parts,
        data_shards=partitioning.num_batch_shards(mesh),
        use_cached=config.use_cached_tasks,
        shuffle=config.shuffle_train_examples if shuffle is None else shuffle,
    )


def _model(
    config: TrainConfig,
    prepared: prepare_lib.Prepared,
    lender: lenders.Lender | None,
    size: autosize.Size,
) -> DSIModel:
    """The model that was asked for, or the lender's, or one that suits the corpus."""
    table, tokenizer = prepared.table, prepared.tokenizer
    t5 = config.model or (lender.t5 if lender is not None else None) or size.model
    vocab_size = tokenizer.vocab_size
    if lender is not None:
        vocab_size = lender.vocab_size_for(tokenizer)
    return DSIModel(
        DSIConfig(
            t5=dataclasses.replace(t5, vocab_size=vocab_size),
            docid_vocab_size=table.vocab_size,
            docid_length=table.length,
        )
    )


def _metadata(
    config: DSIConfig, prepared: prepare_lib.Prepared, lengths: Mapping[str, int]
) -> dict[str, Any]:
    """What a checkpoint says of itself, so that it can be served without gin."""
    return {
        "dsi_jax_version": dsi_jax.__version__,
        "model": config.to_json(),
        "tokenizer": prepared.tokenizer.spec(),
        "tokenizer_hash": prepared.tokenizer.hash,
        "docid_table": str(prepared.table_path.resolve()),
        "docid_table_hash": prepared.table.hash,
        "docid_kind": prepared.table.kind,
        "task_feature_lengths": dict(lengths),
    }
