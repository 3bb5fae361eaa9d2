"""What it saves to score the known tokens of docids in one pass, against step by step.

    python -m benchmarks.jump --cores 0 --documents 1000000

Both searches must find the same docids with the same scores (1e-4) before anything is timed.
`jump` in a line is the level from which on tokens are scored at once where all beams have one
docid left; null: the docids of that table part too late for it, and both are one program.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from benchmarks import decoders, made_docids, timing
from dsi_jax.decoding.trie import build_trie


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape, kind of docids and batch size."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    for length, codes in options.docids:
        for shape in options.shapes:
            for batch in options.batches:
                setting = decoders.Setting(
                    options.model,
                    options.documents,
                    codes,
                    length,
                    batch,
                    shape=shape,
                    vocab_size=options.vocab_size,
                )
                made = decoders.Decoders(setting)
                searches = {
                    "jump": made.ours(options.beams),
                    "steps": made.ours(options.beams, jump=False),
                }
                decoders.assert_same(searches["jump"](), searches["steps"](), "the jump")
                timings = timing.measure(searches, rounds=options.rounds)
                timing.emit(
                    kind="measurement",
                    name="jump",
                    **dataclasses.asdict(setting),
                    beams=options.beams,
                    jump=build_trie(made.table).jump,
                    cores=cores,
                    **timing.line(timings, lambda timings=timings: figures(timings)),
                )
    return 0


def figures(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """How many times as fast the search with the jump is."""
    return {"speedup": timings["steps"].p50 / timings["jump"].p50}


def _docids(text: str) -> tuple[int, int]:
    length, codes = map(int, text.split("x"))
    return length, codes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", type=int, default=1_000_000)
    add(
        "--docids",
        nargs="+",
        type=_docids,
        default=[(32, 256), (8, 2048)],
        metavar="LxV",
        help="levels and codes of a level; default: 32x256 8x2048",
    )
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--batches", nargs="+", type=int, default=[1, 8])
    add("--beams", type=int, default=10)
    add("--vocab_size", type=int, help="of the text; default: the model's")
    add("--rounds", type=int, default=7)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
