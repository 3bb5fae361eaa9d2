"""The methods by the names that checkpoints have for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsi_jax.methods.base import Method
from dsi_jax.methods.contrastive import Contrastive
from dsi_jax.methods.dsi import DSI
from dsi_jax.methods.dual_encoder import DualEncoder

_METHODS: dict[str, type[Method]] = {
    method.kind: method for method in (DSI, DualEncoder, Contrastive)
}


def method_of(metadata: Mapping[str, Any]) -> Method:
    """The method that a checkpoint was trained by, with default choices: enough to rank.

    Args:
      metadata: of the checkpoint; one without an entry `method` is a DSI's.

    Raises:
      ValueError: a method that is unknown here.
    """
    kind = metadata.get("method", DSI.kind)
    if kind not in _METHODS:
        raise ValueError(
            f"the checkpoint was trained by the method {kind!r}; expected one of {sorted(_METHODS)}"
        )
    return _METHODS[kind]()
