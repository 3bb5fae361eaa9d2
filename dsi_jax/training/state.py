"""The train state, and its creation straight into the shards of a mesh."""

import math
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dsi_jax.training import partitioning


@flax.struct.dataclass
class TrainState:
    """All that a training step changes, and all that a run needs to continue bit for bit.

    Attributes:
      step: int32 [], updates made.
      params: tree of arrays, not boxed.
      opt_state: the optimizer's state.
      rng: uint32 [2], data of the run's key; step t draws from `fold_in(key, t)`.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    rng: jax.Array


def param_shapes(model: nn.Module, batch_shapes: Any) -> Any:
    """Shapes of a model's parameters with their logical axes, without computing any.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      batch_shapes: tree of ShapeDtypeStructs (or arrays) of a batch, of any number of rows.

    Returns:
      Tree of ShapeDtypeStructs, boxed in `nn.LogicallyPartitioned` where the module says so.
    """
    return jax.eval_shape(lambda: _init_params(model, batch_shapes, jax.random.key(0)))


def state_shapes(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    batch_shapes: Any,
    mesh: Mesh,
    rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
    path_rules: partitioning.PathRules = (),
    *,
    boxed: Any = None,
) -> TrainState:
    """Shapes, dtypes and shardings of a train state, without computing any of it.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      optimizer: the transformation.
      batch_shapes: tree of shapes of a batch.
      mesh: the mesh.
      rules: logical axis rules, fitted to the model (`partitioning.fit_rules`).
      path_rules: rules by path, for towers.
      boxed: from `param_shapes`, where they are known: the model is then traced once less.

    Returns:
      A TrainState of ShapeDtypeStructs that carry their NamedShardings.

    Raises:
      ValueError: as `partitioning.param_shardings`.
    """
    if boxed is None:
        boxed = param_shapes(model, batch_shapes)
    shapes = jax.eval_shape(
        lambda params: _with_params(params, optimizer, jax.random.key(0)), nn.meta.unbox(boxed)
    )
    param_shardings = partitioning.param_shardings(boxed, mesh, rules, path_rules)
    shardings = TrainState(
        step=partitioning.replicated(mesh),
        params=param_shardings,
        opt_state=partitioning.optimizer_shardings(
            optimizer, shapes.opt_state, shapes.params, param_shardings, mesh
        ),
        rng=partitioning.replicated(mesh),
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    batch_shapes: Any,
    seed: int,
    mesh: Mesh,
    rules: partitioning.LogicalRules = partitioning.LOGICAL_AXIS_RULES,
    path_rules: partitioning.PathRules = (),
    *,
    shapes: TrainState | None = None,
) -> TrainState:
    """A new state of random parameters, computed where it will lie; equal on every mesh.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      optimizer: the transformation.
      batch_shapes: tree of shapes of a batch.
      seed: of the parameters and of dropout.
      mesh: the mesh.
      rules: logical axis rules, fitted to the model (`partitioning.fit_rules`).
      path_rules: rules by path, for towers.
      shapes: from `state_shapes`, where they are known: the model is then traced once less.

    Returns:
      A TrainState of jax.Arrays at step 0.

    Raises:
      ValueError: as `partitioning.param_shardings`.
    """
    if shapes is None:
        shapes = state_shapes(model, optimizer, batch_shapes, mesh, rules, path_rules)
    init = jax.jit(
        lambda: _new_state(model, optimizer, batch_shapes, seed), out_shardings=shardings_of(shapes)
    )
    return init()


def shardings_of(shapes: Any) -> Any:
    """The shardings of a tree of arrays, or of shapes that carry them."""
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def _new_state(
    model: nn.Module, optimizer: optax.GradientTransformation, batch_shapes: Any, seed: int
) -> TrainState:
    init_key, run_key = jax.random.split(jax.random.key(seed))
    params = nn.meta.unbox(_init_params(model, batch_shapes, init_key))
    return _with_params(params, optimizer, run_key)


def _with_params(
    params: Any, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        rng=jax.random.key_data(key),
    )


def _init_params(model: nn.Module, batch_shapes: Any, key: jax.Array) -> Any:
    # One group of rows is enough to give the parameters their shapes (see `models.streams`).
    groups = math.gcd(*(leaf.shape[0] for leaf in jax.tree.leaves(batch_shapes)))
    batch = jax.tree.map(
        lambda leaf: jnp.zeros((leaf.shape[0] // groups, *leaf.shape[1:]), leaf.dtype),
        batch_shapes,
    )
    return model.init(key, batch, deterministic=True)["params"]
