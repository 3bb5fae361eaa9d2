"""Tensors of a Hugging Face directory: `model.safetensors`, or its shards with their index.

Neither torch nor transformers is needed.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dsi_jax.utils import atomic_files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 2**30


def tensor_files(directory: Path) -> dict[str, Path]:
    """The file that holds each tensor.

    Raises:
      FileNotFoundError: there are no safetensors.
      ValueError: the file is damaged.
    """
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        with _open(directory / WEIGHTS) as file:
            return dict.fromkeys(file.keys(), directory / WEIGHTS)
    if index.is_file():
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        return {name: directory / shard for name, shard in weight_map.items()}
    raise FileNotFoundError(
        f"{directory} holds neither {WEIGHTS} nor {INDEX}; other formats of weights are not "
        "read: save the model with safe_serialization=True"
    )


def read_tensors(files: Mapping[str, Path], names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, tensor) of some of the `tensor_files`, a file after the other.

    Raises:
      FileNotFoundError: a shard is absent.
      ValueError: a file is damaged.
    """
    for shard in sorted({files[name] for name in names}):
        with _open(shard) as file:
            for name in sorted(names & set(file.keys())):
                yield name, file.get_tensor(name)


def write_tensors(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    get: Callable[[str], np.ndarray],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes float32 tensors, of which one shard at a time is in memory.

    Args:
      directory: made if absent; files of the same names are overwritten.
      shapes: the shape of each tensor; shards are filled in this order.
      get: the tensor of a name.
      shard_bytes: size of a file at most (a single tensor may exceed it).
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, shape in shapes.items():
        nbytes = 4 * int(np.prod(shape))
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
        total += nbytes
    weight_map = {}
    for index, names in enumerate(shards, start=1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: np.asarray(get(name), dtype=np.float32, order="C") for name in names}
        with atomic_files.replacing(directory / file) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        atomic_files.write_json(directory / INDEX, index_json, indent=2)


def _open(path: Path) -> safe_open:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, though the index names it")
    try:
        return safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
