"""Evaluation through `seqio.Evaluator`, so that any project's `metric_fns` just work.

A task's predictions are ranked rows of the corpus; its own `postprocess_fn` and `metric_fns` make
metrics of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data.batches import converters
from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import features
from dsi_jax.data.seqio_tasks.corpus_tasks import CorpusTasks
from dsi_jax.evaluation import trec
from dsi_jax.evaluation.config import Metrics, Target
from dsi_jax.evaluation.predictor import Predictor, _never


class Evaluator:
    """Evaluates targets and leaves their files in one directory, as T5X does.

    `<name>-metrics.jsonl`, `<name>-<step>.jsonl` and TensorBoard events come from seqio's loggers;
    a TREC run file `<name>-<step>.trec` stands next to them.

    Args:
      targets: what to evaluate.
      keys: the document key of each row.
      feature_lengths: tokens kept of each feature.
      output_dir: where the files go; None: nowhere.
      seed: of the samples.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        keys: Sequence[str],
        feature_lengths: Mapping[str, int],
        output_dir: Path | None,
        seed: int = 42,
    ) -> None:
        self._keys, self._output_dir = keys, output_dir
        self._evaluators = {
            target: _seqio_evaluator(target, feature_lengths, output_dir, seed)
            for target in targets
        }

    def evaluate(
        self,
        predictor: Predictor,
        params: Any,
        step: int,
        should_stop: Callable[[], bool] = _never,
    ) -> dict[str, Metrics]:
        """Returns metrics by target name; those that are no single number stay in the files.

        Raises:
          Interrupted: `should_stop` said so, between two batches.
        """
        metrics = {}
        for target, evaluator in self._evaluators.items():
            ranking: dict[str, np.ndarray] = {}

            def predict_with_scores(dataset, ranking=ranking):
                if not ranking:  # a task whose metrics want both kinds of output is ranked once
                    numbered = list(dataset.as_numpy_iterator())
                    examples = [example for _, example in numbered]
                    rows, scores = predictor.rank(params, examples, should_stop)
                    ranking |= {"index": [int(i) for i, _ in numbered], "rows": rows}
                    ranking["scores"] = scores
                ranked = list(zip(ranking["index"], ranking["rows"].tolist(), strict=True))
                return ranked, {"scores": ranking["scores"].tolist()}

            future, _ = evaluator.evaluate(
                compute_metrics=True,
                step=step,
                predict_fn=lambda dataset, ranked=predict_with_scores: ranked(dataset)[0],
                predict_with_aux_fn=predict_with_scores,
            )
            metrics[target.name] = _scalars(future.result()[target.task])
            if self._output_dir is not None:
                self._write_trec_run(target, evaluator, ranking, step)
        return metrics

    def _write_trec_run(
        self, target: Target, evaluator: seqio.Evaluator, ranking: Mapping[str, Any], step: int
    ) -> None:
        examples = evaluator.cached_task_datasets[target.task].as_numpy_iterator()
        names = [
            _text(example[features.QUERY_ID]) if features.QUERY_ID in example else str(i)
            for i, example in enumerate(examples)
        ]
        trec.write_trec_run(
            self._output_dir / f"{target.name}-{step:06}.trec",
            [names[i] for i in ranking["index"]],
            ranking["rows"],
            ranking["scores"],
            self._keys,
        )


def _seqio_evaluator(
    target: Target, feature_lengths: Mapping[str, int], output_dir: Path | None, seed: int
) -> seqio.Evaluator:
    task = seqio.TaskRegistry.get(target.task)
    converter = converters.converter_for(task)
    # A text is one string, however many tokens are kept of it: seqio has nothing to cut.
    lengths = None
    if converters.is_tokenized(task):
        lengths = converters.task_lengths(task, feature_lengths)
    log_to: dict[str, Any] = {}
    if output_dir is not None:
        loggers = functools.partial(_SplitLoggers, split=target.split)
        log_to = {"logger_cls": (loggers,), "log_dir": str(output_dir)}
    return seqio.Evaluator(
        target.task,
        converter,
        eval_split=target.split,
        sequence_length=lengths,
        num_examples=target.num_examples,
        shuffle=target.num_examples is not None,
        seed=seed,
        use_cached=task.requires_caching,
        async_compute_metrics=False,
        **log_to,
    )


class _SplitLoggers(seqio.Logger):
    """seqio's JSON and TensorBoard loggers, under names that tell a task's splits apart."""

    def __init__(self, output_dir: str, *, split: str) -> None:
        super().__init__(output_dir)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        self._split = split
        self._loggers = (seqio.JSONLogger(output_dir), seqio.TensorBoardLogger(output_dir))

    def __call__(self, *, task_name: str, dataset: tf.data.Dataset, **values: Any) -> None:
        dataset = dataset.map(_to_log)
        for logger in self._loggers:
            logger(task_name=f"{task_name}_{self._split}", dataset=dataset, **values)


def _text(value: Any) -> str:
    """A text or number of an example, scalar or [1], as text."""
    (value,) = np.ravel(np.asarray(value, object))
    return value.decode() if isinstance(value, bytes) else str(value)


def _to_log(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """An example without hashes, and without images, which are no JSON."""
    left_out = (features.CORPUS_HASH, features.FINGERPRINT, features.IMAGE)
    return {name: value for name, value in example.items() if name not in left_out}


def _scalars(values: Mapping[str, Any]) -> Metrics:
    """The metrics that are single numbers; another project's may be texts or histograms."""
    plain = {name: np.asarray(getattr(value, "value", value)) for name, value in values.items()}
    return {
        name: float(value)
        for name, value in plain.items()
        if value.ndim == 0 and (np.issubdtype(value.dtype, np.number) or value.dtype == bool)
    }


def queries_hash(corpus: AnyCorpus) -> str:
    """sha256 (hex) over the queries in words of all splits, which `Corpus.hash` leaves out."""
    digest = hashlib.sha256()
    for split, queries in sorted(corpus.queries.items()):
        digest.update(f"{split} {len(queries)} ".encode())
        queries.update_hash(digest)
    return digest.hexdigest()


def candidates(
    corpus: AnyCorpus | None, tasks: CorpusTasks | None, target: Target
) -> np.ndarray | None:
    """The rows that may be found for a target, as the corpus says; None: all."""
    if corpus is None or tasks is None or target.task not in (tasks.retrieval, tasks.images):
        return None
    return corpus.candidates(target.split)


def has_texts(corpus: AnyCorpus, rows: np.ndarray | None) -> bool:
    """Whether any of the documents has a text, without which BM25 has nothing to rank by."""
    texts = corpus.texts
    return any(texts if rows is None else (texts[row] for row in rows))
