"""Contrastive towers: texts and images become vectors of length 1, compared by their product.

The model of CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020), of encoders of any kinds
under the paths of their family's checkpoints, so that pretrained weights are a dense baseline as
they are.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs import streams
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.models.dual_encoder import LARGEST_SCALE, Embeddings
from dsi_jax.models.encoders.config import Towers
from dsi_jax.models.encoders.towers import EmbeddingTowers

_FIXED_SCALE = 1 / 0.07  # without texts; that which `EmbeddingTowers` begin to learn from
_MIXED = "towers"  # where the parameters of encoders of two families lie


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
        super().__post_init__()
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim!r}; expected at least 1")

    @property
    def width(self) -> int:
        """E."""
        return self.embedding_dim

    @property
    def scope(self) -> str:
        """The first part of the paths of all parameters: the family's name, where it is one."""
        families = {config.family for config in self.present}
        return families.pop() if len(families) == 1 else _MIXED


class ContrastiveModel(nn.Module):
    """Embeds pairs of a query, a text or an image, and an image."""

    config: ContrastiveConfig

    def setup(self) -> None:
        config = self.config
        towers = EmbeddingTowers(config.text, config.image, config.embedding_dim)
        setattr(self, config.scope, towers)

    @property
    def _towers(self) -> EmbeddingTowers:
        return getattr(self, self.config.scope)

    def __call__(self, batch: Mapping[str, Any], *, deterministic: bool) -> Embeddings:
        """Embeds a batch of pairs.

        Args:
          batch: the streams of queries, see `DSIModel.encode`, and {"document": images}, see
            `dsi_jax.inputs.pixels`; further entries are ignored.
          deterministic: False applies dropout, where the encoders have any.
        """
        scale = jnp.float32(_FIXED_SCALE)
        if self.config.text is not None:
            scale = jnp.minimum(jnp.exp(self._towers.logit_scale), LARGEST_SCALE)
        queries_BxE = self.encode_query(batch, deterministic=deterministic)
        documents_BxE = self.encode_document(batch["document"], deterministic=deterministic)
        return Embeddings(queries_BxE, documents_BxE, scale)

    def encode_query(self, batch: Mapping[str, Any], *, deterministic: bool = True) -> jax.Array:
        """Embeddings float32 [B, E] of the texts and images of a batch."""
        found = []
        if TEXT in batch:
            found.append(self._towers.embed_text(batch[TEXT], deterministic=deterministic))
        if IMAGE in batch:
            found.append(self.encode_document(batch[IMAGE], deterministic=deterministic))
        return streams.interleave(found)

    def encode_document(
        self, document: Mapping[str, jax.Array], *, deterministic: bool = True
    ) -> jax.Array:
        """Embeddings float32 [B, E] of images, see `dsi_jax.inputs.pixels`."""
        return self._towers.embed_image(document, deterministic=deterministic)

    @property
    def path_rules(self) -> tuple[tuple[str, tuple], ...]:
        """How the parameters lie on a mesh (`training.partitioning.PathRules`)."""
        return self.config.path_rules
