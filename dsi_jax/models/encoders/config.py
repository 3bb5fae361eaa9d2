"""The encoders that a model has, of whatever kinds, and how their parameters lie on a mesh."""

import dataclasses
from typing import Any, Self

import flax.linen as nn

from dsi_jax.inputs.streams import MODALITIES
from dsi_jax.models.encoders import registry
from dsi_jax.models.encoders.base import (
    EncoderConfig,
    ImageEncoderConfig,
    PathRules,
    TextEncoderConfig,
)
from dsi_jax.models.encoders.memory import check_memory
from dsi_jax.models.encoders.towers import MemoryTower
from dsi_jax.models.t5 import check_fields

_PROJECTION_AXES = ("fsdp", "model")


@dataclasses.dataclass(frozen=True)
class Towers:
    """Encoders of texts and images, whatever is made of what they say.

    Attributes:
      text: the encoder of texts; None: there is none.
      image: the encoder of images; None: there is none.

    Raises:
      ValueError: both are absent, or one encodes something else.
    """

    text: TextEncoderConfig | None
    image: ImageEncoderConfig | None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.text is None and self.image is None:
            raise ValueError(f"{name} has neither text nor image; expected at least one")
        for modality in MODALITIES:
            found = getattr(self, modality)
            if found is not None and found.modality != modality:
                raise ValueError(
                    f"{name}.{modality} is of kind {found.kind!r}, which encodes "
                    f"{found.modality!r}; expected an encoder of {modality!r}"
                )

    @property
    def present(self) -> list[EncoderConfig]:
        """The encoders that there are, that of texts first."""
        return [config for config in (self.text, self.image) if config is not None]

    @property
    def path_rules(self) -> PathRules:
        """How the parameters lie on a mesh (`training.partitioning.PathRules`).

        Each rule matches some parameter.
        """
        rules = [
            (rf"(.*/)?{config.module_name}/(?:{pattern})", axes)
            for config in self.present
            for pattern, axes in config.path_rules
        ]
        names = ["memory_projection", *(config.projection_name for config in self.present)]
        return (*rules, (rf"(.*/)?({'|'.join(names)})/kernel", _PROJECTION_AXES))

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict that `json` can write."""
        towers = {"text": self.text, "image": self.image}
        others = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in towers
        }
        return {name: tower and registry.to_json(tower) for name, tower in towers.items()} | others

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Returns the config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, lacks some, or an encoder is of an unknown
            kind.
        """
        value = check_fields(cls, value)
        for modality in MODALITIES:
            value[modality] = value[modality] and registry.from_json(value[modality], modality)
        return cls(**value)


@dataclasses.dataclass(frozen=True)
class TowersConfig(Towers):
    """The towers of a differentiable search index, see `Towers`.

    Attributes:
      memory: what the decoder attends to, one of MEMORIES.

    Raises:
      ValueError: as `Towers`, or the memory is of another kind.
    """

    memory: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_memory(self.memory)

    def modules(self, width: int) -> tuple[nn.Module | None, nn.Module | None]:
        """Returns the towers of texts and images, with memories of this width."""
        return (
            self.text and MemoryTower(self.text, width, self.memory),
            self.image and MemoryTower(self.image, width, self.memory),
        )
