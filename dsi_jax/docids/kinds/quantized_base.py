"""From codes, in which documents may collide, to docids of their own.

The kinds that quantize embeddings (pq, rq, rqvae, irgen) end here. A document's code at level l
stands for the vector ``books[l, code]``, and its codes together for the sum of their vectors.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.clustering.kmeans import ENGINES, default_engine
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.base import Embedder, check_embeddings
from dsi_jax.docids.embedders.image import ImageEmbedder
from dsi_jax.docids.embedders.precomputed import Precomputed
from dsi_jax.docids.embedders.text import TfidfSvd
from dsi_jax.docids.numbers import digits, num_digits
from dsi_jax.docids.sorting import packed
from dsi_jax.docids.table import DocidTable

VOCABULARIES = ("per_level", "shared")
COLLISIONS = ("extra_level", "nearest", "ties")

_ROWS = 1 << 16  # documents whose vectors are held at a time


class Quantized(NamedTuple):
    """Vectors and the codes that a quantizer gives them.

    Attributes:
      codes: integers [N, L] below K.
      books: float32 [L, K, D], the vector of each code.
      points: float [N, D], what was quantized; may be a mapped file.
      about: what else the table's parameters shall tell of the quantizer; plain JSON.
    """

    codes: np.ndarray
    books: np.ndarray
    points: np.ndarray
    about: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class CodedKind(DocidBuilder):
    """A docid kind that quantizes embeddings; a kind defines `kind` and `quantize`.

    Attributes:
      levels: L, the codes of a document.
      codes: K, the codes of a level.
      vocabulary: "per_level", each level has K tokens of its own (code c of level l is the token
        2 + l K + c), or "shared", all levels use the same K tokens.
      collisions: the rule for documents whose L codes are equal. "extra_level": one more level, on
        which they are numbered in a seeded random order and all others are 0; written in base K
        with as many digits as the largest number needs. "nearest": the one that its codes describe
        best keeps them, the others, in the order of their distances, take the nearest free code of
        the last level; where that level is full, the nearest of the level before that has room.
        "ties": they share a docid, and rank in a seeded random order where it is found.
      embedder: makes the embeddings from the documents' texts or images; None where the documents
        come with vectors from elsewhere. It is only recorded here: the caller embeds.
      engine: who computes k-means: "numpy" or "jax"; None: NumPy on CPUs, JAX on accelerators. The
        table tells which.
    """

    levels: int = 4
    codes: int = 256
    vocabulary: str = "per_level"
    collisions: str = "extra_level"
    embedder: Embedder | ImageEmbedder | Precomputed | None = dataclasses.field(
        default_factory=TfidfSvd
    )
    engine: str | None = None

    def __post_init__(self) -> None:
        if self.levels < 1 or self.codes < 2:
            raise ValueError(f"{self}: expected levels >= 1 and codes >= 2")
        known = {
            "vocabulary": VOCABULARIES,
            "collisions": COLLISIONS,
            "engine": (None, *ENGINES),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {values}")

    def resolved_engine(self) -> str:
        """The engine, chosen by JAX's default backend where none is given."""
        return self.engine or default_engine()

    @abc.abstractmethod
    def quantize(self, documents: DocumentColumns, seed: int) -> Quantized:
        """Gives each document its codes; equal arguments give equal codes.

        Args:
          documents: the columns; their embeddings have been checked.
          seed: seed of every random choice.
        """

    def check_count(self, num_documents: int) -> None:
        """See `DocidBuilder`."""
        if self.collisions == "nearest" and self.codes**self.levels < num_documents:
            raise ValueError(
                f"{self.levels} levels of {self.codes} codes give {self.codes**self.levels} "
                f"docids, the corpus has {num_documents} documents; collisions = 'extra_level' "
                "makes room for all"
            )

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`.

        Raises:
          ValueError: if the embeddings are missing, not finite, or not one vector a document, or
            there are more documents than `check_count` lets pass.
        """
        self.check_count(len(documents))
        check_embeddings(documents.embeddings, len(documents))
        return self.table(self.quantize(documents, seed), documents, seed)

    def table(self, quantized: Quantized, documents: DocumentColumns, seed: int) -> DocidTable:
        """Makes the table of documents with these codes, by `vocabulary` and `collisions`.

        Its parameters are the kind's, what the quantizer says of itself, the seed, and `collided`:
        how many there are beyond the first of each group of documents with the same codes.
        """
        codes_NxL = np.asarray(quantized.codes, np.int32)
        ordered_N = np.sort(_packed(codes_NxL))  # many times faster than `np.unique`
        collided = int((ordered_N[1:] == ordered_N[:-1]).sum())
        del ordered_N
        if collided and self.collisions == "nearest":
            codes_NxL = nearest_free(quantized)
        elif collided and self.collisions == "extra_level":
            numbers_NxE = numbered(codes_NxL, self.codes, np.random.default_rng(seed))
            codes_NxL = np.concatenate([codes_NxL, numbers_NxE], axis=1)
        num_codes = self.codes
        if self.vocabulary == "per_level":
            firsts_L = self.codes * np.arange(codes_NxL.shape[1], dtype=np.int32)
            codes_NxL = codes_NxL + firsts_L
            # Of the numbers' levels only what is used: most often a handful.
            num_codes = max(self.codes * self.levels, int(codes_NxL.max()) + 1)
        parameters = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parameters["embedder"] = None if self.embedder is None else self.embedder.describe()
        parameters["engine"] = self.resolved_engine()
        return DocidTable.from_codes(
            codes_NxL,
            num_codes=num_codes,
            keys=documents.keys,
            kind=self.kind,
            parameters=parameters | dict(quantized.about) | {"seed": seed, "collided": collided},
            corpus_hash=documents.corpus_hash,
            tie_seed=seed if collided and self.collisions == "ties" else None,
        )


def numbered(codes_NxL: np.ndarray, base: int, rng: np.random.Generator) -> np.ndarray:
    """Digits int32 [N, E] that number the documents of equal codes 0, 1, ... in random order."""
    _, group_N = np.unique(_packed(codes_NxL), return_inverse=True)
    order = np.lexsort((rng.permutation(len(codes_NxL)), group_N))
    starts = np.flatnonzero(np.diff(group_N[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    numbers_N = np.empty(len(order), np.int64)
    numbers_N[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    width = num_digits(int(sizes.max()), base)
    return digits(numbers_N, base, width).astype(np.int32)


def nearest_free(quantized: Quantized) -> np.ndarray:
    """Codes int32 [N, L] by the rule "nearest" of `CodedKind`: each document has its own."""
    codes_NxL = np.array(quantized.codes, np.int32)
    nearest_first_N = np.argsort(_distances(quantized), kind="stable")
    _, firsts = np.unique(_packed(codes_NxL)[nearest_first_N], return_index=True)
    waits_N = np.ones(len(codes_NxL), bool)  # in the order of distances
    waits_N[firsts] = False
    taken = _Taken(codes_NxL[nearest_first_N[firsts]], quantized.books.shape[1])
    for row in nearest_first_N[waits_N]:
        target = codes_NxL[row].tolist()
        codes = _first_free(quantized, quantized.points[row], target, taken)
        codes_NxL[row] = codes
        taken.add(codes)
    return codes_NxL


def _distances(quantized: Quantized) -> np.ndarray:
    """The squared distance of each point to what its codes describe; float32 [N]."""
    distances_N = np.empty(len(quantized.codes), np.float32)
    for start in range(0, len(distances_N), _ROWS):
        part = slice(start, start + _ROWS)
        rest_BxD = np.array(quantized.points[part], np.float32)
        for book_KxD, code_N in zip(quantized.books, quantized.codes.T, strict=True):
            rest_BxD -= book_KxD[code_N[part]]
        distances_N[part] = (rest_BxD**2).sum(axis=1)
    return distances_N


class _Taken:
    """Which codes are taken: of documents that keep theirs, sorted; of those that came later."""

    def __init__(self, kept_UxL: np.ndarray, num_codes: int) -> None:
        self._num_codes, self._num_levels = num_codes, kept_UxL.shape[1]
        self._dtype = np.min_scalar_type(num_codes - 1)
        self._kept_U = np.sort(packed(kept_UxL.astype(self._dtype)))
        self._later: dict[tuple[int, ...], int] = {}  # how many are below a prefix

    def add(self, codes: tuple[int, ...]) -> None:
        """Takes a document's codes."""
        for level in range(len(codes) + 1):
            self._later[codes[:level]] = self._later.get(codes[:level], 0) + 1

    def free_below(self, prefix: tuple[int, ...]) -> bool:
        """Whether any codes that begin so are not taken."""
        ends_2xL = np.zeros((2, self._num_levels), self._dtype)
        ends_2xL[1] = self._num_codes - 1
        ends_2xL[:, : len(prefix)] = prefix
        first, last = packed(ends_2xL)
        kept = self._kept_U.searchsorted(last, "right") - self._kept_U.searchsorted(first)
        room = self._num_codes ** (self._num_levels - len(prefix))
        return int(kept) + self._later.get(prefix, 0) < room


def _first_free(
    quantized: Quantized, point: np.ndarray, codes: list[int], taken: _Taken
) -> tuple[int, ...]:
    """The free codes that keep the longest prefix of `codes`, and then go to the nearest."""
    num_levels = len(codes)
    kept = next(n for n in range(num_levels - 1, -1, -1) if taken.free_below(tuple(codes[:n])))
    found = tuple(codes[:kept])
    while len(found) < num_levels:
        rest = point - quantized.books[np.arange(len(found)), list(found)].sum(axis=0)
        found = next(
            longer
            for code in _by_distance(quantized.books[len(found)], rest)
            if taken.free_below(longer := (*found, code))
        )
    return found


def _by_distance(book_KxD: np.ndarray, vector: np.ndarray) -> Iterator[int]:
    distances = ((book_KxD - vector) ** 2).sum(axis=1)
    return iter(np.argsort(distances, kind="stable").tolist())


def _packed(codes_NxL: np.ndarray) -> np.ndarray:
    """One comparable value a document."""
    return packed(codes_NxL.astype(np.min_scalar_type(int(codes_NxL.max()))))
