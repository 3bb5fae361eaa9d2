"""Docids from product and residual quantization: k-means a level."""

import dataclasses
from typing import ClassVar

import numpy as np

from dsi_jax.docids.clustering.kmeans import kmeans, level_seed, residual_kmeans
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.quantized_base import CodedKind, Quantized


@dataclasses.dataclass(frozen=True)
class _KMeansKind(CodedKind):
    """What pq and rq share.

    Attributes:
      iterations: of k-means, at most, a level.
      most_a_code: of more than so many documents times `codes`, as many, drawn at random, are
        learned from, and the others take the nearest codes: bounds time and memory.
    """

    iterations: int = 25
    most_a_code: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.iterations, self.most_a_code) < 1:
            raise ValueError(f"{self}: expected iterations >= 1, most_a_code >= 1")


@dataclasses.dataclass(frozen=True)
class ProductQuantized(_KMeansKind):
    """Product quantization (Jegou et al. 2011; as docids in Ultron, Zhou et al. 2022).

    The dimensions are cut into `levels` runs of equal size, or sizes that differ by one, each
    clustered by itself. A level says nothing of the others: prefixes are no tree of topics.
    """

    kind: ClassVar[str] = "pq"

    def quantize(self, documents: DocumentColumns, seed: int) -> Quantized:
        """See `CodedKind`.

        Raises:
          ValueError: if there are more levels than dimensions.
        """
        embeddings_NxD = documents.embeddings
        count, dimension = embeddings_NxD.shape
        if dimension < self.levels:
            raise ValueError(
                f"pq of {self.levels} levels needs embeddings of at least as many dimensions, "
                f"found {dimension}"
            )
        codes_NxL = np.empty((count, self.levels), np.int32)
        books = np.zeros((self.levels, self.codes, dimension), np.float32)
        for level, part in enumerate(np.array_split(np.arange(dimension), self.levels)):
            found = kmeans(
                embeddings_NxD[:, part[0] : part[-1] + 1],  # a view
                self.codes,
                seed=level_seed(seed, level),
                iterations=self.iterations,
                most=self.most_a_code * self.codes,
                engine=self.resolved_engine(),
            )
            codes_NxL[:, level] = found.labels
            books[level, : len(found.centroids), part] = found.centroids.T
        return Quantized(codes_NxL, books, embeddings_NxD)


@dataclasses.dataclass(frozen=True)
class ResidualQuantized(_KMeansKind):
    """Residual quantization (Chen et al. 2010; as docids in RIPOR, Zeng et al. 2024).

    The first level clusters the embeddings, each further one what the levels before left of them.
    """

    kind: ClassVar[str] = "rq"

    def quantize(self, documents: DocumentColumns, seed: int) -> Quantized:
        """See `CodedKind`."""
        codes_NxL, books = residual_kmeans(
            documents.embeddings,
            self.levels,
            self.codes,
            seed=seed,
            iterations=self.iterations,
            most=self.most_a_code * self.codes,
            engine=self.resolved_engine(),
        )
        return Quantized(codes_NxL, books, documents.embeddings)
