"""The files of a docid table: a directory of arrays that are mapped, and metadata with a hash."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.storage.string_columns import (
    StringColumn,
    open_columns,
    string_arrays,
    write_columns,
)
from dsi_jax.utils import atomic_files

_FORMAT = "dsi_jax docid table"
_FORMAT_VERSION = 1
_METADATA, _TOKENS, _KEYS = "metadata.json", "tokens.npy", "keys.arrow"
_FIELDS = ("kind", "parameters", "shape", "dtype", "vocab_size", "variable_length", "corpus_hash")
_FIELDS += ("level_sizes", "hash")


def with_format(fields: dict[str, Any]) -> dict[str, Any]:
    """Adds to what describes a table that it is one, and of which version."""
    return fields | {"format": _FORMAT, "format_version": _FORMAT_VERSION}


def write(
    directory: Path,
    tokens: np.ndarray,
    keys: Sequence[str],
    metadata: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Writes a directory, which appears only once it is complete.

    Args:
      directory: the directory to write.
      tokens: the docids [N, L].
      keys: N document keys.
      metadata: everything else, with the table's hash.
      overwrite: whether a directory that lies there is replaced.
    """
    with atomic_files.replacing_directory(directory, overwrite=overwrite) as new:
        np.save(new / _TOKENS, tokens)
        write_columns(new / _KEYS, {"key": keys})
        atomic_files.write_json(new / _METADATA, metadata, indent=1)


def open_files(directory: Path) -> tuple[np.ndarray, StringColumn, dict[str, Any]]:
    """Maps the tokens and keys of a table and reads its metadata; checks that they fit.

    Raises:
      FileNotFoundError: there is no table, or a file of it is missing.
      ValueError: a file is damaged or of another format.
    """
    metadata = _read_metadata(directory / _METADATA)
    path = directory / _TOKENS
    try:
        tokens = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a complete .npy file: {error}") from error
    (keys,) = open_columns(directory / _KEYS, ["key"])
    found = {"shape": list(tokens.shape), "dtype": tokens.dtype.name}
    expected = {name: metadata[name] for name in found}
    if found != expected:
        raise ValueError(f"{path} holds {found}, its metadata says {expected}")
    if len(keys) != len(tokens):
        raise ValueError(f"{directory / _KEYS} holds {len(keys)} keys for {len(tokens)} docids")
    return tokens, keys, metadata


def stored_hash(directory: Path) -> str | None:
    """Reads the hash of the table in a directory; None if there is no table.

    Raises:
      FileNotFoundError, ValueError: as `open_files`.
    """
    if not (directory / _METADATA).exists():
        return None
    return open_files(directory)[2]["hash"]


def content_hash(
    identity: dict[str, Any], chunks: Iterable[np.ndarray], keys: Sequence[str]
) -> str:
    """Computes the SHA-256 of a table's content, in hexadecimal.

    Args:
      identity: all of the table but its arrays, as plain JSON.
      chunks: the rows of its tokens, part after part.
      keys: its document keys.
    """
    tokens, lengths, strings = (hashlib.sha256() for _ in range(3))
    for chunk in chunks:
        tokens.update(np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")))
    # Lengths and bytes apart: the hash depends neither on Arrow's chunks nor on a separator.
    for array in string_arrays("key", keys):
        offsets = np.frombuffer(array.buffers()[1], np.int64)
        offsets = offsets[array.offset : array.offset + len(array) + 1]
        lengths.update(np.diff(offsets).astype("<i8"))
        strings.update(memoryview(array.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    described = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    parts = (described, tokens.hexdigest(), lengths.hexdigest(), strings.hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_metadata(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no docid table in {path.parent}: {path.name} is missing")
    try:
        metadata = json.loads(path.read_text("utf-8"))
    except ValueError as error:  # bad JSON, bad UTF-8
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        raise ValueError(f"{path} does not describe a docid table of dsi_jax")
    version = metadata.get("format_version")
    if version != _FORMAT_VERSION:
        raise ValueError(f"{path} has the format version {version}, expected {_FORMAT_VERSION}")
    missing = [field for field in _FIELDS if field not in metadata]
    if missing:
        raise ValueError(f"{path} lacks {missing}")
    return metadata
