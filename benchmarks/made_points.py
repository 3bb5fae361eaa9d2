"""Embeddings made up for the benchmarks: points around random centres, one for 50 points."""

import numpy as np

_BLOCK = 1 << 18  # points made at a time
_PER_CENTRE = 50
_SPREAD = 0.7  # standard deviation around a centre, of which it is 1


def made_points(count: int, dimension: int) -> np.ndarray:
    """float32 [N, D]; equal arguments, equal points."""
    points = np.empty((count, dimension), np.float32)
    fill(points)
    return points


def fill(points: np.ndarray) -> None:
    """Writes the points of `made_points` into an array of their shape, which may be mapped."""
    count, dimension = points.shape
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(1, count // _PER_CENTRE), dimension)).astype(np.float32)
    for start in range(0, count, _BLOCK):
        block = points[start : start + _BLOCK]
        block[:] = _SPREAD * rng.standard_normal(block.shape, np.float32)
        block += centres[rng.integers(len(centres), size=len(block))]
