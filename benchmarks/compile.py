"""Seconds until a search of L levels is compiled, for growing L, against a T5X-like search.

    python -m benchmarks.compile --cores 0 --lengths 8 32

Each round traces and compiles anew; no compilation cache is read. Before anything is timed, both
must find the same docids with the same scores.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import jax

from benchmarks import decoders, timing


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each length."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    jax.config.update("jax_enable_compilation_cache", False)
    for length in options.lengths:
        setting = decoders.Setting(
            options.model,
            options.documents,
            options.codes,
            length,
            vocab_size=options.vocab_size,
        )
        made = decoders.Decoders(setting)
        searches = {"ours": made.ours(options.beams), "t5x": made.t5x(options.beams, "compact")}
        decoders.assert_same(searches["ours"](), searches["t5x"](), "ours")

        def first_call(name: str, searches: dict[str, decoders.Search] = searches) -> None:
            jax.clear_caches()
            searches[name]()

        calls = {name: lambda name=name: first_call(name) for name in searches}
        timings = timing.measure(calls, rounds=options.rounds, warmup=0)
        timing.emit(
            kind="measurement",
            name="compile",
            **dataclasses.asdict(setting),
            beams=options.beams,
            cores=cores,
            **timing.line(timings, lambda timings=timings: ratio(timings)),
        )
    return 0


def ratio(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """Ours as a share of the peer's."""
    return {"ours_over_t5x": timings["ours"].p50 / timings["t5x"].p50}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", type=int, default=100_000)
    add("--codes", type=int, default=256, help="of a level")
    add("--lengths", nargs="+", type=int, default=[8, 32])
    add("--beams", type=int, default=10)
    add("--vocab_size", type=int, help="of the text; default: the model's")
    add("--rounds", type=int, default=3)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
