"""The differentiable search index: a text encoder and a decoder of docids.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022,
https://arxiv.org/abs/2202.06991. Shape letters as in `dsi_jax.models.layers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.models import layers, t5

COMPACT_SPACE, TEXT_SPACE = DOCID_SPACES = ("compact", "text")

# Docid vocabularies of at least so many tokens are padded to a multiple of 128, as T5's own is, so
# that any usual mesh can split them. Smaller ones are cheap to hold whole.
_PADDED_FROM = 4096
_PADDED_TO = 128


@dataclasses.dataclass(frozen=True)
class DSIConfig:
    """A DSI model.

    Attributes:
      t5: the architecture of encoder and decoder.
      docid_vocab_size: V, tokens of the docid vocabulary, pad 0 and end 1 included; that of the
        docid table, or more (`padded_vocab_size`).
      docid_length: L, tokens of a docid, with its end token where it has one.
      docid_space: "compact" gives docids a vocabulary, embeddings and head of their own; in
        "text" docids are made of T5's own tokens, and V is t5.vocab_size.

    Raises:
      ValueError: a value is out of its range, or V does not suit the space.
    """

    t5: t5.T5Config
    docid_vocab_size: int
    docid_length: int
    docid_space: str = COMPACT_SPACE

    def __post_init__(self) -> None:
        if self.docid_space not in DOCID_SPACES:
            raise ValueError(
                f"DSIConfig.docid_space is {self.docid_space!r}; expected one of {DOCID_SPACES}"
            )
        if self.docid_vocab_size < 1 or self.docid_length < 1:
            raise ValueError(
                f"DSIConfig.docid_vocab_size is {self.docid_vocab_size!r} and docid_length is "
                f"{self.docid_length!r}; expected positive integers"
            )
        if self.docid_space == TEXT_SPACE and self.docid_vocab_size != self.t5.vocab_size:
            raise ValueError(
                f"DSIConfig.docid_vocab_size is {self.docid_vocab_size}; in text space expected "
                f"T5's vocabulary size {self.t5.vocab_size}"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return dataclasses.asdict(self) | {"t5": self.t5.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DSIConfig":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = t5.check_fields(cls, value)
        return cls(**value | {"t5": t5.T5Config.from_json(value["t5"])})


def padded_vocab_size(vocab_size: int) -> int:
    """The docid vocabulary of a model for a table of `vocab_size` tokens.

    The tokens beyond the table's are never targets and never decoded.
    """
    if vocab_size < _PADDED_FROM:
        return vocab_size
    return -(-vocab_size // _PADDED_TO) * _PADDED_TO


def shift_right(tokens: jax.Array) -> jax.Array:
    """Decoder inputs int32 [..., L] of docids [..., L]: 0 first, the last token dropped."""
    return jnp.pad(tokens[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])


class DSIModel(nn.Module):
    """Encodes a text and decodes the docids of the documents it looks for.

    In the compact space, too, docid embeddings start at T5's standard deviation of 1: a tied head
    (times D**-0.5) and an untied one both start with logits near 1, whatever the width. Started
    at D**-0.5, a tied head memorised far slower under Adam (D = 64, 400 atomic docids, one seed).
    """

    config: DSIConfig

    def setup(self) -> None:
        config = self.config
        width, dtype = config.t5.emb_dim, config.t5.dtype
        self.token_embedder = layers.Embedder(config.t5.vocab_size, width, dtype)
        if config.docid_space == COMPACT_SPACE:
            self.docid_embedder = layers.Embedder(config.docid_vocab_size, width, dtype)
        self.encoder = t5.Encoder(config.t5)
        self.decoder = t5.Decoder(config.t5, config.docid_vocab_size)

    def __call__(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool
    ) -> jax.Array:
        """Teacher forcing.

        Args:
          batch: {"text": {"tokens": int32 [B, S], "mask": [B, S]},
            "decoder": {"inputs": int32 [B, L]}}; further entries are ignored.
          deterministic: False applies dropout, which needs rngs={"dropout": key}.

        Returns:
          Logits float32 [B, L, V].
        """
        memory_BxSxD, mask_BxS = self.encode(batch, deterministic=deterministic)
        return self.decode(
            memory_BxSxD, mask_BxS, batch["decoder"]["inputs"], deterministic=deterministic
        )

    def encode(
        self, batch: Mapping[str, Mapping[str, jax.Array]], *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """The memory [B, S, D] of a batch's texts and its mask, bool [B, S]."""
        text = batch["text"]
        mask_BxS = text["mask"].astype(bool)
        embedded_BxSxD = self.token_embedder(text["tokens"])
        embedded_BxSxD = nn.with_logical_constraint(embedded_BxSxD, ("batch", "length", "embed"))
        return self.encoder(embedded_BxSxD, mask_BxS, deterministic=deterministic), mask_BxS

    def decode(
        self,
        memory: jax.Array,
        mask: jax.Array,
        tokens: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Logits float32 [B, L, V] after each of the decoder inputs `tokens`, int32 [B, L].

        Args:
          memory: [B, S, D], from `encode`.
          mask: bool [B, S], from `encode`.
          tokens: docids shifted right, see `shift_right`.
          deterministic: False applies dropout.
        """
        embedded_BxLxD = self._output_embedder(tokens)
        embedded_BxLxD = nn.with_logical_constraint(embedded_BxLxD, ("batch", "length", "embed"))
        hidden_BxLxD = self.decoder(embedded_BxLxD, memory, mask, deterministic=deterministic)
        return nn.with_logical_constraint(self._head(hidden_BxLxD), ("batch", "length", "vocab"))

    def init_cache(
        self, memory: jax.Array, mask: jax.Array, *, num_beams: int, length: int
    ) -> dict[str, Any]:
        """The cache of `decode_step` before position 0.

        Args:
          memory: [B, S, D], from `encode`.
          mask: bool [B, S], from `encode`.
          num_beams: M.
          length: L, the number of steps to come at most.

        Returns:
          {"self": {"layers_<i>": {"key", "value"}}}, zeros [B, M, L, H, P], of which every leaf
          has the beams on axis 1; and {"cross": {"layers_<i>": {"key", "value"}, "mask"}}, the
          projected memory [B, S, H, P] and its mask [B, S], shared by all beams. With scan_layers
          "layers" holds all layers stacked, see `t5.Decoder`.
        """
        own = self.decoder.empty_cache(memory.shape[0], num_beams, length)
        return {"self": own, "cross": self.decoder.project_memory(memory) | {"mask": mask}}

    def decode_step(
        self, cache: dict[str, Any], tokens: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """One position of all beams, equal to that position of `decode`.

        Args:
          cache: from `init_cache` or the step before.
          tokens: int32 [B, M], each beam's decoder input at `position` (0 at position 0).
          position: int32 scalar, in [0, L).

        Returns:
          Logits float32 [B, M, V], and the cache with `position` written.
        """
        own, cross = cache["self"], cache["cross"]
        hidden_BxMxD, own = self.decoder.step(
            self._output_embedder(tokens), own, cross, cross["mask"], position
        )
        return self._head(hidden_BxMxD), {"self": own, "cross": cross}

    @property
    def _output_embedder(self) -> layers.Embedder:
        compact = self.config.docid_space == COMPACT_SPACE
        return self.docid_embedder if compact else self.token_embedder

    def _head(self, hidden: jax.Array) -> jax.Array:
        if not self.config.t5.tie_embeddings:
            return self.decoder.logits_dense(hidden)
        # In the operand rather than the result: D is smaller than V.
        return self._output_embedder.attend(hidden * self.config.t5.emb_dim**-0.5)
