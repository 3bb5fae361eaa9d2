"""A model and a length of training that suit a corpus, where the configuration names none.

The figures come from runs from random weights on two CPU cores; on an accelerator they are a
start.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from dsi_jax.models import sizes
from dsi_jax.models.t5 import T5Config


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


def choose(num_documents: int) -> Size:
    """The size for a corpus of so many documents.

    Memorising is a matter of passes over the documents: each is seen about 100 times, the more
    often the fewer there are.
    """
    model = sizes.t5_tiny() if num_documents <= 20_000 else sizes.t5_mini()
    batch_size = 128 if num_documents <= 20_000 else 256
    passes = 100
    steps = max(2_000, passes * 2 * num_documents // batch_size)
    return Size(
        model=model,
        batch_size=batch_size,
        train_steps=math.ceil(steps / 100) * 100,
        task_feature_lengths={"inputs": 32},
    )
