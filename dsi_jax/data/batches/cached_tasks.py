"""Tasks that `seqio_cache_tasks` wrote to disk, read back as sources in memory.

seqio shuffles the files of a cache, not its examples, and a buffer that shuffled these
would be part of every checkpoint. Held in memory they are like those of any other
`InMemorySource`: each pass is a new permutation, and an iterator's state a few bytes.
"""

from __future__ import annotations

import logging

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data.seqio_tasks import features
from dsi_jax.data.seqio_tasks.sources import Column, InMemorySource

logger = logging.getLogger(__name__)


def read(task: seqio.Task, split: str) -> seqio.Task:
    """A copy of the task, not registered, that has the cached examples for its source.

    It keeps the preprocessors behind `seqio.CacheDatasetPlaceholder`, so that what they
    draw at random is new each pass, as without the cache. A task without a placeholder
    comes back as it is, with a warning, as in seqio.

    Raises:
      ValueError: if the task has no cache in the directories that seqio searches; the
        cache lacks the split, cannot be read, is empty, or was made from something else
        than the task; or the task asks for a shuffle buffer.
    """
    if not task.supports_caching:
        logger.warning("the task '%s' cannot be cached: it is read from its source", task.name)
        return task
    own = task.source if isinstance(task.source, InMemorySource) else None
    if own is not None and own.shuffle_buffer is not None:
        raise ValueError(
            f"SHUFFLE_BUFFER_SIZE is {own.shuffle_buffer}: a buffer needs the order of the corpus, "
            "which a cache does not keep; expected None with USE_CACHED_TASKS"
        )
    columns = _columns(task, split)
    corpus_hash = _pop_hash(columns, features.CORPUS_HASH, task)
    made_from = _pop_hash(columns, features.FINGERPRINT, task)
    # What belongs to another corpus is refused where the docid table is known.
    if own is not None and corpus_hash == own.corpus_hash and made_from != own.fingerprint:
        raise ValueError(
            f"the cache {task.cache_dir} was made from other queries or options ({made_from}) than "
            f"the task '{task.name}' of this run ({own.fingerprint}): write it anew"
        )
    source = InMemorySource({split: columns}, task.name, corpus_hash)
    is_placeholder = [isinstance(p, seqio.CacheDatasetPlaceholder) for p in task.preprocessors]
    return task.replace(
        source=source,
        preprocessors=task.preprocessors[is_placeholder.index(True) + 1 :],
        shuffle_buffer_size=None,  # the source shuffles
    )


def _columns(task: seqio.Task, split: str) -> dict[str, Column]:
    """What the cache holds of a split: feature -> values of its examples."""
    directory = task.cache_dir
    if not directory or not tf.io.gfile.exists(seqio.get_cached_info_path(directory, split)):
        raise ValueError(
            f"USE_CACHED_TASKS: the split '{split}' of the task '{task.name}' has no cache in "
            f"{directory or seqio.utils.get_global_cache_dirs()}; write one with seqio_cache_tasks "
            f"--tasks={task.name} and name its --output_cache_dir in --seqio_additional_cache_dirs"
        )
    # All of the examples, before any preprocessor that stands behind the cache.
    bare = task.replace(preprocessors=[seqio.CacheDatasetPlaceholder()], output_features={})
    try:
        dataset = bare.get_dataset(
            split=split, use_cached=True, shuffle=False, try_in_mem_cache=False
        )
        examples = list(dataset.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise ValueError(f"the cache {directory} cannot be read: {error.message}") from error
    if not examples:
        raise ValueError(f"the cache {directory} holds no example of the split '{split}'")
    return {name: _column([example[name] for example in examples]) for name in examples[0]}


def _column(values: list[np.ndarray | np.generic | bytes]) -> Column:
    """One array of all values where they have one shape, else an array each."""
    arrays = [_array(value) for value in values]
    same = all(array.shape == arrays[0].shape for array in arrays)
    return np.stack(arrays) if same else arrays


def _array(value: np.ndarray | np.generic | bytes) -> np.ndarray:
    # NumPy's own type for bytes would cut them at a zero.
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


def _pop_hash(columns: dict[str, Column], name: str, task: seqio.Task) -> str | None:
    """The one value that all examples carry; None where they carry none."""
    values = sorted({value.decode() for value in np.ravel(columns.pop(name, []))})
    if len(values) > 1:
        raise ValueError(f"the cache {task.cache_dir} mixes examples of {name} {values}")
    return values[0] if values else None
