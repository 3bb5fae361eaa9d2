"""Compiles a run's programs for a machine that is not here: checked before it is paid for.

Nothing is read but a docid table, and nothing is allocated but its trie on the host: model, state
and batches are shapes from end to end.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from dsi_jax.data.batches import collate, indexing_strategies, pipeline
from dsi_jax.docids import text_space
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.inputs.tokenizer import ByteTokenizer, Tokenizer
from dsi_jax.jobs.precompile import report, topologies
from dsi_jax.jobs.precompile.synthetic_columns import SyntheticColumns
from dsi_jax.methods.base import Collection
from dsi_jax.models.dsi import TEXT_SPACE
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import assets, autosize, model, train_config, warm_start
from dsi_jax.prepare import tokenizer as tokenizer_lib
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.ranking.docid_ranker import CONSTRAINTS
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.training import partitioning
from dsi_jax.training import program as program_lib
from dsi_jax.utils import atomic_files, checks

logger = logging.getLogger(__name__)

_NO_QUERY = ("decoder", "row", "is_indexing")  # of a batch, what a search does not read


def precompile(
    config: TrainConfig,
    topology: str | None,
    num_documents: int | None = None,
    *,
    config_text: str = "",
    dry_run: bool = False,
) -> int:
    """The `precompile` command: training step and searches of a run, compiled for `topology`.

    The report is printed, and written to MODEL_DIR/precompile as text and JSON.

    Args:
      config: the run.
      topology: the machine, e.g. "v5p:4x4x4"; see `ahead.topologies.Topology`.
      num_documents: documents of a docid table made up for the purpose; None: the table at
        DOCID_TABLE or in MODEL_DIR.
      config_text: unused; the configuration is the run's.
      dry_run: lower everything, compile nothing, write nothing.

    Returns:
      The process's exit status: 0, or 1 where a program does not fit.

    Raises:
      ValueError, OSError: bad input, named.
    """
    del config_text
    checks.check_type("TOPOLOGY", topology, str)
    checks.check_whole_numbers(NUM_DOCUMENTS=num_documents)
    train_config.check(config)
    machine = topologies.parse(topology)
    table = _table(config, num_documents)
    mesh = partitioning.make_mesh(config.mesh, topologies.devices(machine))
    inputs = _inputs(config, table, mesh)
    if dry_run:
        logger.info("%s", "\n".join(inputs.lines))
        return 0
    programs = []
    for name, lowered in _lowered(config, inputs):
        programs.append(report.compile_and_report(name, lowered))
        logger.info("%s: compiled in %.0f s", name, programs[-1].compile_seconds)
    found = report.Report(machine, mesh.shape, inputs.lines, tuple(programs))
    logger.info("\n%s", found)
    _write(found, _model_dir(config).precompile)
    return 0 if found.fits else 1


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """A run as shapes.

    Attributes:
      program: model and training step on the mesh.
      collection: the docid table; no texts.
      lines: what there is, for a person to read.
    """

    program: program_lib.Program
    collection: Collection
    lines: tuple[str, ...]


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


def _table(config: TrainConfig, num_documents: int | None) -> DocidTable:
    """The docids of the run: those that lie there, or as many made up."""
    data = config.data
    if num_documents is None:
        path = assets.table_path(data, _model_dir(config).path)
        if not path.exists():
            raise ValueError(
                f"no docid table at {path}: give NUM_DOCUMENTS, and a table of so many documents "
                "is made up, or build it with `dsi-jax docids`"
            )
        return DocidTable.load(path)
    builder = data.docids
    if builder is None:
        raise ValueError(
            "NUM_DOCUMENTS is given and DOCIDS is not: pass a file of docids/, for example "
            "--gin_file=docids/atomic.gin"
        )
    documents = SyntheticColumns(num_documents, _tokenizer(config) or ByteTokenizer(), data.seed)
    return builder.build(documents, data.seed)


def _inputs(config: TrainConfig, table: DocidTable, mesh: Mesh) -> _Inputs:
    size = autosize.choose(table.num_documents)
    t5, tokenizer = _text_model(config, size.model)
    if config.data.space == TEXT_SPACE and not text_space.is_spelled(table):
        least = text_space.least_vocab_size(tokenizer)
        table = text_space.spell(table, tokenizer, max(least, t5.vocab_size))
    lengths = dict(config.task_feature_lengths or size.task_feature_lengths)
    batch_size = config.batch_size or partitioning.round_batch_size(
        size.batch_size, mesh, config.microbatches
    )
    partitioning.check_batch_size(batch_size, mesh, config.microbatches)
    towers, clip = model.towers_of(config)
    if clip is not None:
        config = dataclasses.replace(config, method=clip.suit(config.method))
    image_size = towers and towers.image and towers.image.image_size
    collection = Collection(
        *(table, None, tokenizer, lengths),
        image_size=image_size,
        image_canvas=config.image_canvas,
    )
    strategy = indexing_strategies.Strategy(
        config.data.indexing_strategy, first_sentinel=text_space.first_sentinel(tokenizer)
    )
    collator = collate.Collator(table, collection.inputs, strategy)
    unit = partitioning.num_batch_shards(mesh) * config.microbatches
    rates = dict.fromkeys(_modalities(towers), 1.0)
    sizes = pipeline.stream_sizes(rates, batch_size, unit)
    stream = config.method.batches(_ShapesOnly(collator, sizes), collection)
    towers = model.fitting(towers, stream, tokenizer, lengths["inputs"])
    program = program_lib.build(
        config.method.new_model(t5, table, towers),
        config.optimizer,
        mesh,
        stream.batch_shapes(),
        train_steps=config.train_steps or size.train_steps,
        microbatches=config.microbatches,
        loss=config.method.train_loss,
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.shapes.params))
    lines = (
        f"model        {parameters:,} parameters, text vocabulary {t5.vocab_size:,}, {t5.dtype}",
        f"docids       {table.kind}: {table.num_documents:,} documents, length {table.length}, "
        f"{table.vocab_size:,} tokens",
        f"batch        {batch_size} examples of {lengths} tokens, "
        f"{config.microbatches} microbatches",
        f"mesh         {' '.join(f'{axis}={size}' for axis, size in mesh.shape.items())}",
    )
    if t5.scan_layers:
        lines += (
            "scan         FLOPs, bytes accessed and estimates are of one of the scanned layers",
        )
    if config.evaluation is not None and config.method.decodes:
        lines += (
            "levels       those that a search decodes in a loop count once in FLOPs, bytes",
            "             accessed and estimate",
        )
    return _Inputs(program, collection, lines)


def _modalities(towers: TowersConfig | None) -> Sequence[str]:
    """What a batch holds, each as often: texts alone where there are no towers."""
    if towers is None:
        return (TEXT,)
    return [name for name, tower in ((TEXT, towers.text), (IMAGE, towers.image)) if tower]


def _text_model(config: TrainConfig, chosen: T5Config) -> tuple[T5Config, Tokenizer]:
    """The architecture and a tokenizer; weights and vocabularies need not be there.

    The vocabulary is that of the weights that are borrowed, else the one that lies there, else as
    large as one that is to be trained may become. Bytes stand in for an absent tokenizer.
    """
    tokenizer = _tokenizer(config)
    if config.initial_checkpoint_path is not None:
        t5 = config.model or warm_start.open_pretrained(config.initial_checkpoint_path).t5
        vocab_size = t5.vocab_size
    else:
        t5 = config.model or chosen
        vocab_size = tokenizer.vocab_size if tokenizer else config.data.vocabulary_size
    t5 = model.with_options(dataclasses.replace(t5, vocab_size=vocab_size), config)
    return t5, tokenizer or ByteTokenizer()


def _tokenizer(config: TrainConfig) -> Tokenizer | None:
    try:
        return tokenizer_lib.given(config.data.vocabulary or str(_model_dir(config).tokenizer))
    except FileNotFoundError:
        return None


def _model_dir(config: TrainConfig) -> ModelDir:
    return ModelDir(model_directory(config.model_dir))


def _lowered(config: TrainConfig, inputs: _Inputs) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Each program with its name, lowered when its turn comes."""
    program, evaluation = inputs.program, config.evaluation
    yield "training step", program.lower()
    if evaluation is None or not config.method.decodes:
        return
    batch_size = partitioning.round_batch_size(evaluation.batch_size, program.mesh)
    queries = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), part
        )
        for name, part in program.batch_shapes.items()
        if name not in _NO_QUERY
    }
    for constraint in CONSTRAINTS:
        ranker = config.method.new_ranker(
            program.model,
            inputs.collection,
            dataclasses.replace(evaluation, constraint=constraint).ranking(config.method),
            mesh=program.mesh,
            rules=program.rules,
        )
        name = f"search, {constraint}: {batch_size} queries, {ranker.beam_size} beams"
        yield name, ranker.lower(program.shapes.params, queries)


def _write(found: report.Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stem = found.topology.name.replace(":", "_").replace("*", "_x")
    atomic_files.write_text(directory / f"{stem}.txt", f"{found}\n")
    atomic_files.write_json(directory / f"{stem}.json", found.to_json(), indent=1)
    logger.info("report: %s", directory / f"{stem}.json")
