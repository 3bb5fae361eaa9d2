"""Ways to get docids from a decoder, one small object each: gin's macro DECODING."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax

from dsi_jax.decoding.beam import beam_search
from dsi_jax.decoding.constraint import Constraint
from dsi_jax.decoding.decode_loop import DecodeFns
from dsi_jax.decoding.finished_pool import AsGenerate
from dsi_jax.decoding.result import BeamResult, documents_of
from dsi_jax.decoding.sampling import distinct, sample_docids


class Queries(NamedTuple):
    """Encoded queries, and what decodes docids from them.

    Attributes:
      decode: the decoder.
      memory: the encoded queries, handed to ``decode.init_cache``; usually float [B, S, D].
      mask: bool [B, S], which memory positions are real.
    """

    decode: DecodeFns
    memory: Any
    mask: jax.Array


class Decoding(Protocol):
    """One way; a frozen dataclass of what can be chosen about it."""

    def __call__(
        self, queries: Queries, constraint: Constraint, beam_size: int, draw: jax.Array | int
    ) -> BeamResult:
        """Documents of each query, best first, none twice.

        Args:
          queries: the queries and their decoder.
          constraint: the allowed docids.
          beam_size: M, the most documents a query.
          draw: the number of the search, so that each draws other samples.
        """


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """The M best docids, see `beam.beam_search`.

    Attributes:
      renormalize: score among the allowed children of a beam.
      finished: how docids that end before the last level are treated; None: as all others.
    """

    renormalize: bool = False
    finished: AsGenerate | None = None

    def __call__(
        self, queries: Queries, constraint: Constraint, beam_size: int, draw: jax.Array | int
    ) -> BeamResult:
        """See `Decoding`."""
        del draw
        return beam_search(
            *queries,
            constraint=constraint,
            beam_size=beam_size,
            renormalize=self.renormalize,
            finished=self.finished,
        )


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The best child at each level: one docid a query, a beam search of one beam."""

    def __call__(
        self, queries: Queries, constraint: Constraint, beam_size: int, draw: jax.Array | int
    ) -> BeamResult:
        """See `Decoding`."""
        del draw
        return beam_search(*queries, constraint=constraint, beam_size=1, num_results=beam_size)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """M docids drawn with replacement, each then ranked once, see `sample.sample_docids`.

    Attributes:
      temperature: above 0; below 1 sharpens, above 1 flattens.
      seed: of the draws; a searcher's n-th search draws the same in every run.

    Raises:
      ValueError: the temperature is not above 0.
    """

    temperature: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected it above 0")

    def __call__(
        self, queries: Queries, constraint: Constraint, beam_size: int, draw: jax.Array | int
    ) -> BeamResult:
        """See `Decoding`."""
        drawn = sample_docids(
            *queries,
            constraint=constraint,
            num_samples=beam_size,
            key=jax.random.fold_in(jax.random.key(self.seed), draw),
            temperature=self.temperature,
        )
        return documents_of(constraint, distinct(drawn), beam_size)
