"""Semantic docids: similar documents share a prefix, by recursive k-means."""

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import numpy as np

from dsi_jax.docids import spelling
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.clustering.kmeans import kmeans
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.base import Embedder, check_embeddings
from dsi_jax.docids.embedders.image import ImageEmbedder
from dsi_jax.docids.embedders.precomputed import Precomputed
from dsi_jax.docids.embedders.text import TfidfSvd
from dsi_jax.docids.numbers import digits, num_digits
from dsi_jax.docids.table import FIRST_CODE, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer

_ITERATIONS = 50  # at most; k-means stops earlier once they hardly change the clusters


@dataclasses.dataclass(frozen=True)
class Semantic(DocidBuilder):
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
      embedder: makes the embeddings from the documents' texts or images; None where the documents
        come with vectors from elsewhere. It is only recorded here: the caller embeds.
      n_init: k-means runs a split, of which the best is kept.
      max_levels: the deepest node that may be split; bounds the length of docids.
      most_a_cluster: a node of more than so many documents times `clusters` learns its clusters
        from as many, drawn at random, and the others join the nearest: bounds time and memory.
    """

    clusters: int = 10
    leaf_size: int = 100
    embedder: Embedder | ImageEmbedder | Precomputed | None = dataclasses.field(
        default_factory=TfidfSvd
    )
    n_init: int = 1
    max_levels: int = 12
    most_a_cluster: int = 25_000

    kind: ClassVar[str] = "semantic"

    def __post_init__(self):
        if (
            self.clusters < 2
            or min(self.leaf_size, self.n_init, self.most_a_cluster) < 1
            or self.max_levels < 0
        ):
            raise ValueError(
                f"{self}: expected clusters >= 2, leaf_size >= 1, n_init >= 1, max_levels >= 0, "
                "most_a_cluster >= 1"
            )

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`.

        Raises:
          ValueError: if the embeddings are missing, not finite, or not one vector a document.
        """
        check_embeddings(documents.embeddings, len(documents))
        codes_NxL, lengths_N = self._codes(documents.embeddings, seed)
        embedder = None if self.embedder is None else self.embedder.describe()
        return DocidTable.from_codes(
            codes_NxL,
            lengths_N,
            num_codes=self.clusters,
            keys=documents.keys,
            kind=self.kind,
            parameters={
                "clusters": self.clusters,
                "leaf_size": self.leaf_size,
                "n_init": self.n_init,
                "max_levels": self.max_levels,
                "most_a_cluster": self.most_a_cluster,
                "embedder": embedder,
                "engine": "numpy",
                "seed": seed,
            },
            corpus_hash=documents.corpus_hash,
        )

    @classmethod
    def text_tokens(cls, table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
        """See `DocidBuilder`: a digit starts from the text's digit, where that is one token."""
        tokens_V = super().text_tokens(table, tokenizer)
        tokens_V[FIRST_CODE:] = spelling.digit_tokens(tokenizer, table.vocab_size - FIRST_CODE)
        return tokens_V

    def leaves(
        self, embeddings_NxD: np.ndarray, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
        """Splits the documents; yields the rows of each leaf and the clusters that it lies in."""
        every_N = np.arange(len(embeddings_NxD))
        pending = [_Node(embeddings_NxD, every_N, every_N, ())]
        while pending:
            node = pending.pop()
            if node.points is embeddings_NxD and len(node.places) <= self._most:
                node = node.copied()
            labels_M = self._split(node, rng)
            if labels_M is None:
                yield node.rows[node.places], node.path
                continue
            order = np.argsort(labels_M, kind="stable")
            found, starts = np.unique(labels_M[order], return_index=True)
            children = np.split(node.places[order], starts[1:])
            pending += [
                node._replace(places=child, path=(*node.path, label))
                for child, label in zip(children, found.tolist(), strict=True)
            ]

    def _codes(self, embeddings_NxD: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes [N, L] and the number of them [N]."""
        rng = np.random.default_rng(seed)
        count = len(embeddings_NxD)
        lengths_N = np.zeros(count, np.int32)
        levels: list[np.ndarray] = []  # the codes of all documents, level by level
        for rows, path in self.leaves(embeddings_NxD, rng):
            numbers = rng.permutation(len(rows))
            width = num_digits(len(rows), self.clusters)
            codes = [*path, *digits(numbers, self.clusters, width).T]
            levels += [
                np.zeros(count, np.min_scalar_type(self.clusters - 1))
                for _ in range(len(codes) - len(levels))
            ]
            for level, code in zip(levels, codes, strict=False):
                level[rows] = code
            lengths_N[rows] = len(codes)
        return np.stack(levels, axis=1), lengths_N

    @property
    def _most(self) -> int:
        return self.most_a_cluster * self.clusters

    def _split(self, node: "_Node", rng: np.random.Generator) -> np.ndarray | None:
        """The clusters of a node's documents [M], or None if they stay together."""
        if len(node.places) <= self.leaf_size or len(node.path) == self.max_levels:
            return None
        labels_M = kmeans(
            node.points,
            self.clusters,
            seed=int(rng.integers(1 << 31)),
            iterations=_ITERATIONS,
            restarts=self.n_init,
            rows=None if len(node.places) == len(node.points) else node.places,
            most=self._most,
        ).labels
        # Fewer distinct vectors than clusters: a split into fewer is as good, into one is none.
        return None if (labels_M == labels_M[0]).all() else labels_M


class _Node(NamedTuple):
    """Documents that are to be split.

    Attributes:
      points: float [P, D], vectors of these documents and maybe others.
      rows: int [P], the rows of all these documents in the corpus.
      places: int [M], ascending, where in `points` the node's documents are.
      path: the clusters that it lies in.
    """

    points: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    path: tuple[int, ...]

    def copied(self) -> "_Node":
        """With vectors of its own: what lies below need not be read from a mapped file again."""
        every = len(self.places) == len(self.points)
        points = np.asarray(self.points if every else self.points[self.places], np.float32)
        return _Node(points, self.rows[self.places], np.arange(len(points)), self.path)
