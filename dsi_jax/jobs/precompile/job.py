"""Compiles a run's programs for a machine that is not here: checked before it is paid for.

Nothing is read but a docid table, and nothing is allocated but its trie on the host: model, state
and batches are shapes from end to end.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import jax

from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.jobs.precompile import report, topologies
from dsi_jax.jobs.precompile.run_shapes import RunShapes, open_tokenizer, run_shapes
from dsi_jax.jobs.precompile.synthetic_columns import SyntheticColumns
from dsi_jax.prepare import assets, program, train_config
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.ranking.docid_ranker import CONSTRAINTS
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.training import partitioning
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
      topology: the machine, e.g. "v5p:4x4x4"; see `topologies.Topology`.
      num_documents: documents of a synthetic docid table; None: the table at
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
    mesh = program.new_mesh(config, topologies.devices(machine))
    shapes = run_shapes(config, table, mesh)
    lines = _lines(config, shapes)
    if dry_run:
        logger.info("%s", "\n".join(lines))
        return 0
    programs = []
    for name, lowered in _lowered(config, shapes):
        programs.append(report.compile_and_report(name, lowered))
        logger.info("%s: compiled in %.0f s", name, programs[-1].compile_seconds)
    found = report.Report(machine, mesh.shape, lines, tuple(programs))
    logger.info("\n%s", found)
    _write(found, _model_dir(config).precompile)
    return 0 if found.fits else 1


def _table(config: TrainConfig, num_documents: int | None) -> DocidTable:
    """Returns the docids of the run: those that lie there, or as many synthetic ones."""
    data = config.data
    if num_documents is None:
        path = assets.table_path(data, _model_dir(config).path)
        if not path.exists():
            raise ValueError(
                f"no docid table at {path}: give NUM_DOCUMENTS, and a synthetic table of so many "
                "documents is taken, or build it with `dsi-jax docids`"
            )
        return DocidTable.load(path)
    builder = data.docids
    if builder is None:
        raise ValueError(
            "NUM_DOCUMENTS is given and DOCIDS is not: pass a file of docids/, for example "
            "--gin_file=docids/atomic.gin"
        )
    documents = SyntheticColumns(
        num_documents, open_tokenizer(config) or ByteTokenizer(), data.seed
    )
    return builder.build(documents, data.seed)


def _lines(config: TrainConfig, shapes: RunShapes) -> tuple[str, ...]:
    """Returns what is compiled, for a person to read."""
    table, t5, schedule = shapes.collection.table, shapes.resolved.t5, shapes.resolved.schedule
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.program.shapes.params))
    axes = " ".join(f"{axis}={size}" for axis, size in shapes.program.mesh.shape.items())
    lines = (
        f"model        {parameters:,} parameters, text vocabulary {shapes.text_vocab_size:,}, "
        f"{t5.dtype}",
        f"docids       {table.kind}: {table.num_documents:,} documents, length {table.length}, "
        f"{table.vocab_size:,} tokens",
        f"batch        {schedule.batch_size} examples of {shapes.resolved.lengths} tokens, "
        f"{schedule.microbatches} microbatches",
        f"mesh         {axes}",
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
    return lines


def _model_dir(config: TrainConfig) -> ModelDir:
    return ModelDir(model_directory(config.model_dir))


def _lowered(config: TrainConfig, shapes: RunShapes) -> Iterator[tuple[str, jax.stages.Lowered]]:
    """Each program with its name, lowered when its turn comes."""
    built, evaluation, method = shapes.program, config.evaluation, shapes.resolved.method
    yield "training step", built.lower()
    if evaluation is None or not method.decodes:
        return
    batch_size = partitioning.round_batch_size(evaluation.batch_size, built.mesh)
    queries = {
        name: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), part
        )
        for name, part in built.batch_shapes.items()
        if name not in _NO_QUERY
    }
    for constraint in CONSTRAINTS:
        ranker = method.new_ranker(
            built.model,
            shapes.collection,
            dataclasses.replace(evaluation, constraint=constraint).ranking(method),
            mesh=built.mesh,
            rules=built.rules,
        )
        name = f"search, {constraint}: {batch_size} queries, {ranker.beam_size} beams"
        yield name, ranker.lower(built.shapes.params, queries)


def _write(found: report.Report, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    stem = found.topology.name.replace(":", "_").replace("*", "_x")
    atomic_files.write_text(directory / f"{stem}.txt", f"{found}\n")
    atomic_files.write_json(directory / f"{stem}.json", found.to_json(), indent=1)
    logger.info("report: %s", directory / f"{stem}.json")
