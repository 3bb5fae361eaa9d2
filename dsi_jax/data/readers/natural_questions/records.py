"""What a corpus needs of a record of TFDS `natural_questions`, config `default`.

A record is a question and the whole Wikipedia page that was shown to its annotators, megabytes of
HTML; 8 kilobytes of it are kept. Annotations are not read: DSI and its successors pair a question
with its page whether or not an annotator found an answer there, which is why they count all of
the 307,373 + 7,830 pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

CHARACTERS = 4_000
SPLITS = ("train", "validation")
# The features that are read, in the form of `tfds.decode.PartialDecoding`.
FEATURES = {"id": True, "document": {"title": True, "tokens": True}, "question": {"text": True}}


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a record; all texts in lower case.

    Attributes:
      id: the example's id.
      split: "train" or "validation".
      question: the question.
      title: the page's title; "" where it has none.
      text: the first 4,000 characters of the page's words (`text_of`).
      article: the first 4,000 characters of its first paragraph and what follows (`_article_of`).
    """

    id: str
    split: str
    question: str
    title: str
    text: str
    article: str


@dataclasses.dataclass(frozen=True)
class Records:
    """Columns of records, as `Record` has fields; usually mapped from a file."""

    id: Sequence[str]
    split: Sequence[str]
    question: Sequence[str]
    title: Sequence[str]
    text: Sequence[str]
    article: Sequence[str]

    def __len__(self) -> int:
        return len(self.id)


COLUMNS = tuple(field.name for field in dataclasses.fields(Records))


def read(example: Mapping[str, Any], split: str) -> Record:
    """Reads an example as `tfds.as_numpy` gives it.

    The title is taken where NCI takes it: from the page's first heading in the training split, from
    the field `title` in the other; from the other place where the first one is empty.

    Args:
      example: the example; of its features those of `FEATURES` are read.
      split: the split that it is of.

    Raises:
      ValueError: if the text is not UTF-8; the record is named.
    """
    tokens = example["document"]["tokens"]
    words, is_html = tokens["token"], tokens["is_html"]
    page = _Page(words, is_html)
    try:
        titles = [_lower(page.between(b"<H1>", b"</H1>")), _lower([example["document"]["title"]])]
        if split != "train":
            titles.reverse()
        return Record(
            id=example["id"].decode(),
            split=split,
            question=_lower([example["question"]["text"]]),
            title=titles[0] or titles[1],
            text=text_of(words[~is_html]),
            article=_article_of(page),
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"Natural Questions, record {example['id']!r}: {error}") from error


def text_of(words: Iterable[bytes]) -> str:
    """The first 4,000 characters of words, joined by spaces, in lower case.

    DSI's "first 4,000 UTF-8 characters" (Tay et al. 2022, table 4), by which documents are unique.
    A character is a Unicode code point, the unit "UTF8_CHAR" of `tf.strings.substr`, after lower
    case (which may lengthen a text): the cut splits no character and may fall inside a word.
    """
    # Pages are long: no more words are joined than the cut leaves.
    kept, length = [], 0
    for word in words:
        kept.append(word.decode())
        length += len(kept[-1]) + 1
        if length > CHARACTERS:
            break
    return " ".join(kept).lower()[:CHARACTERS]


def _article_of(page: _Page) -> str:
    """NCI's document without its title: the first paragraph, then what follows it.

    As in NCI's notebook (NQ_dataset_Process.ipynb: `abs`, `content`) the text before the first
    paragraph (boxes and tables) is left out, and so is what follows the last list but one (links
    and categories). A page without a paragraph begins after its heading.
    """
    first, last = page.position(b"<P>"), page.position(b"</P>")
    if first is None or last is None:
        last = page.position(b"</H1>")
        first = last = -1 if last is None else last
    lists = page.positions(b"</Ul>")
    end = lists[-2:][0] if len(lists) else len(page.words)
    kept = [np.arange(first + 1, last), np.arange(last + 1, end)]
    positions = np.concatenate([part[~page.is_html[part]] for part in kept])
    return text_of(page.words[positions])


class _Page:
    """The tokens of a page and the positions of its HTML tags."""

    def __init__(self, words: np.ndarray, is_html: np.ndarray) -> None:
        self.words, self.is_html = words, is_html
        self._positions = np.flatnonzero(is_html)
        self._tags = words[self._positions]

    def positions(self, tag: bytes) -> np.ndarray:
        return self._positions[self._tags == tag]

    def position(self, tag: bytes) -> int | None:
        found = self.positions(tag)
        return int(found[0]) if len(found) else None

    def between(self, opening: bytes, closing: bytes) -> np.ndarray:
        """The words between the first two such tags; none where one is missing."""
        first, last = self.position(opening), self.position(closing)
        if first is None or last is None:
            return self.words[:0]
        part = slice(first + 1, last)
        return self.words[part][~self.is_html[part]]


def _lower(words: Iterable[bytes]) -> str:
    return b" ".join(words).decode().lower().strip()
