"""The dual encoder: query and document become vectors of length 1, compared by their product.

Encoders of T5, pooled, projected and normalised as in Sentence-T5 (Ni et al., 2021,
https://arxiv.org/abs/2108.08877, section 3) and GTR (Ni et al., 2022,
https://arxiv.org/abs/2112.07899, section 3.1). Shape letters as in `dsi_jax.models.layers`, and E
the width of an embedding.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.models import layers, t5

POOLINGS = ("mean", "first")
LARGEST_SCALE = 100.0  # as in CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020)

Inputs = Mapping[str, jax.Array]


class Embeddings(NamedTuple):
    """What a batch of pairs becomes.

    Attributes:
      queries: float32 [B, E], each of length 1.
      documents: float32 [B, E], each of length 1; row i belongs to query i.
      scale: float32 [], by which products are multiplied before the softmax: 1 / temperature.
    """

    queries: jax.Array
    documents: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class DualEncoderConfig:
    """A dual encoder.

    Attributes:
      t5: the architecture; the decoder's part of it is unused.
      embedding_dim: E, to which pooled states are projected; None leaves them as they are.
      pooling: "mean" over the tokens of a text, or its "first".
      shared: whether one encoder serves both sides.
      scale: what products are multiplied by, at first if it is learnt.
      learn_scale: whether the scale is a parameter, at most LARGEST_SCALE.

    Raises:
      ValueError: a value is out of its range.
    """

    t5: t5.T5Config
    embedding_dim: int | None = None
    pooling: str = "mean"
    shared: bool = True
    scale: float = 20.0
    learn_scale: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; expected one of {POOLINGS}")
        if self.embedding_dim is not None and self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim!r}; expected at least 1")
        if not 0 < self.scale <= LARGEST_SCALE:
            raise ValueError(f"scale is {self.scale!r}; expected it in (0, {LARGEST_SCALE:g}]")

    @property
    def width(self) -> int:
        """E."""
        return self.embedding_dim or self.t5.emb_dim

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        return dataclasses.asdict(self) | {"t5": self.t5.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "DualEncoderConfig":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = t5.check_fields(cls, value)
        return cls(**value | {"t5": t5.T5Config.from_json(value["t5"])})


class TextTower(nn.Module):
    """Embeds texts. Its parameters have the paths of T5X's T5, and `projection/kernel`."""

    config: DualEncoderConfig

    def setup(self) -> None:
        config = self.config
        self.token_embedder = layers.Embedder(
            config.t5.vocab_size, config.t5.emb_dim, config.t5.dtype
        )
        self.encoder = t5.Encoder(config.t5)
        if config.embedding_dim is not None:
            self.projection = layers.Dense(
                config.embedding_dim,
                ("embed", "embedding"),
                dtype=config.t5.dtype,
                output_dtype=jnp.float32,
            )

    def embed(self, text: Inputs, *, deterministic: bool) -> jax.Array:
        """Embeddings float32 [B, E] of {"tokens": int32 [B, S], "mask": [B, S]}."""
        mask_BxS = text["mask"].astype(bool)
        embedded_BxSxD = self.token_embedder(text["tokens"])
        embedded_BxSxD = nn.with_logical_constraint(embedded_BxSxD, ("batch", "length", "embed"))
        states_BxSxD = self.encoder(embedded_BxSxD, mask_BxS, deterministic=deterministic)
        pooled_BxD = _pool(states_BxSxD.astype(jnp.float32), mask_BxS, self.config.pooling)
        if self.config.embedding_dim is not None:
            pooled_BxD = self.projection(pooled_BxD)
        embeddings_BxE = _normalized(pooled_BxD)
        return nn.with_logical_constraint(embeddings_BxE, ("batch", "embedding"))


class DualEncoderModel(TextTower):
    """Embeds pairs of a query and a document.

    The query's tower is the model itself, so that the parameters of a DSI or a T5 fit in under
    their own paths; a document's tower of its own lies under `document/`.
    """

    def setup(self) -> None:
        super().setup()
        config = self.config
        if not config.shared:
            self.document = TextTower(config)
        if config.learn_scale:
            initial = nn.initializers.constant(math.log(config.scale))
            self.log_scale = self.param("log_scale", initial, (), jnp.float32)

    def __call__(self, batch: Mapping[str, Inputs], *, deterministic: bool) -> Embeddings:
        """Embeds a batch of pairs.

        Args:
          batch: {"text": the queries, "document": their documents}, see `TextTower.embed`; further
            entries are ignored.
          deterministic: False applies dropout, which needs rngs={"dropout": key}.
        """
        scale = jnp.float32(self.config.scale)
        if self.config.learn_scale:
            scale = jnp.minimum(jnp.exp(self.log_scale), LARGEST_SCALE)
        return Embeddings(
            self.encode_query(batch, deterministic=deterministic),
            self.encode_document(batch["document"], deterministic=deterministic),
            scale,
        )

    def encode_query(self, batch: Mapping[str, Inputs], *, deterministic: bool = True) -> jax.Array:
        """Embeddings float32 [B, E] of the queries of a batch, {"text": ...}."""
        return self.embed(batch["text"], deterministic=deterministic)

    def encode_document(self, document: Inputs, *, deterministic: bool = True) -> jax.Array:
        """Embeddings float32 [B, E] of documents."""
        tower = self if self.config.shared else self.document
        return tower.embed(document, deterministic=deterministic)


def _pool(states_BxSxD: jax.Array, mask_BxS: jax.Array, pooling: str) -> jax.Array:
    if pooling == "first":
        return states_BxSxD[:, 0]
    # A text without tokens becomes the zero vector.
    counts_Bx1 = jnp.maximum(jnp.sum(mask_BxS, axis=1, keepdims=True), 1)
    return jnp.sum(states_BxSxD * mask_BxS[..., None], axis=1) / counts_Bx1


def _normalized(x_BxE: jax.Array) -> jax.Array:
    """Each row divided by its length; a zero vector stays one, and has a gradient."""
    squares_Bx1 = jnp.sum(jnp.square(x_BxE), axis=-1, keepdims=True)
    return x_BxE * jax.lax.rsqrt(jnp.maximum(squares_Bx1, 1e-12))
