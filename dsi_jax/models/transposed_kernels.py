"""Parameters as CPUs search fastest with: T5's kernels transposed.

A search multiplies few rows, those of one query's beams, by large kernels. XLA's CPU backend packs
a kernel [input, output] anew for each product, which costs as much as the product of ten rows; one
that is [output, input] it reads as it lies.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from dsi_jax.models.dsi import DSIModel

_STACKS = ("encoder", "decoder")


def for_search(model: DSIModel, params: Mapping[str, Any]) -> tuple[DSIModel, dict[str, Any]]:
    """The same model and parameters with transposed kernels; as they are, if they already are.

    Args:
      model: a model.
      params: its parameters, unboxed. Kernels of T5's stacks [input, (N,) output] become
        [output, (N,) input]; all others are the same arrays.
    """
    if model.config.t5.transposed_kernels:
        return model, dict(params)
    flat = traverse_util.flatten_dict(params)
    turned = {
        path: jnp.transpose(leaf) if path[0] in _STACKS and path[-1] == "kernel" else leaf
        for path, leaf in flat.items()
    }
    t5 = dataclasses.replace(model.config.t5, transposed_kernels=True)
    config = dataclasses.replace(model.config, t5=t5)
    return model.clone(config=config), traverse_util.unflatten_dict(turned)


def pays() -> bool:
    """Whether searches are faster with transposed kernels: on CPUs."""
    return jax.default_backend() == "cpu"
