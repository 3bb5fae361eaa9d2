"""Docid tables that the decoding benchmarks share: made up, of any size, uniform or clustered."""

import numpy as np

from dsi_jax.docids.sorting import lexicographic_order
from dsi_jax.docids.table import FIRST_CODE, DocidTable, token_dtype

SHAPES = ("uniform", "skewed")
_EXPONENT = 1.05  # of Zipf's law


def made_codes(count: int, num_codes: int, length: int, shape: str = "uniform") -> np.ndarray:
    """Distinct codes below `num_codes`, int32 [N, L], in random order.

    Args:
      count: N.
      num_codes: V without pad and end.
      length: L.
      shape: "uniform" draws all codes alike, as STATIC's benchmarks do. "skewed" draws the code of
        each level by Zipf's law, with another order of the codes for each code before: some
        prefixes have very many documents, as those of clusters have.

    Raises:
      ValueError: there are hardly so many, or the shape is unknown.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; expected one of {SHAPES}")
    rng = np.random.default_rng(0)
    codes = np.zeros((0, length), np.int32)
    for _ in range(20):
        codes = np.concatenate([codes, _draw(rng, count + count // 8, num_codes, length, shape)])
        ordered = codes[lexicographic_order(codes.astype(np.uint32), num_codes)]
        new = np.ones(len(ordered), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        codes = ordered[new]
        if len(codes) >= count:
            return codes[rng.permutation(len(codes))[:count]]
    raise ValueError(f"{count} docids of {length} codes below {num_codes} were not found")


def made_table(codes_NxL: np.ndarray, num_codes: int) -> DocidTable:
    """A table of these codes."""
    tokens_NxL = (codes_NxL + FIRST_CODE).astype(token_dtype(num_codes + FIRST_CODE))
    return table_of(tokens_NxL, num_codes)


def table_of(tokens_NxL: np.ndarray, num_codes: int) -> DocidTable:
    """A table of these tokens."""
    return DocidTable(
        tokens=tokens_NxL,
        keys=range(len(tokens_NxL)),
        vocab_size=num_codes + FIRST_CODE,
        kind="made up",
        parameters={},
        corpus_hash="made up",
        variable_length=False,
    )


def _draw(
    rng: np.random.Generator, count: int, num_codes: int, length: int, shape: str
) -> np.ndarray:
    if shape == "uniform":
        return rng.integers(num_codes, size=(count, length), dtype=np.int32)
    share = np.cumsum(np.arange(1, num_codes + 1) ** -_EXPONENT)
    codes_NxL = np.empty((count, length), np.int32)
    before_N = np.zeros(count, np.int64)
    for level in range(length):
        rank_N = np.searchsorted(share, rng.random(count) * share[-1])
        codes_NxL[:, level] = (rank_N * 7919 + before_N * 104729) % num_codes
        before_N = codes_NxL[:, level] + 1
    return codes_NxL
