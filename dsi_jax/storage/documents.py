"""The documents of a corpus on disk, as the retriever shows them."""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from dsi_jax.storage.string_columns import StringColumn, open_columns, write_columns

_COLUMNS = ("key", "title", "text")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: its string name, its title (may be empty) and its text."""

    key: str
    title: str
    text: str


class Documents(Sequence[Document]):
    """The documents of a corpus in corpus order, mapped into memory and not read.

    Example:
      >>> import tempfile, pathlib
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "documents.arrow"
      >>> write_documents(path, ["a", "b"], ["", "Bees"], ["Ants work.", "Bees dance."])
      >>> Documents.open(path)[1]
      Document(key='b', title='Bees', text='Bees dance.')
    """

    def __init__(self, keys: StringColumn, titles: StringColumn, texts: StringColumn):
        self.keys = keys
        self.titles = titles
        self.texts = texts

    @classmethod
    def open(cls, path: str | os.PathLike) -> "Documents":
        """Opens a file of `write_documents`.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it is not a complete file of documents.
        """
        return cls(*open_columns(path, _COLUMNS))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row):
        """The document of a row; a list of documents for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is outside the {len(self)} documents")
        return Document(self.keys[row], self.titles[row], self.texts[row])


class FullTexts(Sequence[str]):
    """Title and text of each document joined by a space, made when asked for.

    Example:
      >>> list(FullTexts(["", "Bees"], ["Ants work.", "Bees dance."]))
      ['Ants work.', 'Bees Bees dance.']
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str]):
        self._titles = titles
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row):
        """The text of a row; a list of texts for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return f"{self._titles[row]} {self._texts[row]}".strip()


def write_documents(
    path: str | os.PathLike, keys: Iterable[str], titles: Iterable[str], texts: Iterable[str]
) -> None:
    """Writes documents in corpus order; the file appears only once it is complete.

    Args:
      path: the file to write; an existing one is replaced.
      keys: the documents' names.
      titles: their titles, "" where a document has none.
      texts: their texts.

    Raises:
      ValueError: if the lengths differ, or an item is not a string of valid Unicode.
    """
    write_columns(path, dict(zip(_COLUMNS, (keys, titles, texts), strict=True)))
