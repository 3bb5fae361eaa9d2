"""Evaluates a trained index: the `eval` command."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import seqio

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.evaluation import tables
from dsi_jax.evaluation.bm25 import BM25
from dsi_jax.evaluation.config import Evaluation, Metrics, Target
from dsi_jax.evaluation.evaluator import Evaluator, candidates, has_texts, queries_hash
from dsi_jax.evaluation.predictor import Predictor
from dsi_jax.methods.base import Collection
from dsi_jax.prepare import assets
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.retriever import Retriever
from dsi_jax.storage.model_dir import ModelDir, model_directory
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
    """Evaluates a checkpoint on one split and prints its metrics, with those of BM25 for a corpus.

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
        `prepare.DataConfig`.
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
    seed = retriever.metadata.get("corpus_seed", 42) if random_seed is None else random_seed
    data = DataConfig(
        corpus=corpus,
        mixture_or_task_name=mixture_or_task_name,
        seed=seed,
        images=images,
        captions=captions,
        protocol=protocol,
        skip_unreadable=skip_unreadable,
    )
    opened = _open(data, retriever)
    targets = _targets(opened.mixture_or_task_name, split, evaluation.num_queries)
    if dry_run:
        logger.info("would evaluate %s", ", ".join(target.name for target in targets))
        return
    output = Path(output_dir) if output_dir else ModelDir(model_directory(model_dir)).eval
    _evaluate(opened, retriever, evaluation, targets, output)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What an index is evaluated on.

    Attributes:
      mixture_or_task_name: a registered mixture or task.
      collection: the documents to rank.
      seed: seed of the corpus's splits and of samples.
      corpus: the corpus; None where the task is another project's.
      tasks: tasks of a corpus of images, which say what may be found.
      retrieval: name of the corpus's own retrieval task.
    """

    mixture_or_task_name: str
    collection: Collection
    seed: int
    corpus: AnyCorpus | None = None
    tasks: text_tasks.CorpusTasks | None = None
    retrieval: str | None = None


def _open(data: DataConfig, retriever: Retriever) -> _Opened:
    """Loads the corpus, if there is one, and registers its tasks.

    Raises:
      ValueError, OSError: bad input, named.
    """
    name, collection, seed = data.mixture_or_task_name, retriever.collection, data.seed
    if data.corpus is None and data.images is None:
        if name is None:
            raise ValueError("CORPUS is None, so MIXTURE_OR_TASK_NAME must be given")
        return _Opened(name, collection, seed)
    corpus, external = assets.load_corpus_for(data)
    _check_corpus(corpus, data.images or data.corpus, seed, retriever)
    if data.of_images:
        collection = dataclasses.replace(collection, images=corpus.images)
    if external:
        return _Opened(name, collection, seed, corpus)
    if data.of_images:
        tasks = assets.register_tasks(corpus, data, with_mixture=True)
        return _Opened(name or tasks.mixture, collection, seed, corpus, tasks, tasks.retrieval)
    retrieval = text_tasks.register_retrieval_task(corpus)
    return _Opened(name or retrieval, collection, seed, corpus, None, retrieval)


def _evaluate(
    opened: _Opened,
    retriever: Retriever,
    evaluation: Evaluation,
    targets: Sequence[Target],
    output: Path,
) -> None:
    """Ranks the documents for each target and prints a table of its metrics."""
    check_writable(output)
    rows = candidates(opened.corpus, opened.tasks, targets[0])  # all are of one split
    evaluator = Evaluator(
        targets,
        keys=opened.collection.table.keys,
        feature_lengths=opened.collection.lengths,
        output_dir=output,
        seed=opened.seed,
    )
    predictor = _predictor(opened.collection, retriever, evaluation, rows)
    metrics = evaluator.evaluate(predictor, retriever.params, retriever.step)
    for target in targets:
        systems: dict[str, Metrics] = {retriever.method.title: metrics[target.name]}
        is_own = opened.corpus is not None and target.task == opened.retrieval
        if is_own and has_texts(opened.corpus, rows):
            systems["BM25"] = BM25(opened.corpus, rows).evaluate(target.split)
        logger.info("\n%s", "\n".join(tables.split_lines(target.name, systems)))
    logger.info("files: %s", output)


def _predictor(
    collection: Collection, retriever: Retriever, evaluation: Evaluation, rows: np.ndarray | None
) -> Predictor:
    ranking = evaluation.ranking(retriever.method)
    ranker = retriever.method.new_ranker(retriever.model, collection, ranking, rows=rows)
    return Predictor(ranker, inputs=collection.inputs, batch_size=evaluation.batch_size)


def _check_corpus(loaded: AnyCorpus, name: str, seed: int, retriever: Retriever) -> None:
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
