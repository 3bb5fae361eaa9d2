"""The architecture of a CLIP (Radford et al., 2021, https://arxiv.org/abs/2103.00020).

The fields have the names of transformers, whose Flax modules read them; unlike its configs these
are hashable and checked.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn

from dsi_jax.models.encoders.base import (
    EncoderConfig,
    ImageEncoderConfig,
    PathRules,
    TextEncoderConfig,
)

# Of OpenAI's CLIP, https://github.com/openai/CLIP, and of nearly every CLIP since.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")

# Column-parallel kernels, then row-parallel ones (Shoeybi et al., 2019, section 3). Not named, so
# replicated: layer norms, biases of rows, the class embedding.
_LAYER = r"encoder/layers/\d+/"
_TRANSFORMER_RULES: PathRules = (
    (_LAYER + r"(self_attn/[qkv]_proj|mlp/fc1)/kernel", ("fsdp", "model")),
    (_LAYER + r"(self_attn/[qkv]_proj|mlp/fc1)/bias", ("model",)),
    (_LAYER + r"(self_attn/out_proj|mlp/fc2)/kernel", ("model", "fsdp")),
    (r"embeddings/position_embedding/embedding", (None, "fsdp")),
)


@dataclasses.dataclass(frozen=True)
class ClipTransformerConfig(EncoderConfig):
    """What text and vision transformers have in common.

    Attributes:
      hidden_size: width D.
      intermediate_size: hidden width F of the mlp.
      num_hidden_layers: layers.
      num_attention_heads: heads H, which divide D.
      hidden_act: activation of the mlp, one of ACTIVATIONS; "quick_gelu" in OpenAI's models.
      layer_norm_eps: added to the variance.
      dtype: "float32" or "bfloat16", of the matrix products; parameters, statistics of layer
        norms and softmax are float32.
      remat: True keeps only each layer's input for the backward pass and computes the rest anew.

    Raises:
      ValueError: a value is out of its range.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    family: ClassVar[str] = "clip"
    causal: ClassVar[bool]
    attention_dropout: ClassVar[float] = 0.0  # read by transformers' module; 0 in every CLIP

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{name}.{field.name} is {value!r}; expected a positive integer")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{name}.hidden_size is {self.hidden_size}; expected a multiple of the "
                f"{self.num_attention_heads} attention heads"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"{name}.hidden_act is {self.hidden_act!r}; expected one of {ACTIVATIONS}"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"{name}.dtype is {self.dtype!r}; expected 'float32' or 'bfloat16'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig(ClipTransformerConfig, TextEncoderConfig):
    """A text transformer.

    Attributes:
      vocab_size: rows of the token embedding.
      max_position_embeddings: the most tokens of a text, start and end included.
      eos_token_id: the token that ends a text. None: the highest id of a row does, its first
        occurrence; so in OpenAI's vocabulary, and where a config.json says 2 for compatibility.

    Raises:
      ValueError: a value is out of its range; an end token outside the vocabulary would silently
        never be found.
    """

    vocab_size: int
    max_position_embeddings: int = 77
    eos_token_id: int | None = None

    kind: ClassVar[str] = "clip_text"
    causal: ClassVar[bool] = True
    # Columns are split, not rows: a vocabulary has any size, and a lookup then needs no sum over
    # devices.
    path_rules: ClassVar[PathRules] = (
        *_TRANSFORMER_RULES,
        (r"embeddings/token_embedding/embedding", (None, ("fsdp", "model"))),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eos_token_id is not None and not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"ClipTextConfig.eos_token_id is {self.eos_token_id!r}; expected a token id below "
                f"vocab_size {self.vocab_size}, or None"
            )

    @property
    def max_length(self) -> int:
        """The most tokens of a text."""
        return self.max_position_embeddings

    def build(self) -> nn.Module:
        """See `EncoderConfig`."""
        # Transformers' CLIP takes seconds to import: only who has such an encoder pays for it.
        from dsi_jax.models.encoders.clip import ClipTextTransformer

        return ClipTextTransformer(self)

    def for_vocabulary(self, vocab_size: int, end_id: int) -> "ClipTextConfig":
        """The same for another tokenizer; CLIP's own, with its highest id last, stays as it is."""
        if self.eos_token_id is None and vocab_size == self.vocab_size:
            return self
        return dataclasses.replace(self, vocab_size=vocab_size, eos_token_id=end_id)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig(ClipTransformerConfig, ImageEncoderConfig):
    """A vision transformer.

    Attributes:
      image_size: height and width of an image in pixels.
      patch_size: height and width of a patch; what it does not divide is cut off, as elsewhere.
      image_mean: of each channel, subtracted from pixels in [0, 1].
      image_std: of each channel.

    Raises:
      ValueError: a value is out of its range.
    """

    image_size: int
    patch_size: int
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    kind: ClassVar[str] = "clip_vision"
    causal: ClassVar[bool] = False
    input_modules: ClassVar[tuple[str, ...]] = ("pre_layrnorm",)  # sic
    path_rules: ClassVar[PathRules] = (
        *_TRANSFORMER_RULES,
        (r"embeddings/patch_embedding/kernel", (None, None, None, ("fsdp", "model"))),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_mean", "image_std"):
            value = tuple(map(float, getattr(self, name)))
            if len(value) != 3:
                raise ValueError(f"ClipVisionConfig.{name} is {value!r}; expected three numbers")
            object.__setattr__(self, name, value)
        if self.patch_size > self.image_size:
            raise ValueError(
                f"ClipVisionConfig.patch_size is {self.patch_size}; expected at most image_size "
                f"{self.image_size}"
            )

    def build(self) -> nn.Module:
        """See `EncoderConfig`."""
        # See `ClipTextConfig.build`.
        from dsi_jax.models.encoders.clip import ClipVisionTransformer

        return ClipVisionTransformer(self)

    @property
    def grid_size(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """A CLIP, or one of its halves.

    Attributes:
      text: the text transformer, None if there is none.
      vision: the vision transformer, None if there is none.
      projection_dim: E; None if there are no projections.

    Raises:
      ValueError: both halves are absent.
    """

    text: ClipTextConfig | None
    vision: ClipVisionConfig | None
    projection_dim: int | None

    def __post_init__(self) -> None:
        if self.text is None and self.vision is None:
            raise ValueError("ClipConfig has neither text nor vision; expected at least one")


ENCODERS = (ClipTextConfig, ClipVisionConfig)
