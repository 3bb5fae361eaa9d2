"""What is checked, and told, before anything long begins."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dsi_jax.training import partitioning
from dsi_jax.training.state import TrainState
from dsi_jax.utils import checks
from dsi_jax.utils.units import bytes_text


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run in figures, as `--dry_run` prints it.

    Attributes:
      parameters: of the model.
      state_bytes: parameters and optimizer state on the fullest device.
      checkpoint_bytes: of one checkpoint, all devices together.
      step_flops: floating-point operations of one training step, from the lowered program; None
        where the backend does not say.
      lines: further lines, in order.
    """

    parameters: int
    state_bytes: int
    checkpoint_bytes: int
    step_flops: float | None
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        flops = "unknown" if self.step_flops is None else f"{self.step_flops:.3g}"
        return "\n".join(
            [
                *self.lines,
                f"parameters   {self.parameters:,}",
                f"memory       {bytes_text(self.state_bytes)} of state a device",
                f"checkpoint   {bytes_text(self.checkpoint_bytes)}",
                f"step         {flops} FLOPs",
            ]
        )


def check_lengths(lengths: Any) -> None:
    """Raises unless TASK_FEATURE_LENGTHS maps feature names, `inputs` among them, to lengths.

    Raises:
      ValueError: naming what was found.
    """
    if not isinstance(lengths, Mapping) or "inputs" not in lengths:
        raise ValueError(
            f'TASK_FEATURE_LENGTHS is {lengths!r}; expected a dict such as {{"inputs": 32}}'
        )
    checks.check_whole_numbers(
        **{f"TASK_FEATURE_LENGTHS[{name!r}]": n for name, n in lengths.items()}
    )


def check_disk(directory: Path, needed: int) -> None:
    """Raises where a run's checkpoints will not fit; the directory need not exist yet.

    Raises:
      OSError: naming the directory, the bytes needed and the bytes free.
    """
    existing = next(p for p in (directory, *directory.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise OSError(
            f"{directory} has {bytes_text(free)} free; the checkpoints of this run need "
            f"{bytes_text(needed)}"
        )


def check_hosts() -> None:
    """Raises where hosts see different numbers of devices.

    Raises:
      ValueError: naming this host and both numbers.
    """
    local, total, hosts = jax.local_device_count(), jax.device_count(), jax.process_count()
    if local * hosts != total:
        raise ValueError(
            f"host {jax.process_index()} has {local} devices; expected {total} / {hosts} hosts"
        )


def plan(shapes: TrainState, lowered: jax.stages.Lowered, *, lines: tuple[str, ...]) -> Plan:
    """The figures of a run whose state has these shapes and whose step was lowered.

    Args:
      shapes: ShapeDtypeStructs with shardings (`state.state_shapes`).
      lowered: the training step, not compiled.
      lines: what else to print first.
    """
    leaves = jax.tree.leaves(shapes)
    cost = lowered.cost_analysis() or {}
    return Plan(
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes.params)),
        state_bytes=sum(
            int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            for leaf in leaves
        ),
        checkpoint_bytes=sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves),
        step_flops=cost.get("flops"),
        lines=lines,
    )


def mesh_line(mesh: Mesh) -> str:
    """The mesh in one line."""
    axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    platform = mesh.devices.flat[0].platform
    return (
        f"mesh         {mesh.size} {platform} device{'s' if mesh.size > 1 else ''} ({axes}), "
        f"{partitioning.num_batch_shards(mesh)} shards of the batch, "
        f"{jax.process_count()} host{'s' if jax.process_count() > 1 else ''}"
    )
