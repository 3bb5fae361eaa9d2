"""Retrieval metrics as seqio `metric_fns`, and TREC run files.

Every figure is given for all queries, for those with a document that had a training
query (*seen*) and for those whose documents were only indexed (*unseen*).

Definitions, at a cut k of a ranking: Hits@k is 1 if any relevant document is among
the first k; MRR@k is 1 / rank of the first relevant one, or 0; nDCG@k has
trec_eval's linear gains, sum of grade / log2(rank + 1) over that of the ideal
ranking. A slot of row -1 (no document) keeps its rank and is a miss.

Where a query has many relevant documents, as an image has all others of its class: P@k
is the number of relevant ones among the first k, divided by k; AP@k is the sum of P@i
over the ranks i <= k of relevant ones, divided by min(R, k); MAP@k is its mean over
queries. Grades do not count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks import features

HITS_AT = (1, 5, 10, 20, 100)
CUTOFF = 10  # of MRR and nDCG
PRECISION_AT = (1, 2, 4, 8, 10, 20, 30, 100)
MAP_AT = (10, 100)


@dataclasses.dataclass(frozen=True, eq=False)
class Relevance:
    """What a query is to find.

    Attributes:
      rows: int32 [R] rows of the relevant documents.
      grades: float32 [R] positive grades.
      seen: whether one of them had a training query; None where that is unknown.
    """

    rows: np.ndarray
    grades: np.ndarray
    seen: bool | None


def postprocess(
    target_or_prediction: Any, example: Mapping[str, Any], is_target: bool
) -> Relevance | Any:
    """A task's `postprocess_fn`: reads the target from the example, keeps predictions.

    Args:
      target_or_prediction: the rows of `targets` [1], or the predicted rows [M].
      example: a NumPy example of the task; `relevant`, `relevance` and `seen` are read
        where it has them, else the one row of `targets` is relevant.
      is_target: which of the two it is.

    Returns:
      a `Relevance` for a target; a prediction unchanged.
    """
    if not is_target:
        return target_or_prediction
    rows = np.ravel(example.get(features.RELEVANT, target_or_prediction)).astype(np.int32)
    grades = np.ravel(example.get(features.RELEVANCE, np.ones(len(rows)))).astype(np.float32)
    seen = bool(np.ravel(example[features.SEEN])[0]) if features.SEEN in example else None
    return Relevance(rows, grades, seen)


def targets_of(corpus: AnyCorpus, split: str) -> list[Relevance]:
    """Returns what the corpus's queries of a split are to find."""
    queries = corpus.queries[split]
    return [
        Relevance(relevant, grades, bool(is_seen))
        for relevant, grades, is_seen in zip(
            queries.relevant, queries.relevance, corpus.seen(split), strict=True
        )
    ]


def retrieval_metrics(
    targets: Sequence[Relevance | Sequence[int]],
    predictions: Sequence[Sequence[int]] | np.ndarray,
    aux_values: Mapping[str, Any],
) -> dict[str, float]:
    """Hits@k, MRR@10, nDCG@10 for all, seen and unseen queries; a seqio metric_fn.

    Hits@k is given for k up to the number of ranked documents M.

    Args:
      targets: Q targets from `postprocess`, or Q sequences of relevant rows from tasks
        without it.
      predictions: int [Q, M] rows, best first, -1 where a slot holds no document.
      aux_values: `scores`, float [Q, M]: -inf marks slots that the search left empty, so
        that the others of row -1 are docids of no document ("invalid_rate").

    Returns:
      "hits@1", ..., "mrr@10", "ndcg@10" and "queries"; the same with "/seen" and
      "/unseen" where it is known which queries are (a group without queries has its
      count alone); "invalid_rate" where `aux_values` holds scores.
    """
    relevance = [_as_relevance(target) for target in targets]
    ranked = np.asarray(predictions, np.int64).reshape(len(relevance), -1)
    per_query = _per_query(relevance, ranked)
    metrics: dict[str, float] = {}
    for suffix, group in _groups(relevance).items():
        metrics[f"queries{suffix}"] = float(group.sum())
        metrics |= _means(per_query, group, suffix)
    if "scores" in aux_values:
        filled = np.asarray(aux_values["scores"], np.float64).reshape(ranked.shape) > -np.inf
        metrics["invalid_rate"] = float((filled & (ranked < 0)).sum() / max(1, filled.sum()))
    return metrics


def class_metrics(
    targets: Sequence[Relevance | Sequence[int]],
    predictions: Sequence[Sequence[int]] | np.ndarray,
    aux_values: Mapping[str, Any],
) -> dict[str, float]:
    """P@k and MAP@k for all, seen and unseen queries; a seqio metric_fn, to go with the one above.

    They are given for k up to the number of ranked documents M.

    Args:
      targets: as for `retrieval_metrics`.
      predictions: as for `retrieval_metrics`.
      aux_values: not read.

    Returns:
      "p@1", ..., "map@10", "map@100"; the same with "/seen" and "/unseen" where it is known which
      queries are.
    """
    del aux_values
    relevance = [_as_relevance(target) for target in targets]
    ranked = np.asarray(predictions, np.int64).reshape(len(relevance), -1)
    width = ranked.shape[1]
    hit = np.stack([np.isin(r, target.rows) for r, target in zip(ranked, relevance, strict=True)])
    precision = hit.cumsum(axis=1) / np.arange(1, width + 1)
    gained = (hit * precision).cumsum(axis=1)
    num_relevant = np.array([len(set(target.rows.tolist())) for target in relevance])
    per_query = {f"p@{k}": precision[:, k - 1] for k in PRECISION_AT if k <= width}
    per_query |= {
        f"map@{k}": gained[:, k - 1] / np.minimum(num_relevant, k) for k in MAP_AT if k <= width
    }
    metrics: dict[str, float] = {}
    for suffix, group in _groups(relevance).items():
        metrics |= _means(per_query, group, suffix)
    return metrics


def _as_relevance(target: Relevance | Sequence[int]) -> Relevance:
    if isinstance(target, Relevance):
        return target
    rows = np.asarray(target, np.int32).reshape(-1)
    return Relevance(rows, np.ones(len(rows), np.float32), None)


def _per_query(relevance: Sequence[Relevance], ranked: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> float64 [Q]."""
    width = ranked.shape[1]
    discounts = 1.0 / np.log2(np.arange(max(CUTOFF, width)) + 2.0)
    gains = np.zeros(ranked.shape)
    ideal = np.zeros(len(relevance))
    for query, target in enumerate(relevance):
        for row, grade in zip(target.rows, target.grades, strict=True):
            gains[query, ranked[query] == row] = grade
        best = np.sort(target.grades)[::-1][:CUTOFF]
        ideal[query] = best @ discounts[: len(best)]
    hit = gains > 0
    first = np.where(hit.any(axis=1), hit.argmax(axis=1), width)
    per_query = {f"hits@{k}": (first < k).astype(float) for k in HITS_AT if k <= width}
    found = first < min(CUTOFF, width)
    per_query[f"mrr@{CUTOFF}"] = np.where(found, 1.0 / (first + 1.0), 0.0)
    cut = min(CUTOFF, width)
    per_query[f"ndcg@{CUTOFF}"] = gains[:, :cut] @ discounts[:cut] / ideal
    return per_query


def _groups(relevance: Sequence[Relevance]) -> dict[str, np.ndarray]:
    """Suffix of a metric's name -> bool [Q], which queries it is of."""
    groups = {"": np.ones(len(relevance), bool)}
    seen = [target.seen for target in relevance]
    if None not in seen:
        is_seen = np.array(seen, bool)
        groups |= {"/seen": is_seen, "/unseen": ~is_seen}
    return groups


def _means(per_query: Mapping[str, np.ndarray], group: np.ndarray, suffix: str) -> dict[str, float]:
    if not group.any():
        return {}
    return {f"{name}{suffix}": float(v[group].mean()) for name, v in per_query.items()}
