"""What a run computes on a mesh, from shapes alone: where everything lies, and the step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import Mesh

from dsi_jax.training import optimizers, partitioning
from dsi_jax.training import state as state_lib
from dsi_jax.training import step as step_lib
from dsi_jax.training.param_groups import ParamGroup, describe


@dataclasses.dataclass(frozen=True)
class Program:
    """A model and its training step on a mesh; nothing is computed or allocated yet.

    Attributes:
      model: the model.
      mesh: the devices, which need not be attached to this machine.
      rules: logical axis rules that suit the mesh and the model.
      path_rules: of its towers, likewise.
      transformation: the optimizer.
      groups: of parameters with learning rates of their own.
      batch_shapes: of the global batch.
      boxed: shapes of the parameters with their logical axes.
      shapes: of the train state, with shardings.
      step: the training step, not compiled.
    """

    model: nn.Module
    mesh: Mesh
    rules: partitioning.LogicalRules
    path_rules: partitioning.PathRules
    transformation: optax.GradientTransformation
    groups: Sequence[ParamGroup]
    batch_shapes: Any
    boxed: Any
    shapes: state_lib.TrainState
    step: step_lib.TrainStep

    def lower(self) -> jax.stages.Lowered:
        """The step lowered, not compiled."""
        sharding = partitioning.data_sharding(self.mesh)
        return self.step.lower(self.shapes, with_sharding(self.batch_shapes, sharding))

    def init(self, seed: int) -> state_lib.TrainState:
        """A new state of random parameters, see `state.init_state`."""
        return state_lib.init_state(
            self.model,
            self.transformation,
            self.batch_shapes,
            seed,
            self.mesh,
            self.rules,
            self.path_rules,
            shapes=self.shapes,
        )

    def model_info(self) -> str:
        """The text of `model-info.txt`."""
        params = self.shapes.params
        text = partitioning.model_info(self.boxed, state_lib.shardings_of(params))
        return text + "".join(f"{line}\n" for line in describe(self.groups, params))


def build(
    model: nn.Module,
    optimizer: optimizers.Optimizer,
    mesh: Mesh,
    batch_shapes: Any,
    *,
    train_steps: int,
    microbatches: int,
    loss: step_lib.Loss,
    augment: step_lib.Augment | None = None,
) -> Program:
    """The program of a run.

    Args:
      model: a module called as `model(batch, deterministic=...)`.
      optimizer: Adafactor or AdamW with its schedule.
      mesh: the devices.
      batch_shapes: ShapeDtypeStructs of the global batch.
      train_steps: steps in all, for the schedule.
      microbatches: parts of a batch that are computed one after the other.
      loss: of the model's outputs and the batch.
      augment: changes the images of queries at random.

    Raises:
      ValueError: as `partitioning.param_shardings` and `groups.resolve`.
    """
    transformation = optimizer.build(train_steps)
    boxed = state_lib.param_shapes(model, batch_shapes)
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed, mesh)
    path_rules = partitioning.fit_path_rules(getattr(model, "path_rules", ()), boxed, mesh)
    shapes = state_lib.state_shapes(
        model, transformation, batch_shapes, mesh, rules, path_rules, boxed=boxed
    )
    step = step_lib.make_train_step(
        model,
        transformation,
        state_lib.shardings_of(shapes),
        mesh=mesh,
        rules=rules,
        learning_rate=optimizer.learning_rate.build(train_steps),
        groups=optimizer.groups,
        microbatches=microbatches,
        loss=loss,
        augment=augment,
    )
    return Program(
        model=model,
        mesh=mesh,
        rules=rules,
        path_rules=path_rules,
        transformation=transformation,
        groups=optimizer.groups,
        batch_shapes=batch_shapes,
        boxed=boxed,
        shapes=shapes,
        step=step,
    )


def with_sharding(shapes: Any, sharding: jax.sharding.Sharding) -> Any:
    """The same shapes, all lying as `sharding` says."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
