"""Semantic docids: similar documents share a prefix, by recursive k-means."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dsi_jax.docids.embeddings import Embedder, TfidfSvd
from dsi_jax.docids.image_embeddings import ImageEmbedder
from dsi_jax.docids.table import DocidTable

_CHECK_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Semantic:
    """Semantically structured identifiers (DSI, Tay et al. 2022, section 3.2).

    The documents are split into `clusters` by k-means, each cluster of more than `leaf_size` again,
    and so on; a document's docid starts with the numbers of its clusters. The documents of a leaf
    are then numbered 0, 1, ... in a seeded random order.

    The paper appends "an arbitrary number from 0 to at most c - 1" to the clusters' numbers. Read
    here as: the number is written in base `clusters`, with as many digits as the largest number of
    its leaf needs, at least one. With the paper's 10 and 100, leaves of up to 10 documents add one
    digit and the others two. All levels share one alphabet of `clusters` digits.

    What k-means cannot divide (documents with equal embeddings), and what is still too large
    after `max_levels`, is a leaf of any size, by the same rule.

    Attributes:
      clusters: k, the clusters of a node, and the base of the digits; at least 2.
      leaf_size: c, clusters of at most so many documents are not split.
      embedder: makes the embeddings from the documents' texts or images; None where `build` is
        given vectors from elsewhere. It is only recorded here: the caller embeds.
      n_init: k-means runs a split, of which the best is kept.
      max_levels: the deepest node that may be split; bounds the length of docids.
    """

    clusters: int = 10
    leaf_size: int = 100
    embedder: Embedder | ImageEmbedder | None = dataclasses.field(default_factory=TfidfSvd)
    n_init: int = 1
    max_levels: int = 12

    kind: ClassVar[str] = "semantic"
    needs_embeddings: ClassVar[bool] = True

    def __post_init__(self):
        if self.clusters < 2 or min(self.leaf_size, self.n_init) < 1 or self.max_levels < 0:
            raise ValueError(
                f"{self}: expected clusters >= 2, leaf_size >= 1, n_init >= 1, max_levels >= 0"
            )

    def build(
        self,
        keys: Sequence[str],
        corpus_hash: str,
        embeddings: np.ndarray | None = None,
        seed: int = 42,
    ) -> DocidTable:
        """See `dsi_jax.docids.table.DocidBuilder`.

        Raises:
          ValueError: if the embeddings are missing, not finite, or not one vector a document.
        """
        _check_embeddings(embeddings, len(keys))
        digits, lengths = self._digits(embeddings, seed)
        embedder = None if self.embedder is None else self.embedder.describe()
        return DocidTable.from_codes(
            digits,
            lengths,
            num_codes=self.clusters,
            keys=keys,
            kind=self.kind,
            parameters={
                "clusters": self.clusters,
                "leaf_size": self.leaf_size,
                "n_init": self.n_init,
                "max_levels": self.max_levels,
                "embedder": embedder,
                "seed": seed,
            },
            corpus_hash=corpus_hash,
        )

    def _digits(self, embeddings_NxD: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Digits [N, L] and the number of them [N]."""
        from threadpoolctl import threadpool_limits

        rng = np.random.default_rng(seed)
        count = len(embeddings_NxD)
        lengths_N = np.zeros(count, np.int32)
        levels: list[np.ndarray] = []  # the digits of all documents, level by level

        def write(rows: np.ndarray, level: int, digits: np.ndarray) -> None:
            if level == len(levels):
                levels.append(np.zeros(count, np.min_scalar_type(self.clusters - 1)))
            levels[level][rows] = digits

        pending = [(np.arange(count), 0)]
        with threadpool_limits(limits=1):  # sums in a fixed order: the same table every time
            while pending:
                rows, level = pending.pop()
                labels = self._split(embeddings_NxD[rows], level, rng)
                if labels is not None:
                    write(rows, level, labels)
                    children = (rows[labels == label] for label in np.unique(labels))
                    pending.extend((child, level + 1) for child in children)
                    continue
                numbers = rng.permutation(len(rows))
                width = _num_digits(len(rows) - 1, self.clusters)
                for place in range(width):
                    digit = numbers // self.clusters ** (width - 1 - place) % self.clusters
                    write(rows, level + place, digit)
                lengths_N[rows] = level + width
        return np.stack(levels, axis=1), lengths_N

    def _split(
        self, embeddings_NxD: np.ndarray, level: int, rng: np.random.Generator
    ) -> np.ndarray | None:
        """The clusters of a node's documents [N], or None if they stay together."""
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        if len(embeddings_NxD) <= self.leaf_size or level == self.max_levels:
            return None
        kmeans = KMeans(
            n_clusters=min(self.clusters, len(embeddings_NxD)),
            n_init=self.n_init,
            random_state=int(rng.integers(1 << 31)),
        )
        with warnings.catch_warnings():
            # Fewer distinct vectors than clusters: a split into fewer is as good, into one is none.
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = kmeans.fit_predict(embeddings_NxD)
        return None if (labels == labels[0]).all() else labels


def _num_digits(number: int, base: int) -> int:
    digits = 1
    while number >= base:
        number //= base
        digits += 1
    return digits


def _check_embeddings(embeddings: np.ndarray | None, count: int) -> None:
    if embeddings is None:
        raise ValueError("semantic docids need embeddings of the documents, found None")
    if embeddings.ndim != 2 or len(embeddings) != count or embeddings.shape[1] == 0:
        raise ValueError(
            f"embeddings have the shape {embeddings.shape}, expected one vector for each of the "
            f"{count} documents"
        )
    for start in range(0, count, _CHECK_ROWS):
        finite = np.isfinite(embeddings[start : start + _CHECK_ROWS]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise ValueError(f"the embedding of row {row} holds a value that is not finite")
