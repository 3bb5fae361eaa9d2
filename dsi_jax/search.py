"""`dsi-jax search MODEL_DIR "a query"` or `--image FILE`: documents in the terminal, or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from dsi_jax.cli import terminal
from dsi_jax.decoding.strategies import BeamSearch, Decoding, Greedy, Sampling
from dsi_jax.ranking.hits import Hit, as_text
from dsi_jax.retriever import Retriever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="directory of a training run")
    parser.add_argument("query", nargs="*", help="queries; none: one a line from standard input")
    parser.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="an image as a query; many"
    )
    parser.add_argument("-k", type=int, default=5, help="documents a query (default: 5)")
    parser.add_argument("--beam_size", type=int, default=10, help="beams a query (default: 10)")
    parser.add_argument("--step", type=int, help="checkpoint to load (default: the newest)")
    parser.add_argument("--docid_table", help="directory of the docid table, if it was moved")
    parser.add_argument("--constraint", choices=("trie", "free"), default="trie")
    parser.add_argument("--decoding", choices=("beams", "greedy", "sampling"), default="beams")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (default: 1)")
    parser.add_argument("--seed", type=int, default=42, help="of sampling (default: 42)")
    for name, what in (("allow", "the only documents"), ("deny", "documents not")):
        text = f"{what} to be found, one key a line"
        parser.add_argument(f"--{name}", metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="one JSON object a query and line")
    parser.add_argument(
        "--traceback", action="store_true", help="print Python's traceback with an error"
    )


def run(arguments: argparse.Namespace, out: TextIO | None = None) -> int:
    """Answers every query on `out`, by default standard output; returns the exit status."""
    out = out or sys.stdout
    keys = {name: _keys(getattr(arguments, name)) for name in ("allow", "deny")}
    retriever = Retriever.load(
        arguments.model_dir,
        step=arguments.step,
        docid_table=arguments.docid_table,
        beam_size=arguments.beam_size,
        constraint=arguments.constraint,
        decoding=_decoding(arguments),
    )
    lists = {
        name: None if listed is None else retriever.rows_of(listed, getattr(arguments, name))
        for name, listed in keys.items()
    }
    try:
        for image in arguments.image:
            _print(
                [image], [retriever.search_image(image, arguments.k, **lists)], arguments.json, out
            )
        if arguments.image and not arguments.query:
            return 0
        for queries in _batches(arguments.query):
            found = retriever.search_batch(queries, arguments.k, **lists)
            _print(queries, found, arguments.json, out)
    except BrokenPipeError:  # whoever reads, such as `head`, has enough
        # Python would complain when it flushes the rest at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    return 0


def _decoding(arguments: argparse.Namespace) -> Decoding:
    if arguments.decoding == "sampling":
        return Sampling(arguments.temperature, arguments.seed)
    return Greedy() if arguments.decoding == "greedy" else BeamSearch()


def _keys(file: str | None) -> list[str] | None:
    """The lines of a file that are not empty."""
    if file is None:
        return None
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{file} is no file; expected document keys, one a line")
    lines = path.read_text("utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _print(
    queries: Sequence[str], found: Sequence[Sequence[Hit]], as_json: bool, out: TextIO
) -> None:
    for query, hits in zip(queries, found, strict=True):
        print(_as_json(query, hits) if as_json else as_text(query, hits), file=out)
    out.flush()


def _batches(queries: Sequence[str]) -> Iterator[Sequence[str]]:
    """The queries given, all at once, or those of standard input, each as soon as it comes."""
    if queries:
        yield queries
        return
    for line in sys.stdin:
        if line.strip():
            yield [line.strip()]


def _as_json(query: str, hits: Sequence[Hit]) -> str:
    return json.dumps({"query": query, "hits": [dataclasses.asdict(h) for h in hits]})


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dsi-jax search", description="Search a trained index.")
    add_arguments(parser)
    # Intermixed: queries may stand behind options, as in `MODEL_DIR --image FILE "a query"`.
    arguments = parser.parse_intermixed_args(argv)
    return terminal.guarded(lambda: run(arguments), show_traceback=arguments.traceback)


if __name__ == "__main__":
    terminal.run(main)
