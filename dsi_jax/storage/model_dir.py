"""The layout of MODEL_DIR."""

from __future__ import annotations

from pathlib import Path


def model_directory(text: str | Path) -> Path:
    """MODEL_DIR as an absolute path; `~` is the home directory.

    Raises:
      ValueError: it is empty, or the address of an object store.
    """
    if not str(text):
        raise ValueError("MODEL_DIR is empty; expected a directory")
    if "://" in str(text):
        raise ValueError(
            f"MODEL_DIR is {str(text)!r}; expected a directory of this machine, or a mounted one: "
            "object stores are not supported yet for a run's own files"
        )
    return Path(text).expanduser().absolute()
