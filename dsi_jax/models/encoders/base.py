"""What the project asks of any encoder of texts or images.

The architecture of an encoder is a frozen dataclass that derives from `TextEncoderConfig` or
`ImageEncoderConfig` and builds a flax module with a method `encode`. Models, warm start, sharding
and parameter groups know no more of it; see docs/add_an_encoder.md. Shape letters: B batch, S
states, D width of the encoder, Y and X height and width of an image.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from dsi_jax.inputs.pixels import normalize, squares
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.models.t5 import check_fields

# (regex, mesh axes of each dimension), see `dsi_jax.training.partitioning.PathRules`.
PathRules = tuple[tuple[str, tuple], ...]


class Encoded(NamedTuple):
    """Encoded texts or images.

    Attributes:
      states: [B, S, D], one for each token or patch.
      mask: bool [B, S], the states that belong to the example, the pooled one left out.
      pooled: [B, D], the whole example.
      pooled_place: bool [B, S], which of the states is the pooled one; None: none of them.
    """

    states: jax.Array
    mask: jax.Array
    pooled: jax.Array
    pooled_place: jax.Array | None = None


class EncoderConfig(abc.ABC):
    """The architecture of an encoder, a frozen dataclass whose fields are plain JSON.

    Attributes:
      kind: name of this architecture in checkpoints, registered in `registry`.
      family: name of the model that it is a half of. A contrastive model of two halves of one
        family keeps its parameters under this name.
      modality: TEXT or IMAGE.
      module_name: name of the module in whatever model holds it.
      projection_name: name of the projection of pooled states to contrastive embeddings.
      path_rules: sharding of the module's parameters, by their paths within it. Each regex matches
        some parameter; parameters without a rule are replicated.
      layers_name: what the layers are numbered under, as in `encoder/layers/3`.
      input_modules: names of modules below the first layer, other than embeddings.
      hidden_size: D, a field.
      dtype: "float32" or "bfloat16", of the matrix products.
      layer_norm_eps: added to the variance by the layer norm between encoder and decoder.
    """

    kind: ClassVar[str]
    family: ClassVar[str]
    modality: ClassVar[str]
    module_name: ClassVar[str]
    projection_name: ClassVar[str]
    path_rules: ClassVar[PathRules] = ()
    layers_name: ClassVar[str] = "layers"
    input_modules: ClassVar[tuple[str, ...]] = ()

    hidden_size: int
    dtype: str = "float32"
    layer_norm_eps: float = 1e-6

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """Builds the module, whose `encode(inputs, *, deterministic)` returns `Encoded`.

        The inputs are what `inputs` returns.
        """

    @abc.abstractmethod
    def inputs(self, stream: Mapping[str, jax.Array]) -> Any:
        """Returns what the module encodes of one modality of a batch."""

    def with_options(self, **options: Any) -> Self:
        """Returns the same architecture with other options, such as `dtype` and `remat`.

        Args:
          **options: fields and their values; None keeps the field as it is.

        Raises:
          ValueError: the architecture has no such field.
        """
        changes = {name: value for name, value in options.items() if value is not None}
        known = [field.name for field in dataclasses.fields(self)]
        for name, value in changes.items():
            if name not in known:
                raise ValueError(
                    f"{name} is {value!r}, and an encoder of kind {self.kind!r} has no such "
                    f"option; expected one of {known}"
                )
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a plain dict, as `json` would read it."""
        plain = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Returns the config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        return cls(**check_fields(cls, dict(value)))


class TextEncoderConfig(EncoderConfig):
    """The architecture of an encoder of texts.

    Attributes:
      vocab_size: tokens, a field.
      max_length: the most tokens of a text, a field or a property.
    """

    modality: ClassVar[str] = TEXT
    module_name: ClassVar[str] = "text_model"
    projection_name: ClassVar[str] = "text_projection"

    vocab_size: int
    max_length: int

    @abc.abstractmethod
    def for_vocabulary(self, vocab_size: int, end_id: int) -> Self:
        """Returns the same architecture for a tokenizer of so many ids.

        Args:
          vocab_size: ids of the tokenizer.
          end_id: the id that ends a text.
        """

    def inputs(self, stream: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """Returns the stream: {"tokens": int32 [B, S], "mask": bool [B, S]}."""
        return stream


class ImageEncoderConfig(EncoderConfig):
    """The architecture of an encoder of images.

    Attributes:
      image_size: height and width of an image in pixels, a field.
      image_mean: mean of each channel, subtracted from pixels in [0, 1].
      image_std: standard deviation of each channel, by which they are divided.
    """

    modality: ClassVar[str] = IMAGE
    module_name: ClassVar[str] = "vision_model"
    projection_name: ClassVar[str] = "visual_projection"

    image_size: int
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def inputs(self, stream: Mapping[str, jax.Array]) -> jax.Array:
        """Returns normalised pixels, float [B, Y, X, 3] with Y = X = image_size.

        Args:
          stream: see `dsi_jax.inputs.pixels`; pixels in floats are normalised already.
        """
        pixels_BxYxXx3 = squares(stream, self.image_size)
        if pixels_BxYxXx3.dtype != jnp.uint8:
            return pixels_BxYxXx3
        return normalize(pixels_BxYxXx3, self.image_mean, self.image_std)
