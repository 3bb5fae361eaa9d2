"""The files of T5X's checkpoints: each parameter's shape at once, its values when asked for.

As `t5x/checkpoints.py` writes and reads them (https://github.com/google-research/t5x):

- `checkpoint_<step>/checkpoint` is a msgpack of `flax.serialization`, {"version": 3, "optimizer":
  {"target": parameters, "state": the optimizer's}}. A leaf is an array (what was not partitioned)
  or the TensorStore spec of one: {"driver": "zarr", "kvstore": {"path": ...}, "metadata":
  {"shape": ...}}. The path is relative, the parameter's own with "." in place of "/":
  `target.encoder.layers_0.mlp.wo.kernel/`, a directory beside the index. (TensorStore before
  0.1.14 wrote "path" beside "kvstore".)
- Version 2 wrote bfloat16 as uint16; as in T5X that is refused, and so are versions before.
- Orbax's first format has strings, `PLACEHOLDER://<directory>`, for specs, and no version.
- T5X's OrbaxCheckpointManager writes `checkpoint_<step>/state/`, with the same tree.

Nothing but `target` is opened; values are read an array at a time. One thing is stricter than in
T5X: a chunk that is missing is an error, where TensorStore reads zeros, as it does not write chunks
of nothing but zeros. Weights that were trained have none, copies that were broken off do.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import serialization, traverse_util

_VERSIONS = (2, 3)
_INDEX = "checkpoint"
_ORBAX = "state"
_PLACEHOLDER = "PLACEHOLDER://"
_SPEC = {"driver", "kvstore", "metadata"}
_OF_TENSORFLOW = b"model_checkpoint_path"  # with which a TensorFlow checkpoint's index begins


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint, not read yet.

    Attributes:
      shape: its shape, as the index has it.
      read: gives its values, in the dtype in which they were saved.
    """

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def find_checkpoint(path: Path) -> Path | None:
    """The directory of a T5X checkpoint: `path`, its newest `checkpoint_<step>`, or None."""
    steps = [
        (int(step), child)
        for child in path.glob("checkpoint_*")
        if (step := child.name.removeprefix("checkpoint_")).isdecimal()
    ]
    candidates = [path, *(child for _, child in sorted(steps)[-1:])]
    for directory in candidates:
        if (directory / _INDEX).is_file() or (directory / _ORBAX / "_METADATA").is_file():
            return directory
    return None


def open_target(directory: Path) -> dict[str, StoredArray]:
    """The parameters of a checkpoint, by their path (parts joined by `/`).

    Args:
      directory: `checkpoint_<step>`.

    Raises:
      FileNotFoundError: it has no index.
      ValueError: the index is damaged, or of another format or version.
    """
    if (directory / _ORBAX / "_METADATA").is_file():
        return dict(_open_orbax(directory / _ORBAX))
    index = directory / _INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{directory} is no T5X checkpoint: there is no file {index}")
    contents = index.read_bytes()
    if contents.startswith(_OF_TENSORFLOW):
        raise ValueError(
            f"{directory} is a TensorFlow checkpoint, of Mesh TensorFlow's T5; expected one of "
            "T5X: t5x/scripts/convert_tf_checkpoint.py converts"
        )
    try:
        tree = serialization.msgpack_restore(contents)
        version = tree.get("version", _VERSIONS[-1])
        tree = tree.get("optimizer", tree.get("_optimizer", tree))
        target = _flatten(tree["target"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a T5X checkpoint, or damaged: {error}") from error
    if version not in _VERSIONS:
        raise ValueError(f"{index} has version {version}; expected one of {_VERSIONS}")
    return {
        path: _stored(directory, path, leaf) for path, leaf in target.items() if leaf is not None
    }


def _flatten(target: Mapping[str, Any]) -> dict[str, Any]:
    def is_leaf(_: Any, value: Any) -> bool:
        return not isinstance(value, Mapping) or value.keys() >= _SPEC

    return traverse_util.flatten_dict(target, sep="/", is_leaf=is_leaf)


def _stored(directory: Path, path: str, leaf: Any) -> StoredArray:
    """One leaf of the index: an array, a TensorStore spec, or an Orbax placeholder."""
    if isinstance(leaf, np.ndarray | np.generic):
        return StoredArray(np.shape(leaf), lambda: np.asarray(leaf))
    if isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER):
        folder = directory / leaf.removeprefix(_PLACEHOLDER)
        shape, _ = _zarr_shape_and_chunks(path, folder)
        return StoredArray(shape, lambda: _read_zarr(path, folder, shape))
    try:
        metadata = leaf["metadata"]
        shape = tuple(metadata["shape"])
        folder = directory / (leaf["kvstore"].get("path") or leaf["path"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the index of {directory} has {leaf!r} for parameter {path}; expected an array or a "
            "TensorStore spec with shape and path"
        ) from error
    if "uint16" in (leaf.get("dtype"), metadata.get("dtype")) or metadata.get("dtype") == "<u2":
        raise ValueError(
            f"{folder} holds parameter {path} as uint16, T5X's bfloat16 before June 2021; expected "
            "float32 or bfloat16"
        )
    return StoredArray(shape, lambda: _read_zarr(path, folder, shape))


def _zarr_shape_and_chunks(path: str, folder: Path) -> tuple[tuple[int, ...], int]:
    """The shape of a zarr array, and how many chunks it has."""
    try:
        metadata = json.loads((folder / ".zarray").read_text())
        sides = list(zip(metadata["shape"], metadata["chunks"], strict=True))
        return tuple(metadata["shape"]), math.prod(math.ceil(size / side) for size, side in sides)
    except OSError as error:
        raise FileNotFoundError(
            f"the array of parameter {path} is missing: {folder / '.zarray'} cannot be read"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"parameter {path}: {folder / '.zarray'} is damaged: {error}") from error


def _read_zarr(path: str, folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    found, chunks = _zarr_shape_and_chunks(path, folder)
    if found != shape:
        raise ValueError(
            f"parameter {path}: {folder} has shape {found}; expected {shape} by the index"
        )
    present = sum(file.is_file() and not file.name.startswith(".") for file in folder.rglob("*"))
    if present < chunks:
        raise ValueError(
            f"parameter {path}: {folder} has {present} chunks; expected {chunks} by its .zarray"
        )
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.absolute())}}
    try:
        return ts.open(spec, open=True, read=True).result().read().result()
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"parameter {path}: {folder} cannot be read: {error}") from error


def _open_orbax(directory: Path) -> Iterator[tuple[str, StoredArray]]:
    directory = directory.absolute()
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(directory).tree
    if "target" not in tree:
        raise ValueError(f"{directory} has {sorted(tree)}; expected the item `target` of T5X")

    def read(path: str) -> np.ndarray:
        item = traverse_util.unflatten_dict({f"target/{path}": 0}, sep="/")
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item, restore_args=to_numpy, partial_restore=True)
        return jax.tree.leaves(handler.restore(directory, args=args))[0]

    for path, leaf in traverse_util.flatten_dict(tree["target"], sep="/").items():
        yield path, StoredArray(tuple(leaf.shape), lambda path=path: read(path))
