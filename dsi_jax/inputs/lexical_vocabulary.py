"""Text -> stems of its words, the same when weights are fitted, in training and in search.

The vocabulary travels with every checkpoint as plain JSON (`spec`), as the tokenizer does.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

NO_WORD = 0  # pads a row of ids
_WORD = re.compile(r"\w+")


class LexicalVocabulary:
    """The stems that documents are made of, numbered from 1.

    Args:
      stems: distinct stems; the id of each is its place, counted from 1.
      language: name of a Snowball stemmer ("english", "german"); None: words stand as they are.

    Attributes:
      stems: the stems, in the order of their ids.
      language: the language, or None.

    Raises:
      ValueError: there is no such stemmer, or a stem stands twice.

    Example:
      >>> vocabulary = LexicalVocabulary.of_documents(["A red, red bee"], language=None)
      >>> vocabulary.encode_batch(["The BEE is red. Red!"], 4).tolist()
      [[3, 2, 0, 0]]
    """

    def __init__(self, stems: Sequence[str], language: str | None = "english") -> None:
        self.stems, self.language = list(stems), language
        self._stem = _stemmer(language)
        self._ids = {stem: i for i, stem in enumerate(self.stems, start=NO_WORD + 1)}
        if len(self._ids) != len(self.stems):
            raise ValueError("a lexical vocabulary has a stem twice; expected each once")

    @classmethod
    def of_documents(cls, texts: Iterable[str], language: str | None) -> LexicalVocabulary:
        """Collects the stems of all words of the texts, in the order in which they first appear."""
        stem = _stemmer(language)
        stems: dict[str, None] = {}
        for text in texts:
            stems.update(dict.fromkeys(stem(_words(text))))
        return cls(list(stems), language)

    @classmethod
    def from_spec(cls, value: dict[str, Any]) -> LexicalVocabulary:
        """Rebuilds the vocabulary that `spec` described."""
        return cls(value["stems"], value["language"])

    @property
    def size(self) -> int:
        """The number of ids, that of no word included."""
        return len(self.stems) + 1

    @functools.cached_property
    def hash(self) -> str:
        """The SHA-256 of what determines the ids, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode()).hexdigest()

    def spec(self) -> dict[str, Any]:
        """Returns all that `from_spec` needs, as plain JSON."""
        return {"language": self.language, "stems": self.stems}

    def ids(self, text: str | bytes) -> list[int]:
        """Returns the id of each known word, in order, as often as it stands there."""
        found = (self._ids.get(stem) for stem in self._stem(_words(text)))
        return [i for i in found if i is not None]

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """Finds the distinct stems of texts.

        Args:
          texts: B strings, or their UTF-8 bytes.
          length: W >= 1, the most stems kept of a text.

        Returns:
          int32 [B, W]: ids in the order in which they first appear, then `NO_WORD`s.
        """
        words_BxW = np.full((len(texts), length), NO_WORD, np.int32)
        for row_W, text in zip(words_BxW, texts, strict=True):
            distinct = list(dict.fromkeys(self.ids(text)))[:length]
            row_W[: len(distinct)] = distinct
        return words_BxW


def check_language(language: str | None) -> None:
    """Checks that texts of a language can be stemmed.

    Raises:
      ValueError: there is no such stemmer.
    """
    _stemmer(language)


def _words(text: str | bytes) -> list[str]:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return _WORD.findall(text.lower())


def _stemmer(language: str | None) -> Callable[[list[str]], list[str]]:
    if language is None:
        return lambda words: words
    import Stemmer  # only an index with a lexical head needs it

    if language not in Stemmer.algorithms():
        raise ValueError(
            f"the language of the lexical head is {language!r}; expected None or one of "
            f"{', '.join(sorted(Stemmer.algorithms()))}"
        )
    return Stemmer.Stemmer(language).stemWords
