"""Pretrained encoders as the encoders of a DSI: memory for the decoder's cross-attention.

Each tower is followed by a layer norm and a projection to the width of the decoder; CLIP's vision
states need the norm most, for they leave the last layer without one. Shape letters as in
`dsi_jax.models.encoders.clip`; W is the width of the decoder.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs.pixels import normalize, squares
from dsi_jax.models.encoders.clip import ClipTextTransformer, ClipVisionTransformer, end_positions
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.memory import check_memory


class ClipTextTower(nn.Module):
    """CLIP's text transformer as an encoder.

    A text ends at its first end token, whatever the tokenizer pads with; that is where the memory's
    mask ends, and the causal transformer does not look beyond. So any tokenizer serves whose end
    token the config knows: CLIP's own, which pads with the end token, or T5's, which pads with 0.

    Attributes:
      config: of the transformer.
      width: W.
      memory: "pooled" is the state of the end token alone, "states" are those of the tokens before
        it, "both" are all.

    Raises:
      ValueError: the memory is of another kind.
    """

    config: ClipTextConfig
    width: int
    memory: str = "both"

    def setup(self) -> None:
        check_memory(self.memory)
        self.text_model = ClipTextTransformer(self.config)
        self.memory_norm, self.memory_projection = _to_decoder(self.config, self.width)

    def __call__(
        self, stream: Mapping[str, jax.Array], *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes the texts of a batch.

        Args:
          stream: {"tokens": int32 [B, S]}; a mask in it is not needed.
          deterministic: of no effect, CLIP has no dropout.

        Returns:
          Memory [B, S, W] and its mask, bool [B, S]; S is 1 for a pooled memory.
        """
        del deterministic
        tokens_BxS = stream["tokens"]
        states_BxSxD, pooled_BxD = self.text_model(tokens_BxS)
        if self.memory == "pooled":
            memory_BxSxD = pooled_BxD[:, None]
            mask_BxS = jnp.ones(memory_BxSxD.shape[:2], bool)
        else:
            memory_BxSxD = states_BxSxD
            ends_Bx1 = end_positions(tokens_BxS, self.config.eos_token_id)[:, None]
            positions_S = jnp.arange(tokens_BxS.shape[1])
            mask_BxS = positions_S < ends_Bx1
            if self.memory == "both":
                mask_BxS |= positions_S == ends_Bx1
        return self.memory_projection(self.memory_norm(memory_BxSxD)), mask_BxS


class ClipVisionTower(nn.Module):
    """CLIP's vision transformer as an encoder.

    Attributes:
      config: of the transformer.
      width: W.
      memory: "pooled" is the class token alone, "states" are the patches, "both" are all. The class
        token has passed CLIP's layer norm.

    Raises:
      ValueError: the memory is of another kind.
    """

    config: ClipVisionConfig
    width: int
    memory: str = "both"

    def setup(self) -> None:
        check_memory(self.memory)
        self.vision_model = ClipVisionTransformer(self.config)
        self.memory_norm, self.memory_projection = _to_decoder(self.config, self.width)

    def __call__(
        self, stream: Mapping[str, jax.Array], *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes the images of a batch.

        Args:
          stream: see `inputs.pixels`; or {"pixels": float [B, Y, X, 3]}, normalised already.
          deterministic: of no effect, CLIP has no dropout.

        Returns:
          Memory [B, S, W] and its mask, bool [B, S], all True. S is 1, the number of patches, or
          one more.
        """
        del deterministic
        pixels_BxYxXx3 = squares(stream, self.config.image_size)
        if pixels_BxYxXx3.dtype == jnp.uint8:
            config = self.config
            pixels_BxYxXx3 = normalize(pixels_BxYxXx3, config.image_mean, config.image_std)
        states_BxSxD, pooled_BxD = self.vision_model(pixels_BxYxXx3)
        memory = {"pooled": [pooled_BxD[:, None]], "states": [states_BxSxD[:, 1:]]}
        parts = memory.get(self.memory) or [*memory["pooled"], *memory["states"]]
        memory_BxSxD = jnp.concatenate(parts, axis=1)
        mask_BxS = jnp.ones(memory_BxSxD.shape[:2], bool)
        return self.memory_projection(self.memory_norm(memory_BxSxD)), mask_BxS


def _to_decoder(
    config: ClipTextConfig | ClipVisionConfig, width: int
) -> tuple[nn.LayerNorm, nn.Dense]:
    dtype = jnp.dtype(config.dtype)
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype), nn.Dense(width, dtype=dtype)
