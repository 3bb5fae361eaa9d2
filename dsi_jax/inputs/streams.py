"""Batches of several modalities: one stream each, and the order of their examples in the batch.

No tower runs on an absent example, so a batch holds the examples of each modality apart. What all
examples have in common (docids, rows) and what the decoder reads is in one order: g groups, g the
greatest common divisor of the streams' sizes, each of a run of every stream. Whatever divides all
streams, the mesh or microbatches, therefore cuts the batch between groups, and no example moves
from one device to another.
"""

import math
from collections.abc import Sequence
from typing import Any

TEXT, IMAGE = MODALITIES = ("text", "image")


def interleave(streams: Sequence[Any]) -> Any:
    """The examples of all streams in the order of the batch.

    Args:
      streams: arrays [B_i, ...] of NumPy or JAX that differ in their first dimension alone, in the
        order of MODALITIES.

    Returns:
      An array [sum of B_i, ...].
    """
    if len(streams) == 1:
        return streams[0]
    groups = math.gcd(*(len(stream) for stream in streams))
    rest = streams[0].shape[1:]
    grouped = [stream.reshape(groups, len(stream) // groups, *rest) for stream in streams]
    joined = grouped[0].__array_namespace__().concatenate(grouped, axis=1)
    return joined.reshape(-1, *rest)
