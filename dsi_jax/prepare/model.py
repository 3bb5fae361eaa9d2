"""Resolves the architecture of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs.streams import IMAGE, MODALITIES, TEXT
from dsi_jax.inputs.tokenizer import PAD_ID, Tokenizer
from dsi_jax.methods.base import Stream
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import warm_start
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import checkpoints
from dsi_jax.training import state as state_lib

if TYPE_CHECKING:
    from dsi_jax.prepare.warm_start_towers import PretrainedTowers

_MODEL_OPTIONS = ("dropout_rate", "dtype", "remat", "scan_layers")


def towers_of(config: TrainConfig) -> tuple[TowersConfig | None, PretrainedTowers | None]:
    """The towers as they are asked for, and the weights that they begin with."""
    options: dict[str, Any] = {"remat": bool(config.remat)} if config.remat is not None else {}
    if config.dtype is not None:
        options["dtype"] = config.dtype
    pretrained, text, image = None, config.text_encoder, config.image_encoder
    if config.clip_checkpoint is not None:
        # Transformers' CLIP takes seconds to import: only who borrows it pays for it.
        from dsi_jax.prepare import warm_start_towers

        pretrained = warm_start_towers.open_pretrained(config.clip_checkpoint)
        text, image = pretrained.text, pretrained.image
    if text is None and image is None:
        return None, None
    text = text and dataclasses.replace(text, **options)
    if config.image_size is not None:
        options["image_size"] = config.image_size
    image = image and dataclasses.replace(image, **options)
    return TowersConfig(text, image, config.encoder_memory), pretrained


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


def _origin(
    config: TrainConfig, directory: Path
) -> tuple[T5Config | None, warm_start.Pretrained | None]:
    """Of a run with borrowed weights: the T5 in MODEL_DIR if it has begun, else the checkpoint."""
    if config.initial_checkpoint_path is None:
        return None, None
    for path in ModelDir(directory).checkpoints():
        # A checkpoint that cannot be read is named where the run is resumed.
        with contextlib.suppress(ValueError, KeyError):  # no T5 in a model of contrastive towers
            return T5Config.from_json(checkpoints.load_metadata(path)["model"]["t5"]), None
    return None, warm_start.open_pretrained(config.initial_checkpoint_path)


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
