"""The configuration of a training run, and its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dsi_jax.evaluation.config import Evaluation
from dsi_jax.inputs.pixels import Augmentation
from dsi_jax.methods.base import Method
from dsi_jax.methods.dsi import DSI
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.memory import MEMORIES
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import data_config, preflight
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.training import optimizers, partitioning
from dsi_jax.utils import checks

_DTYPES = ("float32", "bfloat16")


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
      data: corpus, vocabulary and docids.
      optimizer: Adafactor or AdamW with its schedule.
      method: what is trained: a differentiable search index, or a baseline.
      model: the architecture; its vocabulary size becomes the tokenizer's. None: chosen from the
        size of the corpus, or the checkpoint's where weights are borrowed.
      dropout_rate: in [0, 1); None: the model's own.
      dtype: "float32" or "bfloat16", of the matrix products; None: the model's own.
      remat: compute activations anew in the backward pass, all (True) or all but the products with
        kernels ("minimal"); None: the model's own.
      scan_layers: compile one layer and scan over all; None: the model's own, or the checkpoint's.
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
      assignment_map: (pattern of our path, the checkpoint's path or None) pairs; None: all of its
        weights, those of its docids for the same docid table only.
      use_cached_tasks: read what `seqio_cache_tasks` wrote.
      shuffle_train_examples: shuffle fully, anew in every epoch.
      periods: how often to log, save and evaluate.
      evaluation: how to evaluate; None: never.
    """

    model_dir: str
    data: DataConfig
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


def check(config: TrainConfig) -> None:
    """Raises where a value is of the wrong type or impossible; reads and computes nothing.

    Raises:
      ValueError: naming it.
    """
    checks.check_fields(config)
    data_config.check_data_config(config.data)
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
    if config.encoder_memory not in MEMORIES:
        raise ValueError(f"ENCODER_MEMORY is {config.encoder_memory!r}; expected one of {MEMORIES}")
    checks.check_whole_numbers(least=0, RANDOM_SEED=config.random_seed)
    checks.check_fractions(DROPOUT_RATE=config.dropout_rate)
    config.method.check()
    if config.baseline is not None:
        config.baseline.check()
    if config.evaluation is not None:
        config.evaluation.ranking(config.method)
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
