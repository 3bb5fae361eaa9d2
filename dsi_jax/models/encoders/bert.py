"""BERT and its relatives as encoders of texts (Devlin et al., 2019, arXiv 1810.04805).

Embedding models such as MiniLM, BGE and E5 have these layers, RoBERTa and XLM-RoBERTa (Liu et al.,
2019, arXiv 1907.11692) differ in where positions begin. Parameter paths are those of
transformers' PyTorch modules. Shape letters: B batch, S tokens, D width, H heads, P head size,
F mlp width.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.models.encoders.base import Encoded, PathRules, TextEncoderConfig

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}
POOLINGS = ("mean", "cls")

# Column-parallel kernels, then row-parallel ones (Shoeybi et al., 2019, section 3). Not named, so
# replicated: layer norms, biases of rows, the two rows of token types.
_LAYER = r"encoder/layer/\d+/"


@dataclasses.dataclass(frozen=True)
class BertConfig(TextEncoderConfig):
    """The architecture of a BERT.

    Attributes:
      vocab_size: rows of the token embedding.
      hidden_size: width D.
      intermediate_size: hidden width F of the mlp.
      num_hidden_layers: layers.
      num_attention_heads: heads H, which divide D.
      max_position_embeddings: rows of the position embedding.
      position_offset: row of the first token's position; 2 in RoBERTa, where 1 pads.
      type_vocab_size: rows of the token type embedding, of which the first is used.
      hidden_act: activation of the mlp, one of ACTIVATIONS.
      layer_norm_eps: added to the variance.
      pooling: "mean" of the states of all tokens, or "cls", the state of the first.
      dtype: "float32" or "bfloat16", of the matrix products; parameters, statistics of layer
        norms and softmax are float32.
      remat: True keeps only each layer's input for the backward pass and computes the rest anew.

    Raises:
      ValueError: a value is out of its range.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 512
    position_offset: int = 0
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pooling: str = "mean"
    dtype: str = "float32"
    remat: bool = False

    kind: ClassVar[str] = "bert"
    family: ClassVar[str] = "bert"
    layers_name: ClassVar[str] = "layer"
    # Columns of the vocabulary are split, not rows: it has any size, and a look-up then needs no
    # sum over devices.
    path_rules: ClassVar[PathRules] = (
        (
            _LAYER + r"(attention/self/(query|key|value)|intermediate/dense)/kernel",
            ("fsdp", "model"),
        ),
        (_LAYER + r"(attention/self/(query|key|value)|intermediate/dense)/bias", ("model",)),
        (_LAYER + r"(attention/)?output/dense/kernel", ("model", "fsdp")),
        (r"embeddings/word_embeddings/embedding", (None, ("fsdp", "model"))),
        (r"embeddings/position_embeddings/embedding", (None, "fsdp")),
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "position_offset" else 1
            if field.type is int and (type(value) is not int or value < least):
                raise ValueError(
                    f"BertConfig.{field.name} is {value!r}; expected a whole number of at least "
                    f"{least}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig.hidden_size is {self.hidden_size}; expected a multiple of the "
                f"{self.num_attention_heads} attention heads"
            )
        for name, value, known in (
            ("hidden_act", self.hidden_act, tuple(ACTIVATIONS)),
            ("pooling", self.pooling, POOLINGS),
            ("dtype", self.dtype, ("float32", "bfloat16")),
        ):
            if value not in known:
                raise ValueError(f"BertConfig.{name} is {value!r}; expected one of {known}")
        if self.max_length < 1:
            raise ValueError(
                f"BertConfig.max_position_embeddings is {self.max_position_embeddings}; expected "
                f"more than the position_offset {self.position_offset}"
            )

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self.max_position_embeddings - self.position_offset

    def build(self) -> nn.Module:
        """See `EncoderConfig`."""
        return Bert(self)

    def for_vocabulary(self, vocab_size: int, end_id: int) -> Self:
        """See `TextEncoderConfig`; the end is a token like any other here."""
        del end_id
        return dataclasses.replace(self, vocab_size=vocab_size)


class Bert(nn.Module):
    """Embeddings, layers, and the states pooled."""

    config: BertConfig

    @nn.compact
    def encode(self, inputs: Mapping[str, jax.Array], *, deterministic: bool = True) -> Encoded:
        """Encodes texts; nothing is dropped out.

        Args:
          inputs: {"tokens": int32 [B, S], "mask": bool [B, S]}.
          deterministic: unused.

        Returns:
          States of all tokens, the first one included, and the pooled one.
        """
        del deterministic
        mask_BxS = inputs["mask"]
        embedded_BxSxD = _Embeddings(self.config, name="embeddings")(inputs["tokens"])
        x_BxSxD = _Layers(self.config, name="encoder")(embedded_BxSxD, mask_BxS)
        if self.config.pooling == "cls":
            first_S = jnp.arange(mask_BxS.shape[1]) == 0
            place_BxS = jnp.broadcast_to(first_S, mask_BxS.shape)
            return Encoded(x_BxSxD, mask_BxS & ~place_BxS, x_BxSxD[:, 0], place_BxS)
        weights_BxSx1 = mask_BxS[..., None].astype(jnp.float32)
        sum_BxD = (x_BxSxD.astype(jnp.float32) * weights_BxSx1).sum(axis=1)
        pooled_BxD = sum_BxD / jnp.maximum(weights_BxSx1.sum(axis=1), 1)
        return Encoded(x_BxSxD, mask_BxS, pooled_BxD.astype(x_BxSxD.dtype))


class _Embeddings(nn.Module):
    """Token, position and type embeddings, added and normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, tokens_BxS: jax.Array) -> jax.Array:
        config = self.config

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(0.02)
            return nn.Embed(rows, config.hidden_size, embedding_init=init, name=name)

        positions_S = jnp.arange(tokens_BxS.shape[1]) + config.position_offset
        types_1 = jnp.zeros([1], jnp.int32)
        x_BxSxD = table(config.vocab_size, "word_embeddings")(tokens_BxS)
        x_BxSxD += table(config.max_position_embeddings, "position_embeddings")(positions_S)
        x_BxSxD += table(config.type_vocab_size, "token_type_embeddings")(types_1)
        return _norm(config)(x_BxSxD)


class _Layers(nn.Module):
    """All layers, under the name that transformers gives them."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        return _Numbered(self.config, name="layer")(x_BxSxD, mask_BxS)


class _Numbered(nn.Module):
    """The layers, numbered from 0."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        layer = nn.remat(_Layer) if self.config.remat else _Layer
        for index in range(self.config.num_hidden_layers):
            x_BxSxD = layer(self.config, name=str(index))(x_BxSxD, mask_BxS)
        return x_BxSxD


class _Layer(nn.Module):
    """Attention and an mlp, each followed by a residual sum and a layer norm."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        config = self.config
        x_BxSxD = _Attention(config, name="attention")(x_BxSxD, mask_BxS)
        hidden_BxSxF = _Dense(config, config.intermediate_size, name="intermediate")(x_BxSxD)
        hidden_BxSxF = ACTIVATIONS[config.hidden_act](hidden_BxSxF)
        return _Output(config, name="output")(hidden_BxSxF, x_BxSxD)


class _Attention(nn.Module):
    """Self-attention with its output projection."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        attended_BxSxD = _SelfAttention(self.config, name="self")(x_BxSxD, mask_BxS)
        return _Output(self.config, name="output")(attended_BxSxD, x_BxSxD)


class _SelfAttention(nn.Module):
    """Multi-head attention over the tokens that the mask keeps."""

    config: BertConfig

    @nn.compact
    def __call__(self, x_BxSxD: jax.Array, mask_BxS: jax.Array) -> jax.Array:
        config = self.config
        heads = config.num_attention_heads

        def split(name: str) -> jax.Array:
            return _dense(config, config.hidden_size, name)(x_BxSxD).reshape(
                *x_BxSxD.shape[:2], heads, -1
            )

        query_BxSxHxP, key_BxSxHxP, value_BxSxHxP = map(split, ("query", "key", "value"))
        scores_BxHxSxS = jnp.einsum("bqhp,bkhp->bhqk", query_BxSxHxP, key_BxSxHxP)
        scores_BxHxSxS = scores_BxHxSxS.astype(jnp.float32) * query_BxSxHxP.shape[-1] ** -0.5
        least = jnp.finfo(jnp.float32).min
        scores_BxHxSxS = jnp.where(mask_BxS[:, None, None], scores_BxHxSxS, least)
        weights_BxHxSxS = jax.nn.softmax(scores_BxHxSxS).astype(value_BxSxHxP.dtype)
        attended_BxSxHxP = jnp.einsum("bhqk,bkhp->bqhp", weights_BxHxSxS, value_BxSxHxP)
        return attended_BxSxHxP.reshape(x_BxSxD.shape)


class _Dense(nn.Module):
    """A dense layer under the name that transformers gives it."""

    config: BertConfig
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return _dense(self.config, self.features, "dense")(x)


class _Output(nn.Module):
    """A projection to the width D, added to what came before, and normalised."""

    config: BertConfig

    @nn.compact
    def __call__(self, x: jax.Array, residual_BxSxD: jax.Array) -> jax.Array:
        projected_BxSxD = _dense(self.config, self.config.hidden_size, "dense")(x)
        return _norm(self.config)(projected_BxSxD + residual_BxSxD)


def _dense(config: BertConfig, features: int, name: str) -> nn.Dense:
    init = nn.initializers.normal(0.02)
    return nn.Dense(features, dtype=jnp.dtype(config.dtype), kernel_init=init, name=name)


def _norm(config: BertConfig) -> nn.LayerNorm:
    dtype = jnp.dtype(config.dtype)
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, name="LayerNorm")
