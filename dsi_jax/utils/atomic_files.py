"""Writes files and directories that appear under their names only once they are complete.

What is written goes to a temporary name in the same directory, then to the disk, then under its
name. Until that last moment, and after any failure, what lay under the name is untouched; a failure
also removes the temporary. Only a process that is killed leaves one, which nobody reads: its name
begins with a dot and ends in `.partial`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SUFFIX = ".partial"
_MOST_OF_NAME = 40  # characters of the name that a temporary shows: names may not be long
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # some mounted object stores, of a directory


def temporary_path(path: Path) -> Path:
    """Returns a new temporary name in the directory of `path`."""
    return path.with_name(f".{path.name[:_MOST_OF_NAME]}.{uuid.uuid4().hex}{_SUFFIX}")


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], temporary: Path | None = None, *, durable: bool = True
) -> Iterator[Path]:
    """Yields a temporary path to write a file to; it takes the place of `path` at the end.

    Args:
      path: the file; its directory exists.
      temporary: the temporary path, where other processes must know it; None: a new one.
      durable: whether to wait until the file is on the disk. False for one of very many files
        whose completeness is recorded elsewhere.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    temporary = temporary or temporary_path(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Writes a file of bytes, see `replacing`."""
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file of text in UTF-8, see `replacing`."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = None) -> None:
    """Writes a value as JSON and a line break, see `replacing`.

    Raises:
      TypeError: the value is no plain JSON.
    """
    write_text(path, json.dumps(value, indent=indent) + "\n")


@contextlib.contextmanager
def replacing_directory(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty directory to fill; it takes the place of `path` at the end.

    A directory that is in the way is moved aside first and removed last, as file systems offer no
    exchange: a process that is killed between the two moves leaves it in the temporary directory.

    Args:
      path: the directory; its parents are made.
      overwrite: whether a directory that is not empty may be replaced.

    Raises:
      OSError: it cannot be written, or a directory is in the way that may not be replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name[:_MOST_OF_NAME]}."
    scratch = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=path.parent))
    try:
        new = scratch / "new"
        new.mkdir()
        yield new
        for folder, _, files in os.walk(new):
            for name in (*files, "."):
                _sync(Path(folder, name))
        _move(new, path, scratch / "old" if overwrite else None)
        _sync(path.parent)
    finally:
        shutil.rmtree(scratch)


def _move(new: Path, path: Path, aside: Path | None) -> None:
    """Moves a directory to `path`; what lies there goes to `aside`, if that is given."""
    try:
        new.rename(path)  # also where an empty directory lies
        return
    except OSError:
        if aside is None or not path.exists():
            raise
    with contextlib.suppress(FileNotFoundError):  # another process has just moved it
        path.rename(aside)
    try:
        new.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise


def _sync(path: Path) -> None:
    """Waits until a file's content, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC):
            raise
    finally:
        os.close(descriptor)
