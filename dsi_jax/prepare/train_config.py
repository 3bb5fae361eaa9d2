"""The configuration of a training run, and its checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dsi_jax.evaluation.config import Evaluation
from dsi_jax.inputs.pixels import Augmentation
from dsi_jax.methods.base import Method
from dsi_jax.methods.dsi import DSI
from dsi_jax.models.encoders.base import ImageEncoderConfig, TextEncoderConfig
from dsi_jax.models.encoders.memory import MEMORIES
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import data_config, lexical_head, preflight
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.prepare.lexical_head import LexicalHead
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
class ModelConfig:
    """The architecture of a run; gin's macros MODEL, DROPOUT_RATE, DTYPE, REMAT, SCAN_LAYERS.

    Attributes:
      architecture: a T5; its vocabulary size becomes the tokenizer's. None: chosen from the size of
        the corpus, or the checkpoint's where pretrained weights are used.
      dropout_rate: rate in [0, 1); None: the architecture's own.
      dtype: "float32" or "bfloat16", of the matrix products; None: the architecture's own.
      remat: compute activations anew in the backward pass, all (True) or all but the products with
        kernels ("minimal"); None: the architecture's own.
      scan_layers: compile one layer and scan over all; None: the architecture's own, or the
        checkpoint's.
    """

    architecture: T5Config | None = None
    dropout_rate: float | None = None
    dtype: str | None = None
    remat: bool | str | None = None
    scan_layers: bool | None = None


@dataclasses.dataclass(frozen=True)
class EncodersConfig:
    """The encoders of texts and images, and what images they read.

    Attributes:
      checkpoint: a CLIP whose towers encode texts and images: a directory or hub id of
        Hugging Face, or a MODEL_DIR of the contrastive method. Its weights are not read once
        MODEL_DIR has a checkpoint. Macro CLIP_CHECKPOINT.
      text_checkpoint: the same of texts alone: a BERT, such as MiniLM, BGE or E5, or the half of a
        CLIP. Macro TEXT_CHECKPOINT.
      image_checkpoint: the same of images alone. Macro IMAGE_CHECKPOINT.
      text: without `checkpoint`, the architecture of a tower for texts, of random weights; its
        vocabulary becomes the tokenizer's. None: T5's encoder. Macro TEXT_ENCODER.
      image: the same of a tower for images; None: there are no images. Macro IMAGE_ENCODER.
      memory: what the decoder attends to of a tower, "pooled", "states" or "both".
      image_size: pixels a side; None: the tower's own. Position embeddings are interpolated.
      image_canvas: pixels a side of what is sent to the devices, which resize it to those of the
        tower; at least twice as many. None: the hosts resize.
      augmentation: weak, of the images that look for documents in training; None: none.
    """

    checkpoint: str | None = None
    text_checkpoint: str | None = None
    image_checkpoint: str | None = None
    text: TextEncoderConfig | None = None
    image: ImageEncoderConfig | None = None
    memory: str = "both"
    image_size: int | None = None
    image_canvas: int | None = None
    augmentation: Augmentation | None = None


@dataclasses.dataclass(frozen=True)
class InitializationConfig:
    """The weights to start from; random ones by default.

    Attributes:
      checkpoint: a checkpoint of ours, or a T5 of Hugging Face or T5X. Ignored once MODEL_DIR has a
        checkpoint. Macro INITIAL_CHECKPOINT_PATH.
      assignment_map: (pattern of our path, the checkpoint's path or None) pairs; None: all of its
        weights, those of its docids for the same docid table only.
    """

    checkpoint: str | None = None
    assignment_map: Sequence[tuple[str, str | None]] | None = None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """How long a run trains, on batches of what size; None is chosen from the size of the corpus.

    Attributes:
      train_steps: steps in all, those before a resumption included.
      batch_size: examples a step over all devices.
      microbatches: parts of a batch that are computed one after the other.
      periods: how often to log, save and evaluate.
    """

    train_steps: int | None = None
    batch_size: int | None = None
    microbatches: int = 1
    periods: Periods = Periods()


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """Another method, trained on the same pairs and evaluated beside the run's.

    Attributes:
      method: the method, trained in MODEL_DIR/baseline; None: there is no baseline.
      steps: steps of its training; None: as many as the run's.
      optimizer: optimizer of its training; None: the run's.
    """

    method: Method | None = None
    steps: int | None = None
    optimizer: optimizers.Optimizer | None = None


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A run; gin fills it from the macros.

    Attributes:
      model_dir: MODEL_DIR; laid out as in T5X.
      data: corpus, vocabulary and docids.
      optimizer: Adafactor or AdamW with its schedule.
      method: what is trained: a differentiable search index, or a baseline.
      model: the architecture.
      encoders: encoders of texts and images in place of the architecture's own.
      lexical_head: word weights beside the decoder; None: there are none.
      initialization: weights to start from.
      schedule: steps, batches and periods.
      baseline: another method beside this one.
      mesh: sizes of the mesh's axes.
      evaluation: how to evaluate; None: never.
      random_seed: seed of parameters, dropout and the order of the data.
      task_feature_lengths: tokens kept of each feature, {"inputs": 32}; None: from the corpus.
      use_cached_tasks: read what `seqio_cache_tasks` wrote.
      shuffle_train_examples: shuffle fully, anew in every epoch.
    """

    model_dir: str
    data: DataConfig
    optimizer: optimizers.Optimizer
    method: Method = DSI()
    model: ModelConfig = ModelConfig()
    encoders: EncodersConfig = EncodersConfig()
    lexical_head: LexicalHead | None = None
    initialization: InitializationConfig = InitializationConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    baseline: BaselineConfig = BaselineConfig()
    mesh: partitioning.MeshConfig = partitioning.MeshConfig()
    evaluation: Evaluation | None = Evaluation()
    random_seed: int = 42
    task_feature_lengths: Mapping[str, int] | None = None
    use_cached_tasks: bool = False
    shuffle_train_examples: bool = True


def check(config: TrainConfig) -> None:
    """Raises where a value is of the wrong type or impossible; reads and computes nothing.

    Raises:
      ValueError: naming it.
    """
    checks.check_fields(config)
    data_config.check_data_config(config.data)
    _check_schedule(config.schedule)
    _check_encoders(config.encoders)
    checks.check_whole_numbers(BASELINE_STEPS=config.baseline.steps)
    checks.check_whole_numbers(least=0, RANDOM_SEED=config.random_seed)
    checks.check_fractions(DROPOUT_RATE=config.model.dropout_rate)
    config.method.check()
    lexical_head.check(config.lexical_head, config.data, config.method)
    if config.baseline.method is not None:
        config.baseline.method.check()
    if config.evaluation is not None:
        config.evaluation.ranking(config.method)
    microbatches = config.schedule.microbatches
    if microbatches > 1 and config.method.whole_batches:
        raise ValueError(
            f"MICROBATCHES is {microbatches}; a {config.method.title} learns from the whole "
            "batch at once: expected 1"
        )
    _check_model(config.model)
    if config.task_feature_lengths is not None:
        preflight.check_lengths(config.task_feature_lengths)


def _check_schedule(schedule: ScheduleConfig) -> None:
    periods = schedule.periods
    checks.check_whole_numbers(
        TRAIN_STEPS=schedule.train_steps,
        BATCH_SIZE=schedule.batch_size,
        MICROBATCHES=schedule.microbatches,
        LOG_PERIOD=periods.log,
        CHECKPOINT_PERIOD=periods.checkpoint,
        CHECKPOINTS_KEPT=periods.keep,
        EVAL_PERIOD=periods.evaluate,
        EVAL_STEPS=periods.eval_steps,
    )


def _check_encoders(encoders: EncodersConfig) -> None:
    checks.check_whole_numbers(IMAGE_SIZE=encoders.image_size, IMAGE_CANVAS=encoders.image_canvas)
    if encoders.memory not in MEMORIES:
        raise ValueError(f"ENCODER_MEMORY is {encoders.memory!r}; expected one of {MEMORIES}")


def _check_model(model: ModelConfig) -> None:
    if model.dtype not in (None, *_DTYPES):
        raise ValueError(f"DTYPE is {model.dtype!r}; expected one of {_DTYPES} or None")
    if isinstance(model.remat, str) and model.remat != "minimal":
        raise ValueError(f"REMAT is {model.remat!r}; expected True, False, 'minimal' or None")
