"""What the constraint costs: (trie - free) / free, in the same decoder on the same queries.

    python -m benchmarks.constraint_share --cores 0 --documents 100000 1000000

Both decode L steps of all beams. Before anything is timed, every docid that the constrained search
finds must be a document's, and have the score that the model gives it, token by token.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks import decoders, made_docids, timing


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape, number of documents and batch size."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    for shape in options.shapes:
        for documents in options.documents:
            for batch in options.batches:
                setting = decoders.Setting(
                    options.model,
                    documents,
                    options.codes,
                    options.length,
                    batch,
                    shape=shape,
                    vocab_size=options.vocab_size,
                )
                made = decoders.Decoders(setting)
                searches = {
                    "trie": made.ours(options.beams),
                    "free": made.ours(options.beams, free=True),
                }
                check(made, *searches["trie"]())
                timings = timing.measure(searches, rounds=options.rounds)
                timing.emit(
                    kind="measurement",
                    name="constraint_share",
                    **dataclasses.asdict(setting),
                    beams=options.beams,
                    cores=cores,
                    **timing.line(timings, lambda timings=timings: figures(timings)),
                )
    return 0


def figures(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """The share of the free search's time that the constraint adds; negative: it saves time."""
    return {"constraint_share": timings["trie"].p50 / timings["free"].p50 - 1}


def check(made: decoders.Decoders, tokens: np.ndarray, scores: np.ndarray) -> None:
    """Stops unless all are documents, none twice, with the scores of teacher forcing.

    Raises:
      SystemExit: if they are not.
    """
    rows = made.table.rows_of(tokens)
    if (rows < 0).any() or any(len(set(own)) < len(own) for own in rows.tolist()):
        raise SystemExit("the constrained search found what is no document, or one twice")
    if not np.allclose(scores, made.scores_of(tokens), atol=decoders.TOLERANCE, rtol=0):
        raise SystemExit("the constrained search has other scores than the model")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", nargs="+", type=int, default=[100_000, 1_000_000])
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--batches", nargs="+", type=int, default=[1, 8])
    add("--beams", type=int, default=10)
    add("--vocab_size", type=int, help="of the text; default: the model's")
    add("--rounds", type=int, default=11)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
