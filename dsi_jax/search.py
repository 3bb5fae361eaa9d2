"""`dsi-jax search MODEL_DIR "query"`: ranked documents in the terminal, or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from dsi_jax import terminal
from dsi_jax.report import as_text
from dsi_jax.retriever import Hit, Retriever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="directory of a training run")
    parser.add_argument("query", nargs="*", help="queries; none: one a line from standard input")
    parser.add_argument("-k", type=int, default=5, help="documents a query (default: 5)")
    parser.add_argument("--beam_size", type=int, default=10, help="beams a query (default: 10)")
    parser.add_argument("--step", type=int, help="checkpoint to load (default: the newest)")
    parser.add_argument("--docid_table", help="directory of the docid table, if it was moved")
    parser.add_argument("--constraint", choices=("trie", "free"), default="trie")
    parser.add_argument("--json", action="store_true", help="one JSON object a query and line")


def run(arguments: argparse.Namespace, out: TextIO | None = None) -> int:
    """Answers every query on `out`, by default standard output; returns the exit status."""
    out = out or sys.stdout
    retriever = Retriever.load(
        arguments.model_dir,
        step=arguments.step,
        docid_table=arguments.docid_table,
        beam_size=arguments.beam_size,
        constraint=arguments.constraint,
    )
    queries = arguments.query or (line.strip() for line in sys.stdin)
    for chunk in _chunks((q for q in queries if q.strip()), 64 if not sys.stdin.isatty() else 1):
        for query, hits in zip(chunk, retriever.search_batch(chunk, arguments.k), strict=True):
            print(_as_json(query, hits) if arguments.json else as_text(query, hits), file=out)
        out.flush()
    return 0


def _as_json(query: str, hits: Sequence[Hit]) -> str:
    return json.dumps({"query": query, "hits": [dataclasses.asdict(h) for h in hits]})


def _chunks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dsi-jax search", description="Search a trained index.")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return terminal.guarded(lambda: run(arguments), show_traceback=False)


if __name__ == "__main__":
    terminal.run(main)
