"""Queries a second from tokens to documents, against PyTorch's `generate` and a T5X-like search.

    python -m benchmarks.decode_e2e --cores 0 --batches 1 8 --beams 10 50

`text` contenders have T5's whole vocabulary as their head, `compact` ones the docids' alone. Before
anything is timed, all must find the same docids with the same scores. Needs the extra `parity`.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import decoders, timing


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each batch size and number of beams."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    torch.set_num_threads(cores)
    for batch in options.batches:
        setting = decoders.Setting(
            options.model, options.documents, batch=batch, vocab_size=options.vocab_size
        )
        made = decoders.Decoders(setting)
        for beam_size in options.beams:
            timing.emit(
                kind="measurement",
                name="decode_e2e",
                **dataclasses.asdict(setting),
                beams=beam_size,
                cores=cores,
                **compare(made, beam_size, options.rounds),
            )
    return 0


def compare(made: decoders.Decoders, beam_size: int, rounds: int) -> dict[str, Any]:
    """Timings of all contenders, of which those of one head must agree."""
    searches: dict[str, decoders.Search] = {}
    for space in ("text", "compact"):
        searches[f"torch_{space}"] = made.torch(beam_size, space)
        searches[f"t5x_{space}"] = made.t5x(beam_size, space)
        searches[f"ours_{space}"] = made.ours(beam_size, space)
        expected = searches[f"torch_{space}"]()
        for peer in ("t5x", "ours"):
            name = f"{peer}_{space}"
            decoders.assert_same(searches[name](), expected, name)
    timings = timing.measure(searches, rounds=rounds, warmup=1)

    def figures() -> dict[str, float]:
        times = {name: found.p50 for name, found in timings.items()}
        batch = made.setting.batch
        return {
            **{f"{name}_queries_per_s": batch / time for name, time in times.items()},
            "compact_over_torch_text": times["torch_text"] / times["ours_compact"],
            "compact_over_torch_compact": times["torch_compact"] / times["ours_compact"],
            "text_over_torch_text": times["torch_text"] / times["ours_text"],
            "compact_over_t5x_text": times["t5x_text"] / times["ours_compact"],
            "compact_over_t5x_compact": times["t5x_compact"] / times["ours_compact"],
        }

    return timing.line(timings, figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="t5_small", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", type=int, default=100_000)
    add("--batches", nargs="+", type=int, default=[1, 8])
    add("--beams", nargs="+", type=int, default=[10, 50])
    add("--vocab_size", type=int, help="of the text; default: the model's")
    add("--rounds", type=int, default=7)
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
