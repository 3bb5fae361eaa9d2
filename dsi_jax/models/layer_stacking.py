"""Parameters of equal layers: one by one, or stacked for a scan (see `dsi_jax.models.t5`).

One by one a parameter lies at `<stack>/layers_<i>/<name>`, stacked at `<stack>/<stack>/<name>` with
the layers on axis 1, where `<stack>` is "encoder" or "decoder". All other parameters are the same.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

AXIS = 1

_APART = re.compile(r"((?:.*/)?(encoder|decoder))/layers_(\d+)/(.+)")
_STACKED = re.compile(r"((?:.*/)?(encoder|decoder))/\2/(.+)")


def is_stacked(path: str) -> bool:
    """Whether the parameter at `path` (parts joined by `/`) holds all layers, on axis 1."""
    return _STACKED.fullmatch(path) is not None


def arrange_layers(params: Mapping[str, Any], *, stacked: bool) -> dict[str, Any]:
    """The parameters with their layers as asked for, whichever way they are now.

    Args:
      params: nested dict of arrays, without metadata boxes.
      stacked: True for a model with scan_layers.

    Raises:
      ValueError: the layers of a stack are not alike, or one of them is absent.
    """
    return stack_layers(params) if stacked else unstack_layers(params)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the layers of each stack on axis 1; those that are so already, stay.

    Raises:
      ValueError: the layers of a stack are not alike, or one of them is absent.
    """
    result: dict[str, Any] = {}
    layers: dict[str, dict[int, jax.Array | np.ndarray]] = {}
    depths: dict[str, int] = {}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        if match := _APART.fullmatch(path):
            prefix, stack, index, name = match.groups()
            layers.setdefault(f"{prefix}/{stack}/{name}", {})[int(index)] = value
            depths[prefix] = max(depths.get(prefix, 0), int(index) + 1)
        else:
            result[path] = value
    for path, values in layers.items():
        depth = depths[_STACKED.fullmatch(path).group(1)]
        shapes = {index: values[index].shape for index in sorted(values)}
        if len(values) != depth or len(set(shapes.values())) != 1:
            raise ValueError(
                f"the layers to be stacked as {path} have shapes {shapes}; expected layers 0 to "
                f"{depth - 1}, of one shape"
            )
        arrays = [values[index] for index in range(depth)]
        on_host = all(isinstance(array, np.ndarray) for array in arrays)
        result[path] = (np if on_host else jnp).stack(arrays, axis=AXIS)
    return traverse_util.unflatten_dict(result, sep="/")


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with each layer at its own path; those that are so already, stay."""
    result: dict[str, Any] = {}
    for path, value in traverse_util.flatten_dict(params, sep="/").items():
        if match := _STACKED.fullmatch(path):
            prefix, _, name = match.groups()
            for index in range(value.shape[AXIS]):
                result[f"{prefix}/layers_{index}/{name}"] = value[:, index]
        else:
            result[path] = value
    return traverse_util.unflatten_dict(result, sep="/")
