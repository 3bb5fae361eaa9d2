"""What to evaluate and how: the configuration that gin fills."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.methods.base import Method, RankingOptions
from dsi_jax.ranking import docid_ranker

Metrics = Mapping[str, float]

VALIDATION_SPLITS = ("dev", "validation")  # evaluated while training goes on


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How documents are ranked, and for how many queries.

    Attributes:
      beam_size: M, beams a query; Hits@k needs M >= k.
      constraint: "trie" or "free".
      batch_size: queries a device step.
      num_queries: at most so many queries of a split while training goes on; None: all.
      num_documents: documents asked back in the memorization recall; None: all.
      unconstrained: at the end, decode freely too and report the rate of invalid docids.
      last: evaluations in the mean that stands next to the best.
      decoding: the decoding strategy.
    """

    beam_size: int = 100
    constraint: str = "trie"
    batch_size: int = 64
    num_queries: int | None = 1000
    num_documents: int | None = 1000
    unconstrained: bool = True
    last: int = 3
    decoding: Decoding = BeamSearch()

    def __post_init__(self) -> None:
        docid_ranker.check_constraint(self.constraint)
        for name in ("beam_size", "batch_size", "last"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive whole number")

    def ranking(self, method: Method) -> RankingOptions:
        """Returns the method's options of ranking.

        Raises:
          ValueError: the method cannot rank so.
        """
        return method.ranking(
            beam_size=self.beam_size, constraint=self.constraint, decoding=self.decoding
        )

    def of_baseline(self) -> Evaluation:
        """Returns the same evaluation for a method that need not decode."""
        return dataclasses.replace(
            self, constraint="trie", decoding=BeamSearch(), unconstrained=False
        )


@dataclasses.dataclass(frozen=True)
class Target:
    """A split of a seqio task to evaluate.

    Attributes:
      task: the registered name.
      split: one of its splits.
      num_examples: a seeded sample of so many; None: all.
    """

    task: str
    split: str
    num_examples: int | None = None

    @property
    def name(self) -> str:
        """What the metrics and files of this target are called."""
        return f"{self.task}_{self.split}"
