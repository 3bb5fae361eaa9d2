"""A run as shapes: its program on devices that are not here, without its corpus and weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from jax.sharding import Mesh

from dsi_jax.data.batches import collate, pipeline
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.docids import text_space
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.inputs.tokenizer import ByteTokenizer, Tokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.models.dsi import TEXT_SPACE
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.prepare import assets, model, program
from dsi_jax.prepare import tokenizer as tokenizer_lib
from dsi_jax.prepare.model import ResolvedModel
from dsi_jax.prepare.train_config import InitializationConfig, TrainConfig
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.training import partitioning
from dsi_jax.training import program as program_lib


@dataclasses.dataclass(frozen=True)
class RunShapes:
    """A run as shapes.

    Attributes:
      program: model and training step on the mesh.
      collection: the docid table; no texts.
      resolved: what is trained.
      text_vocab_size: text tokens that the model has rows for.
    """

    program: program_lib.Program
    collection: Collection
    resolved: ResolvedModel
    text_vocab_size: int


@dataclasses.dataclass(frozen=True)
class _ShapesOnly:
    """A stream of which only the shapes are asked."""

    collator: collate.Collator
    sizes: Mapping[str, int]
    split: str = "train"

    def batch_shapes(self) -> collate.Batch:
        """See `methods.base.Stream`."""
        return self.collator.shapes(self.sizes)

    @property
    def batch_size(self) -> int:
        """See `methods.base.Stream`."""
        return sum(self.sizes.values())


def run_shapes(config: TrainConfig, table: DocidTable, mesh: Mesh) -> RunShapes:
    """Builds the program of a run on a mesh, without its corpus.

    The model is resolved and the program built as for training. Each modality that has an encoder
    takes an equal part of the batch.

    Args:
      config: the run.
      table: its docids.
      mesh: the devices, which need not be attached.

    Raises:
      ValueError, OSError: bad input, named.
    """
    if config.lexical_head is not None:
        raise ValueError(
            "LEXICAL_HEAD is given, and its postings are not known without the corpus; expected "
            "None"
        )
    directory = model_directory(config.model_dir)
    initial = model.open_initial(_without_unread_weights(config), directory)
    resolved = model.resolve(config, initial, table.num_documents, mesh)
    tokenizer = open_tokenizer(config)
    vocab_size = _text_vocab_size(config, initial, resolved, tokenizer)
    tokenizer = tokenizer or ByteTokenizer()
    if config.data.space == TEXT_SPACE and not text_space.is_spelled(table):
        least = text_space.least_vocab_size(tokenizer)
        table = text_space.spell(table, tokenizer, max(least, vocab_size))
    collection = resolved.collection(
        RunAssets(
            corpus=None,
            documents=None,
            tokenizer=tokenizer,
            table=table,
            table_path=assets.table_path(config.data, directory),
            tasks=None,
            mixture_or_task_name=config.data.mixture_or_task_name or "",
        )
    )
    stream = resolved.method.batches(_stream(config, resolved, collection, mesh), collection)
    built = program.build(config, resolved, collection, stream, mesh, text_vocab_size=vocab_size)
    return RunShapes(built, collection, resolved, vocab_size)


def _without_unread_weights(config: TrainConfig) -> TrainConfig:
    """Names no weights where the architecture is given, so that they need not be there."""
    if config.model.architecture is None:
        return config
    return dataclasses.replace(config, initialization=InitializationConfig())


def open_tokenizer(config: TrainConfig) -> Tokenizer | None:
    """Opens the run's tokenizer; None where it is not there, or not trained yet."""
    own = ModelDir(model_directory(config.model_dir)).tokenizer
    try:
        return tokenizer_lib.given(config.data.vocabulary or str(own))
    except FileNotFoundError:
        return None


def _text_vocab_size(
    config: TrainConfig,
    initial: model.Initial,
    resolved: ResolvedModel,
    tokenizer: Tokenizer | None,
) -> int:
    """Returns how many text tokens the model has rows for, as far as that is known.

    That is the architecture's number where the run starts from a T5's weights; else the
    tokenizer's; else as many as one that is to be trained may have.
    """
    if config.initialization.checkpoint is not None and resolved.towers is None:
        return resolved.t5.vocab_size
    if tokenizer is None:
        return config.data.vocabulary_size
    return initial.text_vocab_size(tokenizer)


def _stream(
    config: TrainConfig, resolved: ResolvedModel, collection: Collection, mesh: Mesh
) -> _ShapesOnly:
    strategy = program.indexing_strategy(config, collection.tokenizer)
    collator = collate.Collator(collection.table, collection.inputs, strategy)
    schedule = resolved.schedule
    unit = partitioning.num_batch_shards(mesh) * schedule.microbatches
    rates = dict.fromkeys(_modalities(resolved.towers), 1.0)
    return _ShapesOnly(collator, pipeline.stream_sizes(rates, schedule.batch_size, unit))


def _modalities(towers: TowersConfig | None) -> Sequence[str]:
    """Returns what a batch holds: texts alone where there are no towers."""
    if towers is None:
        return (TEXT,)
    return [name for name, tower in ((TEXT, towers.text), (IMAGE, towers.image)) if tower]
