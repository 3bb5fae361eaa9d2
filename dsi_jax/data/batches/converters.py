"""From examples of tasks to flat examples, for `seqio.Evaluator` and for the pipeline.

`dsi_jax.data.batches.collate` makes batches of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from dsi_jax.data.seqio_tasks import features
from dsi_jax.inputs.streams import IMAGE, TEXT

ROW = "row"

_Spec = seqio.FeatureConverter.FeatureSpec


class DSIFeatureConverter(seqio.FeatureConverter):
    """Task features -> the input, `row` and `is_indexing`, flat as seqio wants them.

    A text (`inputs`) and an encoded image (`image`) pass as they are (string [1]). Token ids,
    where tasks hold them, are padded to the length of `inputs`.
    """

    def __init__(self, tokenized: bool = False, images: bool = False) -> None:
        """Chooses the kind of the input.

        Args:
          tokenized: True where tasks emit int32 token ids, False where they emit text.
          images: whether tasks declare images.
        """
        given = {features.INPUTS: _Spec(dtype=tf.int32 if tokenized else tf.string)}
        if images:
            given[features.IMAGE] = _Spec(dtype=tf.string)
        number = _Spec(dtype=tf.int32)
        self.TASK_FEATURES = given | {features.TARGETS: number, features.IS_INDEXING: number}
        self.MODEL_FEATURES = given | {ROW: number, features.IS_INDEXING: number}
        self._tokenized, self._images = tokenized, images
        # Lengths of text are in tokens, of the string feature in strings: no check.
        super().__init__(pack=False, apply_length_check=tokenized)

    def _convert_features(
        self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
    ) -> tf.data.Dataset:
        length = task_feature_lengths[features.INPUTS]

        def convert(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            inputs = example[features.INPUTS]
            if self._tokenized:
                inputs = inputs[:length]
                inputs = tf.pad(inputs, [[0, length - tf.size(inputs)]])
                inputs = tf.ensure_shape(inputs, [length])
            images = {features.IMAGE: example[features.IMAGE]} if self._images else {}
            return images | {
                features.INPUTS: inputs,
                ROW: tf.ensure_shape(example[features.TARGETS], [1]),
                features.IS_INDEXING: tf.ensure_shape(example[features.IS_INDEXING], [1]),
            }

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        inputs = task_feature_lengths[features.INPUTS] if self._tokenized else 1
        return dict.fromkeys(self.MODEL_FEATURES, 1) | {features.INPUTS: inputs}


def converter_for(provider: seqio.Task | seqio.Mixture) -> DSIFeatureConverter:
    """The converter of what the provider declares.

    Raises:
      ValueError: see `is_tokenized`.
    """
    return DSIFeatureConverter(is_tokenized(provider), has_images(provider))


def task_lengths(
    provider: seqio.Task | seqio.Mixture, feature_lengths: Mapping[str, int]
) -> dict[str, int]:
    """Of a run's lengths (TASK_FEATURE_LENGTHS) those of the features that its tasks have."""
    lengths = {
        features.INPUTS: feature_lengths.get(features.INPUTS, 1),
        features.TARGETS: 1,
        features.IS_INDEXING: 1,
    }
    return lengths | ({features.IMAGE: 1} if has_images(provider) else {})


def has_images(provider: seqio.Task | seqio.Mixture) -> bool:
    """Whether the provider's examples may be images."""
    return features.IMAGE in provider.output_features


def modality(task: seqio.Task, split: str) -> str:
    """What the task's examples of a split are, "text" or "image"; reads the first one.

    Raises:
      ValueError: the first example has both or neither.
    """
    if not has_images(task):
        return TEXT
    dataset = task.get_dataset(split=split, shuffle=False, try_in_mem_cache=False)
    for example in dataset.take(1):
        found = [
            name
            for name, feature in ((TEXT, features.INPUTS), (IMAGE, features.IMAGE))
            if len(example[feature])
        ]
        if len(found) != 1:
            raise ValueError(
                f"an example of '{task.name}' has {' and '.join(found) or 'neither text nor image'}"
                "; expected one of text and image, the other one a vector of length 0"
            )
        return found[0]
    raise ValueError(f"the split '{split}' of '{task.name}' has no example")


def is_tokenized(provider: seqio.Task | seqio.Mixture) -> bool:
    """Whether the provider's `inputs` are token ids (True) or text (False).

    Raises:
      ValueError: if a feature that every task must have is missing, or `inputs` is
        neither string nor int32.
    """
    declared = provider.output_features
    for name in (features.INPUTS, features.TARGETS, features.IS_INDEXING):
        if name not in declared:
            raise ValueError(
                f"'{provider.name}' has no output feature '{name}'; found {sorted(declared)}; "
                "declare dsi_jax.data.seqio_tasks.features.output_features()"
            )
    dtype = declared[features.INPUTS].dtype
    if dtype not in (tf.string, tf.int32):
        raise ValueError(
            f"'{provider.name}' has inputs of type {dtype}; expected string (text) or int32 (ids)"
        )
    return dtype == tf.int32
