"""CLIP's text and vision transformers (Radford et al., 2021, https://arxiv.org/abs/2103.00020).

Embeddings, projections, mlps, layer norms, their initial values and the parameter paths are those
of transformers' Flax modules. Around them is ours: the loop over the layers (rematerialisation,
constraints of activations, bfloat16 residuals), attention (logits and softmax in float32; theirs
are bfloat16 in a bfloat16 model) and the pooling of the text.

Shape letters as in `dsi_jax.models.layers`, and Y, X height and width of an image.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from transformers.models.clip import modeling_flax_clip as hf

from dsi_jax.models.encoders.base import Encoded

if typing.TYPE_CHECKING:  # the configs import this module when they build one of its own
    from dsi_jax.models.encoders.clip_config import (
        ClipTextConfig,
        ClipTransformerConfig,
        ClipVisionConfig,
    )


class _Attention(hf.FlaxCLIPAttention):
    """Transformers' projections; attention logits and softmax in float32."""

    def __call__(
        self,
        hidden_states: jax.Array,
        attention_mask: None = None,
        deterministic: bool = True,
        output_attentions: bool = False,
    ) -> tuple[jax.Array]:
        """Maps [B, S, D] to [B, S, D]; only the first argument is used."""
        query_BxSxHxP, key_BxSxHxP, value_BxSxHxP = (
            self._split_heads(project(hidden_states))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended_BxSxHxP = jax.nn.dot_product_attention(
            query_BxSxHxP, key_BxSxHxP, value_BxSxHxP, is_causal=self.config.causal
        )
        return (self.out_proj(self._merge_heads(attended_BxSxHxP)),)


class _Layer(hf.FlaxCLIPEncoderLayer):
    """Transformers' layer around our attention."""

    def setup(self) -> None:
        config = self.config
        self.self_attn = _Attention(config, dtype=self.dtype)
        self.layer_norm1 = _layer_norm(config)
        self.mlp = hf.FlaxCLIPMLP(config, dtype=self.dtype)
        self.layer_norm2 = _layer_norm(config)


class _Layers(nn.Module):
    config: ClipTransformerConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        layer = nn.remat(_Layer) if self.config.remat else _Layer
        for index in range(self.config.num_hidden_layers):
            x_BxSxD = nn.with_logical_constraint(x_BxSxD, ("batch", "length", "embed"))
            (x_BxSxD,) = layer(self.config, jnp.dtype(self.config.dtype), name=str(index))(
                x_BxSxD, None
            )
        return x_BxSxD


class _Encoder(nn.Module):
    config: ClipTransformerConfig

    def setup(self) -> None:
        self.layers = _Layers(self.config)

    def __call__(self, x_BxSxD: jax.Array) -> jax.Array:
        return self.layers(x_BxSxD)


class ClipTextTransformer(nn.Module):
    """Tokens -> states and the state of the end token, both after the final layer norm."""

    config: ClipTextConfig

    def setup(self) -> None:
        self.embeddings = hf.FlaxCLIPTextEmbeddings(self.config, jnp.dtype(self.config.dtype))
        self.encoder = _Encoder(self.config)
        self.final_layer_norm = _layer_norm(self.config)

    def __call__(self, tokens_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes texts; what follows a text's end token changes nothing up to it.

        Args:
          tokens_BxS: int32; whatever pads the texts.

        Returns:
          States [B, S, D] and pooled [B, D].

        Raises:
          ValueError: S exceeds max_position_embeddings.
        """
        length, longest = tokens_BxS.shape[1], self.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"texts have {length} tokens; CLIP's text tower takes {longest}")
        x_BxSxD = self.embeddings(tokens_BxS, jnp.arange(length)[None])
        x_BxSxD = self.encoder(x_BxSxD.astype(self.config.dtype))
        states_BxSxD = self.final_layer_norm(x_BxSxD)
        ends_B = end_positions(tokens_BxS, self.config.eos_token_id)
        pooled_Bx1xD = jnp.take_along_axis(states_BxSxD, ends_B[:, None, None], axis=1)
        return states_BxSxD, pooled_Bx1xD[:, 0]

    def encode(self, inputs: Mapping[str, jax.Array], *, deterministic: bool) -> Encoded:
        """See `EncoderConfig.build`.

        A text ends at its first end token, whatever the tokenizer pads with, and the causal
        transformer does not look beyond. So any tokenizer serves whose end token the config knows:
        CLIP's own, which pads with the end token, or T5's, which pads with 0.

        Args:
          inputs: {"tokens": int32 [B, S]}; a mask in it is not needed.
          deterministic: without effect, CLIP has no dropout.
        """
        del deterministic
        tokens_BxS = inputs["tokens"]
        states_BxSxD, pooled_BxD = self(tokens_BxS)
        ends_Bx1 = end_positions(tokens_BxS, self.config.eos_token_id)[:, None]
        positions_S = jnp.arange(tokens_BxS.shape[1])
        return Encoded(states_BxSxD, positions_S < ends_Bx1, pooled_BxD, positions_S == ends_Bx1)


class ClipVisionTransformer(nn.Module):
    """Pixels -> states as they leave the last layer, and the class token's after a layer norm."""

    config: ClipVisionConfig

    def setup(self) -> None:
        self.embeddings = hf.FlaxCLIPVisionEmbeddings(self.config, jnp.dtype(self.config.dtype))
        self.pre_layrnorm = _layer_norm(self.config)  # sic, in every published checkpoint
        self.encoder = _Encoder(self.config)
        self.post_layernorm = _layer_norm(self.config)

    def __call__(self, pixels_BxYxXx3: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes images.

        Args:
          pixels_BxYxXx3: float, normalised; Y = X = image_size.

        Returns:
          States [B, 1 + patches, D], the class token's first and not layer-normed, and pooled
          [B, D].

        Raises:
          ValueError: the images are of another size.
        """
        size = self.config.image_size
        if pixels_BxYxXx3.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images have shape {pixels_BxYxXx3.shape[1:]}; CLIP's vision tower expects "
                f"{(size, size, 3)}"
            )
        x_BxSxD = self.pre_layrnorm(self.embeddings(pixels_BxYxXx3))
        states_BxSxD = self.encoder(x_BxSxD)
        return states_BxSxD, self.post_layernorm(states_BxSxD[:, 0])

    def encode(self, inputs: jax.Array, *, deterministic: bool) -> Encoded:
        """See `EncoderConfig.build`: the states are those of patches, pooled is the class token's.

        Args:
          inputs: as `__call__`.
          deterministic: without effect, CLIP has no dropout.
        """
        del deterministic
        states_BxSxD, pooled_BxD = self(inputs)
        patches_BxSxD = states_BxSxD[:, 1:]
        return Encoded(patches_BxSxD, jnp.ones(patches_BxSxD.shape[:2], bool), pooled_BxD)


def end_positions(tokens_BxS: jax.Array, eos_token_id: int | None) -> jax.Array:
    """Where each text ends.

    Args:
      tokens_BxS: int32.
      eos_token_id: see `ClipTextConfig`.

    Returns:
      int32 [B], the position of the first end token; S - 1 in a row that has none.
    """
    if eos_token_id is None:
        return jnp.argmax(tokens_BxS, axis=1)
    is_end_BxS = tokens_BxS == eos_token_id
    last = tokens_BxS.shape[1] - 1
    return jnp.where(is_end_BxS.any(axis=1), jnp.argmax(is_end_BxS, axis=1), last)


def _layer_norm(config: ClipTransformerConfig) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.dtype(config.dtype))
