"""Formats of pretrained encoders, by the directories that they recognise."""

import json
from pathlib import Path

from dsi_jax.convert import hf_bert, hf_clip_format
from dsi_jax.convert.encoder_format import EncoderFormat, Flat
from dsi_jax.models.encoders.base import ImageEncoderConfig

_FORMATS: dict[str, EncoderFormat] = {}


def register(*formats: EncoderFormat) -> None:
    """Makes formats known, a family's in place of the one that it had."""
    _FORMATS.update({known.family: known for known in formats})


def format_in(directory: Path) -> EncoderFormat:
    """Returns the format of the pretrained encoders in a directory.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: its `model_type` is of no known format.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face directory")
    found = json.loads(path.read_text("utf-8")).get("model_type")
    for known in _FORMATS.values():
        if found in known.model_types:
            return known
    expected = sorted(name for known in _FORMATS.values() for name in known.model_types)
    raise ValueError(f"{path}: model_type is {found!r}; expected one of {expected}")


def fit_image_size(params: Flat, stored: ImageEncoderConfig, wanted: ImageEncoderConfig) -> Flat:
    """Returns the parameters of encoders for images of another size.

    Args:
      params: under the paths of `EncoderFormat.load_params`.
      stored: the architecture that they are of.
      wanted: the architecture that they are for.
    """
    if stored.image_size == wanted.image_size or stored.family not in _FORMATS:
        return params
    return _FORMATS[stored.family].fit_image_size(params, stored, wanted)


register(hf_clip_format.ClipFormat(), hf_bert.BertFormat())
