"""Images as files in a directory, written once from a stream of records, encoded as they are.

A directory holds `files/<key>`, `index.arrow` (key, captions, label, SHA-256, what is wrong with
the file) and `manifest.json`, which is written last and says what the images were made from, how
many there are and that they are all there. Neither tensorflow nor seqio is needed.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dsi_jax.data.corpora.image_corpus import HashedFiles
from dsi_jax.inputs import image_files
from dsi_jax.storage import manifests, string_columns
from dsi_jax.utils import atomic_files

logger = logging.getLogger(__name__)

_FORMAT, _FORMAT_VERSION = "dsi_jax images", 1
_FILES, _INDEX = "files", "index.arrow"
_COLUMNS = ("key", "captions", "label", "sha256", "error")
_AT_ONCE = 32  # images in memory
_LOG_EVERY = 20_000


@dataclasses.dataclass(frozen=True)
class Record:
    """An image to be stored.

    Attributes:
      key: its name, a relative path that ends as image files do.
      data: the encoded image.
      captions: its captions.
      label: its class; None if the data has no classes.
    """

    key: str
    data: bytes
    captions: Sequence[str] = ()
    label: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """The images of a directory, by key.

    Attributes:
      keys: N keys, sorted.
      files: N files.
      captions: the captions of each image.
      labels: int32 [N]; -1 where the data has no classes.
      errors: key -> why the image cannot be decoded.
    """

    keys: list[str]
    files: HashedFiles
    captions: list[Sequence[str]]
    labels: np.ndarray
    errors: dict[str, str]


def exists(directory: Path) -> bool:
    """Whether all images lie there."""
    return manifests.exists(directory)


def write(directory: Path, records: Iterable[Record], origin: Mapping[str, Any]) -> None:
    """Writes images and decodes each of them once; goes on where an earlier call was stopped.

    Every file appears under its name when it is complete, the manifest when all are. A second
    process that does the same at the same time does no harm.

    Args:
      directory: where.
      records: the images in any order; `_AT_ONCE` of them are held in memory.
      origin: what they are made from, plain JSON; kept in the manifest.

    Raises:
      ValueError: a key is repeated or no path within the directory.
      OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    manifests.remove(directory)
    rows = itertools.tee(_write_files(directory / _FILES, records), len(_COLUMNS))
    string_columns.write_columns(
        directory / _INDEX,
        {
            name: map(operator.itemgetter(i), own)
            for i, (name, own) in enumerate(zip(_COLUMNS, rows, strict=True))
        },
        rows_per_batch=_AT_ONCE * 64,
    )
    keys, *_ = string_columns.open_columns(directory / _INDEX, _COLUMNS)
    content = {"images": len(keys), "origin": dict(origin)}
    manifests.write(directory, _FORMAT, _FORMAT_VERSION, content)


def load(directory: Path) -> tuple[Stored, dict[str, Any]]:
    """Opens a directory of `write`; reads no image.

    Returns:
      the images and the manifest's `origin`.

    Raises:
      FileNotFoundError: there is no manifest or no index.
      ValueError: of another format, or files are missing.
    """
    manifest = manifests.read(directory, _FORMAT, _FORMAT_VERSION)
    table = string_columns.open_columns(directory / _INDEX, _COLUMNS)
    keys, captions, labels, digests, errors = map(list, table)
    present = sum(len(files) for _, _, files in os.walk(directory / _FILES))
    if not present >= len(keys) == manifest["images"]:
        raise ValueError(
            f"{directory} has {present:,} files, its index {len(keys):,} images and its manifest "
            f"{manifest['images']:,}: remove the directory to write it anew"
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    keys = [keys[i] for i in order]
    hashes = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)[order]
    stored = Stored(
        keys=keys,
        files=HashedFiles([directory / _FILES], np.zeros(len(keys), np.uint8), keys, hashes),
        captions=[json.loads(captions[i]) if captions[i] else () for i in order],
        labels=np.array([labels[i] for i in order], np.int32),
        errors={keys[row]: errors[i] for row, i in enumerate(order) if errors[i]},
    )
    return stored, manifest["origin"]


def _write_files(directory: Path, records: Iterable[Record]) -> Iterator[tuple[str, ...]]:
    """Yields the index's row of each record once its file is there."""
    iterator, seen, total = iter(records), set(), 0
    with concurrent.futures.ThreadPoolExecutor() as pool:
        while batch := list(itertools.islice(iterator, _AT_ONCE)):
            for record in batch:
                _check_key(record.key, seen)
            yield from pool.map(lambda record: _write_file(directory, record), batch)
            if (total + len(batch)) // _LOG_EVERY > total // _LOG_EVERY:
                logger.info("  %s: %d images", directory, total + len(batch))
            total += len(batch)


def _write_file(directory: Path, record: Record) -> tuple[str, ...]:
    path = directory / record.key
    if not path.is_file() or path.stat().st_size != len(record.data):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_files.write_bytes(path, record.data, durable=False)
    try:
        image_files.check(record.data)
        error = ""
    except image_files.ImageError as failure:
        error = str(failure)
    return (
        record.key,
        json.dumps(list(record.captions)) if record.captions else "",
        str(-1 if record.label is None else record.label),
        hashlib.sha256(record.data).hexdigest(),
        error,
    )


def _check_key(key: str, seen: set[str]) -> None:
    path = PurePosixPath(key)
    if not path.name or path.is_absolute() or ".." in path.parts or str(path) != key:
        raise ValueError(f"image '{key}': expected a relative path, to store it under that name")
    if key in seen:
        raise ValueError(f"image '{key}' is there twice; expected every name once")
    seen.add(key)
