"""Fits lexical scores: how much each word of a question speaks for each document.

The score of a document is a sum over the distinct stems of the question of

    w_body n / (n + 1.2 (0.4 + 0.6 length / mean length)) + w_title [in title] / sqrt(title length)

with n the stem's count in title and text together: BM25 (Robertson and Zaragoza 2009) with a title,
and weights that are learned. A weight is log w = u_g + c_g log idf + r: u and c of one of four
groups (common or other stems, in body or title), r of the stem. The scores are fitted as
logits of a softmax over all documents, so that they can be added to a model's own logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.storage.lexical_index import LexicalIndex

_SATURATION, _LENGTH_PART = 1.2, 0.6  # BM25's k1 and b
_COMMON = 0.1  # stems in a larger part of the documents have weights of their own group
_LEAST_IDF = 0.05  # its logarithm must be finite
_LEAST_STEPS = 28  # an epoch, or few questions would hardly move the weights
_DENSE = 1 << 23  # numbers in the largest array of scores
# Of body and title, for stems that are not common and for those that are: where the fit begins.
_FIRST_U = np.array([[-1.2, -3.3], [-1.7, -3.8]])


@dataclasses.dataclass(frozen=True)
class Fit:
    """How weights are fitted.

    Attributes:
      epochs: passes over the questions; the best on the validation questions counts.
      batch_size: questions a step, at most; fewer where an epoch would have few steps.
      rate: learning rate of AdaGrad (Duchi et al. 2011).
      decay: L2 penalty on r, over the questions of a batch that have the stem.
      most_questions: questions that are trained on, at most; a seeded choice of them.
      seed: seed of their order, and of what is held out.
    """

    epochs: int = 3
    batch_size: int = 256
    rate: float = 0.1
    decay: float = 0.3
    most_questions: int = 50_000
    seed: int = 42


class Features(NamedTuple):
    """What is known of F ids in N documents.

    Attributes:
      parts: float32 [2 F, N], saturated counts in the body, then what titles say.
      idf: float [F], Lucene's inverse document frequency.
      group: int [F], 1 for common stems, else 0.
    """

    parts: sp.csr_matrix
    idf: np.ndarray
    group: np.ndarray


class Questions(NamedTuple):
    """Q questions and what answers them.

    Attributes:
      words: float64 [Q, F], 1 for each distinct stem.
      relevant: float64 [Q, N], the relevant documents of a question; each row sums to 1.
    """

    words: sp.csr_matrix
    relevant: sp.csr_matrix

    def take(self, chosen: np.ndarray) -> Questions:
        """Returns some of them."""
        return Questions(self.words[chosen], self.relevant[chosen])


def document_features(
    vocabulary: LexicalVocabulary, titles: Sequence[str], texts: Sequence[str]
) -> Features:
    """Counts the stems of documents.

    Args:
      vocabulary: the stems.
      titles: N titles.
      texts: N texts without their titles.
    """
    title_ids = [vocabulary.ids(title) for title in titles]
    body_ids = [ids + vocabulary.ids(text) for ids, text in zip(title_ids, texts, strict=True)]
    counts = _counts(body_ids, vocabulary.size)
    lengths_N = np.array([len(ids) for ids in body_ids], np.float64)
    scale_N = lengths_N / max(lengths_N.mean(), 1.0)
    offset_N = _SATURATION * (1 - _LENGTH_PART + _LENGTH_PART * scale_N)
    body = counts.tocsr()
    body.data = body.data / (body.data + offset_N[body.indices])
    titled = _counts(title_ids, vocabulary.size)
    lengths_N = np.array([max(len(ids), 1) for ids in title_ids], np.float64)
    titled.data = 1 / np.sqrt(lengths_N[titled.indices])
    num_documents = len(body_ids)
    frequency_F = np.diff(body.indptr)
    idf_F = np.log1p((num_documents - frequency_F + 0.5) / (frequency_F + 0.5))
    group_F = (frequency_F > _COMMON * num_documents).astype(np.int64)
    return Features(sp.vstack([body, titled], "csr"), idf_F, group_F)


def questions_of(
    vocabulary: LexicalVocabulary,
    texts: Sequence[str],
    relevant: Sequence[np.ndarray],
    num_documents: int,
) -> Questions:
    """Reads questions.

    Args:
      vocabulary: the stems.
      texts: Q questions.
      relevant: Q arrays of rows.
      num_documents: N.
    """
    ids = [sorted(set(vocabulary.ids(text))) for text in texts]
    words = _rows(ids, vocabulary.size, [np.ones(len(i)) for i in ids])
    shares = [np.full(len(rows), 1 / len(rows)) for rows in relevant]
    return Questions(words, _rows(relevant, num_documents, shares))


def bm25_weights(features: Features) -> np.ndarray:
    """Returns BM25's own weights, float64 [2 F]: idf in the body, and titles have no other part."""
    return np.concatenate([features.idf, np.zeros_like(features.idf)])


def fitted_weights(
    features: Features, train: Questions, validation: Questions | None, fit: Fit
) -> np.ndarray:
    """Fits the weights to questions.

    Args:
      features: the documents.
      train: the questions to learn from.
      validation: the questions that choose the epoch; None: a tenth of `train`, not learned from.
      fit: how to fit.

    Returns:
      float64 [2 F], of the epoch (0: the beginning) with the best MRR@10 on the validation,
      of equal ones the last.
    """
    rng = np.random.default_rng(fit.seed)
    order = rng.permutation(train.words.shape[0])
    if validation is None:
        held_out = max(1, len(order) // 10)
        validation, order = train.take(order[:held_out]), order[held_out:]
    train = train.take(np.sort(order[: fit.most_questions]))
    count = train.words.shape[0]
    size = max(1, min(fit.batch_size, count // _LEAST_STEPS))
    state = _State.begin(features, fit)
    best = (mean_reciprocal_rank(features, state.weights(), validation), state.weights())
    for _ in range(fit.epochs):
        order = rng.permutation(count)
        for start in range(0, count, size):
            state.step(train.take(order[start : start + size]))
        reached = mean_reciprocal_rank(features, state.weights(), validation)
        if reached >= best[0]:  # of equals the last: its scale is fitted, too
            best = reached, state.weights()
    return best[1]


def mean_reciprocal_rank(features: Features, weights: np.ndarray, questions: Questions) -> float:
    """Returns MRR@10; documents that tie with the best relevant one stand behind it."""
    total = 0.0
    for part in _parts(questions, features.parts.shape[1]):
        scores_BxN = _scores(features, weights, part.words)
        is_relevant_BxN = part.relevant.toarray() > 0
        best_B = np.where(is_relevant_BxN, scores_BxN, -np.inf).max(1)
        rank_B = 1 + (scores_BxN > best_B[:, None]).sum(1)
        total += np.where(rank_B <= 10, 1 / rank_B, 0).sum()
    return total / max(questions.words.shape[0], 1)


def lexical_index(
    vocabulary: LexicalVocabulary,
    features: Features,
    weights: np.ndarray,
    *,
    most_postings: int,
    origin: str = "",
) -> LexicalIndex:
    """Keeps the largest postings of each stem.

    Args:
      vocabulary: the stems.
      features: the documents.
      weights: float [2 F].
      most_postings: postings kept of a stem; of equal ones those of the first documents.
      origin: kept with the index.
    """
    size = vocabulary.size
    weighted = sp.diags_array(weights) @ features.parts
    postings = sp.csr_matrix(weighted[:size] + weighted[size:])
    postings.eliminate_zeros()
    stem_P = np.repeat(np.arange(size), np.diff(postings.indptr))
    order_P = np.lexsort((postings.indices, -postings.data, stem_P))
    place_P = np.arange(len(order_P)) - np.repeat(postings.indptr[:-1], np.diff(postings.indptr))
    kept = order_P[place_P < most_postings]
    counts = np.minimum(np.diff(postings.indptr), most_postings)
    return LexicalIndex(
        vocabulary=vocabulary,
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=postings.indices[kept].astype(np.int32),
        weights=postings.data[kept].astype(np.float32),
        num_documents=features.parts.shape[1],
        origin=origin,
    )


@dataclasses.dataclass
class _State:
    """Parameters, and AdaGrad's sums of squares; `step` changes both.

    Shapes are [2, 2] for u and c (body or title; common or not) and [2, F] for r.
    """

    features: Features
    fit: Fit
    params: dict[str, np.ndarray]
    squares: dict[str, np.ndarray]

    @classmethod
    def begin(cls, features: Features, fit: Fit) -> _State:
        params = {
            "u": _FIRST_U.copy(),
            "c": np.ones((2, 2)),
            "r": np.zeros((2, len(features.idf))),
        }
        return cls(features, fit, params, {name: np.zeros_like(p) for name, p in params.items()})

    @property
    def log_idf(self) -> np.ndarray:
        return np.log(np.maximum(self.features.idf, _LEAST_IDF))

    def weights(self) -> np.ndarray:
        """Returns float64 [2 F]."""
        group_F = self.features.group
        by_group = self.params["u"][:, group_F] + self.params["c"][:, group_F] * self.log_idf
        return np.exp(by_group + self.params["r"]).reshape(-1)

    def step(self, batch: Questions) -> None:
        """Moves the parameters by one batch."""
        size, count = len(self.features.idf), batch.words.shape[0]
        grad_r = self._gradient(batch).reshape(2, size)
        used_F = np.diff(batch.words.tocsc().indptr) > 0
        by_group = [np.bincount(self.features.group, g, minlength=2) for g in grad_r]
        scaled = [np.bincount(self.features.group, g * self.log_idf, minlength=2) for g in grad_r]
        self._move("u", np.stack(by_group), 1e-8)
        self._move("c", np.stack(scaled), 1e-8)
        grad_r += np.where(used_F, self.fit.decay * self.params["r"] / count, 0)
        self._move("r", grad_r, 1e-3)

    def _move(self, name: str, grad: np.ndarray, eps: float) -> None:
        self.squares[name] += grad**2
        self.params[name] -= self.fit.rate * grad / (np.sqrt(self.squares[name]) + eps)

    def _gradient(self, batch: Questions) -> np.ndarray:
        """Returns the gradient of the mean loss by log w, float64 [2 F]."""
        weights, grad = self.weights(), np.zeros(self.features.parts.shape[0])
        for part in _parts(batch, self.features.parts.shape[1]):
            scores_BxN = _scores(self.features, weights, part.words)
            scores_BxN -= scores_BxN.max(1, keepdims=True)
            error_BxN = np.exp(scores_BxN)
            error_BxN /= error_BxN.sum(1, keepdims=True)
            error_BxN -= part.relevant.toarray()
            words = _both(part.words)
            used = np.unique(words.indices)
            by_question = self.features.parts[used] @ error_BxN.T  # [used, B]
            grad[used] += np.asarray(words[:, used].T.multiply(by_question).sum(1)).reshape(-1)
        return grad * weights / batch.words.shape[0]


def _scores(features: Features, weights: np.ndarray, words: sp.csr_matrix) -> np.ndarray:
    """Returns float64 [B, N]."""
    weighted = _both(words)
    weighted.data = weights[weighted.indices]
    return (weighted @ features.parts).toarray()


def _both(words: sp.csr_matrix) -> sp.csr_matrix:
    """Returns [B, 2 F], each stem in the body and in the title."""
    return sp.hstack([words, words], "csr")


def _parts(questions: Questions, num_documents: int) -> Iterator[Questions]:
    """Cuts questions so that the scores of a part are not too many."""
    size = max(1, _DENSE // max(num_documents, 1))
    for start in range(0, questions.words.shape[0], size):
        yield questions.take(np.arange(start, min(start + size, questions.words.shape[0])))


def _counts(ids: Sequence[list[int]], size: int) -> sp.csr_matrix:
    """Returns how often each id stands in each of N lists, float64 [size, N]."""
    return sp.csr_matrix(_rows(ids, size, [np.ones(len(i)) for i in ids]).T)


def _rows(
    columns: Sequence[Sequence[int] | np.ndarray], size: int, values: Sequence[np.ndarray]
) -> sp.csr_matrix:
    """Returns float64 [len(columns), size] with these values; equal columns of a row add up."""
    lengths = [len(own) for own in columns]
    rows = np.repeat(np.arange(len(columns)), lengths)
    flat = np.concatenate([np.asarray(own, np.int64) for own in (*columns, [])])
    matrix = sp.coo_matrix((np.concatenate([*values, []]), (rows, flat)), (len(columns), size))
    return matrix.tocsr()
