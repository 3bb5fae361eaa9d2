"""Ranked documents as a person and a program read them."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Hit:
    """A ranked document.

    Attributes:
      key: the document's string name.
      row: its position in the corpus.
      score: of a DSI, the log-probability of its docid given the query (natural log).
      title: its title, "" where the corpus has none.
      text: its text, "" where the documents are not stored beside the model.
    """

    key: str
    row: int
    score: float
    title: str = ""
    text: str = ""


def as_text(query: str, hits: Sequence[Hit], width: int = 100) -> str:
    """A query and its documents as lines for a terminal."""
    lines = [f"\n? {query}"]
    for rank, hit in enumerate(hits, start=1):
        head = f"{rank:3d}. {hit.score:8.3f}  {hit.key}"
        if hit.title and hit.title != hit.key:
            head += f"  |  {hit.title}"
        lines.append(head)
        if hit.text:
            body = textwrap.shorten(hit.text, width=2 * (width - 15), placeholder=" ...")
            lines += textwrap.wrap(
                body, width - 15, initial_indent=15 * " ", subsequent_indent=15 * " "
            )
    if not hits:
        lines.append("     (no document)")
    return "\n".join(lines)
