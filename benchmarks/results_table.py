"""One table from the lines of the decoding and docid benchmarks.

    python -m benchmarks.jump --cores 0 >> results.jsonl
    python -m benchmarks.results_table results.jsonl

A row is a line: what was measured, the medians and the figures made of them. Lines that say that
they are unreliable have no figures and are counted below.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_MEDIAN = "_p50_s"
# What a measurement was made with, in this order; all else that is a number is a figure of it.
_SETTING = ("kind_of_docid", "shape", "documents", "length", "docid_length", "codes", "batch",
            "beams", "beam_size", "level", "children", "width",
            "jump", "dimensions", "share")  # fmt: skip
_LEFT_OUT = ("kind", "name", "model", "source", "vocab_size", "cores", "rounds", "load",
             "unreliable", "in_tails", "space", "seed", "trees")  # fmt: skip


def rows(lines: Iterable[str]) -> tuple[list[tuple[str, str, str, str]], int]:
    """(benchmark, setting, medians, figures) of each reliable measurement, and how many are not.

    Raises:
      ValueError: a line is no JSON object with a name.
    """
    found, unreliable = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            name = fields["name"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number}: expected a measurement, found {line[:60]!r}"
            ) from error
        if fields.get("unreliable"):
            unreliable += 1
            continue
        setting = ", ".join(
            f"{key} {_text(fields[key])}" for key in _SETTING if fields.get(key) is not None
        )
        medians = ", ".join(
            f"{key.removesuffix(_MEDIAN) or 'all'} {_seconds(value)}"
            for key, value in fields.items()
            if key.endswith(_MEDIAN)
        )
        figures = ", ".join(
            f"{key} {_text(value)}" for key, value in fields.items() if _is_figure(key, value)
        )
        found.append((name, setting, medians, figures))
    return found, unreliable


def _is_figure(key: str, value: Any) -> bool:
    timing = key.endswith(("_p10_s", "_p50_s", "_p90_s"))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and not timing and key not in _SETTING + _LEFT_OUT


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _seconds(value: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of files as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    lines = [
        line for file in parser.parse_args(argv).files for line in file.read_text().splitlines()
    ]
    found, unreliable = rows(line for line in lines if line.strip())
    print("| benchmark | of | medians | figures |\n|---|---|---|---|")
    for row in found:
        print(f"| {' | '.join(row)} |")
    print(f"\n{unreliable} unreliable measurements are left out.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
