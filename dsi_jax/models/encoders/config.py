"""What towers a model has, and how their parameters lie on a mesh."""

import dataclasses
from typing import Any, Self

import flax.linen as nn

from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.memory import check_memory
from dsi_jax.models.t5 import check_fields


@dataclasses.dataclass(frozen=True)
class Towers:
    """Encoders of texts and images, whatever is made of what they say.

    Attributes:
      text: the encoder of texts; None: there is none.
      image: the encoder of images; None: there is none.

    Raises:
      ValueError: both are absent.
    """

    text: ClipTextConfig | None
    image: ClipVisionConfig | None

    def __post_init__(self) -> None:
        if self.text is None and self.image is None:
            name = type(self).__name__
            raise ValueError(f"{name} has neither text nor image; expected at least one")

    @property
    def path_rules(self) -> tuple[tuple[str, tuple], ...]:
        """See `path_rules`."""
        return path_rules(text=self.text is not None, vision=self.image is not None)

    def to_json(self) -> dict[str, Any]:
        """A plain dict that `json` can write."""
        towers = {"text": self.text, "image": self.image}
        return dataclasses.asdict(self) | {
            name: tower and tower.to_json() for name, tower in towers.items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The config of a dict made by `to_json`.

        Raises:
          ValueError: the dict has fields unknown here, or lacks some.
        """
        value = check_fields(cls, value)
        for name, config in (("text", ClipTextConfig), ("image", ClipVisionConfig)):
            value[name] = value[name] and config.from_json(value[name])
        return cls(**value)


@dataclasses.dataclass(frozen=True)
class TowersConfig(Towers):
    """The towers of a differentiable search index, see `Towers`.

    Attributes:
      memory: what the decoder attends to, one of MEMORIES.

    Raises:
      ValueError: both towers are absent, or the memory is of another kind.
    """

    memory: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_memory(self.memory)

    def modules(self, width: int) -> tuple[nn.Module | None, nn.Module | None]:
        """The towers of a model, with memories of this width."""
        # Transformers' CLIP takes seconds to import: only who has towers pays for it.
        from dsi_jax.models.encoders.clip_towers import ClipTextTower, ClipVisionTower

        return (
            self.text and ClipTextTower(self.text, width, self.memory),
            self.image and ClipVisionTower(self.image, width, self.memory),
        )


# Column-parallel kernels, then row-parallel ones (Shoeybi et al., 2019, section 3), in whichever
# towers there are. Not named, so replicated: layer norms, biases of rows, the class embedding.
_LAYER = r"(.*/)?(text|vision)_model/encoder/layers/\d+/"
_EMBEDDINGS = r"(.*/)?(text|vision)_model/embeddings/"
_BOTH_RULES = (
    (_LAYER + r"(self_attn/[qkv]_proj|mlp/fc1)/kernel", ("fsdp", "model")),
    (_LAYER + r"(self_attn/[qkv]_proj|mlp/fc1)/bias", ("model",)),
    (_LAYER + r"(self_attn/out_proj|mlp/fc2)/kernel", ("model", "fsdp")),
    (_EMBEDDINGS + r"position_embedding/embedding", (None, "fsdp")),
    (r"(.*/)?(memory|text|visual)_projection/kernel", ("fsdp", "model")),
)
# Columns are split, not rows: a vocabulary has any size, and a lookup then needs no sum over
# devices.
_TEXT_RULES = ((_EMBEDDINGS + r"token_embedding/embedding", (None, ("fsdp", "model"))),)
_VISION_RULES = ((_EMBEDDINGS + r"patch_embedding/kernel", (None, None, None, ("fsdp", "model"))),)


def path_rules(*, text: bool, vision: bool) -> tuple[tuple[str, tuple], ...]:
    """How the parameters of towers, or of a `Clip`, lie on a mesh.

    Args:
      text: whether there is a text tower.
      vision: whether there is a vision tower.

    Returns:
      `dsi_jax.training.partitioning.PathRules`, each of which matches some parameter.
    """
    return _BOTH_RULES + _TEXT_RULES * text + _VISION_RULES * vision
