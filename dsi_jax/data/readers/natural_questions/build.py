"""Makes a corpus from records: which pairs, which pages are one document, which order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import normalizers, pre_tokenizers

from dsi_jax.data.corpora.corpus import Corpus, QuerySet
from dsi_jax.data.readers.natural_questions.records import SPLITS, Records
from dsi_jax.data.readers.natural_questions.specs import NQSpec

_NORMALIZER = normalizers.BertNormalizer(lowercase=True)
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def build(spec: NQSpec, records: Records) -> Corpus:
    """The corpus of a specification.

    Nothing depends on the order of the records, and nothing on a seed: pairs are drawn, and records
    and documents ordered, by the SHA-256 of their names. So a sample is the same everywhere, and
    part of a larger one. Of the records of one document the first of the training pairs gives the
    text (else the first of the validation pairs). Every pair is a query of its own, also where a
    question is repeated, and whether or not it was answered.

    Args:
      spec: which corpus.
      records: all records of Natural Questions.

    Returns:
      the corpus, with the splits "train" and "dev"; titles and texts are read when they are used.

    Raises:
      ValueError: if records are missing, an id is repeated, or a record has no question, or neither
        title nor text.
    """
    chosen = _choose(spec, records)
    key_of = _KEYS[spec.unique_by]
    keys = {r: key_of(records, r) for r in [*chosen["train"], *chosen["dev"]]}
    record_of: dict[str, int] = {}
    for record, key in keys.items():
        record_of.setdefault(key, record)
    ordered = sorted(record_of, key=_digest)
    row_of = {key: row for row, key in enumerate(ordered)}
    title_of, text_of = _COLUMNS[spec.unique_by]
    originals = [record_of[key] for key in ordered]
    return Corpus(
        name=spec.name,
        keys=ordered,
        titles=_Column(title_of, records, originals),
        texts=_Column(text_of, records, originals),
        queries={
            split: QuerySet(
                ids=[records.id[r] for r in part],
                texts=[records.question[r] for r in part],
                relevant=[np.array([row_of[keys[r]]], np.int32) for r in part],
                relevance=[np.ones(1, np.float32)] * len(part),
            )
            for split, part in chosen.items()
        },
    )


def _choose(spec: NQSpec, records: Records) -> dict[str, list[int]]:
    """Split of the corpus -> its records, in their order."""
    ids = list(records.id)
    if len(set(ids)) < len(ids):
        raise ValueError(f"Natural Questions: {len(ids)} records have {len(set(ids))} ids")
    by_split: dict[str, list[int]] = {split: [] for split in SPLITS}
    for record, split in enumerate(records.split):
        by_split[split].append(record)
    for part in by_split.values():
        part.sort(key=lambda r: _digest(ids[r]))
    train, validation = by_split["train"], by_split["validation"]
    if spec.sampled:
        total = spec.train + spec.validation
        if len(train) < total:
            raise ValueError(
                f"corpus '{spec.name}' is a sample of {total:,} training pairs of Natural "
                f"Questions; the data has {len(train):,}"
            )
        return {"train": train[: spec.train], "dev": train[spec.train : total]}
    found, expected = (len(train), len(validation)), (spec.train, spec.validation)
    if found != expected:
        raise ValueError(
            f"corpus '{spec.name}' needs {expected[0]:,} training and {expected[1]:,} validation "
            f"pairs of Natural Questions; the data has {found[0]:,} and {found[1]:,}"
        )
    return {"train": train, "dev": validation}


def _text(records: Records, record: int) -> str:
    return records.text[record] or records.title[record]


def _article(records: Records, record: int) -> str:
    return records.article[record] or records.text[record]


def _text_key(records: Records, record: int) -> str:
    text = _text(records, record)
    if not text.strip():
        raise ValueError(
            f"Natural Questions, record '{records.id[record]}': neither title nor text"
        )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _title_key(records: Records, record: int) -> str:
    """The title; pages without one are unique by their text."""
    return normalized_title(records.title[record]) or _text_key(records, record)


def normalized_title(title: str) -> str:
    """A title as BERT's uncased tokenizer splits it, which is how NCI compares titles.

    Lower case, without accents, punctuation set apart, white space folded. NCI goes through
    WordPiece and back, too; that makes two titles equal only where they differ in words that its
    vocabulary cannot spell.
    """
    pieces = _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(title))
    return " ".join(piece for piece, _ in pieces)


_KEYS = {"text": _text_key, "title": _title_key}
# By what makes documents unique: how they get title and text. A page's text begins with its title,
# NCI's article does not.
_COLUMNS = {
    "text": (lambda records, record: "", _text),
    "title": (lambda records, record: records.title[record], _article),
}


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class _Column(Sequence[str]):
    """Strings of some records, read when they are used."""

    def __init__(
        self, value: Callable[[Records, int], str], records: Records, chosen: list[int]
    ) -> None:
        self._value, self._records, self._chosen = value, records, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self._value(self._records, record) for record in self._chosen[row]]
        return self._value(self._records, self._chosen[row])
