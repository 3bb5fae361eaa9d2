"""Reads SQuAD v1.1 JSON (Rajpurkar et al. 2016, arXiv:1606.05250) as a retrieval corpus.

Each paragraph is a document, unique by its text; each question is a query for its
paragraph. Questions are divided at random into train, dev and test.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.data.corpora import corpus

_TRAIN, _DEV = 0.8, 0.1


def load(file: Path, seed: int) -> corpus.Corpus:
    """Reads `file`; document keys are hashes of the paragraphs.

    Args:
      file: a SQuAD v1.1 JSON file.
      seed: decides which 80% of the questions train, which 10% are dev and test.

    Raises:
      ValueError: if the file is not SQuAD JSON, a question id is repeated or a
        paragraph or question is empty.
    """
    try:
        articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: expected SQuAD JSON, an object with the field 'data'") from error

    row_of_text: dict[str, int] = {}
    titles: list[str] = []
    queries: dict[str, str] = {}
    relevant: dict[str, dict[int, float]] = {}
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_field(article, "paragraphs", list, file, f"data[{a}]")):
            where = f"data[{a}].paragraphs[{p}]"
            text = _field(paragraph, "context", str, file, where)
            if not text.strip():
                raise ValueError(f"{file}: {where}: the paragraph is empty")
            if text not in row_of_text:
                row_of_text[text] = len(row_of_text)
                titles.append(str(article.get("title", "")).replace("_", " "))
            for q, question in enumerate(_field(paragraph, "qas", list, file, where)):
                name = f"{where}.qas[{q}]"
                query_id = _field(question, "id", str, file, name)
                if query_id in queries:
                    raise ValueError(f"{file}: {name}: the question id '{query_id}' is repeated")
                queries[query_id] = _field(question, "question", str, file, name)
                if not queries[query_id].strip():
                    raise ValueError(f"{file}: {name}: the question '{query_id}' is empty")
                relevant[query_id] = {row_of_text[text]: 1.0}

    texts = list(row_of_text)
    keys = [hashlib.sha256(text.encode("utf-8")).hexdigest()[:16] for text in texts]
    return corpus.Corpus(file.stem, keys, titles, texts, _split(queries, relevant, seed))


def _field(record: Any, name: str, kind: type, file: Path, where: str) -> Any:
    if not isinstance(record, dict) or not isinstance(record.get(name), kind):
        raise ValueError(f"{file}: {where}: expected a field '{name}' of type {kind.__name__}")
    return record[name]


def _split(
    queries: dict[str, str], relevant: dict[str, dict[int, float]], seed: int
) -> dict[str, corpus.QuerySet]:
    everything = corpus.make_query_set(queries, relevant)
    order = np.random.default_rng(seed).permutation(len(everything))
    ends = (np.array([_TRAIN, _TRAIN + _DEV]) * len(everything)).round().astype(int)
    parts = dict(zip(corpus.SPLITS, np.split(order, ends), strict=True))
    return {split: everything.subset(np.sort(part)) for split, part in parts.items() if len(part)}
