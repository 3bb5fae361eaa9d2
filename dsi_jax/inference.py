"""Figures and rankings of a trained index: the `eval` and `infer` commands."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import seqio

from dsi_jax import checks, prepare, report
from dsi_jax.data import corpora, metrics, registration
from dsi_jax.data.bm25 import BM25
from dsi_jax.evaluator import (
    Evaluation,
    Evaluator,
    Figures,
    Predictor,
    Target,
    candidates,
    has_texts,
    queries_hash,
)
from dsi_jax.retriever import Retriever
from dsi_jax.training.checkpoints import check_writable

logger = logging.getLogger(__name__)


def evaluate(
    *,
    model_dir: str,
    corpus: str | None,
    evaluation: Evaluation = Evaluation(),
    mixture_or_task_name: str | None = None,
    split: str = "test",
    step: int | None = None,
    docid_table: str | None = None,
    output_dir: str | None = None,
    random_seed: int | None = None,
    images: str | None = None,
    captions: str | None = None,
    protocol: str | None = None,
    skip_unreadable: bool = False,
    config_text: str = "",
    dry_run: bool = False,
) -> None:
    """Evaluates a checkpoint on one split and prints the figures, beside BM25 for a corpus.

    Args:
      model_dir: MODEL_DIR of the run.
      corpus: the corpus that the index holds; None where the task is another project's.
      evaluation: beams, constraint and sizes.
      mixture_or_task_name: what to evaluate; by default the corpus's retrieval task.
      split: its split.
      step: which checkpoint; None: the newest whole one.
      docid_table: where the docid table lies, if not where the run had it.
      output_dir: where the files go; by default MODEL_DIR/eval, apart from the training run's.
      random_seed: of the corpus's splits and of samples; None: the training run's.
      images: a directory of images, in place of a corpus; with the next three see
        `prepare.Sources`.
      captions: the file of their captions.
      protocol: what looks for them.
      skip_unreadable: leave out what cannot be used.
      config_text: not kept: the training run's `config.gin` stands in MODEL_DIR.
      dry_run: stop before ranking.

    Raises:
      ValueError, OSError: bad input, named.
    """
    del config_text
    retriever = Retriever.load(model_dir, step=step, docid_table=docid_table, beam_size=1)
    loaded = retrieval = tasks = None
    seed = retriever.metadata.get("corpus_seed", 42) if random_seed is None else random_seed
    sources = prepare.Sources(
        corpus=corpus,
        mixture_or_task_name=mixture_or_task_name,
        seed=seed,
        images=images,
        captions=captions,
        protocol=protocol,
        skip_unreadable=skip_unreadable,
    )
    collection = retriever.collection
    if corpus is not None or images is not None:
        loaded, foreign = prepare.load_corpus_for(sources)
        _check_corpus(loaded, images or corpus, seed, retriever)
        if sources.of_images:
            collection = dataclasses.replace(collection, images=loaded.images)
        if not foreign and sources.of_images:
            tasks = prepare.register_tasks(loaded, sources, with_mixture=True)
            retrieval = tasks.retrieval
            mixture_or_task_name = mixture_or_task_name or tasks.mixture
        elif not foreign:
            retrieval = registration.register_retrieval_task(loaded)
            mixture_or_task_name = mixture_or_task_name or retrieval
    if mixture_or_task_name is None:
        raise ValueError("CORPUS is None, so MIXTURE_OR_TASK_NAME must be given")
    targets = _targets(mixture_or_task_name, split, evaluation.num_queries)
    output = Path(output_dir) if output_dir else checks.model_directory(model_dir) / "eval"
    if dry_run:
        logger.info("would evaluate %s", ", ".join(target.name for target in targets))
        return
    check_writable(output)
    rows = candidates(loaded, tasks, targets[0])  # the same for all, as the split is
    predictor = Predictor(
        retriever.method.new_ranker(
            retriever.model,
            collection,
            beam_size=evaluation.beam_size,
            constraint=evaluation.constraint,
            decoding=evaluation.decoding,
            rows=rows,
        ),
        inputs=collection.inputs,
        batch_size=evaluation.batch_size,
    )
    evaluator = Evaluator(
        targets,
        keys=collection.table.keys,
        feature_lengths=collection.lengths,
        output_dir=output,
        seed=seed,
    )
    figures = evaluator.evaluate(predictor, retriever.params, retriever.step)
    for target in targets:
        systems: dict[str, Figures] = {retriever.method.title: figures[target.name]}
        if loaded is not None and target.task == retrieval and has_texts(loaded, rows):
            systems["BM25"] = BM25(loaded, rows).evaluate(split)
        logger.info("\n%s", "\n".join(report.split_lines(target.name, systems)))
    logger.info("files: %s", output)


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
    partial = stem.with_suffix(".jsonl.partial")
    with partial.open("w") as file:
        for query_id, text, hits in zip(ids, texts, ranked, strict=True):
            results = [{"key": hit.key, "score": hit.score} for hit in hits]
            print(json.dumps({"id": query_id, "text": text, "hits": results}), file=file)
    partial.rename(stem.with_suffix(".jsonl"))
    rows = np.full((len(ids), num_results), -1, np.int32)
    scores = np.full((len(ids), num_results), -np.inf, np.float32)
    for i, hits in enumerate(ranked):
        rows[i, : len(hits)] = [hit.row for hit in hits]
        scores[i, : len(hits)] = [hit.score for hit in hits]
    metrics.write_trec_run(
        stem.with_suffix(".trec"), ids, rows, scores, retriever.collection.table.keys
    )
    logger.info("ranked %d queries: %s.jsonl, %s.trec", len(ids), stem, stem)


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


def _check_corpus(loaded: corpora.Corpus, name: str, seed: int, retriever: Retriever) -> None:
    """Refuses other documents than the index holds, and queries that were split otherwise.

    With another seed, queries that the index was trained on would stand among those of the test.
    """
    if loaded.hash != retriever.collection.table.corpus_hash:
        raise ValueError(
            f"CORPUS {name!r} is {loaded.hash[:16]}; the index holds the corpus "
            f"{retriever.collection.table.corpus_hash[:16]}"
        )
    found, trained = queries_hash(loaded), retriever.metadata.get("queries_hash")
    if trained is not None and found != trained:
        raise ValueError(
            f"the queries of CORPUS {name!r} with RANDOM_SEED {seed} are {found[:16]}; the index "
            f"was trained beside the queries {trained[:16]} with RANDOM_SEED "
            f"{retriever.metadata.get('corpus_seed')}: its test queries may be others"
        )


def _targets(name: str, split: str, limit: int | None) -> Sequence[Target]:
    tasks = seqio.get_subtasks(seqio.get_mixture_or_task(name))
    targets = [Target(t.name, split, limit) for t in tasks if split in t.splits and t.metric_fns]
    if not targets:
        splits = sorted({s for task in tasks for s in task.splits})
        raise ValueError(f"{name!r} has no split {split!r} with metrics; it has {splits}")
    return targets
