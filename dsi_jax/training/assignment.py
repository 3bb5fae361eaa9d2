"""Warm start: parameters of one model from those of another, by rules on their paths."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

AssignmentMap = Sequence[tuple[str, str | None]]

_LOGGER = logging.getLogger(__name__)


def apply_assignment_map(
    params: Mapping[str, Any], pretrained_params: Mapping[str, Any], assignment_map: AssignmentMap
) -> dict[str, Any]:
    """Replaces parameters by a pretrained checkpoint's.

    Args:
      params: nested dict of jax.Arrays, as initialised; they keep their dtypes and shardings.
      pretrained_params: nested dict of NumPy arrays (or jax.Arrays held whole by every process).
      assignment_map: (regex, replacement): the first regex that matches the whole path of a
        parameter (parts joined by `/`) decides. The replacement, which may refer to groups
        (`\\1`), is the checkpoint's path; None keeps the parameter as initialised. A parameter
        that no regex matches is taken from the same path of the checkpoint.

    Returns:
      The new nested dict. Parameters of the checkpoint that nobody took are logged.

    Raises:
      ValueError: a regex matches no parameter, the checkpoint lacks a path, or shapes differ.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    pretrained = traverse_util.flatten_dict(pretrained_params, sep="/")
    unmatched = [pattern for pattern, _ in assignment_map]
    taken = set()
    result = {}
    for path, param in flat.items():
        source = path
        for pattern, replacement in assignment_map:
            if match := re.fullmatch(pattern, path):
                source = None if replacement is None else match.expand(replacement)
                unmatched = [other for other in unmatched if other != pattern]
                break
        if source is None:
            result[path] = param
            continue
        if source not in pretrained:
            raise ValueError(
                f"the checkpoint has no parameter {source} for {path}; add a rule to the "
                f"assignment map, with None to keep it as initialised (the checkpoint has, for "
                f"example, {min(pretrained)})"
            )
        if pretrained[source].shape != param.shape:
            raise ValueError(
                f"the checkpoint's parameter {source} has shape {pretrained[source].shape}, "
                f"{path} expects {param.shape}"
            )
        taken.add(source)
        result[path] = _placed_like(param, pretrained[source])
    if unmatched:
        raise ValueError(
            f"assignment map: {unmatched[0]!r} matches no parameter; paths look like {min(flat)}"
        )
    if unused := sorted(pretrained.keys() - taken):
        _LOGGER.info("parameters of the checkpoint left unused: %s", ", ".join(unused))
    return traverse_util.unflatten_dict(result, sep="/")


def _placed_like(param: jax.Array, value: Any) -> jax.Array:
    host = np.asarray(value).astype(param.dtype)
    return jax.make_array_from_callback(host.shape, param.sharding, lambda index: host[index])
