"""The embeddings that a docid table was built from, kept beside it.

They are no part of the table: it loads, and has the same hash, without them. What they save is
embedding a whole corpus again only to measure the table's oracle recall.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.embedders.precomputed import Precomputed
from dsi_jax.docids.table import DocidTable
from dsi_jax.storage.embeddings import EmbeddingStore
from dsi_jax.utils.units import bytes_text

logger = logging.getLogger(__name__)

FOLDER = "embeddings"  # in the directory of the table


def keep(
    embeddings: np.ndarray, table: DocidTable, path: Path, builder: DocidBuilder, seed: int
) -> None:
    """Writes the embeddings of a table beside it, unless a file of the user's holds them already.

    Args:
      embeddings: float [N, D].
      table: the table that was built from them.
      path: the directory of the table.
      builder: the docid kind with its embedder.
      seed: the seed of the embeddings.
    """
    if isinstance(builder.embedder, Precomputed):
        return
    store = _store(table, path, builder, seed)
    store.save(embeddings)
    if store.path.exists():
        logger.info(
            "kept the embeddings of the documents: %s, %s on disk; only `dsi-jax docids` reads "
            "them, to measure oracle recall",
            store.path,
            bytes_text(store.path.stat().st_size),
        )
    else:
        logger.warning(
            "the embeddings of the documents, %s, could not be written to %s: `dsi-jax docids` "
            "will make them again",
            bytes_text(embeddings.nbytes),
            store.path.parent,
        )


def kept(table: DocidTable, path: Path, builder: DocidBuilder, seed: int) -> np.ndarray | None:
    """Maps the embeddings of a table, float [N, D]; None where there are none of these.

    Args:
      table: the table.
      path: the directory of the table.
      builder: the docid kind with its embedder.
      seed: the seed of the embeddings.
    """
    store = _store(table, path, builder, seed)
    embeddings = store.load(table.num_documents)
    if embeddings is not None and len(embeddings) == table.num_documents:
        return embeddings
    others = path.is_dir() and any(store.path.parent.glob("*.npy"))
    logger.info(
        "%s holds %s of docid table %s: embedding %s documents again",
        store.path.parent,
        "embeddings of another embedder or seed, none" if others else "no embeddings",
        table.hash[:12],
        f"{table.num_documents:,}",
    )
    return None


def _store(table: DocidTable, path: Path, builder: DocidBuilder, seed: int) -> EmbeddingStore:
    """The file whose name says which table, embedder and seed the embeddings are of."""
    identity = {"table": table.hash, "embedder": builder.embedder.describe(), "seed": seed}
    text = json.dumps(identity, sort_keys=True)
    return EmbeddingStore(path / FOLDER, hashlib.sha256(text.encode()).hexdigest()[:16])
