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

from dsi_jax.models import streams
from dsi_jax.models.clip_config import ClipConfig, ClipTextConfig, ClipVisionConfig
from dsi_jax.models.dual_encoder import LARGEST_SCALE, Embeddings
from dsi_jax.models.streams import IMAGE, TEXT
from dsi_jax.models.t5 import check_fields
from dsi_jax.models.towers_config import path_rules
from dsi_jax.pixels import normalize

_INITIAL_SCALE = 1 / 0.07  # of CLIP, section 2.5


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Contrastive towers; documents are images.

    Attributes:
      text: the encoder of texts; None: there is none.
      image: the encoder of images.
      embedding_dim: E.

    Raises:
      ValueError: a value is out of its range.
    """

    text: ClipTextConfig | None
    image: ClipVisionConfig
    embedding_dim: int

    def __post_init__(self) -> None:
        if self.embedding_dim < 1:
            raise ValueError(f"embedding_dim is {self.embedding_dim!r}; expected at least 1")

    @property
    def width(self) -> int:
        """E."""
        return self.embedding_dim

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        towers = {"text": self.text, "image": self.image}
        return dataclasses.asdict(self) | {
            name: tower and tower.to_json() for name, tower in towers.items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ContrastiveConfig":
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = check_fields(cls, value)
        return cls(
            text=value["text"] and ClipTextConfig.from_json(value["text"]),
            image=ClipVisionConfig.from_json(value["image"]),
            embedding_dim=value["embedding_dim"],
        )


class ContrastiveModel(nn.Module):
    """Embeds pairs of a query, a text or an image, and an image."""

    config: ContrastiveConfig

    def setup(self) -> None:
        # Transformers' CLIP takes seconds to import: only who has towers pays for it.
        from dsi_jax.models import clip

        config = self.config
        self.clip = clip.Clip(ClipConfig(config.text, config.image, config.embedding_dim))

    def __call__(self, batch: Mapping[str, Any], *, deterministic: bool) -> Embeddings:
        """Embeds a batch of pairs.

        Args:
          batch: the streams of queries, see `DSIModel.encode`, and {"document": {"pixels": uint8
            [B, Y, X, 3]}}; further entries are ignored.
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
        """Embeddings float32 [B, E] of images, {"pixels": uint8 [B, Y, X, 3]}."""
        del deterministic
        image = self.config.image
        pixels_BxYxXx3 = normalize(document["pixels"], image.image_mean, image.image_std)
        return self.clip.embed_image(pixels_BxYxXx3)

    @property
    def path_rules(self) -> tuple[tuple[str, tuple], ...]:
        """How the parameters lie on a mesh (`training.partitioning.PathRules`)."""
        return path_rules(text=self.config.text is not None, vision=True)
