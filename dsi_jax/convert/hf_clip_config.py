"""The config.json and preprocessor_config.json of a CLIP, read into our dataclasses and written."""

import json
import warnings
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from dsi_jax.models.encoders.clip_config import (
    CLIP_MEAN,
    CLIP_STD,
    ClipConfig,
    ClipTextConfig,
    ClipTransformerConfig,
    ClipVisionConfig,
)
from dsi_jax.utils import atomic_files

_CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
_MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model")
# In a config.json it means that the highest id ends a text (transformers#24773).
_LEGACY_EOS = 2
_SHARED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)


def read_config(directory: Path) -> ClipConfig:
    """The config of a CLIP, or of a half of one, as saved by transformers.

    Args:
      directory: holds config.json and, for other means and deviations of pixels than OpenAI's,
        preprocessor_config.json.

    Returns:
      The config (float32). Dropout is left out: no published CLIP has any.

    Raises:
      FileNotFoundError: config.json is absent.
      ValueError: the model is of another kind, or a value is out of its range.
    """
    path = directory / _CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face CLIP directory")
    value = json.loads(path.read_text("utf-8"))
    kind = value.get("model_type")
    if kind not in _MODEL_TYPES:
        raise ValueError(f"{path}: model_type is {kind!r}; expected one of {_MODEL_TYPES}")
    # Transformers' classes know the defaults of absent fields, and the old `*_config_dict`.
    text = vision = None
    if kind == "clip":
        whole = CLIPConfig.from_dict(value)
        text, vision = whole.text_config, whole.vision_config
    elif kind == "clip_text_model":
        whole = text = CLIPTextConfig.from_dict(value)
    else:
        whole = vision = CLIPVisionConfig.from_dict(value)
    has_projections = kind == "clip" or any(
        name.endswith("WithProjection") for name in whole.architectures or ()
    )
    try:
        return ClipConfig(
            text=text and _text_config(path, text),
            vision=vision and _vision_config(directory, vision),
            projection_dim=whole.projection_dim if has_projections else None,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_config(directory: Path, config: ClipConfig) -> None:
    """Writes what `read_config` and transformers read; `check_writable` says whether it can.

    Args:
      directory: existing; files of the same names are overwritten.
      config: the config.
    """
    text = config.text and CLIPTextConfig(
        **_shared(config.text),
        vocab_size=config.text.vocab_size,
        max_position_embeddings=config.text.max_position_embeddings,
        eos_token_id=_LEGACY_EOS if config.text.eos_token_id is None else config.text.eos_token_id,
        projection_dim=config.projection_dim,
    )
    vision = config.vision and CLIPVisionConfig(
        **_shared(config.vision),
        image_size=config.vision.image_size,
        patch_size=config.vision.patch_size,
        projection_dim=config.projection_dim,
    )
    if text and vision:
        whole = CLIPConfig(text.to_dict(), vision.to_dict(), projection_dim=config.projection_dim)
        architecture = "CLIPModel"
    else:
        whole = text or vision
        architecture = "CLIPTextModel" if text else "CLIPVisionModel"
        architecture += "WithProjection" if config.projection_dim else ""
    whole.architectures = [architecture]
    atomic_files.write_text(directory / _CONFIG, whole.to_json_string())
    if config.vision is not None:
        processor = json.dumps(_processor_config(config.vision), indent=2, sort_keys=True)
        atomic_files.write_text(directory / _PROCESSOR, processor + "\n")


def check_writable(config: ClipConfig) -> None:
    """Raises unless Hugging Face's format can express the config.

    Raises:
      ValueError: the end token is 2, which there means the highest id of a text; or a whole model
        has no projections.
    """
    if config.text is not None and config.text.eos_token_id == _LEGACY_EOS:
        raise ValueError(
            f"eos_token_id is {_LEGACY_EOS}; in a config.json of CLIP that stands for the highest "
            "id of a text: train with another end token"
        )
    if config.text and config.vision and not config.projection_dim:
        raise ValueError(
            "projection_dim is None; Hugging Face's CLIP of both halves has projections"
        )


def _text_config(path: Path, config: CLIPTextConfig) -> ClipTextConfig:
    eos_token_id = config.eos_token_id
    if eos_token_id == _LEGACY_EOS:
        eos_token_id = None
    elif not 0 <= eos_token_id < config.vocab_size:
        warnings.warn(
            f"{path}: eos_token_id {eos_token_id} is outside the vocabulary of "
            f"{config.vocab_size} tokens; the highest id of a text is taken for its end",
            stacklevel=4,
        )
        eos_token_id = None
    return ClipTextConfig(
        **_shared(config),
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        eos_token_id=eos_token_id,
    )


def _vision_config(directory: Path, config: CLIPVisionConfig) -> ClipVisionConfig:
    if config.num_channels != 3:
        raise ValueError(f"num_channels is {config.num_channels}; expected 3")
    path = directory / _PROCESSOR
    processor = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return ClipVisionConfig(
        **_shared(config),
        image_size=config.image_size,
        patch_size=config.patch_size,
        image_mean=processor.get("image_mean", CLIP_MEAN),
        image_std=processor.get("image_std", CLIP_STD),
    )


def _shared(config: CLIPTextConfig | CLIPVisionConfig | ClipTransformerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _SHARED}


def _processor_config(config: ClipVisionConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": config.image_size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }
