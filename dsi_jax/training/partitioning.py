"""The mesh of devices, and how parameters, optimizer state and batches lie on it."""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import traverse_util
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "data", "fsdp", "model")
BATCH_AXES = ("replica", "data", "fsdp")

MeshAxes = str | tuple[str, ...] | None
# (logical axis, mesh axes), first match wins, a mesh axis is used once an array.
LogicalRules = Sequence[tuple[str, MeshAxes]]
# (regex of the whole path, mesh axes of each dimension), first match wins.
PathRules = Sequence[tuple[str, Sequence[MeshAxes]]]

# T5X's names. `batch` comes first, so that activations spend fsdp on it and not on `embed`.
LOGICAL_AXIS_RULES: LogicalRules = (
    ("batch", BATCH_AXES),
    ("vocab", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
    ("mlp", "model"),
    ("embed", "fsdp"),
    ("kv", None),
    ("embedding", None),
    ("length", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("beams", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes.

    Attributes:
      data: copies of the parameters among which the batch is split; -1 takes all devices left.
      fsdp: devices among which the batch and the parameters are split.
      model: devices among which each layer's matrices are split (tensor parallelism).
      replica: as `data`, across slices or machines joined by a slow network; outermost.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    replica: int = 1

    def sizes(self, num_devices: int) -> dict[str, int]:
        """The size of each axis on so many devices, in the order of `MESH_AXES`.

        Raises:
          ValueError: a size is neither positive nor -1, more than one is -1, or their product is
            not the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        for axis, size in sizes.items():
            if size < 1 and size != -1:
                raise ValueError(f"mesh axis {axis} is {size}, expected at least 1, or -1 to fill")
        filled = [axis for axis, size in sizes.items() if size == -1]
        if len(filled) > 1:
            raise ValueError(f"mesh ({text}) has {len(filled)} axes of -1, expected at most one")
        given = math.prod(size for size in sizes.values() if size != -1)
        if filled:
            if num_devices % given:
                raise ValueError(
                    f"mesh ({text}): {num_devices} devices are not a multiple of {given}"
                )
            sizes[filled[0]] = num_devices // given
        elif given != num_devices:
            raise ValueError(
                f"mesh ({text}) has {given} places, expected as many as devices: {num_devices}"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Lays devices out on the axes `MESH_AXES`.

    Args:
      config: the sizes.
      devices: those to use; all devices of all processes by default.

    Returns:
      A mesh of automatic axes (the compiler propagates shardings).

    Raises:
      ValueError: as `MeshConfig.sizes`, or `replica` does not keep slices apart.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    num_slices = len({_slice_index(device) for device in devices})
    if num_slices > 1 and sizes["replica"] % num_slices:
        raise ValueError(
            f"mesh axis replica is {sizes['replica']}, expected a multiple of the "
            f"{num_slices} slices"
        )
    # Devices of one replica are neighbours; within it the topology decides.
    devices.sort(key=lambda device: (_slice_index(device), device.process_index, device.id))
    inner = tuple(sizes[axis] for axis in MESH_AXES[1:])
    per_replica = math.prod(inner)
    replicas = [
        _laid_out(inner, devices[start : start + per_replica])
        for start in range(0, len(devices), per_replica)
    ]
    return Mesh(np.stack(replicas), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def one_device_mesh() -> Mesh:
    """The mesh of the first device alone."""
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def _laid_out(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices in this shape, so that an axis is made of whole axes of a TPU's torus if it can.

    Else (2 of a torus 4 x 4) an axis of the torus is split among several axes of the mesh.
    """
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _slice_index(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0)


@contextmanager
def activate(mesh: Mesh, rules: LogicalRules) -> Iterator[None]:
    """Makes the models' logical constraints mean this mesh while something is traced."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def data_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first dimension over `BATCH_AXES`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_batch_shards(mesh: Mesh) -> int:
    """Among how many parts of the mesh a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises unless the mesh and the microbatches divide a batch.

    Args:
      batch_size: examples of the global batch.
      mesh: the mesh.
      microbatches: parts into which a step splits its batch.

    Raises:
      ValueError: naming the sizes.
    """
    shards = num_batch_shards(mesh)
    if batch_size % (shards * microbatches):
        sizes = " * ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise ValueError(
            f"batch size {batch_size} is not divisible by {shards * microbatches} "
            f"({sizes}, {microbatches} microbatches)"
        )


def round_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> int:
    """The smallest batch size, at least this one, that `check_batch_size` accepts.

    Args:
      batch_size: examples of the global batch.
      mesh: the mesh.
      microbatches: parts into which a step splits its batch.

    Returns:
      The batch size, rounded up.
    """
    unit = num_batch_shards(mesh) * microbatches
    return -(-batch_size // unit) * unit


def process_parts(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """Which parts of each global batch this process has to load.

    On a TPU slice they are not neighbours: devices are laid out by the torus, and a host's four
    make a square of it. Processes that hold the same parts (a model axis across processes) get
    the same answer.

    Returns:
      (parts, count): the parts, ascending, of `count` equal, contiguous ones.
    """
    count = num_batch_shards(mesh)
    held = data_sharding(mesh).addressable_devices_indices_map((count,)).values()
    return tuple(sorted({rows.start or 0 for (rows,) in held})), count


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's parts of a batch on the devices.

    Args:
      batch: tree of NumPy arrays [rows of this process, ...]: the parts `process_parts(mesh)` of
        the global batch, one after the other.
      mesh: the mesh.

    Returns:
      The same tree of global jax.Arrays, sharded by `data_sharding`.

    Raises:
      ValueError: the mesh does not divide the batch.
    """
    sharding = data_sharding(mesh)
    parts, count = process_parts(mesh)

    def put(local: np.ndarray) -> jax.Array:
        rows = local.shape[0] * count // len(parts)
        check_batch_size(rows, mesh)
        size = rows // count
        place = {part * size: at * size for at, part in enumerate(parts)}

        def part_at(index: tuple[slice, ...]) -> np.ndarray:
            at = place[index[0].start or 0]
            return local[at : at + size]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part_at)

    return jax.tree.map(put, batch)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays that all processes hold whole, and alike, where `sharding` says.

    Args:
      tree: of NumPy arrays, or arrays held whole.
      sharding: of each of them.

    Returns:
      The same tree of global jax.Arrays.
    """

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)


def lead_says(value: bool) -> bool:
    """What the first process says, on all processes; all ask at the same point."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def fit_rules(rules: LogicalRules, params: Any, mesh: Mesh) -> LogicalRules:
    """The rules without those by which this mesh cannot divide these parameters.

    A docid vocabulary has whatever size its corpus gives it; where a dimension of a logical axis
    is not divisible by its mesh axes, parameters and activations of that axis are replicated,
    with a warning.

    Args:
      rules: logical axis rules.
      params: tree of `nn.LogicallyPartitioned` shapes, as `state.param_shapes` gives it.
      mesh: the mesh.

    Returns:
      The rules to train with.

    Raises:
      ValueError: a rule names an axis that the mesh does not have.
    """
    dimensions: dict[str, dict[int, str]] = {}
    for path, leaf in _flatten(params).items():
        if isinstance(leaf, nn.LogicallyPartitioned):
            for name, size in zip(leaf.names, leaf.value.shape, strict=True):
                dimensions.setdefault(name, {})[size] = path
    fitted = []
    for name, mesh_axes in rules:
        parts = _num_parts(mesh_axes, mesh)
        uneven = [size for size in dimensions.get(name, {}) if size % parts]
        if uneven:
            warnings.warn(
                f"logical axis {name} is replicated: {dimensions[name][uneven[0]]} has "
                f"{uneven[0]} of it, which the {parts} devices of mesh axis {mesh_axes} do not "
                "divide",
                stacklevel=2,
            )
            mesh_axes = None
        fitted.append((name, mesh_axes))
    return tuple(fitted)


def fit_path_rules(path_rules: PathRules, params: Any, mesh: Mesh) -> PathRules:
    """As `fit_rules`, for rules by path: axes by which the mesh cannot divide are dropped.

    Args:
      path_rules: rules by path.
      params: tree of shapes.
      mesh: the mesh.

    Returns:
      The rules to train with.
    """
    shapes = {path: nn.meta.unbox(leaf).shape for path, leaf in _flatten(params).items()}
    fitted = []
    for pattern, axes in path_rules:
        matched = [(path, shape) for path, shape in shapes.items() if re.fullmatch(pattern, path)]
        kept = list(axes)
        for path, shape in matched:
            for i, size in enumerate(shape[: len(kept)]):
                if size % _num_parts(kept[i], mesh):
                    warnings.warn(
                        f"{path} of shape {shape} is not split by mesh axis {kept[i]}, which does "
                        f"not divide {size}",
                        stacklevel=2,
                    )
                    kept[i] = None
        fitted.append((pattern, tuple(kept)))
    return tuple(fitted)


def param_shardings(
    params: Any, mesh: Mesh, rules: LogicalRules, path_rules: PathRules = ()
) -> Any:
    """Where each parameter lies.

    Args:
      params: tree of shapes; those of our modules are boxed (`nn.LogicallyPartitioned`) and
        follow `rules`, unboxed ones (towers) follow `path_rules` or are replicated.
      mesh: the mesh.
      rules: logical axis rules.
      path_rules: (regex, mesh axes of each dimension); the regex must match the whole path, whose
        parts are joined by `/`. They win over logical axes.

    Returns:
      The unboxed tree of NamedShardings.

    Raises:
      ValueError: a parameter has a logical axis without a rule, a path rule matches no parameter
        or one of another rank, or a dimension is not divisible by its mesh axes.
    """
    flat = _flatten(params)
    known = {name for name, _ in rules}
    unmatched = {pattern for pattern, _ in path_rules}
    shardings = {}
    for path, leaf in flat.items():
        shape = nn.meta.unbox(leaf).shape
        matches = [(p, axes) for p, axes in path_rules if re.fullmatch(p, path)]
        unmatched -= {pattern for pattern, _ in matches}
        if matches:
            pattern, axes = matches[0]
            if len(axes) != len(shape):
                raise ValueError(
                    f"path rule {pattern!r} gives {len(axes)} axes, parameter {path} of shape "
                    f"{shape} expects {len(shape)}"
                )
            spec = PartitionSpec(*axes)
        elif isinstance(leaf, nn.LogicallyPartitioned):
            unknown = [name for name in leaf.names if name is not None and name not in known]
            if unknown:
                raise ValueError(
                    f"parameter {path} has the unknown logical axis {unknown[0]!r}, "
                    f"expected one of: {', '.join(sorted(known))}"
                )
            spec = nn.logical_to_mesh_axes(leaf.names, tuple(rules))
        else:
            spec = PartitionSpec()
        for size, axes in zip(shape, spec, strict=False):
            if size % _num_parts(axes, mesh):
                raise ValueError(
                    f"parameter {path} of shape {shape}: {size} is not divisible by the "
                    f"{_num_parts(axes, mesh)} devices of mesh axis {axes}"
                )
        shardings[path] = NamedSharding(mesh, spec)
    if unmatched:
        raise ValueError(
            f"path rule {min(unmatched)!r} matches no parameter; paths look like {min(flat)}"
        )
    return traverse_util.unflatten_dict(shardings, sep="/")


def optimizer_shardings(
    optimizer: optax.GradientTransformation, opt_state: Any, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Where the optimizer's state lies: moments as their parameters, all else replicated.

    Frozen parameters have no moments, but a masked node in their place.

    Args:
      optimizer: the transformation.
      opt_state: shapes of its state.
      params: unboxed shapes of the parameters.
      shardings: of the parameters.
      mesh: the mesh.

    Returns:
      A tree of NamedShardings with the structure of `opt_state`.
    """
    whole = replicated(mesh)

    def is_masked(moment: Any) -> bool:
        return isinstance(moment, optax.MaskedNode)

    def place(moment: Any, param: Any, sharding: NamedSharding) -> Any:
        if is_masked(moment):
            return moment
        # Adafactor's rows and columns have another shape than their parameter; they are small.
        return sharding if moment.shape == param.shape else whole

    return optax.tree_utils.tree_map_params(
        optimizer,
        place,
        opt_state,
        params,
        shardings,
        transform_non_params=lambda _: whole,
        is_leaf=is_masked,
    )


def model_info(params: Any, shardings: Any) -> str:
    """A table of the parameters for `model-info.txt`.

    Args:
      params: tree of shapes, boxed where they have logical axes.
      shardings: unboxed tree of NamedShardings.

    Returns:
      A line a parameter (path, shape, dtype, logical axes, mesh axes), then the number of
      parameters and their bytes, of the whole model and of one device.
    """
    rows = [("path", "shape", "dtype", "logical axes", "mesh axes")]
    parameters = total_bytes = device_bytes = 0
    for path, leaf in sorted(_flatten(params).items()):
        value = nn.meta.unbox(leaf)
        sharding = _flatten(shardings)[path]
        axes = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else None
        rows.append(
            (path, str(value.shape), str(value.dtype), str(axes), str(tuple(sharding.spec)))
        )
        itemsize = value.dtype.itemsize
        parameters += math.prod(value.shape)
        total_bytes += math.prod(value.shape) * itemsize
        device_bytes += math.prod(sharding.shard_shape(value.shape)) * itemsize
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [
        "",
        f"total parameters: {parameters:,}",
        f"total bytes: {total_bytes:,}",
        f"bytes a device: {device_bytes:,}",
    ]
    return "\n".join(lines) + "\n"


def _num_parts(mesh_axes: MeshAxes, mesh: Mesh) -> int:
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    missing = [name for name in names if name not in mesh.shape]
    if missing:
        raise ValueError(
            f"mesh axis {missing[0]!r} of a rule does not exist, expected one of: "
            f"{', '.join(mesh.shape)}"
        )
    return math.prod(mesh.shape[name] for name in names)


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(
        tree, sep="/", is_leaf=lambda _, value: not isinstance(value, Mapping)
    )
