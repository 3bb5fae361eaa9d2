"""Reads corpora in BEIR's layout (Thakur et al. 2021, arXiv:2104.08663).

A directory with `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl` (`_id`,
`text`) and `qrels/{train,dev,test}.tsv` (query id, document id, score; a header is
optional). Queries and qrels may be absent.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsi_jax.data.corpora import corpus

logger = logging.getLogger(__name__)

_SPLIT_OF_STEM = {"train": "train", "dev": "dev", "validation": "dev", "test": "test"}


def load(directory: Path) -> corpus.Corpus:
    """Reads the corpus in `directory`.

    Raises:
      ValueError: naming file and line, if a file is missing or empty, a line is not
        JSON, a field is missing, an id is repeated, a document has no text, a qrel
        has another number of columns or names an unknown query or document.
    """
    keys, titles, texts = _read_documents(directory / "corpus.jsonl")
    queries = {}
    files = sorted((directory / "qrels").glob("*.tsv"))
    if files:
        texts_by_id = _read_queries(directory / "queries.jsonl")
        rows_by_key = {key: row for row, key in enumerate(keys)}
        for file in files:
            split = _split_of(file)
            if split in queries:
                raise ValueError(f"{file}: another file already holds the split '{split}'")
            relevant = _read_qrels(file, texts_by_id, rows_by_key)
            queries[split] = corpus.make_query_set(texts_by_id, relevant)
    elif (directory / "queries.jsonl").exists():
        logger.info("%s has no qrels/*.tsv: its queries.jsonl is not used.", directory)
    return corpus.Corpus(directory.resolve().name, keys, titles, texts, queries)


def _split_of(file: Path) -> str:
    if file.stem not in _SPLIT_OF_STEM:
        raise ValueError(f"{file}: '{file.stem}' is no split; expected one of {[*_SPLIT_OF_STEM]}")
    return _SPLIT_OF_STEM[file.stem]


def _read_documents(file: Path) -> tuple[list[str], list[str], list[str]]:
    keys, titles, texts = [], [], []
    first_line: dict[str, int] = {}
    for number, record in _read_json_lines(file):
        key = _string(record, "_id", file, number)
        _check_new(first_line, key, file, number)
        title = _string(record, "title", file, number, default="")
        text = _string(record, "text", file, number)
        if not title.strip() and not text.strip():
            raise ValueError(f"{file}:{number}: document '{key}' has neither title nor text")
        keys.append(key)
        titles.append(title)
        texts.append(text)
    if not keys:
        raise ValueError(f"{file} is empty; expected at least one document")
    return keys, titles, texts


def _read_queries(file: Path) -> dict[str, str]:
    queries: dict[str, str] = {}
    first_line: dict[str, int] = {}
    for number, record in _read_json_lines(file):
        query_id = _string(record, "_id", file, number)
        _check_new(first_line, query_id, file, number)
        text = _string(record, "text", file, number)
        if not text.strip():
            raise ValueError(f"{file}:{number}: query '{query_id}' has no text")
        queries[query_id] = text
    return queries


def _read_qrels(
    file: Path, queries: dict[str, str], rows_by_key: dict[str, int]
) -> dict[str, dict[int, float]]:
    """Query id -> {row: score}, of the pairs with a score above zero."""
    relevant: dict[str, dict[int, float]] = {}
    for number, line in _read_lines(file):
        columns = line.split("\t")
        if len(columns) != 3:
            raise ValueError(
                f"{file}:{number}: expected 3 columns (query id, document id, score) separated by "
                f"tabs, found {len(columns)}"
            )
        query_id, key, score_text = (column.strip() for column in columns)
        score = _number(score_text)
        if score is None:
            if number == 1 and query_id not in queries:
                continue  # a header
            raise ValueError(f"{file}:{number}: expected a number as score, found '{score_text}'")
        if query_id not in queries:
            raise ValueError(f"{file}:{number}: unknown query '{query_id}'")
        if key not in rows_by_key:
            raise ValueError(f"{file}:{number}: unknown document '{key}'")
        if score > 0:
            grades = relevant.setdefault(query_id, {})
            if grades.setdefault(rows_by_key[key], score) != score:
                raise ValueError(
                    f"{file}:{number}: query '{query_id}' and document '{key}' have the score "
                    f"{score} here and {grades[rows_by_key[key]]} above"
                )
    if not relevant:
        raise ValueError(f"{file} has no pair with a score above zero")
    return relevant


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_lines(file: Path) -> Iterator[tuple[int, str]]:
    if not file.is_file():
        raise ValueError(f"missing file {file}")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}:{number}: not UTF-8: {error.reason}") from error
            if text.strip():
                yield number, text


def _read_json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _read_lines(file):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: malformed JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(
                f"{file}:{number}: expected a JSON object, found {type(record).__name__}"
            )
        yield number, record


def _string(
    record: dict[str, Any], field: str, file: Path, number: int, default: str | None = None
) -> str:
    """The field as text; ids may be numbers, and a null counts as absent."""
    value = record.get(field)
    if value is None:
        value = default
    if isinstance(value, int) and field == "_id":
        value = str(value)
    if value is None:
        raise ValueError(f"{file}:{number}: missing field '{field}'; found {sorted(record)}")
    if not isinstance(value, str):
        raise ValueError(
            f"{file}:{number}: field '{field}' is {type(value).__name__}; expected a string"
        )
    if field == "_id" and not value:
        raise ValueError(f"{file}:{number}: field '_id' is empty")
    return value


def _check_new(first_line: dict[str, int], identifier: str, file: Path, number: int) -> None:
    if first_line.setdefault(identifier, number) != number:
        raise ValueError(
            f"{file}:{number}: id '{identifier}' is already that of line {first_line[identifier]}"
        )
