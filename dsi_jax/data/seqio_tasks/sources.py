"""A seqio source of columns in memory that shuffles indices, not examples."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data.seqio_tasks import features

Column = np.ndarray | Sequence[Any]

_ROUNDS = 2  # of a cipher of indices and a shift; one is nearly enough


class InMemorySource(seqio.DataSource):
    """Columns held in memory, shuffled fully with a state of constant size.

    Each pass over a shuffled dataset is a permutation of all examples, and each pass
    draws its own (unless a shuffle buffer is asked for). The order of a pass is a function of
    one number, so the state of an iterator is that number and a position. Three things to heed:
      * `Dataset.cache` would freeze the first pass: give `try_in_mem_cache=False`;
      * examples are already shuffled: tasks set `shuffle_buffer_size=None`;
      * the state of an iterator that repeats passes is exact for `endless` alone.
    """

    def __init__(
        self,
        columns: Mapping[str, Mapping[str, Column]],
        name: str,
        corpus_hash: str | None = None,
        fingerprint: str | None = None,
        shuffle_buffer: int | None = None,
    ) -> None:
        """Keeps `columns`.

        Args:
          columns: split -> feature -> values of its n examples: an array [n, ...], a list of n
            texts or numbers or, for features that vary in length, n arrays [length].
          name: distinguishes sources, so that two of one size differ in their order.
          corpus_hash: hash of the corpus that the rows refer to; None where it is not known.
          fingerprint: hash of all that `columns` was made from; None hashes `columns`. Each
            example carries both hashes, so that a cached task does.
          shuffle_buffer: draw each example from a buffer of so many, as tf.data does, in place
            of a full permutation; an iterator's state then holds the buffer's indices.
        """
        sizes = {split: len(next(iter(values.values()))) for split, values in columns.items()}
        super().__init__(
            splits=list(columns), num_input_examples=sizes, performs_internal_shuffling=True
        )
        self.corpus_hash = corpus_hash
        self.fingerprint = _hash(columns) if fingerprint is None else fingerprint
        self.shuffle_buffer = shuffle_buffer
        self._columns = columns
        self._name = name
        self._is_endless = False

    def endless(self) -> InMemorySource:
        """This source for training: shuffled, its dataset is all passes, one after the other.

        Example i is a function of the seed and i alone, and the state of an iterator is i. To
        repeat single passes takes iterators within iterators, which TensorFlow's symbolic
        checkpoints lose below a mixture: the state of an iterator that was restored itself then
        goes on with another order.
        """
        source = copy.copy(self)
        source._is_endless = True
        return source

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **_unused: object,
    ) -> tf.data.Dataset:
        """The examples of `split`, in order or shuffled anew each pass.

        Raises:
          ValueError: if they are to be shuffled without a seed, or sharded.
        """
        if shard_info is not None and shard_info.num_shards > 1:
            raise ValueError(f"source '{self._name}' has one shard; shard its examples instead")
        size = self.num_input_examples(split)
        if not shuffle:
            indices = tf.data.Dataset.range(size)
        elif seed is None:
            raise ValueError(
                f"source '{self._name}' cannot be shuffled with seed None: hosts would disagree"
            )
        elif self.shuffle_buffer is None:
            indices = _passes(size, _salted_seed(seed, self._name, split), self._is_endless)
        else:
            indices = tf.data.Dataset.range(size).shuffle(
                self.shuffle_buffer, seed=_salted_seed(seed, self._name, split)
            )
        tensors = {name: _tensor(values) for name, values in self._columns[split].items()}
        hashes = {features.CORPUS_HASH: self.corpus_hash, features.FINGERPRINT: self.fingerprint}
        carried = {n: tf.constant([value]) for n, value in hashes.items() if value is not None}
        return indices.map(lambda index: {n: t[index] for n, t in tensors.items()} | carried)


class LazySource(InMemorySource):
    """An `InMemorySource` that is made when something of it is first asked for."""

    shuffle_buffer = None

    def __init__(self, make: Callable[[], InMemorySource], splits: Sequence[str]) -> None:
        """Keeps `make`.

        Args:
          make: makes the source, without a shuffle buffer.
          splits: the splits that it will have.
        """
        seqio.DataSource.__init__(self, splits=splits, performs_internal_shuffling=True)
        self._made = functools.cache(make)

    @property
    def corpus_hash(self) -> str | None:
        return self._made().corpus_hash

    @property
    def fingerprint(self) -> str:
        return self._made().fingerprint

    def num_input_examples(self, split: str) -> int | None:
        return self._made().num_input_examples(split)

    def endless(self) -> InMemorySource:
        """See `InMemorySource.endless`."""
        return self._made().endless()

    def get_dataset(self, *args: Any, **kwargs: Any) -> tf.data.Dataset:
        """See `InMemorySource.get_dataset`."""
        return self._made().get_dataset(*args, **kwargs)


def _salted_seed(seed: int, *names: str) -> int:
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # a non-negative int64


def _passes(size: int, seed: int, endless: bool) -> tf.data.Dataset:
    """Indices 0 .. size-1 in a random order: endlessly, or once and another one each time."""
    if endless:
        return tf.data.Dataset.counter().map(lambda i: _place(i % size, i // size, size, seed))
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    return draws.flat_map(
        lambda draw: tf.data.Dataset.range(size).map(lambda i: _place(i, draw, size, seed))
    )


def _place(index: tf.Tensor, number: tf.Tensor, size: int, seed: int) -> tf.Tensor:
    """Where `index` lies in the permutation of 0 .. size-1 that has this number.

    Computed an index at a time, so that no order is held. The public `index_shuffle` takes
    too few bits of its seed: small sizes see some hundred orders only, and their places unevenly.
    """
    keys, shifts = (
        tf.random.stateless_uniform(
            shape, seed=tf.stack([number, seed + salt]), minval=None, maxval=None, dtype=tf.int64
        )
        for salt, shape in enumerate(((_ROUNDS, 3), (_ROUNDS,)))
    )
    keys = tf.cast(keys, tf.int32)
    for key, shift in zip(tf.unstack(keys), tf.unstack(shifts), strict=True):
        index = tf.raw_ops.RandomIndexShuffle(
            index=(index + shift % size) % size, seed=key, max_index=tf.cast(size - 1, tf.int64)
        )
    return index


def _tensor(values: Column) -> tf.Tensor | tf.RaggedTensor:
    if isinstance(values, np.ndarray) or not isinstance(values[0], np.ndarray):
        return tf.constant(values)
    return tf.RaggedTensor.from_row_lengths(np.concatenate(values), [len(v) for v in values])


def _hash(columns: Mapping[str, Mapping[str, Column]]) -> str:
    """sha256 (hex) of all values, their order included."""
    digest = hashlib.sha256()
    for split, values_by_name in sorted(columns.items()):
        for name, values in sorted(values_by_name.items()):
            digest.update(f"{split} {name} {len(values)} ".encode())
            for value in values:
                for part in _bytes_of(value):
                    digest.update(len(part).to_bytes(8, "little"))
                    digest.update(part)
    return digest.hexdigest()


def _bytes_of(value: Any) -> Iterator[bytes]:
    if not isinstance(value, np.ndarray):
        yield value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    elif value.dtype != object:
        yield value.tobytes()
    else:
        for part in value.flat:
            yield from _bytes_of(part)
