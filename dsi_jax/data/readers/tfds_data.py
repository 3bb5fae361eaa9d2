"""Data sets of TensorFlow Datasets that were built before: found, read, never downloaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "DSI_JAX_CACHE_DIR"


def data_dir() -> str:
    """Where TFDS data lie: `--tfds_data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    import seqio  # seconds to import; it keeps the flag

    default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    # What seqio's own tasks would read from; the name takes no part.
    return seqio.LazyTfdsLoader("any:1.0.0", data_dir=None).data_dir or os.path.expanduser(default)


def cache_dir() -> Path:
    """Where corpora made from TFDS data are kept: DSI_JAX_CACHE_DIR, else below `data_dir()`.

    Raises:
      ValueError: if that is an object store, from which files cannot be mapped into memory.
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser()
    directory = data_dir()
    if "://" in directory:
        raise ValueError(
            f"corpora cannot be kept in {directory}: set {CACHE_VARIABLE} to a local directory"
        )
    return Path(directory) / "dsi_jax"


def find(name: str, config: str = "", *, size: str = "", command: str | None = None) -> str:
    """The directory of the newest built version of a data set.

    Args:
      name: the data set.
      config: its config; "" if it has none.
      size: what must be downloaded to build it, for the message.
      command: what builds it, for the message; None: TFDS's own command.

    Raises:
      FileNotFoundError: if it was not built; the message says where it was looked for and which
        command builds it.
    """
    from etils import epath

    root = data_dir()
    whole = f"{name}/{config}" if config else name
    found = [path.parent for path in epath.Path(root, whole).glob("*/dataset_info.json")]
    if not found:
        option = f" --config={config}" if config else ""
        command = command or f"tfds build {name}{option}"
        raise FileNotFoundError(
            f"TFDS {whole} is not built: {root}/{whole}/*/dataset_info.json does not exist. Build "
            f"it with: {command} --data_dir={root}{f' ({size} to download)' if size else ''}; or "
            "name another directory with --tfds_data_dir"
        )
    return os.fspath(max(found, key=_version))


@dataclasses.dataclass(frozen=True)
class Size:
    """How many examples a split has, and how many bytes they take."""

    examples: int
    bytes: int


def sizes(directory: str) -> dict[str, Size]:
    """The sizes of the splits of what `find` found."""
    import tensorflow_datasets as tfds

    info = tfds.builder_from_directory(directory).info
    return {name: Size(part.num_examples, part.num_bytes) for name, part in info.splits.items()}


def examples(
    directory: str, split: str, features: Mapping[str, Any], encoded: Sequence[str] = ()
) -> Iterator[Any]:
    """Yields a split's examples in order, as nested dicts of NumPy arrays and bytes.

    Args:
      directory: what `find` found.
      split: the split.
      features: what to decode, as for `tfds.decode.PartialDecoding`; the rest is not parsed.
      encoded: which of these are given as they are stored: images as the bytes of their files.
    """
    import tensorflow_datasets as tfds

    dataset = tfds.builder_from_directory(directory).as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding(
            features, decoders={name: tfds.decode.SkipDecoding() for name in encoded}
        ),
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
    )
    yield from tfds.as_numpy(dataset)


def _version(path: os.PathLike) -> tuple[int, ...]:
    parts = os.path.basename(path).split(".")
    return tuple(int(part) if part.isdigit() else -1 for part in parts)
