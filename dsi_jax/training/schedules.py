"""Learning-rate schedules as products of named factors, as in T5X."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

_Factor = Callable[["Schedule", jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate: the product of the factors named in a string.

    With t the step, w `warmup_steps`, d `decay_factor` (Roberts et al. 2022, arXiv:2203.17189;
    `create_learning_rate_scheduler` of T5X):

    * `constant`: `base_learning_rate`
    * `linear_warmup`: min(1, t / w)
    * `rsqrt_decay`: 1 / sqrt(max(t, w))
    * `rsqrt_normalized_decay`: sqrt(w) / sqrt(max(t, w)), 1 until w
    * `linear_decay`: base_learning_rate * min(t / w, 1 + d * (w - t)): warmup included, so it
      goes without `constant` and `linear_warmup`; d is 1 / (total - w) unless given
    * `decay_every`: d ** (t // steps_per_decay); d is 0.5 unless given
    * `cosine_decay`: half a cosine from w on, over `steps_per_cycle` and then anew, or, unless
      that is given, once from w to the last step

    Attributes:
      factors: names separated by `*`.
      base_learning_rate: the constant.
      warmup_steps: w; 0 means none.
      decay_factor: d.
      steps_per_decay: of `decay_every`.
      steps_per_cycle: of `cosine_decay`.
      step_offset: subtracted from the step first.
      min_learning_rate: the product never goes below it.
    """

    factors: str = "constant * linear_warmup * rsqrt_decay"
    base_learning_rate: float = 1.0
    warmup_steps: int = 1000
    decay_factor: float | None = None
    steps_per_decay: int = 20_000
    steps_per_cycle: int | None = None
    step_offset: int = 0
    min_learning_rate: float = 1e-8

    def __post_init__(self) -> None:
        names = self._names()
        unknown = [name for name in names if name not in _FACTORS]
        if unknown:
            raise ValueError(
                f"unknown learning-rate factor {unknown[0]!r} in {self.factors!r}, "
                f"expected one of: {', '.join(_FACTORS)}"
            )
        doubled = {"constant", "linear_warmup"} & set(names)
        if "linear_decay" in names and doubled:
            raise ValueError(
                f"learning-rate factors {self.factors!r}: linear_decay contains the constant and "
                f"the warmup, expected it without {', '.join(sorted(doubled))}"
            )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, expected at least 0")
        for name in ("steps_per_decay", "steps_per_cycle"):
            steps = getattr(self, name)
            if steps is not None and steps < 1:
                raise ValueError(f"{name} is {steps}, expected at least 1")

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run.

        Args:
          total_steps: steps of the run; used by `cosine_decay` and `linear_decay`.

        Returns:
          A function from the step (int) to the learning rate (float32 []).
        """
        names = self._names()

        def learning_rate(step: jax.Array | int) -> jax.Array:
            step = jnp.maximum(0, step - self.step_offset)
            rate = jnp.float32(1.0)
            for name in names:
                rate *= _FACTORS[name](self, step, total_steps)
            return jnp.maximum(rate, self.min_learning_rate).astype(jnp.float32)

        return learning_rate

    def _names(self) -> list[str]:
        return [name.strip() for name in self.factors.split("*")]


def _constant(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    return jnp.float32(schedule.base_learning_rate)


def _linear_warmup(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    if schedule.warmup_steps == 0:
        return jnp.float32(1.0)
    return jnp.minimum(1.0, step / schedule.warmup_steps)


def _rsqrt_decay(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    return 1.0 / jnp.sqrt(jnp.maximum(step, max(1, schedule.warmup_steps)))


def _rsqrt_normalized_decay(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    return jnp.sqrt(max(1, schedule.warmup_steps)) * _rsqrt_decay(schedule, step, total_steps)


def _linear_decay(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    warmup = schedule.warmup_steps
    slope = schedule.decay_factor
    if slope is None:
        slope = 1.0 / max(1, total_steps - warmup)
    rate = jnp.minimum(_linear_warmup(schedule, step, total_steps), 1.0 + slope * (warmup - step))
    return schedule.base_learning_rate * jnp.maximum(rate, 0.0)


def _decay_every(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    factor = 0.5 if schedule.decay_factor is None else schedule.decay_factor
    return factor ** (step // schedule.steps_per_decay).astype(jnp.float32)


def _cosine_decay(schedule: Schedule, step: jax.Array, total_steps: int) -> jax.Array:
    since_warmup = jnp.maximum(0, step - schedule.warmup_steps)
    if schedule.steps_per_cycle is None:
        progress = jnp.minimum(1.0, since_warmup / max(1, total_steps - schedule.warmup_steps))
    else:
        progress = (since_warmup / schedule.steps_per_cycle) % 1.0
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


_FACTORS: dict[str, _Factor] = {
    "constant": _constant,
    "linear_warmup": _linear_warmup,
    "rsqrt_decay": _rsqrt_decay,
    "rsqrt_normalized_decay": _rsqrt_normalized_decay,
    "linear_decay": _linear_decay,
    "decay_every": _decay_every,
    "cosine_decay": _cosine_decay,
}
