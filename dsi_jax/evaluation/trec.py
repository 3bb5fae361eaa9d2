"""Writes rankings as TREC run files."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence

import numpy as np

from dsi_jax.utils import atomic_files


def write_trec_run(
    path: str | os.PathLike[str],
    query_ids: Sequence[str],
    rows: np.ndarray,
    scores: np.ndarray,
    keys: Sequence[str],
    tag: str = "dsi_jax",
) -> None:
    """Writes rankings as `qid Q0 docid rank score tag`, a line a document.

    Slots of row -1 or with a score that is not finite are left out; ranks start at 1.
    White space in ids, which the format cannot hold, is written as %20 and the like.

    Args:
      path: the file; it is replaced as a whole.
      query_ids: Q ids.
      rows: int [Q, M], best first.
      scores: float [Q, M].
      keys: row -> document key.
      tag: name of the run.

    Raises:
      ValueError: if the shapes disagree.
    """
    rows, scores = np.asarray(rows), np.asarray(scores)
    if rows.shape != scores.shape or len(rows) != len(query_ids):
        raise ValueError(
            f"a run of {len(query_ids)} queries has rows {rows.shape} and scores {scores.shape}"
        )
    with (
        atomic_files.replacing(path) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        for query_id, query_rows, query_scores in zip(query_ids, rows, scores, strict=True):
            rank = 0
            for row, score in zip(query_rows.tolist(), query_scores.tolist(), strict=True):
                if row < 0 or not math.isfinite(score):
                    continue
                rank += 1
                fields = (_token(query_id), "Q0", _token(keys[row]), rank, score, tag)
                file.write(" ".join(map(str, fields)) + "\n")


def _token(identifier: str) -> str:
    return re.sub(r"\s", lambda match: f"%{ord(match.group()):02X}", identifier)
