"""Adafactor as T5 uses it, and AdamW; each a frozen choice with a `build`."""

import dataclasses
from typing import Any, Protocol

import jax
import optax

from dsi_jax.training.schedules import Schedule


class Optimizer(Protocol):
    """A choice of optimizer, made before the number of steps is known."""

    learning_rate: Schedule

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation of a run of `total_steps` steps."""


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with T5X's defaults.

    Built on `optax.adafactor`, which equals T5X's for parameters of rank 1 and 2, that is, for
    all of T5's. They differ elsewhere: T5X refuses a parameter of higher rank without an explicit
    factorisation rule, optax factors its two largest dimensions; T5X can treat dimensions of
    stacked layers as separate parameters, optax cannot (our layers are not stacked).

    Attributes:
      learning_rate: relative to a parameter's scale if `multiply_by_parameter_scale`.
      decay_rate: exponent of the second moments' decay, 1 - t^-decay_rate.
      step_offset: subtracted from t: the first step of a finetuning that continues the counter.
      clipping_threshold: largest RMS of a parameter's update; None for no limit.
      multiply_by_parameter_scale: scale updates by the parameter's RMS, at least 1e-3.
      min_dim_size_to_factor: factor second moments if two dimensions are at least this large.
      weight_decay: part of each parameter removed a step, not scaled by the learning rate.
      max_grad_norm: clip gradients to this global norm first; None for no limit.
    """

    learning_rate: Schedule
    decay_rate: float = 0.8
    step_offset: int = 0
    clipping_threshold: float | None = 1.0
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    weight_decay: float = 0.0
    max_grad_norm: float | None = None

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The transformation of a run of `total_steps` steps."""
        adafactor = optax.adafactor(
            learning_rate=self.learning_rate.build(total_steps),
            min_dim_size_to_factor=self.min_dim_size_to_factor,
            decay_rate=self.decay_rate,
            decay_offset=self.step_offset,
            multiply_by_parameter_scale=self.multiply_by_parameter_scale,
            clipping_threshold=self.clipping_threshold,
            weight_decay_rate=self.weight_decay or None,
        )
        return _with_clipping(adafactor, self.max_grad_norm)


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
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = None

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
        return _with_clipping(adamw, self.max_grad_norm)


def _is_decayed(params: Any) -> Any:
    """True for the matrices of a tree of parameters."""
    return jax.tree.map(lambda param: param.ndim > 1, params)


def _with_clipping(
    optimizer: optax.GradientTransformation, max_grad_norm: float | None
) -> optax.GradientTransformation:
    if max_grad_norm is None:
        return optimizer
    if max_grad_norm <= 0:
        raise ValueError(f"max_grad_norm is {max_grad_norm}, expected a positive value or None")
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer)
