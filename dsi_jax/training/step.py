"""One training step: the gradient of the mean loss, and the update."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dsi_jax.training import partitioning
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.losses.cross_entropy import Mean
from dsi_jax.training.param_groups import ParamGroup, stop_frozen
from dsi_jax.training.state import TrainState

Metrics = dict[str, Mean]
# (outputs of the model, batch) -> (summed loss, metrics); the loss's own Mean is `loss`.
Loss = Callable[[Any, Any], tuple[jax.Array, Metrics]]
# (key, images) -> images; see `dsi_jax.inputs.pixels.Augmentation`.
Augment = Callable[[jax.Array, Any], Any]
_AUGMENT = 1  # tells its random choices from those of dropout


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A compiled step; `step(state, batch)` gives the next state and the metrics.

    The state's buffers are donated: after the call only the new state may be used. Nothing waits
    for the device.

    Attributes:
      jitted: the function under jit.
      mesh: where it runs.
      rules: logical axis rules of the model's activations.
    """

    jitted: Any
    mesh: Mesh
    rules: partitioning.LogicalRules

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Runs one step.

        Args:
          state: the state; consumed.
          batch: tree of global arrays, what model and loss read.

        Returns:
          (state, metrics): see `make_train_step`.
        """
        with partitioning.activate(self.mesh, self.rules):
            return self.jitted(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The step lowered for arrays or shapes, not compiled (FLOPs, ahead-of-time compile)."""
        with partitioning.activate(self.mesh, self.rules):
            return self.jitted.lower(state, batch)


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    state_shardings: TrainState,
    *,
    mesh: Mesh,
    rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
    learning_rate: optax.Schedule,
    groups: Sequence[ParamGroup] = (),
    microbatches: int = 1,
    loss: Loss = cross_entropy.docid_loss,
    augment: Augment | None = None,
) -> TrainStep:
    """Builds the training step.

    The loss is the mean over the global batch (of its target tokens), however it is split. With
    microbatches the gradient is summed over equal parts of the batch, one part's activations at a
    time: the same update as the whole batch's, but for dropout and rounding.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      optimizer: the transformation; it holds the learning rate.
      state_shardings: a TrainState of NamedShardings (`state.shardings_of`).
      mesh: the mesh.
      rules: logical axis rules, fitted to the model.
      learning_rate: the optimizer's schedule, only logged here.
      groups: the optimizer's; frozen ones get no gradients.
      microbatches: number of parts; it divides the batch of each device.
      loss: of the model's outputs and the batch.
      augment: changes images at random, on the device, before the model sees them.

    Returns:
      The step. Its metrics are those of the loss, and `grad_norm` (before clipping), `param_norm`
      and `learning_rate`, each a Mean of float32 [] on the device.

    Raises:
      ValueError: microbatches is below 1.
    """
    if microbatches < 1:
        raise ValueError(f"microbatches is {microbatches}, expected at least 1")

    gradient_sum = _gradient_sum(model, state_shardings.params, groups, loss, augment)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        grads, metrics = _accumulate(gradient_sum, state.params, batch, key, microbatches)
        # The sum is divided once, by the count of the whole batch: parts need not be equal.
        count = jnp.maximum(metrics["loss"].count, 1.0)
        grads = jax.tree.map(lambda grad: (grad / count).astype(grad.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics |= _norms(grads, state.params)
        metrics["learning_rate"] = _single(learning_rate(state.step))
        number, params = state.step + 1, optax.apply_updates(state.params, updates)
        return state.replace(step=number, params=params, opt_state=opt_state), metrics

    out_shardings = (state_shardings, partitioning.replicated(mesh))
    return TrainStep(jax.jit(step, out_shardings=out_shardings, donate_argnums=0), mesh, rules)


def make_eval_step(
    model: nn.Module,
    *,
    mesh: Mesh,
    rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
    loss: Loss = cross_entropy.docid_loss,
) -> Callable[[Any, Any], Metrics]:
    """Builds the step that measures the loss of a batch and changes nothing.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      mesh: the mesh.
      rules: logical axis rules, fitted to the model.
      loss: of the model's outputs and the batch.

    Returns:
      `eval_step(params, batch)`, giving the metrics of the loss without dropout, on the device.
    """

    @jax.jit
    def eval_step(params: Any, batch: Any) -> Metrics:
        return loss(model.apply({"params": params}, batch, deterministic=True), batch)[1]

    def run(params: Any, batch: Any) -> Metrics:
        with partitioning.activate(mesh, rules):
            return eval_step(params, batch)

    return run


def summarize(metrics: Metrics) -> dict[str, float]:
    """The values of a step's metrics; waits for the device.

    Args:
      metrics: of one step, or sums over several.

    Returns:
      name -> mean, without those that had nothing to average (a batch without indexing examples
      has no `loss_indexing`).
    """
    host = jax.device_get(metrics)
    return {
        name: float(np.float64(mean.total) / np.float64(mean.count))
        for name, mean in host.items()
        if mean.count > 0
    }


def _gradient_sum(
    model: nn.Module,
    shardings: Any,
    groups: Sequence[ParamGroup],
    loss: Loss,
    augment: Augment | None,
) -> Callable[[Any, Any, jax.Array], tuple[Any, Metrics]]:
    """The function (params, batch, key) -> (gradient of the summed loss, metrics)."""

    def loss_sum(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        if augment is not None:
            batch = _augmented(batch, augment, jax.random.fold_in(key, _AUGMENT))
        variables = {"params": stop_frozen(groups, params)}
        outputs = model.apply(variables, batch, deterministic=False, rngs={"dropout": key})
        return loss(outputs, batch)

    def gradient_sum(params: Any, batch: Any, key: jax.Array) -> tuple[Any, Metrics]:
        # Parameters that are integers (places of postings) have no gradient: zeros in its place.
        grads, metrics = jax.grad(loss_sum, has_aux=True, allow_int=True)(params, batch, key)
        grads = jax.tree.map(
            lambda grad, param: jnp.zeros_like(param) if grad.dtype == jax.dtypes.float0 else grad,
            grads,
            params,
        )
        # Said here, so that each device sums its own part of a gradient and never holds all of it.
        return jax.lax.with_sharding_constraint(grads, shardings), metrics

    return gradient_sum


def _augmented(batch: Any, augment: Augment, key: jax.Array) -> Any:
    """The batch with the images of its queries changed; documents stay as they are."""
    if "image" not in batch:
        return batch
    return batch | {"image": augment(key, batch["image"])}


def _accumulate(
    gradient_sum: Any, params: Any, batch: Any, key: jax.Array, microbatches: int
) -> tuple[Any, Metrics]:
    """Sums gradients and metrics over the microbatches, one after the other."""
    if microbatches == 1:
        return gradient_sum(params, batch, key)
    groups = math.gcd(*(len(leaf) for leaf in jax.tree.leaves(batch)))
    if groups % microbatches:
        raise ValueError(
            f"a batch of streams of {sorted({len(leaf) for leaf in jax.tree.leaves(batch)})} rows "
            f"does not divide into {microbatches} microbatches"
        )
    parts = jax.tree.map(lambda leaf: _split(leaf, groups, microbatches), batch)

    def add(total: Any, part: tuple[jax.Array, Any]) -> tuple[Any, None]:
        index, microbatch = part
        result = gradient_sum(params, microbatch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    first = jax.tree.map(lambda leaf: leaf[0], parts)
    shapes = jax.eval_shape(gradient_sum, params, first, key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), parts))
    return total


def _split(leaf: jax.Array, groups: int, microbatches: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], taking every microbatches-th group.

    So each device's rows stay on it: contiguous parts would move the batch across the mesh. A
    group is what belongs together where streams are interleaved (`models.streams`), else a row.
    """
    rest = leaf.shape[1:]
    grouped = leaf.reshape(groups // microbatches, microbatches, len(leaf) // groups, *rest)
    return jnp.moveaxis(grouped, 1, 0).reshape(microbatches, -1, *rest)


def _norms(grads: Any, params: Any) -> Metrics:
    return {
        "grad_norm": _single(optax.tree.norm(_floats(grads))),
        "param_norm": _single(optax.tree.norm(_floats(params))),
    }


def _floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def _single(value: jax.Array) -> Mean:
    return Mean(value.astype(jnp.float32), jnp.ones([], jnp.float32))
