"""What models make of encoders: memory for a decoder, or vectors to compare.

Shape letters as in `dsi_jax.models.encoders.base`; W is the width of the decoder, E the width of
contrastive embeddings.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.models.encoders.base import (
    Encoded,
    EncoderConfig,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from dsi_jax.models.encoders.memory import check_memory

Stream = Mapping[str, jax.Array]


class MemoryTower(nn.Module):
    """An encoder whose states the decoder attends to, after a layer norm and a projection.

    Pretrained states need the norm: some leave the last layer without one.

    Attributes:
      config: of the encoder.
      width: W.
      memory: "pooled" is the pooled state alone, "states" are the others, "both" are all.

    Raises:
      ValueError: the memory is of another kind.
    """

    config: EncoderConfig
    width: int
    memory: str = "both"

    def setup(self) -> None:
        check_memory(self.memory)
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        setattr(self, config.module_name, config.build())
        self.memory_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype)
        self.memory_projection = nn.Dense(self.width, dtype=dtype)

    def __call__(
        self, stream: Stream, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes the texts or images of a batch.

        Args:
          stream: the batch's part of this modality, see `DSIModel.encode`.
          deterministic: False applies dropout, where the encoder has any.

        Returns:
          Memory [B, S, W] and its mask, bool [B, S]; S is 1 for a pooled memory.
        """
        encoder = getattr(self, self.config.module_name)
        encoded = encoder.encode(self.config.inputs(stream), deterministic=deterministic)
        memory_BxSxD, mask_BxS = _memory(encoded, self.memory)
        return self.memory_projection(self.memory_norm(memory_BxSxD)), mask_BxS


class EmbeddingTowers(nn.Module):
    """Encoders of texts and images as vectors of length 1.

    Attributes:
      text: of the encoder of texts; None: there is none.
      image: of the encoder of images; None: there is none.
      embedding_dim: E, to which pooled states are projected; None: they are left as they are.
    """

    text: TextEncoderConfig | None
    image: ImageEncoderConfig | None
    embedding_dim: int | None

    def setup(self) -> None:
        for config in (self.text, self.image):
            if config is None:
                continue
            setattr(self, config.module_name, config.build())
            if self.embedding_dim is not None:
                projection = nn.Dense(
                    self.embedding_dim,
                    use_bias=False,
                    dtype=jnp.dtype(config.dtype),
                    kernel_init=nn.initializers.normal(0.01),
                )
                setattr(self, config.projection_name, projection)
        if self.text is not None and self.image is not None:
            # exp(2.6592) = 1 / 0.07 (Radford et al., 2021, section 2.5).
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), [])

    def embed_text(self, texts: Stream, *, deterministic: bool = True) -> jax.Array:
        """Returns unit vectors float32 [B, E] of {"tokens", "mask"}, both [B, S]."""
        return self._embed(self.text, texts, deterministic)

    def embed_image(self, images: Stream, *, deterministic: bool = True) -> jax.Array:
        """Returns unit vectors float32 [B, E] of images, see `dsi_jax.inputs.pixels`."""
        return self._embed(self.image, images, deterministic)

    def _embed(self, config: EncoderConfig, stream: Stream, deterministic: bool) -> jax.Array:
        encoder = getattr(self, config.module_name)
        x_BxE = encoder.encode(config.inputs(stream), deterministic=deterministic).pooled
        if self.embedding_dim is not None:
            x_BxE = getattr(self, config.projection_name)(x_BxE)
        x_BxE = x_BxE.astype(jnp.float32)
        return x_BxE / jnp.linalg.norm(x_BxE, axis=-1, keepdims=True)


def _memory(encoded: Encoded, memory: str) -> tuple[jax.Array, jax.Array]:
    """Selects the states [B, S, D] that a decoder attends to, and their mask."""
    pooled_Bx1xD = encoded.pooled[:, None]
    ones_Bx1 = jnp.ones(pooled_Bx1xD.shape[:2], bool)
    if memory == "pooled":
        return pooled_Bx1xD, ones_Bx1
    if memory == "states":
        return encoded.states, encoded.mask
    if encoded.pooled_place is not None:
        return encoded.states, encoded.mask | encoded.pooled_place
    states = jnp.concatenate([pooled_Bx1xD, encoded.states], axis=1)
    return states, jnp.concatenate([ones_Bx1, encoded.mask], axis=1)
