"""From examples of tasks to flat examples, for `seqio.Evaluator` and for the pipeline.

`dsi_jax.data.collate` makes batches of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from dsi_jax.data import features

ROW = "row"

_Spec = seqio.FeatureConverter.FeatureSpec


class DSIFeatureConverter(seqio.FeatureConverter):
    """Task features -> `inputs`, `row` and `is_indexing`, flat as seqio wants them.

    Text passes as it is (string [1]). Token ids, where tasks hold them, are padded to
    the length of `inputs`.
    """

    def __init__(self, tokenized: bool = False) -> None:
        """Chooses the kind of `inputs`.

        Args:
          tokenized: True where tasks emit int32 token ids, False where they emit text.
        """
        inputs = _Spec(dtype=tf.int32 if tokenized else tf.string)
        self.TASK_FEATURES = {
            features.INPUTS: inputs,
            features.TARGETS: _Spec(dtype=tf.int32),
            features.IS_INDEXING: _Spec(dtype=tf.int32),
        }
        self.MODEL_FEATURES = {
            features.INPUTS: inputs,
            ROW: _Spec(dtype=tf.int32),
            features.IS_INDEXING: _Spec(dtype=tf.int32),
        }
        self._tokenized = tokenized
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
            return {
                features.INPUTS: inputs,
                ROW: tf.ensure_shape(example[features.TARGETS], [1]),
                features.IS_INDEXING: tf.ensure_shape(example[features.IS_INDEXING], [1]),
            }

        return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        inputs = task_feature_lengths[features.INPUTS] if self._tokenized else 1
        return {features.INPUTS: inputs, ROW: 1, features.IS_INDEXING: 1}


def task_lengths(feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Of a run's lengths (TASK_FEATURE_LENGTHS) those of the features that its tasks have."""
    inputs = feature_lengths[features.INPUTS]
    return {features.INPUTS: inputs, features.TARGETS: 1, features.IS_INDEXING: 1}


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
                "declare dsi_jax.data.features.output_features()"
            )
    dtype = declared[features.INPUTS].dtype
    if dtype not in (tf.string, tf.int32):
        raise ValueError(
            f"'{provider.name}' has inputs of type {dtype}; expected string (text) or int32 (ids)"
        )
    return dtype == tf.int32
