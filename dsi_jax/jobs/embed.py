"""Embeds a corpus to a file, on one host or several: `dsi-jax infer --mode=embed`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.docids.embedders import precomputed
from dsi_jax.docids.embedders.base import Embedder
from dsi_jax.docids.embedders.image import ImageEmbedder
from dsi_jax.prepare import assets, docid_table
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.training.checkpoints import check_writable
from dsi_jax.utils import atomic_files

logger = logging.getLogger(__name__)


def embed(
    *,
    embedder: Embedder | ImageEmbedder,
    output: str,
    corpus: str | None = None,
    images: str | None = None,
    captions: str | None = None,
    skip_unreadable: bool = False,
    random_seed: int = 42,
    rows_a_part: int = 1 << 16,
    config_text: str = "",
    dry_run: bool = False,
) -> None:
    """Writes an embedding of each document, for `docids.precomputed.Precomputed`.

    Several hosts share the documents and write to one file, which must lie where all see it. An
    embedder that looks at all documents at once (TF-IDF, principal components) runs on the first
    host alone. Documents are embedded and written a part at a time.

    Args:
      embedder: what embeds them.
      output: the .npy file to write; the keys go next to it.
      corpus: the documents; or
      images: a directory of images, with the next two as in `prepare.DataConfig`.
      captions: the file of their captions.
      skip_unreadable: leave out what cannot be used.
      random_seed: of whatever is random.
      rows_a_part: documents of a part.
      config_text: not kept.
      dry_run: stop before embedding.

    Raises:
      ValueError, OSError: bad input, named.
    """
    del config_text
    path = Path(output).expanduser()
    if path.suffix != ".npy":
        raise ValueError(f"EMBED_OUTPUT is {output!r}; expected a name that ends in .npy")
    if corpus is None and images is None:
        raise ValueError("neither CORPUS nor IMAGES is given; expected one of them")
    data = DataConfig(
        corpus=corpus,
        seed=random_seed,
        images=images,
        captions=captions,
        skip_unreadable=skip_unreadable,
    )
    documents, _ = assets.load_corpus_for(data)
    described = embedder.describe()
    if dry_run:
        logger.info("would embed %s documents by %s to %s", f"{len(documents):,}", described, path)
        return
    _embed(embedder, documents, path, random_seed, rows_a_part)


def _embed(
    embedder: Embedder | ImageEmbedder, documents: AnyCorpus, path: Path, seed: int, most: int
) -> None:
    """Writes vectors and keys; all hosts take part, `most` documents at a time."""
    check_writable(path.parent)
    rows = _own_rows(len(documents), embedder, most)
    with _shared_file(path) as temporary:
        width = _embed_parts(embedder, documents, rows, seed, temporary)
        _wait("dsi_jax embedded")
        if jax.process_index() == 0:
            precomputed.write_keys(path, documents.keys)
    if jax.process_index() == 0:
        logger.info(
            "%s vectors of %d numbers: %s, keys: %s",
            f"{len(documents):,}",
            width,
            path,
            precomputed.keys_path(path),
        )
    _wait("dsi_jax renamed")


@contextlib.contextmanager
def _shared_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path, the same on all hosts; the first one moves the file to `path`."""
    temporary = atomic_files.temporary_path(path)
    if jax.process_count() > 1:
        name = np.frombuffer(temporary.name.encode(), np.uint8)  # of one length on all hosts
        temporary = path.with_name(bytes(multihost_utils.broadcast_one_to_all(name)).decode())
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(atomic_files.replacing(path, temporary))
        yield temporary


def _own_rows(count: int, embedder: Embedder | ImageEmbedder, most: int) -> list[Sequence[int]]:
    """The parts of this host, ranges of rows."""
    if not getattr(embedder, "one_by_one", False):
        return [range(count)] if jax.process_index() == 0 else []
    bounds = np.linspace(0, count, jax.process_count() + 1).astype(int)
    first, last = bounds[jax.process_index() :][:2].tolist()
    return [range(start, min(start + most, last)) for start in range(first, last, most)]


def _embed_parts(
    embedder: Embedder | ImageEmbedder,
    documents: AnyCorpus,
    rows: list[Sequence[int]],
    seed: int,
    path: Path,
) -> int:
    """Writes this host's vectors to their places in the file; returns E."""
    vectors = _vectors(embedder, documents, rows, seed)
    first = next(vectors, None)
    width = 0 if first is None else first[1].shape[1]
    if jax.process_count() > 1:
        width = int(multihost_utils.process_allgather(np.int64(width)).max())
    if jax.process_index() == 0:
        shape = (len(documents), width)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    _wait("dsi_jax made room")
    file_NxE = np.lib.format.open_memmap(path, mode="r+")
    done = 0
    while first is not None:
        part, vectors_BxE = first
        file_NxE[part.start : part.stop] = vectors_BxE
        done += len(part)
        logger.info("embedded %s of %s", f"{done:,}", f"{sum(map(len, rows)):,}")
        first = next(vectors, None)
    file_NxE.flush()
    return width


def _vectors(
    embedder: Embedder | ImageEmbedder,
    documents: AnyCorpus,
    rows: list[Sequence[int]],
    seed: int,
) -> Iterator[tuple[range, np.ndarray]]:
    for part in rows:
        yield part, docid_table.embed_documents(embedder, documents, seed, part)


def _wait(name: str) -> None:
    """Until all hosts are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
