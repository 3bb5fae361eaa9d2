"""That a stream goes on exactly, however often it was restored."""

from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from dsi_jax.data.pipeline import TrainPipeline

# One batch between two states leaves most of a mixture untouched; four or five end passes.
GAPS = (3, 1, 4, 1, 5, 2, 1, 5)


def assert_resumes_again_and_again(
    make: Callable[[], TrainPipeline], gaps: Iterable[int] = GAPS
) -> None:
    """A chain of streams, each restored from the one before, gives out what one stream does."""
    gaps = list(gaps)
    whole = make()
    expected = [next(whole) for _ in range(sum(gaps))]
    stream = make()
    for gap in gaps:
        for _ in range(gap):
            step = stream.step
            tf.nest.map_structure(np.testing.assert_array_equal, next(stream), expected[step])
        state = stream.state()
        stream = make()
        stream.restore(state)
