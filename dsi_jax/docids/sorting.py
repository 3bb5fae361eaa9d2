"""Docids as numbers that compare as the docids do, and the order that they give."""

import numpy as np

_KEY_BITS = 64


def lexicographic_order(tokens_NxL: np.ndarray, vocab_size: int) -> np.ndarray:
    """The order that sorts docids lexicographically, equal ones by row; int64 [N].

    Tokens are packed, most significant first, into as few 64-bit keys as hold them. The first key
    tells most docids apart and is sorted alone, many times faster than all columns together; the
    others are looked at only where it is equal.

    Args:
      tokens_NxL: unsigned integers below `vocab_size`.
      vocab_size: V.
    """
    first_N = _keys(tokens_NxL, vocab_size, most=1)[0]
    order_N = np.argsort(first_N)  # not stable: equal keys are sorted again below
    first_N = first_N[order_N]
    equal_to_next = first_N[1:] == first_N[:-1]
    if not equal_to_next.any():
        return order_N
    del first_N
    tied_N = np.zeros(len(order_N), bool)
    tied_N[1:] = equal_to_next
    tied_N[:-1] |= equal_to_next
    rows = order_N[tied_N]
    keys = _keys(tokens_NxL[rows], vocab_size)
    order_N[tied_N] = rows[np.lexsort((rows, *reversed(keys)))]
    return order_N


def packed(tokens: np.ndarray) -> np.ndarray:
    """Tokens [..., L] as one comparable value a docid, in lexicographic order; [...].

    The big-endian bytes of a docid compare as the docid does: as one integer if they fit 64 bits,
    else as a void scalar, which numpy compares byte by byte, ten times slower.
    """
    big_endian = tokens.astype(tokens.dtype.newbyteorder(">"), order="C")
    width = tokens.shape[-1] * tokens.dtype.itemsize
    shape = tokens.shape[:-1]
    if width > 8:
        return big_endian.view(f"V{width}").reshape(shape)
    padded = np.zeros((*shape, 8), np.uint8)
    padded[..., :width] = big_endian.view(np.uint8)
    return padded.view(">u8").astype(np.uint64).reshape(shape)


def _keys(tokens_NxL: np.ndarray, vocab_size: int, most: int | None = None) -> list[np.ndarray]:
    """uint64 [N] each, the most significant first; not more than `most`."""
    bits = max((vocab_size - 1).bit_length(), 1)
    tokens_a_key = _KEY_BITS // bits
    keys = []
    for start in range(0, tokens_NxL.shape[1], tokens_a_key)[:most]:
        key_N = np.zeros(len(tokens_NxL), np.uint64)
        for column_N in tokens_NxL[:, start : start + tokens_a_key].T:
            key_N <<= np.uint64(bits)
            key_N |= column_N
        keys.append(key_N)
    return keys
