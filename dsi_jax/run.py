"""A training run: its configuration, and its setting up (read, checked, lowered; not yet begun)."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import dsi_jax
from dsi_jax import autosize, checks, held_out, lenders, preflight
from dsi_jax import prepare as prepare_lib
from dsi_jax.data import pipeline as pipeline_lib
from dsi_jax.data import strategies
from dsi_jax.decoding.strategies import BeamSearch
from dsi_jax.docids import text_space
from dsi_jax.evaluations import Evaluations
from dsi_jax.evaluator import Evaluation
from dsi_jax.methods.base import Collection, Method, Stream
from dsi_jax.methods.dsi import DSI
from dsi_jax.models import towers_config as towers_lib
from dsi_jax.models.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.streams import IMAGE, MODALITIES, TEXT
from dsi_jax.models.t5 import T5Config
from dsi_jax.models.towers_config import TowersConfig
from dsi_jax.pixels import Augmentation
from dsi_jax.tokenizers import PAD_ID, Tokenizer
from dsi_jax.training import checkpoints, optimizers, partitioning
from dsi_jax.training import program as program_lib
from dsi_jax.training import state as state_lib
from dsi_jax.training import step as step_lib

if typing.TYPE_CHECKING:
    from dsi_jax.towers_lender import TowersLender

_DTYPES = ("float32", "bfloat16")
_MODEL_OPTIONS = ("dropout_rate", "dtype", "remat", "scan_layers")


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
        parts = {"log": 50, "checkpoint": 10, "evaluate": 5}
        chosen = {
            name: max(1, train_steps // number)
            for name, number in parts.items()
            if getattr(self, name) is None
        }
        return dataclasses.replace(self, **chosen)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run; gin fills it from the macros.

    Attributes:
      model_dir: MODEL_DIR; laid out as in T5X.
      sources: corpus, vocabulary and docids.
      optimizer: Adafactor or AdamW with its schedule.
      method: what is trained: a differentiable search index, or a baseline.
      model: the architecture; its vocabulary size becomes the tokenizer's. None: chosen from the
        size of the corpus, or the lender's where weights are borrowed.
      dropout_rate: in [0, 1); None: the model's own.
      dtype: "float32" or "bfloat16", of the matrix products; None: the model's own.
      remat: compute activations anew in the backward pass, all (True) or all but the products with
        kernels ("minimal"); None: the model's own.
      scan_layers: compile one layer and scan over all; None: the model's own, or the lender's.
      task_feature_lengths: tokens kept of each feature, {"inputs": 32}.
      train_steps: steps in all, those before a resumption included; None: from the corpus.
      batch_size: examples a step over all devices; None: from the corpus.
      microbatches: parts of a batch that are computed one after the other.
      mesh: sizes of the mesh's axes.
      random_seed: of parameters, dropout and the order of the data.
      initial_checkpoint_path: weights to start from: a checkpoint of ours, or a T5 of Hugging Face
        or T5X. Ignored once MODEL_DIR has a checkpoint.
      clip_checkpoint: a CLIP whose towers encode texts and images: a directory or hub id of
        Hugging Face, or a MODEL_DIR of the contrastive method. Its weights are not read once
        MODEL_DIR has a checkpoint.
      text_encoder: without `clip_checkpoint`, the architecture of a tower for texts, of random
        weights; its vocabulary becomes the tokenizer's. None: T5's encoder.
      image_encoder: likewise of a tower for images; None: there are no images.
      encoder_memory: what the decoder attends to of a tower, "pooled", "states" or "both".
      image_size: pixels a side; None: the tower's own. Position embeddings are interpolated.
      image_canvas: pixels a side of what is sent to the devices, which resize it to those of the
        tower; at least twice as many. None: the hosts resize.
      augmentation: weak, of the images that look for documents in training; None: none.
      baseline: another method that is trained for as many steps on the same pairs and evaluated
        beside this one, in MODEL_DIR/baseline; None: none.
      baseline_steps: of its training, in place of as many as this run's.
      baseline_optimizer: of its training, in place of this run's.
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
    method: Method = DSI()
    model: T5Config | None = None
    dropout_rate: float | None = None
    dtype: str | None = None
    remat: bool | str | None = None
    scan_layers: bool | None = None
    task_feature_lengths: Mapping[str, int] | None = None
    train_steps: int | None = None
    batch_size: int | None = None
    microbatches: int = 1
    mesh: partitioning.MeshConfig = partitioning.MeshConfig()
    random_seed: int = 42
    initial_checkpoint_path: str | None = None
    assignment_map: Sequence[tuple[str, str | None]] | None = None
    use_cached_tasks: bool = False
    shuffle_train_examples: bool = True
    periods: Periods = Periods()
    evaluation: Evaluation | None = Evaluation()
    clip_checkpoint: str | None = None
    text_encoder: ClipTextConfig | None = None
    image_encoder: ClipVisionConfig | None = None
    encoder_memory: str = "both"
    image_size: int | None = None
    image_canvas: int | None = None
    augmentation: Augmentation | None = None
    baseline: Method | None = None
    baseline_steps: int | None = None
    baseline_optimizer: optimizers.Optimizer | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that was set up: nothing is on the devices yet.

    Attributes:
      config: what was asked for; what it left open is decided in the other attributes.
      directory: MODEL_DIR.
      prepared: corpus, tokenizer, docid table and tasks.
      collection: the documents as the method reads and ranks them.
      program: model, mesh, shapes and training step, not compiled.
      stream: batches.
      train_steps: steps in all.
      periods: how often to log, save and evaluate.
      metadata: what each checkpoint says of itself.
      lender: weights to start from; None: random ones, or the checkpoint's of a resumed run.
      towers_lender: likewise of the towers.
      evaluations: rankings while training and at the end.
      plan: the run in figures.
    """

    config: TrainConfig
    directory: Path
    prepared: prepare_lib.Prepared
    collection: Collection
    program: program_lib.Program
    stream: Stream
    train_steps: int
    periods: Periods
    metadata: dict[str, Any]
    lender: lenders.Lender | None
    towers_lender: TowersLender | None
    evaluations: Evaluations
    plan: preflight.Plan

    def new_held_out_loss(self, *, write: bool) -> held_out.HeldOutLoss:
        """Reads the held-out sample; its loss is measured at each evaluation."""
        program = self.program
        tasks = held_out.held_out_tasks(self.prepared.mixture_or_task_name)
        return held_out.HeldOutLoss(
            {
                task: _stream(
                    self.config,
                    self.prepared,
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
            directory=self.directory / "training_eval",
            write=write,
        )


def check(config: TrainConfig) -> None:
    """Raises where a value is of the wrong type or impossible; reads and computes nothing.

    Raises:
      ValueError: naming it.
    """
    checks.check_fields(config)
    prepare_lib.check_sources(config.sources)
    periods = config.periods
    checks.check_whole_numbers(
        TRAIN_STEPS=config.train_steps,
        BATCH_SIZE=config.batch_size,
        MICROBATCHES=config.microbatches,
        LOG_PERIOD=periods.log,
        CHECKPOINT_PERIOD=periods.checkpoint,
        CHECKPOINTS_KEPT=periods.keep,
        EVAL_PERIOD=periods.evaluate,
        EVAL_STEPS=periods.eval_steps,
        IMAGE_SIZE=config.image_size,
        IMAGE_CANVAS=config.image_canvas,
        BASELINE_STEPS=config.baseline_steps,
    )
    if config.encoder_memory not in towers_lib.MEMORIES:
        raise ValueError(
            f"ENCODER_MEMORY is {config.encoder_memory!r}; expected one of {towers_lib.MEMORIES}"
        )
    checks.check_whole_numbers(least=0, RANDOM_SEED=config.random_seed)
    checks.check_fractions(DROPOUT_RATE=config.dropout_rate)
    config.method.check()
    if config.baseline is not None:
        config.baseline.check()
    _check_ranking(config)
    if config.microbatches > 1 and config.method.whole_batches:
        raise ValueError(
            f"MICROBATCHES is {config.microbatches}; a {config.method.title} learns from the whole "
            "batch at once: expected 1"
        )
    if config.dtype not in (None, *_DTYPES):
        raise ValueError(f"DTYPE is {config.dtype!r}; expected one of {_DTYPES} or None")
    if isinstance(config.remat, str) and config.remat != "minimal":
        raise ValueError(f"REMAT is {config.remat!r}; expected True, False, 'minimal' or None")
    if config.task_feature_lengths is not None:
        preflight.check_lengths(config.task_feature_lengths)


def _check_ranking(config: TrainConfig) -> None:
    """Refuses choices about decoding where nothing is decoded."""
    evaluation, method = config.evaluation, config.method
    if evaluation is None or method.decodes:
        return
    for name, value, expected in (
        ("CONSTRAINT", evaluation.constraint, "trie"),
        ("Evaluation.decoding", evaluation.decoding, BeamSearch()),
    ):
        if value != expected:
            raise ValueError(
                f"{name} is {value!r}; a {method.title} ranks documents and nothing else: "
                f"expected {expected!r}"
            )


def set_up(config: TrainConfig, *, write: bool) -> Run:
    """Reads, checks and lowers all that the run needs.

    Raises:
      ValueError, OSError: bad input, named; before anything long begins where that can be known.
    """
    check(config)
    directory = checks.model_directory(config.model_dir)
    preflight.check_hosts()
    mesh = partitioning.make_mesh(config.mesh)
    if config.batch_size is not None:
        partitioning.check_batch_size(config.batch_size, mesh, config.microbatches)
    stored, lender = _origin(config, directory)
    towers, clip = towers_of(config)
    if clip is not None:
        config = dataclasses.replace(config, method=clip.suit(config.method))
    given = config.model or stored or (lender.t5 if lender is not None else None)

    def check_disk(num_documents: int) -> None:
        t5 = with_options(given or autosize.choose(num_documents).model, config)
        needed = _least_checkpoint_bytes(t5, towers, config)
        preflight.check_disk(directory, needed * (config.periods.keep + 1))

    def text_vocab_size(tokenizer: Tokenizer) -> int:
        if clip is not None and clip.text is not None:
            clip.check_tokenizer(tokenizer)
        if lender is None or towers is not None:  # a T5 then lends its decoder alone
            return tokenizer.vocab_size
        return lender.vocab_size_for(tokenizer)

    prepared = prepare_lib.prepare(
        config.sources,
        directory,
        write=write,
        check=check_disk,
        text_vocab_size=text_vocab_size,
    )
    size = autosize.choose(prepared.table.num_documents, config.batch_size)
    lengths = dict(config.task_feature_lengths or size.task_feature_lengths)
    batch_size = config.batch_size or partitioning.round_batch_size(
        size.batch_size, mesh, config.microbatches
    )
    train_steps = config.train_steps or size.train_steps
    vocab_size = stored.vocab_size if stored else text_vocab_size(prepared.tokenizer)
    t5 = dataclasses.replace(with_options(given or size.model, config), vocab_size=vocab_size)

    image_size = towers and towers.image and towers.image.image_size
    collection = prepared.collection(lengths, image_size, config.image_canvas)
    stream = _stream(config, prepared, collection, mesh, batch_size)
    towers = fitting(towers, stream, prepared.tokenizer, lengths["inputs"])
    model = config.method.new_model(t5, prepared.table, towers)
    if config.baseline is not None:  # which is trained last: what cannot be is said first
        config.baseline.new_model(t5, prepared.table, towers)
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
            *prepared.lines(),
            *stream.lines(),
            preflight.mesh_line(mesh),
            f"training     {train_steps:,} steps of {batch_size} examples",
        ),
    )
    metadata = _metadata(config.method, model, collection, prepared.table_path)
    periods = config.periods.resolve(train_steps)
    return Run(
        config=config,
        directory=directory,
        prepared=prepared,
        collection=collection,
        program=program,
        stream=stream,
        train_steps=train_steps,
        periods=periods,
        metadata=metadata,
        lender=lender,
        towers_lender=clip,
        evaluations=Evaluations(
            config.evaluation,
            directory=directory,
            method=config.method,
            model=model,
            prepared=prepared,
            collection=collection,
            write=write and jax.process_index() == 0,
        ),
        plan=plan,
    )


def _stream(
    config: TrainConfig,
    prepared: prepare_lib.Prepared,
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
        name or prepared.mixture_or_task_name,
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
        strategy=strategies.Strategy(
            config.sources.indexing_strategy,
            seed=config.random_seed,
            first_sentinel=text_space.first_sentinel(prepared.tokenizer),
        ),
    )
    return config.method.batches(stream, collection)


def towers_of(config: TrainConfig) -> tuple[TowersConfig | None, TowersLender | None]:
    """The towers as they are asked for, and the weights that they begin with."""
    options: dict[str, Any] = {"remat": bool(config.remat)} if config.remat is not None else {}
    if config.dtype is not None:
        options["dtype"] = config.dtype
    lender, text, image = None, config.text_encoder, config.image_encoder
    if config.clip_checkpoint is not None:
        # Transformers' CLIP takes seconds to import: only who borrows it pays for it.
        from dsi_jax import towers_lender

        lender = towers_lender.open_lender(config.clip_checkpoint)
        text, image = lender.text, lender.image
    if text is None and image is None:
        return None, None
    text = text and dataclasses.replace(text, **options)
    if config.image_size is not None:
        options["image_size"] = config.image_size
    image = image and dataclasses.replace(image, **options)
    return TowersConfig(text, image, config.encoder_memory), lender


def fitting(
    towers: TowersConfig | None,
    stream: Stream,
    tokenizer: Tokenizer,
    length: int,
) -> TowersConfig | None:
    """The towers without those that nothing is encoded with, and for the tokenizer at hand.

    Raises:
      ValueError: the tower of texts cannot read so long texts, or was trained with another
        vocabulary; texts without a tower are padded by another token than T5's.
    """
    shapes = stream.batch_shapes()
    text = towers.text if towers is not None and TEXT in shapes else None
    if TEXT in shapes and text is None and tokenizer.pad_id != PAD_ID:
        raise ValueError(
            f"VOCABULARY pads texts by token {tokenizer.pad_id}, as CLIP's do; expected one that "
            f"pads by {PAD_ID}, which T5's encoder does not look at"
        )
    if towers is None:
        return None
    image = towers.image if IMAGE in shapes or "document" in shapes else None
    if text is not None:
        if length > text.max_position_embeddings:
            raise ValueError(
                f"TASK_FEATURE_LENGTHS keeps {length} tokens; the tower of texts reads "
                f"{text.max_position_embeddings}"
            )
        text = text.for_vocabulary(tokenizer.vocab_size, tokenizer.end_id)
    return dataclasses.replace(towers, text=text, image=image)


def _origin(config: TrainConfig, directory: Path) -> tuple[T5Config | None, lenders.Lender | None]:
    """Of a run with borrowed weights: the T5 in MODEL_DIR if it has begun, else the lender."""
    if config.initial_checkpoint_path is None:
        return None, None
    for path in sorted(directory.glob("checkpoint_*"), key=_step_of, reverse=True):
        # A checkpoint that cannot be read is named where the run is resumed.
        with contextlib.suppress(ValueError, KeyError):  # no T5 in a model of contrastive towers
            return T5Config.from_json(checkpoints.load_metadata(path)["model"]["t5"]), None
    return None, lenders.open_lender(config.initial_checkpoint_path)


def _step_of(path: Path) -> int:
    step = path.name.rpartition("_")[2]
    return int(step) if step.isdigit() else -1


def with_options(t5: T5Config, config: TrainConfig) -> T5Config:
    """The architecture with the run's own options in place of the model's."""
    options = {name: getattr(config, name) for name in _MODEL_OPTIONS}
    return dataclasses.replace(t5, **{k: v for k, v in options.items() if v is not None})


def _least_checkpoint_bytes(t5: T5Config, towers: TowersConfig | None, config: TrainConfig) -> int:
    """Bytes of a checkpoint but for the text and the docid vocabulary, which are not known yet."""
    model = config.method.new_model(dataclasses.replace(t5, vocab_size=1), None, towers)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    text = {"tokens": tokens, "mask": tokens}
    batch: dict[str, Any] = {TEXT: text, "document": text}
    if towers is not None:
        batch = {TEXT: text} if towers.text else {}
        if towers.image is not None:
            side = towers.image.image_size
            images = {"pixels": jax.ShapeDtypeStruct((1, side, side, 3), jnp.uint8)}
            batch |= {IMAGE: images, "document": images}
    rows = sum(modality in batch for modality in MODALITIES)
    batch["decoder"] = {"inputs": jax.ShapeDtypeStruct((rows, 1), jnp.int32)}
    params = nn.meta.unbox(state_lib.param_shapes(model, batch))
    moments = jax.eval_shape(config.optimizer.build(config.train_steps or 1).init, params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, moments)))


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
