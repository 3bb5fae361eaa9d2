"""Embeddings of a collection on disk, so that a search need not make them anew."""

import contextlib
from pathlib import Path

import numpy as np

from dsi_jax.utils import atomic_files


class EmbeddingStore:
    """One file of embeddings, under a name that says what made them.

    Args:
      directory: where the file lies; made when first needed. Other files of embeddings in it, made
        by other parameters, are removed when one is saved.
      key: what tells these embeddings from all others: of parameters, tokenizer and documents.
    """

    def __init__(self, directory: Path, key: str) -> None:
        self._path = directory / f"{key}.npy"

    @property
    def path(self) -> Path:
        """Where the file lies, once there is one."""
        return self._path

    def load(self, least_rows: int, width: int | None = None) -> np.ndarray | None:
        """Maps the embeddings [N, E] into memory; None if there are none that fit.

        Args:
          least_rows: the fewest rows N that fit.
          width: the E that fits; None: any.
        """
        try:
            stored_NxE = np.load(self._path, mmap_mode="r")
        except (OSError, EOFError, ValueError):  # absent or damaged
            return None
        fits = stored_NxE.ndim == 2 and len(stored_NxE) >= least_rows
        return stored_NxE if fits and width in (None, stored_NxE.shape[1]) else None

    def save(self, embeddings_NxE: np.ndarray) -> None:
        """Writes the file whole or, where the directory cannot be written, not at all."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (
                atomic_files.replacing(self._path) as temporary,
                temporary.open("wb") as file,
            ):
                np.save(file, embeddings_NxE)
            for other in self._path.parent.glob("*.npy"):
                if other != self._path:
                    other.unlink()
