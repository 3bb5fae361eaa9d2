"""What docids can be made of: the columns of a corpus, each made when it is first asked for."""

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from dsi_jax.inputs.tokenizer import Tokenizer


class DocumentColumns:
    """The documents of a corpus as a docid kind reads them: columns of N rows in corpus order.

    This class holds columns that are given. A subclass overrides those that it makes or reads, as
    `functools.cached_property`, so that a column costs nothing until a kind asks for it.

    Attributes:
      keys: N document keys.
      corpus_hash: the content hash of the corpus; tables carry it.

    Example:
      >>> documents = DocumentColumns(["a", "b"], titles=["Bees", "Ants"])
      >>> len(documents), documents.titles
      (2, ['Bees', 'Ants'])
      >>> documents.classes
      Traceback (most recent call last):
      ValueError: these docids need classes of the documents, found none
    """

    def __init__(
        self,
        keys: Sequence[str],
        corpus_hash: str = "",
        *,
        titles: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
        embeddings: np.ndarray | None = None,
        tokenizer: Tokenizer | None = None,
        classes: Sequence[Any] | np.ndarray | None = None,
    ) -> None:
        """Initialises; None: there is no such column."""
        self.keys = keys
        self.corpus_hash = corpus_hash
        self._titles = titles
        self._texts = texts
        self._embeddings = embeddings
        self._tokenizer = tokenizer
        self._classes = classes

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def titles(self) -> Sequence[str]:
        """N titles, "" where a document has none.

        Raises:
          ValueError: there is no such column; so do all below.
        """
        return self._lacks("titles") if self._titles is None else self._titles

    @property
    def texts(self) -> Sequence[str]:
        """N texts, "" where a document has only a title."""
        return self._lacks("texts") if self._texts is None else self._texts

    @property
    def embeddings(self) -> np.ndarray:
        """The vectors that the kind's embedder makes, float [N, D]; may be a mapped file."""
        return self._lacks("embeddings") if self._embeddings is None else self._embeddings

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the texts."""
        return self._lacks("a tokenizer") if self._tokenizer is None else self._tokenizer

    @property
    def classes(self) -> np.ndarray:
        """The class of each document [N]."""
        return self._lacks("classes") if self._classes is None else np.asarray(self._classes)

    def _lacks(self, column: str) -> NoReturn:
        raise ValueError(f"these docids need {column} of the documents, found none")
