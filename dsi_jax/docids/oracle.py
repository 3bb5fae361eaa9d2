"""Oracle recall: what docids know of their documents' neighbours, before any decoder is trained."""

import dataclasses

import numpy as np

from dsi_jax.docids.neighbours import nearest_rows
from dsi_jax.docids.table import FIRST_CODE, PAD_TOKEN, DocidTable

SAMPLE = 1000
NEIGHBOURS = 10
_SWEEPS = 3  # of the fit of the codes' vectors
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
      embeddings_NxD: float [N, D]; those that the table was made of, or any others.
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
    described_NxD = describe(table, embeddings_NxD)
    norms_N = (described_NxD**2).sum(axis=1)
    by_depth, by_codes = [], []
    step = max(1, _BLOCK // count)
    for start in range(0, len(rows_S), step):
        rows, near = rows_S[start : start + step], near_SxK[start : start + step]
        common = common_prefixes(table.tokens, rows)
        by_depth.append(
            [
                expected_recall(np.minimum(common, depth), rows, near)
                for depth in range(1, table.length + 1)
            ]
        )
        closeness = 2 * (embeddings_NxD[rows] @ described_NxD.T) - norms_N
        by_codes.append(expected_recall(closeness, rows, near))
    depths = np.concatenate(by_depth, axis=1).mean(axis=1)
    return OracleRecall(
        k=k,
        documents=len(rows_S),
        by_prefix=float(depths[-1]),
        by_depth=tuple(map(float, depths)),
        by_codes=float(np.concatenate(by_codes).mean()),
        chance=k / (count - 1),
    )


def common_prefixes(tokens_NxL: np.ndarray, rows_S: np.ndarray) -> np.ndarray:
    """The number of tokens that each docid shares with those of some rows, padding not; [S, N]."""
    common_SxN = np.zeros((len(rows_S), len(tokens_NxL)), np.int16)
    equal_SxN = np.ones(common_SxN.shape, bool)
    for tokens_N in np.asarray(tokens_NxL).T:
        equal_SxN &= tokens_N[rows_S, None] == tokens_N
        equal_SxN &= tokens_N != PAD_TOKEN
        common_SxN += equal_SxN
    return common_SxN


def describe(table: DocidTable, embeddings_NxD: np.ndarray) -> np.ndarray:
    """Each document as the sum of its tokens' vectors, fitted to the embeddings; float32 [N, D].

    A token of each level has a vector of its own. Levels are fitted in turn, each to what the
    others leave (backfitting, Friedman and Stuetzle 1981), from the first to the last, three times.
    """
    left_NxD = np.array(embeddings_NxD, np.float32)
    fits: list[tuple[np.ndarray, np.ndarray] | None] = [None] * table.length
    for _ in range(_SWEEPS):
        for level, fit in enumerate(fits):
            if fit is not None:
                left_NxD += fit[0][fit[1]]
            vectors_UxD, which_N = _means(left_NxD, np.asarray(table.tokens[:, level]))
            left_NxD -= vectors_UxD[which_N]
            fits[level] = vectors_UxD, which_N
    return embeddings_NxD - left_NxD


def expected_recall(scores_SxN: np.ndarray, rows_S: np.ndarray, near_SxK: np.ndarray) -> np.ndarray:
    """The share of the relevant that the best k hold, with equal scores in random order; [S].

    Args:
      scores_SxN: how each document ranks for each of some rows; more is better.
      rows_S: those rows, which do not count themselves.
      near_SxK: the k relevant documents of each.
    """
    k = near_SxK.shape[1]
    scores_SxN = np.array(scores_SxN, np.float32)
    scores_SxN[np.arange(len(rows_S)), rows_S] = -np.inf
    worst_Sx1 = np.partition(scores_SxN, -k, axis=1)[:, -k, None]
    better_S = (scores_SxN > worst_Sx1).sum(axis=1)
    level_S = (scores_SxN == worst_Sx1).sum(axis=1)
    found_SxK = np.take_along_axis(scores_SxN, near_SxK, axis=1)
    surely_S = (found_SxK > worst_Sx1).sum(axis=1)
    perhaps_S = (found_SxK == worst_Sx1).sum(axis=1)
    return (surely_S + perhaps_S * (k - better_S) / level_S) / k


def _means(vectors_NxD: np.ndarray, tokens_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean vector of each token that occurs, 0 for end and padding; and which is whose."""
    tokens_U, which_N, counts_U = np.unique(tokens_N, return_inverse=True, return_counts=True)
    starts_U = np.cumsum(counts_U) - counts_U
    sums_UxD = np.add.reduceat(vectors_NxD[np.argsort(which_N, kind="stable")], starts_U, axis=0)
    sums_UxD[tokens_U < FIRST_CODE] = 0
    return sums_UxD / counts_U[:, None].astype(np.float32), which_N
