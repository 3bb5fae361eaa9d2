"""A list of allowed documents as bits of the trie, against STATIC's rebuild from those documents.

    python -m benchmarks.filter --cores 0 --static DIR --documents 1000000

Before anything is timed, the docids that are found with the bits must be those that STATIC's index
of the allowed documents holds. STATIC's time leaves out the sort, and the compilation that another
index costs. What the bits cost at each step is in `mask_op --filter`.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks import index_build, made_docids, static_peer, timing
from dsi_jax.decoding.document_sets import alive_bits
from dsi_jax.decoding.trie import Trie


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape and number of documents."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    static = static_peer.Static(options.static)
    for count in options.documents:
        for shape in options.shapes:
            codes = made_docids.made_codes(count, options.codes, options.length, shape)
            codes = static_peer.sort(codes)
            allowed = np.random.default_rng(2).random(count) < options.share
            trie = index_build.build(codes, options.codes)
            calls = {
                "bits": lambda trie=trie, allowed=allowed: alive_bits(trie, allowed),
                "static": lambda codes=codes, allowed=allowed: static.build_sorted(
                    codes[allowed], options.codes
                ),
            }
            check(trie, calls["bits"](), allowed)
            index_build.check_contents(
                index_build.build(codes[allowed], options.codes),
                calls["static"](),
                codes[allowed],
                options.codes,
            )
            timings = timing.measure(calls, rounds=options.rounds)
            timing.emit(
                kind="measurement",
                name="filter",
                documents=count,
                shape=shape,
                share=options.share,
                codes=options.codes,
                length=options.length,
                cores=cores,
                **timing.line(timings, lambda timings=timings: ratio(timings)),
            )
    return 0


def ratio(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """How many times faster the bits are."""
    return {"static_over_bits": timings["static"].p50 / timings["bits"].p50}


def check(trie: Trie, bits: np.ndarray, allowed_N: np.ndarray) -> None:
    """Stops unless the bits of the docids are those of the list.

    Raises:
      SystemExit: if they are not.
    """
    alive = np.unpackbits(bits.view(np.uint8), bitorder="little").astype(bool)
    docids = alive[int(trie.first_leaf) :][: len(allowed_N)]
    if not (docids == allowed_N[trie.rows[: len(allowed_N)]]).all():
        raise SystemExit("the bits allow other documents than the list")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", nargs="+", type=int, default=[1_000_000])
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--share", type=float, default=0.2, help="of the documents that are allowed")
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--rounds", type=int, default=11)
    add("--cores", metavar="0-3,8", help="binds the process")
    static_peer.add_option(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
