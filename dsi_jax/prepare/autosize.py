"""A model and a length of training that suit a corpus, where the configuration names none.

The figures come from runs from random weights on two CPU cores; on an accelerator they are a
start.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from dsi_jax.models import t5_sizes
from dsi_jax.models.t5 import T5Config

_EXAMPLES_A_DOCUMENT = 90
_FEWEST_STEPS = 1_000


@dataclasses.dataclass(frozen=True)
class Size:
    """What `choose` chose.

    Attributes:
      model: the architecture.
      batch_size: examples a step, before it is rounded to the mesh.
      train_steps: steps in all.
      task_feature_lengths: tokens kept of each feature.
    """

    model: T5Config
    batch_size: int
    train_steps: int
    task_feature_lengths: Mapping[str, int]


def choose(num_documents: int, batch_size: int | None = None) -> Size:
    """The size for a corpus of so many documents, with batches of a given size if it is given.

    Memorising is a matter of passes over the documents: about 90 examples of each, of all kinds
    together, and no fewer steps than the schedule needs to warm up and cool down.
    """
    small = num_documents <= 20_000
    batch_size = batch_size or (128 if small else 256)
    steps = max(_FEWEST_STEPS, _EXAMPLES_A_DOCUMENT * num_documents // batch_size)
    return Size(
        model=t5_sizes.t5_shallow() if small else t5_sizes.t5_mini(),
        batch_size=batch_size,
        train_steps=math.ceil(steps / 100) * 100,
        task_feature_lengths={"inputs": 32},
    )
