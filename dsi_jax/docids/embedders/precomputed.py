"""Embeddings that were made elsewhere, as files: a NumPy array and the keys of its rows.

`vectors.npy` holds a vector a document, float16 or float32 [N, E]. `vectors.keys`, beside it, holds
the documents' keys, one a line in the order of the vectors; without it, that is the corpus's order.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.utils import atomic_files

_SAMPLE = 64  # rows that tell one file from another


@dataclasses.dataclass(frozen=True)
class Precomputed:
    """Vectors of a file, for texts and images alike; those of other documents may be there, too.

    Where the file has just the corpus's documents in its order, it is mapped and read as it is
    needed; else the rows asked for are copied.

    Attributes:
      path: a .npy file.
    """

    path: str

    def vectors(self, keys: Sequence[str]) -> np.ndarray:
        """The vectors [N, E] of the documents with these keys, float16 or float32 as in the file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no array of vectors, has not as many as keys, or lacks a document.
        """
        array_NxE = self._open()
        path = keys_path(Path(self.path))
        if not path.exists():
            if len(array_NxE) != len(keys):
                raise ValueError(
                    f"{self.path} holds {len(array_NxE):,} vectors, the corpus {len(keys):,} "
                    f"documents; expected as many, or their keys in {path}"
                )
            return array_NxE
        found = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(found) != len(array_NxE):
            raise ValueError(
                f"{path} names {len(found):,} documents; expected the {len(array_NxE):,} of "
                f"{self.path}"
            )
        if found == list(keys):
            return array_NxE
        row_of = {key: row for row, key in enumerate(found)}
        if len(row_of) != len(found):
            twice = next(key for row, key in enumerate(found) if row_of[key] != row)
            raise ValueError(f"{path} names the document {twice!r} twice")
        missing = [key for key in keys if key not in row_of]
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing):,} of the corpus's documents, the first of them "
                f"{missing[0]!r}"
            )
        return array_NxE[[row_of[key] for key in keys]]

    def describe(self) -> dict[str, Any]:
        """See `embeddings.Embedder`; a hash of some rows tells the file from others.

        Raises:
          FileNotFoundError, ValueError: as `vectors`.
        """
        array_NxE = self._open()
        rows = np.linspace(0, len(array_NxE) - 1, min(_SAMPLE, len(array_NxE))).astype(int)
        return {
            "name": "precomputed",
            "file": Path(self.path).name,
            "shape": list(array_NxE.shape),
            "dtype": str(array_NxE.dtype),
            "sample": hashlib.sha256(np.ascontiguousarray(array_NxE[rows])).hexdigest()[:16],
        }

    def _open(self) -> np.ndarray:
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"EMBEDDINGS {path} does not exist")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"EMBEDDINGS {path} is not a complete .npy file: {error}") from error
        if not isinstance(array, np.ndarray) or array.ndim != 2 or not array.size:
            raise ValueError(
                f"EMBEDDINGS {path} has the shape {getattr(array, 'shape', None)}; expected a "
                "vector a document, [N, E]"
            )
        if array.dtype not in (np.float16, np.float32):
            raise ValueError(f"EMBEDDINGS {path} holds {array.dtype}; expected float16 or float32")
        return array


def keys_path(path: Path) -> Path:
    """Where the keys of a file of vectors lie."""
    return path.expanduser().with_suffix(".keys")


def write_keys(path: Path, keys: Sequence[str]) -> None:
    """Writes the keys of a file of vectors.

    Raises:
      ValueError: a key has a line break.
    """
    for key in keys:
        if "\n" in key:
            raise ValueError(f"the key {key!r} has a line break; keys are written one a line")
    atomic_files.write_text(keys_path(path), "".join(f"{key}\n" for key in keys))
