"""Contrastive towers: texts and images become vectors of length 1, compared by their product.

The model of CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020), under the paths of its
checkpoints, so that pretrained weights are a dense baseline as they are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs import streams
from dsi_jax.inputs.pixels import normalize, squares
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.models.dual_encoder import LARGEST_SCALE, Embeddings
from dsi_jax.models.encoders.clip_config import ClipConfig
from dsi_jax.models.encoders.config import Towers

_INITIAL_SCALE = 1 / 0.07  # of CLIP, section 2.5


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(Towers):
    """Contrastive towers, see `Towers`; documents are images, so there is one of images.

    Attributes:
      embedding_dim: E.

    Raises:
      ValueError: there is no tower of images, or E is below 1.
    """

    embedding_dim: int

    def __post_init__(self) -> None:
        if self.image is None:
            raise ValueError("ContrastiveConfig.image is None; expected an encoder of images")
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim!r}; expected at least 1")

    @property
    def width(self) -> int:
        """E."""
        return self.embedding_dim


class ContrastiveModel(nn.Module):
    """Embeds pairs of a query, a text or an image, and an image."""

    config: ContrastiveConfig

    def setup(self) -> None:
        # Transformers' CLIP takes seconds to import: only who has towers pays for it.
        from dsi_jax.models.encoders import clip

        config = self.config
        self.clip = clip.Clip(ClipConfig(config.text, config.image, config.embedding_dim))

    def __call__(self, batch: Mapping[str, Any], *, deterministic: bool) -> Embeddings:
        """Embeds a batch of pairs.

        Args:
          batch: the streams of queries, see `DSIModel.encode`, and {"document": images}, see
            `dsi_jax.inputs.pixels`; further entries are ignored.
          deterministic: of no effect, CLIP has no dropout.
        """
        scale = jnp.float32(_INITIAL_SCALE)
        if self.config.text is not None:
            scale = jnp.minimum(jnp.exp(self.clip.logit_scale), LARGEST_SCALE)
        queries_BxE = self.encode_query(batch, deterministic=deterministic)
        documents_BxE = self.encode_document(batch["document"], deterministic=deterministic)
        return Embeddings(queries_BxE, documents_BxE, scale)

    def encode_query(self, batch: Mapping[str, Any], *, deterministic: bool = True) -> jax.Array:
        """Embeddings float32 [B, E] of the texts and images of a batch."""
        found = []
        if TEXT in batch:
            found.append(self.clip.embed_text(batch[TEXT]["tokens"]))
        if IMAGE in batch:
            found.append(self.encode_document(batch[IMAGE], deterministic=deterministic))
        return streams.interleave(found)

    def encode_document(
        self, document: Mapping[str, jax.Array], *, deterministic: bool = True
    ) -> jax.Array:
        """Embeddings float32 [B, E] of images, see `dsi_jax.inputs.pixels`."""
        del deterministic
        image = self.config.image
        pixels_BxYxXx3 = squares(document, image.image_size)
        return self.clip.embed_image(normalize(pixels_BxYxXx3, image.image_mean, image.image_std))

    @property
    def path_rules(self) -> tuple[tuple[str, tuple], ...]:
        """How the parameters lie on a mesh (`training.partitioning.PathRules`)."""
        return self.config.path_rules
