"""Oracle recall: what docids know of their documents' neighbours, before any decoder is trained."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dsi_jax.docids.clustering.neighbours import nearest_rows
from dsi_jax.docids.table import FIRST_CODE, PAD_TOKEN, DocidTable

SAMPLE = 1000
NEIGHBOURS = 10
_SWEEPS = 3  # of the fit of the codes' vectors
_ROWS = 1 << 13  # documents whose vectors are held at a time
_BLOCK = 1 << 24  # scores held at a time


@dataclasses.dataclass(frozen=True)
class OracleRecall:
    """How well codes alone find the documents that embeddings find.

    For each document of a sample, all others are ranked by its codes, and the first k are compared
    with its k nearest by embedding (Euclidean distance). Documents that the codes rank alike are
    in random order: recall is its expectation. 1 is perfect; docids that know nothing of the
    embeddings reach `chance`.

    Attributes:
      k: neighbours of a document.
      documents: how many were sampled.
      by_prefix: ranked by the length of the common prefix. What a decoder gets that finds the right
        codes as long as it can: the measure for trees of topics.
      by_depth: the same, where no more than the first 1, 2, ... L tokens are looked at.
      by_codes: ranked by the distance of the document's embedding to the others as their codes
        describe them: a vector a code, summed over the levels, fitted to all embeddings by least
        squares. The measure for codes that are no tree, pq's for one. As vectors are fitted, many
        codes (atomic's one a document) describe anything: compare tables of like sizes.
      chance: k / (N - 1).
    """

    k: int
    documents: int
    by_prefix: float
    by_depth: tuple[float, ...]
    by_codes: float
    chance: float


def oracle_recall(
    table: DocidTable,
    embeddings_NxD: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    sample: int = SAMPLE,
    seed: int = 0,
) -> OracleRecall:
    """Measures a table against embeddings of its documents.

    Args:
      table: the docids.
      embeddings_NxD: float [N, D]; those that the table was made of, or any others; may be a
        mapped file, of which no copy is made.
      k: neighbours of a document; fewer where there are not so many others.
      sample: documents whose neighbours are sought, at most.
      seed: of the sample.

    Raises:
      ValueError: if there is not one embedding for each document, or a single document.
    """
    count = table.num_documents
    if embeddings_NxD.ndim != 2 or len(embeddings_NxD) != count or count < 2:
        raise ValueError(
            f"oracle recall needs embeddings of at least two documents, one for each of the "
            f"table's {count}; found the shape {embeddings_NxD.shape}"
        )
    k = min(k, count - 1)
    rng = np.random.default_rng(seed)
    rows_S = np.sort(rng.choice(count, min(sample, count), replace=False))
    near_SxK = nearest_rows(embeddings_NxD, rows_S, k)
    vectors = fit_code_vectors(table, embeddings_NxD)
    by_depth = [ExpectedRecall(rows_S, near_SxK) for _ in range(table.length)]
    by_codes = ExpectedRecall(rows_S, near_SxK)
    own_SxL = np.asarray(table.tokens[rows_S])
    points_SxD = np.asarray(embeddings_NxD[rows_S], np.float32)
    for part in _parts(count, min(_ROWS, _BLOCK // len(rows_S))):
        tokens_BxL = np.asarray(table.tokens[part])
        common_SxB = common_prefixes(tokens_BxL, own_SxL)
        for depth, recall in enumerate(by_depth, start=1):
            recall.add(np.minimum(common_SxB, depth))
        described_BxD = vectors.describe(tokens_BxL)
        norms_B = np.einsum("bd,bd->b", described_BxD, described_BxD)
        by_codes.add(2 * (points_SxD @ described_BxD.T) - norms_B)
    depths = [float(recall.result().mean()) for recall in by_depth]
    return OracleRecall(
        k=k,
        documents=len(rows_S),
        by_prefix=depths[-1],
        by_depth=tuple(depths),
        by_codes=float(by_codes.result().mean()),
        chance=k / (count - 1),
    )


def common_prefixes(tokens_BxL: np.ndarray, own_SxL: np.ndarray) -> np.ndarray:
    """The number of tokens that docids begin with alike, padding not; int16 [S, B]."""
    common_SxB = np.zeros((len(own_SxL), len(tokens_BxL)), np.int16)
    equal_SxB = np.ones(common_SxB.shape, bool)
    for tokens_B, own_S in zip(tokens_BxL.T, own_SxL.T, strict=True):
        equal_SxB &= own_S[:, None] == tokens_B
        equal_SxB &= tokens_B != PAD_TOKEN
        common_SxB += equal_SxB
    return common_SxB


class CodeVectors(NamedTuple):
    """A vector for each token of each level; a document is the sum of its tokens' vectors.

    Attributes:
      numbers: for each level int32 [V], where the vector of a token is; 0 for end and padding and
        for tokens that do not occur.
      vectors: for each level float32 [U, D]; the first is zero.
    """

    numbers: list[np.ndarray]
    vectors: list[np.ndarray]

    def describe(self, tokens_BxL: np.ndarray, without: int | None = None) -> np.ndarray:
        """Documents as their tokens say, float32 [B, D]; `without` is a level to leave out."""
        sums_BxD = np.zeros((len(tokens_BxL), self.vectors[0].shape[1]), np.float32)
        for level, vectors_UxD in enumerate(self.vectors):
            if level != without:
                sums_BxD += vectors_UxD[self.numbers[level][tokens_BxL[:, level]]]
        return sums_BxD


def fit_code_vectors(table: DocidTable, embeddings_NxD: np.ndarray) -> CodeVectors:
    """Fits vectors to embeddings by least squares.

    Levels are fitted in turn, each to what the others leave (backfitting, Friedman and Stuetzle
    1981), from the first to the last, three times. Each time all embeddings are read, block by
    block: what the others leave is worked out anew and not held.

    Args:
      table: the docids.
      embeddings_NxD: float [N, D]; may be a mapped file.
    """
    dimension = embeddings_NxD.shape[1]
    fitted = CodeVectors([], [])
    counts = []
    for level in range(table.length):
        counts_V = np.bincount(table.tokens[:, level], minlength=table.vocab_size)
        occurring = FIRST_CODE + np.flatnonzero(counts_V[FIRST_CODE:])
        numbers_V = np.zeros(table.vocab_size, np.int32)
        numbers_V[occurring] = np.arange(1, len(occurring) + 1)
        fitted.numbers.append(numbers_V)
        fitted.vectors.append(np.zeros((len(occurring) + 1, dimension), np.float32))
        counts.append(counts_V[occurring])
    for level in list(range(table.length)) * _SWEEPS:
        sums_UxD = np.zeros(fitted.vectors[level].shape)
        for part in _parts(len(embeddings_NxD), _ROWS):
            tokens_BxL = np.asarray(table.tokens[part])
            left_BxD = embeddings_NxD[part] - fitted.describe(tokens_BxL, without=level)
            _add_up(sums_UxD, left_BxD, fitted.numbers[level][tokens_BxL[:, level]])
        fitted.vectors[level][1:] = sums_UxD[1:] / counts[level][:, None]
    return fitted


def _add_up(sums_UxD: np.ndarray, points_BxD: np.ndarray, numbers_B: np.ndarray) -> None:
    """Adds each point to the sum of its number, in place."""
    order_B = np.argsort(numbers_B, kind="stable")
    sorted_B = numbers_B[order_B]
    starts = np.flatnonzero(np.diff(sorted_B, prepend=-1))
    sums_UxD[sorted_B[starts]] += np.add.reduceat(points_BxD[order_B], starts, axis=0)


class ExpectedRecall:
    """The share of the relevant that the best k hold, with equal scores in random order.

    Documents are scored a block at a time: of those before, the k best scores are held, and how
    many documents have the last of them.

    Args:
      rows_S: who ranks the documents, rows that do not count themselves.
      near_SxK: the k relevant documents of each.
    """

    def __init__(self, rows_S: np.ndarray, near_SxK: np.ndarray) -> None:
        self._rows_S, self._near_SxK = rows_S, near_SxK
        self._scored = 0
        self._best_SxK = np.full(near_SxK.shape, -np.inf, np.float32)  # the worst of them first
        self._level_S = np.zeros(len(rows_S), np.int64)  # documents that score as that one
        self._found_SxK = np.empty(near_SxK.shape, np.float32)  # the scores of the relevant

    def add(self, scores_SxB: np.ndarray) -> None:
        """Ranks the next B documents for each of the rows; more is better."""
        scores_SxB = np.array(scores_SxB, np.float32)
        here = slice(self._scored, self._scored + scores_SxB.shape[1])
        self._scored = here.stop
        (mine,) = np.nonzero((here.start <= self._rows_S) & (self._rows_S < here.stop))
        scores_SxB[mine, self._rows_S[mine] - here.start] = -np.inf
        who, which = np.nonzero((here.start <= self._near_SxK) & (self._near_SxK < here.stop))
        self._found_SxK[who, which] = scores_SxB[who, self._near_SxK[who, which] - here.start]

        before_SxK, k = self._best_SxK, self._near_SxK.shape[1]
        both = np.concatenate([before_SxK, scores_SxB], axis=1)
        both.partition(-k, axis=1)
        self._best_SxK = both[:, -k:].copy()
        worst_Sx1 = self._best_SxK[:, :1]
        # Of documents before with a better score than the worst before, all are held.
        self._level_S = np.where(
            worst_Sx1[:, 0] == before_SxK[:, 0],
            self._level_S,
            (before_SxK == worst_Sx1).sum(axis=1),
        )
        self._level_S += (scores_SxB == worst_Sx1).sum(axis=1)

    def result(self) -> np.ndarray:
        """The recall of each row, float [S], once all documents are scored."""
        k = self._near_SxK.shape[1]
        worst_Sx1 = self._best_SxK[:, :1]
        better_S = (self._best_SxK > worst_Sx1).sum(axis=1)
        surely_S = (self._found_SxK > worst_Sx1).sum(axis=1)
        perhaps_S = (self._found_SxK == worst_Sx1).sum(axis=1)
        return (surely_S + perhaps_S * (k - better_S) / self._level_S) / k


def _parts(count: int, most: int) -> Iterator[slice]:
    """Runs of at most so many rows, at least one."""
    step = max(1, most)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
