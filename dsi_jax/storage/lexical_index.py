"""Weights of words in documents, as one file."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.utils import atomic_files


@dataclasses.dataclass(frozen=True, eq=False)
class LexicalIndex:
    """The postings of each stem: the documents that it speaks for, and how much.

    Attributes:
      vocabulary: stems and their ids.
      indptr: int64 [ids + 1]; the postings of id i are `indptr[i]` to `indptr[i + 1] - 1`. The id
        of no word has none.
      rows: int32 [P], the document of each posting.
      weights: float32 [P], what it adds to the document's score, the largest of a stem first.
      num_documents: N.
      origin: what the weights were made of; another origin makes others.
    """

    vocabulary: LexicalVocabulary
    indptr: np.ndarray
    rows: np.ndarray
    weights: np.ndarray
    num_documents: int
    origin: str = ""

    @property
    def most_postings(self) -> int:
        """The length of the longest list of postings; at least 1."""
        return int(max(1, np.diff(self.indptr).max()))

    def scores(self, texts: list[str]) -> np.ndarray:
        """Returns the sum of the postings of each text's distinct stems, float32 [Q, N]."""
        scores_QxN = np.zeros((len(texts), self.num_documents), np.float32)
        for scores_N, text in zip(scores_QxN, texts, strict=True):
            for i in set(self.vocabulary.ids(text)):
                own = slice(self.indptr[i], self.indptr[i + 1])
                scores_N[self.rows[own]] += self.weights[own]  # no document stands twice in a list
        return scores_QxN

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
          OSError: it cannot be written.
        """
        about = {
            "vocabulary": self.vocabulary.spec(),
            "num_documents": self.num_documents,
            "origin": self.origin,
        }
        buffer = io.BytesIO()
        np.savez(
            buffer,
            indptr=self.indptr,
            rows=self.rows,
            weights=self.weights,
            about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )
        atomic_files.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> LexicalIndex:
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is not one of these; the path is named.
        """
        try:
            with np.load(path) as arrays:
                about = json.loads(arrays["about"].tobytes())
                return cls(
                    vocabulary=LexicalVocabulary.from_spec(about["vocabulary"]),
                    indptr=arrays["indptr"],
                    rows=arrays["rows"],
                    weights=arrays["weights"],
                    num_documents=about["num_documents"],
                    origin=about["origin"],
                )
        except (ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{path} is no lexical index: {error}; remove it") from error
