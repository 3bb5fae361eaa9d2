"""STATIC (Su et al. 2026, arXiv 2602.22647) as a peer of the decoding benchmarks.

Its code is no part of this project: clone github.com/youtube/static-constraint-decoding and say
where with `--static DIR` or the variable STATIC_DECODING.
"""

import argparse
import functools
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

_VARIABLE = "STATIC_DECODING"
_DENSE_LEVELS = 2  # what its authors recommend


class StaticIndex(NamedTuple):
    """What `build_static_index` returns."""

    packed_csr: np.ndarray
    indptr: np.ndarray
    max_branches: tuple[int, ...]
    start_mask: np.ndarray
    dense_mask: np.ndarray
    dense_states: np.ndarray

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays."""
        return sum(part.nbytes for part in self if isinstance(part, np.ndarray))


class Static:
    """STATIC's builder and decoder.

    Raises:
      SystemExit: if they are not found.
    """

    def __init__(self, directory: str | None) -> None:
        directory = directory or os.environ.get(_VARIABLE)
        if not directory or not (Path(directory) / "static_decoding").is_dir():
            raise SystemExit(
                f"STATIC was not found at {directory!r}: clone "
                "github.com/youtube/static-constraint-decoding and give its directory with "
                f"--static or {_VARIABLE}"
            )
        if directory not in sys.path:
            sys.path.append(directory)
        self._builder = importlib.import_module("static_decoding.csr_utils")

    @functools.cached_property
    def decoder(self) -> ModuleType:
        """The module with `generate_and_apply_logprobs_mask` and `sparse_transition_jax`."""
        return importlib.import_module("static_decoding.decoding_jax")

    def build(self, codes_NxL: np.ndarray, num_codes: int) -> StaticIndex:
        """The index of codes in any order."""
        return self.build_sorted(sort(codes_NxL), num_codes)

    def build_sorted(self, codes_NxL: np.ndarray, num_codes: int) -> StaticIndex:
        """The index of sorted codes."""
        return StaticIndex(*self._builder.build_static_index(codes_NxL, num_codes, _DENSE_LEVELS))


def sort(codes_NxL: np.ndarray) -> np.ndarray:
    """Sorted by columns, which `build_static_index` takes for granted."""
    return codes_NxL[np.lexsort(codes_NxL.T[::-1])]


def add_option(parser: argparse.ArgumentParser) -> None:
    """The option `--static`."""
    parser.add_argument("--static", help=f"where STATIC was cloned to; else {_VARIABLE}")
