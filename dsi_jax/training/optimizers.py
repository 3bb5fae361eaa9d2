"""Adafactor as T5 uses it, and AdamW; each a frozen choice with a `build`."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from dsi_jax.models import layer_stacking
from dsi_jax.training.param_groups import ParamGroup, with_groups
from dsi_jax.training.schedules import Schedule


class Optimizer(Protocol):
    """A choice of optimizer, made before the number of steps and the parameters are known."""

    learning_rate: Schedule
    groups: Sequence[ParamGroup]

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation of a run of `total_steps` steps."""


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with T5X's defaults.

    Equals T5X's for all parameters of T5, and `optax.adafactor` where no layers are stacked. Each
    layer of a stacked parameter (`models.layer_stacking`) is treated as a parameter of its own,
    as in T5X: `scale_by_factored_rms` does so by itself, as it factors the two largest dimensions,
    of which the number of layers is none; the two scalings by an RMS are ours.

    Attributes:
      learning_rate: relative to a parameter's scale if `multiply_by_parameter_scale`.
      decay_rate: exponent of the second moments' decay, 1 - t^-decay_rate.
      step_offset: subtracted from t: the first step of a finetuning that continues the counter.
      clipping_threshold: largest RMS of a parameter's update; None for no limit.
      multiply_by_parameter_scale: scale updates by the parameter's RMS, at least 1e-3.
      min_dim_size_to_factor: factor second moments if two dimensions are at least this large.
      weight_decay: part of each matrix removed a step, not scaled by the learning rate (norms,
        biases and other 1-D parameters have none).
      max_grad_norm: clip gradients to this global norm first; None for no limit.
      groups: parameters with rates of their own, or frozen.
    """

    learning_rate: Schedule
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    groups: Sequence[ParamGroup] = ()

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation of a run of `total_steps` steps."""
        transforms = [
            optax.scale_by_factored_rms(
                min_dim_size_to_factor=self.min_dim_size_to_factor,
                decay_rate=self.decay_rate,
                step_offset=self.step_offset,
            )
        ]
        if self.clipping_threshold is not None:
            transforms.append(_clip_by_rms(self.clipping_threshold))
        transforms.append(
            optax.scale_by_learning_rate(self.learning_rate.build(total_steps), flip_sign=False)
        )
        if self.multiply_by_parameter_scale:
            transforms.append(_scale_by_param_rms())
        if self.weight_decay:
            transforms.append(optax.add_decayed_weights(self.weight_decay, mask=_is_decayed))
        adafactor = optax.chain(*transforms, optax.scale(-1))
        return with_groups(_with_clipping(adafactor, self.max_grad_norm), self.groups)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    Attributes:
      learning_rate: absolute; the weight decay is multiplied by it.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: applied to matrices, not to norms, biases and other 1-D parameters.
      max_grad_norm: clip gradients to this global norm first; None for no limit.
      groups: parameters with rates of their own, or frozen.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = None
    groups: Sequence[ParamGroup] = ()

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation of a run of `total_steps` steps."""
        adamw = optax.adamw(
            learning_rate=self.learning_rate.build(total_steps),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_is_decayed,
        )
        return with_groups(_with_clipping(adamw, self.max_grad_norm), self.groups)


def _is_decayed(params: Any) -> Any:
    """True for the matrices of a tree of parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, param: param.ndim - _is_stacked(path) > 1, params
    )


def _clip_by_rms(threshold: float) -> optax.GradientTransformation:
    """Scales down the update of each parameter, or layer of one, whose RMS is larger."""

    def clip(path: Any, update: jax.Array) -> jax.Array:
        return update / jnp.maximum(1.0, _rms(path, update) / threshold)

    return optax.stateless(lambda updates, params: jax.tree_util.tree_map_with_path(clip, updates))


def _scale_by_param_rms(least: float = 1e-3) -> optax.GradientTransformation:
    """Multiplies the update of each parameter, or layer of one, by the parameter's RMS."""

    def scale(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        return update * jnp.maximum(_rms(path, param), least)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(scale, updates, params)
    )


def _rms(path: Any, array: jax.Array) -> jax.Array:
    """The root mean square of an array, [], or of each of its layers, broadcastable to it."""
    kept = {layer_stacking.AXIS} if _is_stacked(path) else set()
    axes = tuple(set(range(array.ndim)) - kept)
    return jnp.sqrt(jnp.mean(jnp.square(array), axis=axes, keepdims=bool(kept)))


def _is_stacked(path: Any) -> bool:
    return layer_stacking.is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))


def _with_clipping(
    optimizer: optax.GradientTransformation, max_grad_norm: float | None
) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return optimizer
    if max_grad_norm <= 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}, expected a positive value or None")
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer)
