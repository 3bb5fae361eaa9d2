"""The console command: `dsi-jax <mode> ...`, and `python -m dsi_jax.main --run_mode=<mode> ...`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from dsi_jax import __version__
from dsi_jax.cli import terminal

MODES = {
    "docids": ("dsi_jax.build_docids", "build a docid table and report on its health"),
    "train": ("dsi_jax.train", "train an index, or go on training it"),
    "eval": ("dsi_jax.eval", "evaluate a checkpoint"),
    "infer": ("dsi_jax.infer", "rank documents for a file of queries"),
    "precompile": ("dsi_jax.precompile", "compile a run for a machine that is not here"),
    "search": ("dsi_jax.search", "search a trained index"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """`--run_mode=<mode>` and that mode's own arguments."""
    chooser = argparse.ArgumentParser(prog="python -m dsi_jax.main", add_help=False)
    chooser.add_argument("--run_mode", choices=sorted(MODES), required=True)
    chosen, rest = chooser.parse_known_args(sys.argv[1:] if argv is None else argv)
    return _run(chosen.run_mode, rest)


def console() -> NoReturn:
    """The installed command `dsi-jax`."""
    terminal.run(choose)


def choose(argv: Sequence[str] | None = None) -> int:
    """`dsi-jax <mode> ...`"""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        print(f"dsi-jax {__version__}")
        return 0
    if argv[:1] in ([], ["-h"], ["--help"]):
        print("usage: dsi-jax <mode> [arguments]   (dsi-jax <mode> --help says more)\n")
        print("\n".join(f"  {mode:10s} {what}" for mode, (_, what) in MODES.items()))
        return 0 if argv else 2
    if argv[0] not in MODES:
        print(
            f"dsi-jax: error: unknown mode {argv[0]!r}; expected one of {', '.join(MODES)}",
            file=sys.stderr,
        )
        return 2
    return _run(argv[0], argv[1:])


def _run(mode: str, argv: Sequence[str]) -> int:
    return importlib.import_module(MODES[mode][0]).main(argv)


if __name__ == "__main__":
    terminal.run(main)
