"""The JSON file that says of a directory what it holds, and that it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsi_jax.utils import atomic_files

_NAME = "manifest.json"


def exists(directory: Path) -> bool:
    """Whether a directory has a manifest, hence is whole."""
    return (directory / _NAME).is_file()


def remove(directory: Path) -> None:
    """Says that a directory is not whole, if it has a manifest."""
    (directory / _NAME).unlink(missing_ok=True)


def write(directory: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Writes the manifest of a directory, atomically.

    Args:
      directory: the directory.
      kind: what it holds ("dsi_jax corpus").
      version: of its format.
      content: plain JSON.
    """
    manifest = {"format": kind, "format_version": version, **content}
    atomic_files.write_json(directory / _NAME, manifest, indent=1)


def read(directory: Path, kind: str, version: int) -> dict[str, Any]:
    """Reads the manifest of a directory.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON, or of another kind or version; both are named.
    """
    path = directory / _NAME
    if not exists(directory):
        raise FileNotFoundError(f"{directory} holds no complete '{kind}': {_NAME} does not exist")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    expected = {"format": kind, "format_version": version}
    found = {name: manifest.get(name) for name in expected} if isinstance(manifest, dict) else None
    if found != expected:
        raise ValueError(f"{path} says {found}; expected {expected}")
    return manifest
