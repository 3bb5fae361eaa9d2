"""Numbers of documents, for the kinds whose docids are arbitrary numbers."""

import numpy as np


def draw(count: int, id_space: int | None, seed: int) -> tuple[np.ndarray, int]:
    """Distinct numbers in a seeded random order, never the order of the data.

    The order of the data often tells training from test documents.

    Args:
      count: N, how many numbers.
      id_space: the numbers are drawn from 0..id_space-1; None: from 0..N-1.
      seed: decides which number a document gets.

    Returns:
      int64 [N], and the size of the space.

    Raises:
      ValueError: if the space holds fewer than N numbers.
    """
    space = id_space or count
    if space < count:
        raise ValueError(f"id_space is {space}; expected at least the {count} documents, or None")
    return np.random.default_rng(seed).permutation(space)[:count], space
