"""Resolves what a run trains: its architecture, its encoders and how long it trains them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dsi_jax.data.run_assets import RunAssets
from dsi_jax.inputs.streams import IMAGE, MODALITIES, TEXT
from dsi_jax.inputs.tokenizer import PAD_ID, Tokenizer
from dsi_jax.methods.base import Collection, Method, Stream
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import autosize, warm_start, warm_start_towers
from dsi_jax.prepare.train_config import ModelConfig, ScheduleConfig, TrainConfig
from dsi_jax.prepare.warm_start_towers import PretrainedTowers
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import checkpoints, optimizers, partitioning
from dsi_jax.training import state as state_lib

_MODEL_OPTIONS = ("dropout_rate", "dtype", "remat", "scan_layers")


@dataclasses.dataclass(frozen=True)
class Initial:
    """What the parameters of a run start from; only configurations are read yet.

    Attributes:
      stored: the T5 in MODEL_DIR of a run that began with pretrained weights; None: it has not.
      pretrained: weights of a T5, of a run that has not begun; None: random ones.
      towers: the encoders, their weights aside; None: those of the T5.
      pretrained_towers: weights of encoders; None: random ones.
    """

    stored: T5Config | None
    pretrained: warm_start.Pretrained | None
    towers: TowersConfig | None
    pretrained_towers: PretrainedTowers | None

    def text_vocab_size(self, tokenizer: Tokenizer) -> int:
        """Returns how many text tokens the model has rows for.

        Raises:
          ValueError: the pretrained weights are of another vocabulary.
        """
        lent = self.pretrained_towers
        if lent is not None and lent.text is not None:
            lent.check_tokenizer(tokenizer)
        if self.stored is not None:
            return self.stored.vocab_size
        if self.pretrained is None or self.towers is not None:  # a T5 then lends its decoder alone
            return tokenizer.vocab_size
        return self.pretrained.vocab_size_for(tokenizer)


def open_initial(config: TrainConfig, directory: Path) -> Initial:
    """Opens the checkpoints that a run starts from.

    Args:
      config: the run.
      directory: MODEL_DIR.

    Raises:
      ValueError, OSError: a checkpoint is not there, or is of another kind; it is named.
    """
    stored, pretrained = _origin(config, directory)
    return Initial(stored, pretrained, *towers_of(config))


@dataclasses.dataclass(frozen=True)
class ResolvedModel:
    """What is trained, with all decided that the configuration leaves open.

    Attributes:
      method: the method.
      t5: the architecture; its vocabulary is not yet that of the run's tokenizer.
      towers: encoders in place of the architecture's; None: there are none.
      lengths: tokens kept of each feature.
      image_canvas: see `EncodersConfig`.
      schedule: steps, batches and periods, none of them None.
    """

    method: Method
    t5: T5Config
    towers: TowersConfig | None
    lengths: Mapping[str, int]
    image_canvas: int | None
    schedule: ScheduleConfig

    @property
    def image_size(self) -> int | None:
        """Pixels a side of the images that are read; None: none are."""
        return self.towers and self.towers.image and self.towers.image.image_size

    def collection(self, assets: RunAssets) -> Collection:
        """Returns the documents as the model reads them."""
        return assets.collection(self.lengths, self.image_size, self.image_canvas)

    def least_checkpoint_bytes(self, optimizer: optimizers.Optimizer) -> int:
        """Returns the bytes of a checkpoint without the text and the docid vocabulary.

        Neither is known before the tokenizer is trained and the docid table is built.
        """
        t5 = dataclasses.replace(self.t5, vocab_size=1)
        model = self.method.new_model(t5, None, self.towers)
        params = nn.meta.unbox(state_lib.param_shapes(model, _smallest_batch(self.towers)))
        transformation = optimizer.build(self.schedule.train_steps)
        moments = jax.eval_shape(transformation.init, params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, moments)))


def resolve(config: TrainConfig, initial: Initial, num_documents: int, mesh: Mesh) -> ResolvedModel:
    """Decides what the configuration leaves open.

    Args:
      config: the run.
      initial: what its parameters start from.
      num_documents: documents of the corpus.
      mesh: the devices, by which a batch is divided.
    """
    schedule = config.schedule
    size = autosize.choose(num_documents, schedule.batch_size)
    train_steps = schedule.train_steps or size.train_steps
    batch_size = schedule.batch_size or partitioning.round_batch_size(
        size.batch_size, mesh, schedule.microbatches
    )
    lent = initial.pretrained and initial.pretrained.t5
    t5 = config.model.architecture or initial.stored or lent or size.model
    method, towers = config.method, initial.pretrained_towers
    return ResolvedModel(
        method=method if towers is None else towers.suit(method),
        t5=with_options(t5, config.model),
        towers=initial.towers,
        lengths=dict(config.task_feature_lengths or size.task_feature_lengths),
        image_canvas=config.encoders.image_canvas,
        schedule=dataclasses.replace(
            schedule,
            train_steps=train_steps,
            batch_size=batch_size,
            periods=schedule.periods.resolve(train_steps),
        ),
    )


def towers_of(config: TrainConfig) -> tuple[TowersConfig | None, PretrainedTowers | None]:
    """The towers as they are asked for, and the weights that they begin with."""
    encoders, model = config.encoders, config.model
    options = {"dtype": model.dtype, "remat": model.remat and bool(model.remat)}
    text, image = encoders.text, encoders.image
    pretrained = warm_start_towers.open_towers(
        encoders.checkpoint, text=encoders.text_checkpoint, image=encoders.image_checkpoint
    )
    if pretrained is not None:
        whole = encoders.checkpoint is not None  # and says of both what there is
        text = pretrained.text or (None if whole else text)
        image = pretrained.image or (None if whole else image)
    if text is None and image is None:
        return None, None
    text = text and text.with_options(**options)
    image = image and image.with_options(**options, image_size=encoders.image_size)
    return TowersConfig(text, image, encoders.memory), pretrained


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
        if length > text.max_length:
            raise ValueError(
                f"TASK_FEATURE_LENGTHS keeps {length} tokens; the tower of texts reads "
                f"{text.max_length}"
            )
        text = text.for_vocabulary(tokenizer.vocab_size, tokenizer.end_id)
    return dataclasses.replace(towers, text=text, image=image)


def _origin(
    config: TrainConfig, directory: Path
) -> tuple[T5Config | None, warm_start.Pretrained | None]:
    """Returns the T5 in MODEL_DIR, or the pretrained one of a run that has not begun."""
    if config.initialization.checkpoint is None:
        return None, None
    for path in ModelDir(directory).checkpoints():
        # A checkpoint that cannot be read is named where the run is resumed.
        with contextlib.suppress(ValueError, KeyError):  # no T5 in a model of contrastive towers
            return T5Config.from_json(checkpoints.load_metadata(path)["model"]["t5"]), None
    return None, warm_start.open_pretrained(config.initialization.checkpoint)


def with_options(t5: T5Config, model: ModelConfig) -> T5Config:
    """Returns the architecture with the run's own options in place of its own."""
    options = {name: getattr(model, name) for name in _MODEL_OPTIONS}
    return dataclasses.replace(t5, **{k: v for k, v in options.items() if v is not None})


def _smallest_batch(towers: TowersConfig | None) -> dict[str, Any]:
    """Shapes of a batch of one example of each modality."""
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
    return batch
