"""What a format of pretrained encoders must be able to do."""

import abc
import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from dsi_jax.models.encoders.base import ImageEncoderConfig, TextEncoderConfig

# Arrays by path, parts joined by slashes.
Flat = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PretrainedEncoders:
    """The encoders of a checkpoint.

    Attributes:
      text: the encoder of texts; None: there is none.
      image: the encoder of images; None: there is none.
      embedding_dim: width of contrastive embeddings; None: there are no projections.
    """

    text: TextEncoderConfig | None
    image: ImageEncoderConfig | None
    embedding_dim: int | None = None


class EncoderFormat(abc.ABC):
    """The checkpoints of one family of encoders, as Hugging Face saves them.

    Attributes:
      family: of the encoders, see `EncoderConfig`.
      model_types: what `model_type` in a config.json may be.
    """

    family: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def load_configs(self, directory: Path) -> PretrainedEncoders:
        """Reads the architectures, pixel statistics included; no weights.

        Raises:
          FileNotFoundError: a file is absent, be it the weights.
          ValueError: a value is out of its range.
        """

    @abc.abstractmethod
    def load_params(self, directory: Path, encoders: PretrainedEncoders) -> Flat:
        """Reads the weights of these encoders, float32.

        Paths are those of `EmbeddingTowers`: `<module_name>/...`, `<projection_name>/kernel` and
        `logit_scale`.

        Args:
          directory: of the checkpoint.
          encoders: what `load_configs` gave, all or a part of it.

        Raises:
          FileNotFoundError: the weights are absent.
          ValueError: they do not fit the architectures.
        """

    def fit_image_size(
        self, params: Flat, stored: ImageEncoderConfig, wanted: ImageEncoderConfig
    ) -> Flat:
        """Returns the parameters for images of another size, as they are unless overridden.

        Args:
          params: as from `load_params`.
          stored: the architecture that they are of.
          wanted: the same but for `image_size`.
        """
        del stored, wanted
        return params
