"""Builds what a run computes, the same for `train` and for `precompile`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from dsi_jax.data.batches import indexing_strategies
from dsi_jax.docids import text_space
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.base import Collection, Stream
from dsi_jax.prepare import lexical_head
from dsi_jax.prepare.model import ResolvedModel, fitting
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.storage.lexical_index import LexicalIndex
from dsi_jax.training import partitioning
from dsi_jax.training import program as program_lib


def new_mesh(config: TrainConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out as MESH says.

    Args:
      config: the run.
      devices: devices to use, which need not be attached; None: all of all processes.

    Raises:
      ValueError: the sizes of the axes do not fit the devices, or a given batch size not the mesh.
    """
    mesh = partitioning.make_mesh(config.mesh, devices)
    schedule = config.schedule
    if schedule.batch_size is not None:
        partitioning.check_batch_size(schedule.batch_size, mesh, schedule.microbatches)
    return mesh


def indexing_strategy(config: TrainConfig, tokenizer: Tokenizer) -> indexing_strategies.Strategy:
    """Returns what an indexing example asks for, in the words of this tokenizer."""
    return indexing_strategies.Strategy(
        config.data.indexing_strategy,
        seed=config.random_seed,
        first_sentinel=text_space.first_sentinel(tokenizer),
    )


def build(
    config: TrainConfig,
    resolved: ResolvedModel,
    collection: Collection,
    stream: Stream,
    mesh: Mesh,
    *,
    text_vocab_size: int,
    lexical: LexicalIndex | None = None,
) -> program_lib.Program:
    """Builds the model and its training step; nothing is compiled or allocated.

    Args:
      config: the run.
      resolved: what is trained.
      collection: the documents.
      stream: the batches; only their shapes are asked.
      mesh: the devices.
      text_vocab_size: text tokens that the model has rows for.
      lexical: the weights of the run's lexical head; None: it has none.

    Raises:
      ValueError: the method, or the baseline's, has no use for such encoders, or they cannot read
        the batches.
    """
    t5 = dataclasses.replace(resolved.t5, vocab_size=text_vocab_size)
    length = resolved.lengths["inputs"]
    towers = fitting(resolved.towers, stream, collection.tokenizer, length)
    model = resolved.method.new_model(t5, collection.table, towers)
    if config.baseline.method is not None:  # which is trained last: what cannot be is said first
        config.baseline.method.new_model(t5, collection.table, towers)
    optimizer = config.optimizer
    if lexical is not None:
        model = lexical_head.with_head(model, lexical, collection.table)
        optimizer = lexical_head.with_frozen_head(optimizer, config.lexical_head)
    return program_lib.build(
        model,
        optimizer,
        mesh,
        stream.batch_shapes(),
        train_steps=resolved.schedule.train_steps,
        microbatches=resolved.schedule.microbatches,
        loss=resolved.method.training_loss(collection),
        augment=config.encoders.augmentation,
    )
