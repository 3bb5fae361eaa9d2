"""Milliseconds a query for M = 1 to 200 beams, against a T5X-like search with the same head.

    python -m benchmarks.beam_scaling --cores 0

`slope` is what a beam more costs, by least squares over all M. Before anything is timed, both must
find the same docids with the same scores.
"""

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarks import decoders, timing


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number of beams, and one of the slopes."""
    options = _parser().parse_args(argv)
    about = {"cores": timing.pin(options.cores)}
    setting = decoders.Setting(options.model, options.documents, vocab_size=options.vocab_size)
    about |= dataclasses.asdict(setting)
    made = decoders.Decoders(setting)
    medians: dict[str, list[float]] = {"ours": [], "t5x": []}
    reliable = True
    for beam_size in options.beams:
        searches = {
            "ours": made.ours(beam_size, options.space),
            "t5x": made.t5x(beam_size, options.space),
        }
        decoders.assert_same(searches["ours"](), searches["t5x"](), "ours")
        timings = timing.measure(searches, rounds=options.rounds)
        line = timing.line(timings, lambda timings=timings: ratio(timings))
        reliable &= not line["unreliable"]
        for name, values in medians.items():
            values.append(timings[name].p50)
        timing.emit(kind="measurement", name="beam_scaling", beams=beam_size, **about, **line)
    summary = {"unreliable": not reliable}
    if reliable:
        summary |= slopes(options.beams, medians)
    timing.emit(kind="measurement", name="beam_scaling_slope", **about, **summary)
    return 0


def ratio(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """How many times faster ours is."""
    return {"t5x_over_ours": timings["t5x"].p50 / timings["ours"].p50}


def slopes(beams: Sequence[int], medians: dict[str, list[float]]) -> dict[str, float]:
    """Seconds a beam of each contender, and ours as a share of the peer's."""
    found = {name: float(np.polyfit(beams, values, 1)[0]) for name, values in medians.items()}
    return {f"{name}_s_per_beam": slope for name, slope in found.items()} | {
        "slope_over_t5x": found["ours"] / found["t5x"]
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", type=int, default=100_000)
    add("--beams", nargs="+", type=int, default=[1, 10, 50, 100, 200])
    add("--space", default="compact", choices=("compact", "text"), help="the head of both")
    add("--vocab_size", type=int, help="of the text; default: the model's")
    add("--rounds", type=int, default=7)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
