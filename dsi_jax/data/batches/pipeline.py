"""The training stream: batch t is a function of the seed and t alone.

tf.data carries raw text, encoded images and rows in one global order a modality, the same
on every host; a host keeps its parts of each batch, tokenizes and decodes them and looks
their docids up in NumPy. The
state of the stream is a few kilobytes, and that of any host serves all.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data.batches import cached_tasks, collate, converters
from dsi_jax.data.batches.indexing_strategies import DEFAULT_STRATEGY, Strategy
from dsi_jax.data.seqio_tasks import features
from dsi_jax.data.seqio_tasks.sources import InMemorySource
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.streams import IMAGE

_STATE_VERSION = 2  # 1: passes repeated; a state of a restored stream could be wrong
_HEADER = "header.json"


class TrainPipeline:
    """Endless iterator over this host's parts of the global batches.

    Attributes:
      batch_size: B, examples in a global batch.
      split: the split that the examples are of.
      num_examples: examples in one pass over all tasks; None where a task does not say.
      step: number of batches given out so far; the next one is batch `step`.
    """

    def __init__(
        self,
        mixture_or_task_name: str,
        table: DocidTable,
        inputs: Inputs,
        batch_size: int,
        seed: int,
        split: str = "train",
        parts: Sequence[int] | None = None,
        num_parts: int = 1,
        microbatches: int = 1,
        use_cached: bool = False,
        shuffle: bool = True,
        strategy: Strategy = DEFAULT_STRATEGY,
    ) -> None:
        """Builds the stream; reads no example yet.

        Args:
          mixture_or_task_name: a registered mixture or task of this or another project.
          table: docids of the corpus that the tasks' rows refer to.
          inputs: makes the encoders' inputs of texts and images.
          batch_size: B, examples in a global batch.
          seed: decides the order, the mixing and the preprocessors' random choices.
          split: the split to train on.
          parts: this host's parts of each batch, in order; None: all.
          num_parts: equal parts of a batch, one a data shard of the mesh.
          microbatches: parts into which a step splits its batch; modalities get multiples of
            `num_parts` times it.
          use_cached: read what `seqio_cache_tasks` wrote of the tasks; see `data.cached`.
          shuffle: False keeps each task in its own order.
          strategy: what indexing examples ask of the model.

        Raises:
          ValueError: if the batch does not divide, no task has the split, a task belongs
            to another corpus than the table, a cache is asked for and is not there, a
            modality would get no example, or the strategy makes targets of images.
        """
        self._collator = collate.Collator(table, inputs, strategy)
        self._parts = _checked_parts(parts, num_parts, batch_size, microbatches)
        self.batch_size, self.split, self.step = batch_size, split, 0
        self._num_parts = num_parts
        rates = _tasks(mixture_or_task_name, table, split, use_cached, shuffle)
        sizes = [task.num_input_examples(split) for task in rates]
        self.num_examples = None if None in sizes else sum(sizes)
        self._rates = {task.name: rate for task, rate in rates.items()}
        mixtures = _mixture_per_modality(rates, split)
        _check_strategy(strategy, mixtures)
        self._asked = {m: mixture.total_rate for m, mixture in mixtures.items()}
        self._sizes = stream_sizes(self._asked, batch_size, num_parts * microbatches)
        self._identity = self._decisive(mixture_or_task_name, seed, shuffle, strategy)
        if use_cached:
            self._identity |= {"use_cached": True, "caches": _fingerprints(rates)}
        self._datasets = {
            modality: _dataset(mixture, inputs.length, self._sizes[modality], split, seed, shuffle)
            for modality, mixture in mixtures.items()
        }
        self._iterators = {modality: iter(ds) for modality, ds in self._datasets.items()}

    def _decisive(self, name: str, seed: int, shuffle: bool, strategy: Strategy) -> dict[str, Any]:
        """What decides the order of examples: a saved state continues only the same."""
        return {
            "version": _STATE_VERSION,
            "name": name,
            "split": self.split,
            "rates": self._rates,
            "batch_size": self.batch_size,
            # Of num_parts only what it changes: another mesh may continue the stream.
            "stream_sizes": self._sizes,
            "seed": seed,
            "shuffle": shuffle,
            "use_cached": False,
            "strategy": strategy.name,
        }

    def __iter__(self) -> TrainPipeline:
        return self

    def __next__(self) -> collate.Batch:
        """This host's parts of the next global batch; see `collate.Collator.batch`."""
        examples, places = {}, {}
        for modality, iterator in self._iterators.items():
            mine = places[modality] = self._places(modality)
            # Taken as tensors: what other hosts keep is never copied out of TensorFlow.
            examples[modality] = {
                name: tf.gather(values, mine).numpy() for name, values in next(iterator).items()
            }
        batch = self._collator.batch(examples, step=self.step, places=places)
        self.step += 1
        return batch

    def _places(self, modality: str) -> np.ndarray:
        """Of the global stream those that this host keeps."""
        size = self._sizes[modality] // self._num_parts
        return np.concatenate([np.arange(part * size, (part + 1) * size) for part in self._parts])

    def batch_shapes(self) -> collate.Batch:
        """ShapeDtypeStructs of the global batch."""
        return self._collator.shapes(self._sizes)

    def lines(self) -> tuple[str, ...]:
        """Asked and effective rates, for a person to read."""
        rates = self.rates()
        tasks = ", ".join(f"{name} {share:.3f}" for name, share in rates["tasks"].items())
        modalities = ", ".join(
            f"{name} {r['effective']:.3f} (asked {r['asked']:.3f}, {r['examples']} examples)"
            for name, r in rates["modalities"].items()
        )
        return (f"mixture      {tasks}", f"batch        {modalities}")

    def rates(self) -> dict[str, dict[str, Any]]:
        """Shares of the batch: asked a task; asked, effective and examples a modality."""
        total = sum(self._rates.values())
        return {
            "tasks": {name: rate / total for name, rate in self._rates.items()},
            "modalities": {
                modality: {
                    "asked": self._asked[modality] / total,
                    "effective": size / self.batch_size,
                    "examples": size,
                }
                for modality, size in self._sizes.items()
            },
        }

    def state(self) -> bytes:
        """All that is needed to go on after the last batch, on any number of hosts."""
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as directory, zipfile.ZipFile(buffer, "w") as archive:
            header = self._identity | {"step": self.step}
            archive.writestr(_HEADER, json.dumps(header))
            for modality, iterator in self._iterators.items():
                tf.train.Checkpoint(iterator=iterator).write(f"{directory}/{modality}")
            for file in sorted(Path(directory).iterdir()):
                archive.writestr(file.name, file.read_bytes())
        return buffer.getvalue()

    def restore(self, state: bytes) -> None:
        """Continues after the batch at which `state` was taken.

        Raises:
          ValueError: if the bytes are no state, or that of another stream; the message
            names what differs.
        """
        try:
            archive = zipfile.ZipFile(io.BytesIO(state))
            header = json.loads(archive.read(_HEADER))
        except (zipfile.BadZipFile, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"not the state of an input pipeline: {error}") from error
        for name, value in self._identity.items():
            if header.get(name) != value:
                raise ValueError(
                    f"the saved input pipeline has {name} = {header.get(name)}, this one has "
                    f"{value}: the order of examples would not be continued"
                )
        iterators = {modality: iter(ds) for modality, ds in self._datasets.items()}
        with archive, tempfile.TemporaryDirectory() as directory:
            archive.extractall(directory)
            for modality, iterator in iterators.items():
                checkpoint = tf.train.Checkpoint(iterator=iterator)
                checkpoint.read(f"{directory}/{modality}").assert_consumed()
        self._iterators = iterators
        self.step = header["step"]


def stream_sizes(rates: Mapping[str, float], batch_size: int, data_shards: int) -> dict[str, int]:
    """Examples a modality, multiples of `data_shards` nearest to the rates.

    Rounds by largest remainder, so that the sizes add up to the batch.

    Args:
      rates: modality -> rate, not normalised.
      batch_size: B, a multiple of `data_shards`.
      data_shards: the number of shards.

    Raises:
      ValueError: if a modality with a rate above zero would get no example.
    """
    units = batch_size // data_shards
    shares = {m: rate / sum(rates.values()) * units for m, rate in rates.items()}
    sizes = {m: int(share) for m, share in shares.items()}
    by_remainder = sorted(shares, key=lambda m: sizes[m] - shares[m])
    for modality in by_remainder[: units - sum(sizes.values())]:
        sizes[modality] += 1
    for modality, size in sizes.items():
        if not size and rates[modality] > 0:
            raise ValueError(
                f"modality '{modality}' would get no example: its rates ask for "
                f"{shares[modality] / units:.4f} of a batch of {batch_size} in {data_shards} "
                "shards; enlarge the batch or the rate"
            )
    return {m: size * data_shards for m, size in sizes.items()}


class _FullShuffleMixture(seqio.Mixture):
    """A mixture whose tasks are shuffled over all of their examples, where it is known how many."""

    def get_task_dataset(
        self,
        task: seqio.Task,
        output_feature_keys: set[str],
        sequence_length: Mapping[str, int] | None = None,
        split: str = "train",
        use_cached: bool = False,
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        num_epochs: int | None = None,
        trim_output_features: bool = True,
        try_in_mem_cache: bool = False,
    ) -> tf.data.Dataset:
        # None for a task whose source shuffles on its own.
        buffer = task.shuffle_buffer_size and max(
            task.shuffle_buffer_size, task.num_input_examples(split) or 0
        )
        dataset = task.get_dataset(
            sequence_length=sequence_length,
            split=split,
            use_cached=use_cached,
            shuffle=shuffle,
            shuffle_buffer_size=buffer,
            seed=seed,
            shard_info=shard_info,
            num_epochs=num_epochs,
            trim_output_features=trim_output_features,
            try_in_mem_cache=try_in_mem_cache,
        )
        return dataset.map(lambda example: {k: example[k] for k in output_feature_keys})


def _checked_parts(
    parts: Sequence[int] | None, num_parts: int, batch_size: int, microbatches: int
) -> Sequence[int]:
    """A host's parts of a batch; refuses those that do not divide it."""
    if num_parts < 1 or batch_size < 1 or batch_size % (num_parts * microbatches):
        raise ValueError(
            f"a batch of {batch_size} does not divide into {num_parts} parts of {microbatches} "
            "microbatches"
        )
    parts = range(num_parts) if parts is None else tuple(parts)
    if not set(parts) <= set(range(num_parts)):
        raise ValueError(f"parts {parts} are not all among {num_parts} parts")
    return parts


def _check_strategy(strategy: Strategy, modalities: Container[str]) -> None:
    if IMAGE in modalities and strategy.needs_text_space:
        raise ValueError(
            f"INDEXING_STRATEGY is {strategy.name!r}, and an image cannot be a target; "
            "expected 'inputs2targets'"
        )


def _tasks(
    name: str, table: DocidTable, split: str, use_cached: bool, shuffle: bool
) -> dict[seqio.Task, float]:
    """The tasks of a mixture that have the split, checked and as they are read, and their rates."""
    rates = _rates_per_task(seqio.get_mixture_or_task(name), split)
    if use_cached:
        rates = {cached_tasks.read(task, split): rate for task, rate in rates.items()}
    for task in rates:
        _check_corpus(task, table, split, use_cached)
    if shuffle:
        rates = {_endless(task): rate for task, rate in rates.items()}
    return rates


def _fingerprints(tasks: Iterable[seqio.Task]) -> dict[str, str | None]:
    """What tells the caches of tasks from others, by the names of the tasks."""
    return {task.name: getattr(task.source, "fingerprint", None) for task in tasks}


def _rates_per_task(provider: seqio.Task | seqio.Mixture, split: str) -> dict[seqio.Task, float]:
    tasks = [task for task in seqio.get_subtasks(provider) if split in task.splits]
    if not tasks:
        raise ValueError(f"no task of '{provider.name}' has the split '{split}'")
    if isinstance(provider, seqio.Mixture):
        return {task: float(provider.get_rate(task)) for task in tasks}
    return dict.fromkeys(tasks, 1.0)


def _endless(task: seqio.Task) -> seqio.Task:
    """The task over all passes of its source, where the source knows how."""
    source = task.source
    return task.replace(source=source.endless()) if isinstance(source, InMemorySource) else task


def _check_corpus(task: seqio.Task, table: DocidTable, split: str, use_cached: bool) -> None:
    """Raises where the task's examples say that their rows are of another corpus than the table."""
    found = _corpus_hash(task, split)
    if found is not None and found != table.corpus_hash:
        cache = f", cached in {task.cache_dir}," if use_cached and task.cache_dir else ""
        raise ValueError(
            f"the docid table belongs to the corpus {table.corpus_hash}, the task '{task.name}'"
            f"{cache} to the corpus {found}"
        )


def _corpus_hash(task: seqio.Task, split: str) -> str | None:
    if isinstance(task.source, InMemorySource):
        return task.source.corpus_hash
    dataset = task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False)
    if features.CORPUS_HASH not in dataset.element_spec:
        return None
    for example in dataset.take(1):
        return example[features.CORPUS_HASH][0].numpy().decode()
    return None


def _mixture_per_modality(
    rates: Mapping[seqio.Task, float], split: str
) -> dict[str, seqio.Mixture]:
    """Unregistered mixtures of the tasks of each modality, at their rates."""
    tasks: dict[str, list[tuple[seqio.Task, float]]] = {}
    for task, rate in rates.items():
        modality = converters.modality(task, split)
        tasks.setdefault(modality, []).append((task, rate))
    return {modality: _FullShuffleMixture(modality, own) for modality, own in tasks.items()}


def _dataset(
    mixture: seqio.Mixture,
    length: int,
    batch_size: int,
    split: str,
    seed: int,
    shuffle: bool,
) -> tf.data.Dataset:
    """Batches of flat examples in the global order."""
    converter = converters.converter_for(mixture)
    lengths = converters.task_lengths(mixture, {features.INPUTS: length})
    dataset = mixture.get_dataset(
        sequence_length=lengths,
        split=split,
        shuffle=shuffle,
        seed=seed,
        num_epochs=None,
        # seqio's cache would repeat the first pass's order for ever.
        try_in_mem_cache=False,
        trim_output_features=False,  # the converter does, and a map costs per example
    )
    dataset = converter(dataset, lengths).batch(batch_size, drop_remainder=True).prefetch(2)
    options = tf.data.Options()
    options.deterministic = True
    # Saves positions instead of buffered elements: a constant, reproducible state.
    # TensorFlow cannot do so for its own shuffle, which other sources rely on.
    options.experimental_symbolic_checkpoint = all(map(_has_positions, mixture.tasks))
    return dataset.with_options(options)


def _has_positions(task: seqio.Task) -> bool:
    """Whether a position says all of where an iterator of the task stands."""
    source = task.source
    return (
        isinstance(source, InMemorySource)
        and source.shuffle_buffer is None
        and task.shuffle_buffer_size is None
    )
