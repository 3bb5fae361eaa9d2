"""The lexical head: what the words of a query say for each document, beside what a decoder says.

Its parameters are sparse: for each stem the documents that it speaks for, and how much
(`storage.lexical_index`). Which documents these are is never trained, as integers have no gradient.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LexicalHeadConfig:
    """The shape of a lexical head.

    Attributes:
      vocabulary_size: ids of stems, that of no word included.
      num_postings: P, postings of all stems together.
      most_postings: the postings of the stem that has most of them.
      num_documents: N, numbers of documents: their places in the order of docids.

    Raises:
      ValueError: a size is not positive.
    """

    vocabulary_size: int
    num_postings: int
    most_postings: int
    num_documents: int

    def __post_init__(self) -> None:
        for name, value in self.to_json().items():
            if value < 1:
                raise ValueError(f"LexicalHeadConfig.{name} is {value!r}; expected at least 1")

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict that `json` can write."""
        return dataclasses.asdict(self)


class LexicalHead(nn.Module):
    """Sums the postings of the stems of a query.

    Parameters, held whole on every device:
      indptr: int32 [ids + 1]; the postings of id i are `indptr[i]` to `indptr[i + 1] - 1`.
      documents: int32 [P], the number of a posting's document; none twice in a stem's postings.
      weights: float32 [P].
    """

    config: LexicalHeadConfig

    def setup(self) -> None:
        config, zeros = self.config, nn.initializers.zeros
        self.indptr = self.param("indptr", zeros, (config.vocabulary_size + 1,), jnp.int32)
        self.documents = self.param("documents", zeros, (config.num_postings,), jnp.int32)
        self.weights = self.param("weights", zeros, (config.num_postings,), jnp.float32)

    def __call__(self, words: jax.Array) -> jax.Array:
        """The score of each document, float32 [B, N].

        Args:
          words: int32 [B, W], the distinct stems of each query; 0 where there is none.
        """
        config, batch_size = self.config, len(words)
        start_BxWx1 = jnp.take(self.indptr, words, mode="clip")[..., None]
        stop_BxWx1 = jnp.take(self.indptr, words + 1, mode="clip")[..., None]
        posting_BxWxK = start_BxWx1 + jnp.arange(config.most_postings, dtype=jnp.int32)
        exists_BxWxK = posting_BxWxK < stop_BxWx1
        document_BxWxK = jnp.take(self.documents, posting_BxWxK, mode="clip")
        weight_BxWxK = jnp.take(self.weights, posting_BxWxK, mode="clip")
        document_BxWxK = jnp.where(exists_BxWxK, document_BxWxK, config.num_documents)
        scores_BxN = jnp.zeros((batch_size, config.num_documents), jnp.float32)
        return scores_BxN.at[
            jnp.arange(batch_size)[:, None], document_BxWxK.reshape(batch_size, -1)
        ].add(jnp.where(exists_BxWxK, weight_BxWxK, 0.0).reshape(batch_size, -1), mode="drop")
