"""Writes checkpoints in T5X's published layout by hand: msgpack, JSON, gzip and NumPy alone.

Nothing here is shared with the reader. Names and order of axes are those of t5x/checkpoints.py and
of the networks in t5x/examples/t5 (layers one by one) and t5x/examples/scalable_t5 (stacked).
"""

import gzip
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import msgpack
import numpy as np
import pyarrow

ARRAY, SCALAR = 1, 3  # of flax.serialization's msgpack extension types


def minimal_target(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of t5x/examples/t5: ours, kernel by kernel."""
    return dict(flat)


def scalable_target(
    flat: Mapping[str, np.ndarray], num_heads: int, *, scan: bool
) -> dict[str, np.ndarray]:
    """The parameters of t5x/examples/scalable_t5 of ours, which are layer by layer."""
    split: dict[str, np.ndarray] = {}
    for path, value in flat.items():
        if "attention/" in path and "norm" not in path:
            if "/out/" in path:
                value = value.reshape(num_heads, -1, value.shape[1])
            else:
                value = value.reshape(value.shape[0], num_heads, -1)
        split[path] = value
    if not scan:
        return split
    stacked: dict[str, dict[int, np.ndarray]] = {}
    result: dict[str, np.ndarray] = {}
    for path, value in split.items():
        parts = path.split("/")
        if len(parts) > 2 and parts[1].startswith("layers_"):
            name = "/".join([parts[0], parts[0], *parts[2:]])
            stacked.setdefault(name, {})[int(parts[1][7:])] = value
        else:
            result[path] = value
    for path, layers in stacked.items():
        result[path] = np.stack([layers[i] for i in range(len(layers))], axis=1)
    return result


def write_checkpoint(
    directory: Path,
    target: Mapping[str, np.ndarray],
    *,
    inline: Mapping[str, np.ndarray] | None = None,
    version: int | None = 3,
    compressor: str | None = "gzip",
    chunk: int = 10,
    gcs: bool = False,
) -> Path:
    """Writes `target` as zarr arrays, and `inline` into the index; both by path.

    The optimizer's state is in the index, its arrays are nowhere.
    """
    directory.mkdir(parents=True)
    tree: dict = {}
    for path, value in target.items():
        name = f"target.{path.replace('/', '.')}"
        write_zarr(directory / name, value, compressor=compressor, chunk=chunk)
        kvstore = {"driver": "file", "path": f"{name}/"}
        if gcs:
            kvstore |= {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
        leaf = {
            "driver": "zarr",
            "dtype": str(value.dtype),
            "kvstore": kvstore,
            "metadata": {
                "chunks": [min(chunk, size) for size in value.shape],
                "compressor": {"id": "gzip", "level": 1},
                "shape": list(value.shape),
            },
        }
        insert(tree, f"target/{path}", leaf)
        insert(tree, f"state/param_states/{path}/v", leaf | {"kvstore": {"path": "gone/"}})
    for path, value in (inline or {}).items():
        insert(tree, f"target/{path}", packed(value))
    insert(tree, "state/step", packed(np.int32(7)))
    contents = {"version": version, "optimizer": tree} if version else tree
    (directory / "checkpoint").write_bytes(msgpack.packb(contents, strict_types=True))
    return directory


def write_zarr(folder: Path, value: np.ndarray, *, compressor: str | None, chunk: int) -> None:
    """A zarr v2 array; the chunks at the edges are as large as the others."""
    folder.mkdir()
    dtypes = {"float32": "<f4", "bfloat16": "bfloat16", "uint16": "<u2"}
    chunks = [min(chunk, size) for size in value.shape]
    metadata = {
        "zarr_format": 2,
        "shape": list(value.shape),
        "chunks": chunks,
        "dtype": dtypes[str(value.dtype)],
        "compressor": compressor and {"id": compressor, "level": 1},
        "order": "C",
        "fill_value": None,
        "filters": None,
        "dimension_separator": ".",
    }
    (folder / ".zarray").write_text(json.dumps(metadata))
    counts = [-(-size // length) for size, length in zip(value.shape, chunks, strict=True)]
    for index in itertools.product(*map(range, counts)):
        part = value[tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunks, strict=True))]
        whole = np.zeros(chunks, value.dtype)
        whole[tuple(map(slice, part.shape))] = part
        data = whole.tobytes()
        if compressor == "gzip":
            data = gzip.compress(data, 1)
        elif compressor == "zstd":
            data = pyarrow.compress(data, codec="zstd", asbytes=True)
        (folder / ".".join(map(str, index))).write_bytes(data)


def packed(value: np.ndarray | np.generic) -> msgpack.ExtType:
    """An array, or a scalar, as flax.serialization packs it."""
    code = ARRAY if isinstance(value, np.ndarray) else SCALAR
    shape = list(value.shape)
    return msgpack.ExtType(code, msgpack.packb([shape, value.dtype.name, value.tobytes()]))


def insert(tree: dict, path: str, leaf: object) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf
