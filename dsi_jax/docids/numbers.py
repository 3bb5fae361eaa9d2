"""Numbers of documents, and their digits, for the kinds whose docids have such."""

import numpy as np


def check_id_space(id_space: int | None) -> None:
    """Raises where numbers cannot be drawn from a space of this size, whatever the corpus.

    Raises:
      ValueError: naming it.
    """
    if id_space is not None and id_space < 1:
        raise ValueError(
            f"id_space is {id_space}; expected at least 1, or None for the number of documents"
        )


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
    space = count if id_space is None else id_space
    if space < count:
        raise ValueError(f"id_space is {space}; expected at least the {count} documents, or None")
    return np.random.default_rng(seed).permutation(space)[:count], space


def num_digits(count: int, base: int) -> int:
    """The fewest digits that write `count` numbers from 0 on, at least one.

    Example:
      >>> [num_digits(count, 10) for count in (1, 10, 11)]
      [1, 1, 2]
    """
    width = 1
    while base**width < count:
        width += 1
    return width


def digits(numbers_N: np.ndarray, base: int, width: int) -> np.ndarray:
    """The last `width` digits of whole numbers from 0 on, the most significant first.

    Example:
      >>> digits(np.array([7, 305]), 10, 3)
      array([[0, 0, 7],
             [3, 0, 5]], dtype=uint8)

    Args:
      numbers_N: integers [N].
      base: at least 2.
      width: E, the digits of each.

    Returns:
      [N, E], the smallest unsigned type that holds a digit.
    """
    digits_NxE = np.empty((len(numbers_N), width), np.min_scalar_type(base - 1))
    rest_N = numbers_N
    for level in reversed(range(width)):
        rest_N, digits_NxE[:, level] = np.divmod(rest_N, base)
    return digits_NxE
