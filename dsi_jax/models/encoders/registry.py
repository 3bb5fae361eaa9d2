"""Encoders by the kind that checkpoints name."""

from collections.abc import Mapping
from typing import Any

from dsi_jax.models.encoders import clip_config
from dsi_jax.models.encoders.base import EncoderConfig
from dsi_jax.models.encoders.bert import BertConfig

_KINDS: dict[str, type[EncoderConfig]] = {}
# Checkpoints did not name these kinds when there were no others, and still do not.
_UNNAMED = {config.modality: config.kind for config in clip_config.ENCODERS}


def register(*configs: type[EncoderConfig]) -> None:
    """Makes encoders known under their kinds.

    Raises:
      ValueError: another encoder has the kind.
    """
    for config in configs:
        known = _KINDS.setdefault(config.kind, config)
        if known is not config:
            raise ValueError(
                f"{config.__name__} has the kind {config.kind!r}, which {known.__name__} has; "
                "expected a kind of its own"
            )


def config_of(kind: str) -> type[EncoderConfig]:
    """Returns the class of the configs of a kind.

    Raises:
      ValueError: the kind is unknown.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind of an encoder is {kind!r}; expected one of {sorted(_KINDS)}")
    return _KINDS[kind]


def to_json(config: EncoderConfig) -> dict[str, Any]:
    """Returns the config with its kind as a plain dict that `json` can write."""
    if _UNNAMED[config.modality] == config.kind:
        return config.to_json()
    return {"kind": config.kind} | config.to_json()


def from_json(value: Mapping[str, Any], modality: str) -> EncoderConfig:
    """Returns the config of a dict made by `to_json`.

    Args:
      value: the dict.
      modality: TEXT or IMAGE, what it encodes; tells the kind where the dict does not.

    Raises:
      ValueError: the kind is unknown, or the dict has fields unknown to it or lacks some.
    """
    fields = dict(value)
    return config_of(fields.pop("kind", _UNNAMED[modality])).from_json(fields)


def layers_names() -> list[str]:
    """Returns what the layers of encoders are numbered under."""
    return sorted({config.layers_name for config in _KINDS.values()})


def input_modules() -> list[str]:
    """Returns the names of modules below the first layer of some encoder."""
    return sorted({name for config in _KINDS.values() for name in config.input_modules})


register(*clip_config.ENCODERS, BertConfig)
