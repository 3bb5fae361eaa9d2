"""Ranks documents for a file of queries: `dsi-jax infer`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dsi_jax.evaluation import trec
from dsi_jax.evaluation.config import Evaluation
from dsi_jax.ranking.hits import Hit
from dsi_jax.retriever import Retriever
from dsi_jax.training.checkpoints import check_writable
from dsi_jax.utils import atomic_files

logger = logging.getLogger(__name__)


def infer(
    *,
    model_dir: str,
    queries: str,
    output_dir: str,
    evaluation: Evaluation = Evaluation(),
    num_results: int = 100,
    step: int | None = None,
    docid_table: str | None = None,
    config_text: str = "",
    dry_run: bool = False,
) -> None:
    """Ranks documents for a file of queries: `<stem>.jsonl` and the TREC run `<stem>.trec`.

    Args:
      model_dir: MODEL_DIR of the run.
      queries: a file of queries: .jsonl with `_id` and `text` as in BEIR, .tsv of id and text, or
        any other of one query a line (its number, from 1, is the id).
      output_dir: where the two files go.
      evaluation: its beam size, constraint and decoding.
      num_results: documents a query.
      step: which checkpoint; None: the newest whole one.
      docid_table: where the docid table lies, if not where the run had it.
      config_text: not kept.
      dry_run: read the queries and the index, and stop.

    Raises:
      ValueError, OSError: bad input, named with its line.
    """
    del config_text
    ids, texts = read_queries(Path(queries))
    retriever = Retriever.load(
        model_dir,
        step=step,
        docid_table=docid_table,
        beam_size=max(num_results, evaluation.beam_size),
        constraint=evaluation.constraint,
        decoding=evaluation.decoding,
    )
    output = Path(output_dir)
    if dry_run:
        logger.info("would rank documents for %d queries into %s", len(ids), output)
        return
    check_writable(output)
    ranked = retriever.search_batch(texts, num_results)
    stem = output / Path(queries).stem
    _write_hits(stem.with_suffix(".jsonl"), ids, texts, ranked)
    _write_trec(stem.with_suffix(".trec"), ids, ranked, retriever.collection.table.keys)
    logger.info("ranked %d queries: %s.jsonl, %s.trec", len(ids), stem, stem)


def _write_hits(
    path: Path, ids: Sequence[str], texts: Sequence[str], ranked: Sequence[Sequence[Hit]]
) -> None:
    """Writes a line of JSON a query."""
    with (
        atomic_files.replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for query_id, text, hits in zip(ids, texts, ranked, strict=True):
            results = [{"key": hit.key, "score": hit.score} for hit in hits]
            print(json.dumps({"id": query_id, "text": text, "hits": results}), file=file)


def _write_trec(
    path: Path, ids: Sequence[str], ranked: Sequence[Sequence[Hit]], keys: Sequence[str]
) -> None:
    """Writes a TREC run."""
    num_results = max(map(len, ranked))
    rows = np.full((len(ids), num_results), -1, np.int32)
    scores = np.full((len(ids), num_results), -np.inf, np.float32)
    for i, hits in enumerate(ranked):
        rows[i, : len(hits)] = [hit.row for hit in hits]
        scores[i, : len(hits)] = [hit.score for hit in hits]
    trec.write_trec_run(path, ids, rows, scores, keys)


def read_queries(path: Path) -> tuple[list[str], list[str]]:
    """(ids, texts) of a file of queries; see `infer`.

    Raises:
      ValueError: a malformed line, named with its number, or no query at all.
      FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"QUERIES {path} does not exist")
    pairs = list(_read_pairs(path))
    if not pairs:
        raise ValueError(f"QUERIES {path} holds no query")
    return [query_id for query_id, _ in pairs], [text for _, text in pairs]


def _read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        if path.suffix == ".jsonl":
            try:
                record = json.loads(line)
                query_id, text = record["_id"], record["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number}: expected an object with _id and text, found {line[:80]!r}"
                ) from error
        elif path.suffix == ".tsv":
            query_id, tab, text = line.partition("\t")
            if not tab:
                raise ValueError(f"{path}:{number}: expected id, tab, text, found {line[:80]!r}")
        else:
            query_id, text = str(number), line
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}:{number}: the text of query {query_id!r} is empty")
        yield str(query_id), text.strip()
