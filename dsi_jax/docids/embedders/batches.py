"""Documents read and embedded batch by batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dsi_jax.inputs.encoder_inputs import pad_rows


def embed_batches(
    embed: Callable[[Mapping[str, np.ndarray]], jax.Array],
    read: Callable[[Sequence[Any]], Mapping[str, np.ndarray]],
    documents: Sequence[Any],
    batch_size: int,
) -> np.ndarray:
    """Embeds documents by a compiled function; the next ones are read while it computes.

    Args:
      embed: what `read` gives of `batch_size` documents -> float32 [batch_size, E].
      read: decodes images, or tokenizes texts; need not remember any.
      documents: N images (paths, or the bytes of files) or texts.
      batch_size: documents read and embedded at a time.

    Returns:
      float32 [N, E].

    Raises:
      FileNotFoundError, ImageError: as `images.decode`.
      ValueError: there is no document.
    """
    vectors: list[Any] = []
    for part in in_parts(read, documents, batch_size):
        found_BxE = embed(pad_rows(part, batch_size))
        if vectors:
            vectors[-1] = np.asarray(vectors[-1])  # waits for the batch before
        vectors.append(found_BxE)
    return np.concatenate(vectors)[: len(documents)]


def in_parts(
    read: Callable[[Sequence[Any]], Mapping[str, np.ndarray]], documents: Sequence[Any], count: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """What is read of all documents in order, at most `count` at a time.

    Raises:
      FileNotFoundError, ImageError: as `images.decode`.
      ValueError: there is no document.
    """
    if not documents:
        raise ValueError("no documents to embed; expected at least one")
    for start in range(0, len(documents), count):
        yield read(documents[start : start + count])
