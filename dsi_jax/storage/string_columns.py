"""Columns of strings on disk: Arrow IPC files that are mapped into memory, not read.

A corpus of 100M keys opens in milliseconds and costs no memory before it is used.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import pyarrow as pa

from dsi_jax.utils import atomic_files

_ROWS_PER_BATCH = 65_536


class StringColumn(Sequence[str]):
    """A read-only sequence of strings over Arrow memory, usually a mapped file."""

    def __init__(self, chunks: pa.ChunkedArray):
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._chunks[index].to_pylist()
        return self._chunks[int(index)].as_py()

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks.chunks:
            yield from chunk.to_pylist()

    def __repr__(self) -> str:
        return f"StringColumn({len(self)} strings)"

    @property
    def arrays(self) -> list[pa.LargeStringArray]:
        """The Arrow arrays that hold the strings, in order."""
        return self._chunks.chunks


def string_arrays(name: str, strings: Iterable[str]) -> Iterator[pa.LargeStringArray]:
    """Yields `strings` as Arrow arrays of bounded size, without copying a StringColumn.

    Args:
      name: what the strings are, for error messages.
      strings: the strings, in order.

    Raises:
      ValueError: if an item is not a string of valid Unicode; the message names its row.
    """
    if isinstance(strings, StringColumn):
        yield from strings.arrays
        return
    iterator, start = iter(strings), 0
    while batch := list(islice(iterator, _ROWS_PER_BATCH)):
        yield _string_array(name, start, batch)
        start += len(batch)


def write_columns(
    path: str | os.PathLike,
    columns: Mapping[str, Iterable[str]],
    rows_per_batch: int | None = None,
) -> None:
    """Writes columns of strings of one length as an Arrow IPC file, atomically.

    The columns are consumed in step, so generators never hold the whole corpus. The file appears
    under its name only once it is complete.

    Args:
      path: the file to write; an existing one is replaced.
      columns: name -> strings, all of the same length.
      rows_per_batch: rows that are in memory at a time; None: 65,536.

    Raises:
      ValueError: if the lengths differ, or an item is not a string of valid Unicode.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    with (
        atomic_files.replacing(path) as temporary,
        temporary.open("xb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for arrays in _in_step(columns, rows_per_batch or _ROWS_PER_BATCH):
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def open_columns(path: str | os.PathLike, names: Sequence[str]) -> tuple[StringColumn, ...]:
    """Maps a file of `write_columns` into memory.

    Args:
      path: the file.
      names: the columns it must hold, in this order.

    Returns:
      One StringColumn a name.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an Arrow file, is cut short, or holds other columns.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a complete Arrow IPC file: {error}") from error
    expected = pa.schema([(name, pa.large_string()) for name in names])
    if table.schema != expected:
        found = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise ValueError(f"{path} holds the columns ({found}), expected strings {list(names)}")
    return tuple(StringColumn(table.column(name)) for name in names)


def _in_step(
    columns: Mapping[str, Iterable[str]], rows: int
) -> Iterator[list[pa.LargeStringArray]]:
    """Yields one array a column, all of one length, until every column has ended."""
    iterators = {name: iter(strings) for name, strings in columns.items()}
    start = 0
    while True:
        batches = {name: list(islice(it, rows)) for name, it in iterators.items()}
        sizes = {name: start + len(batch) for name, batch in batches.items()}
        if len(set(sizes.values())) > 1:
            # The longer columns may go on: what is known is where the shortest one ends.
            shortest = min(sizes, key=sizes.__getitem__)
            longer = sorted(name for name in sizes if sizes[name] > sizes[shortest])
            raise ValueError(
                f"columns differ in length: {shortest!r} ends after {sizes[shortest]} rows, "
                f"{longer} do not"
            )
        if not any(batches.values()):
            return
        yield [_string_array(name, start, batch) for name, batch in batches.items()]
        start += len(next(iter(batches.values())))


def _string_array(name: str, start: int, strings: list[str]) -> pa.LargeStringArray:
    """Converts strings to Arrow; `start` is the row of the first one."""
    for offset, string in enumerate(strings):
        if not isinstance(string, str):
            raise ValueError(
                f"{name} of row {start + offset} is {string!r} ({type(string).__name__}), "
                "expected a string"
            )
    try:
        return pa.array(strings, type=pa.large_string())
    except UnicodeEncodeError as error:
        row = next(i for i, s in enumerate(strings) if any("\ud800" <= c <= "\udfff" for c in s))
        raise ValueError(
            f"{name} of row {start + row} holds a lone surrogate, expected valid Unicode"
        ) from error
