"""From examples of tasks to batches of the model: where rows become docids.

`DSIFeatureConverter` hands flat examples to `seqio.Evaluator` and to the pipeline;
`collate` makes a batch of them in NumPy, with the tokenizer and the docid table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from dsi_jax.data import features
from dsi_jax.docids.table import DocidTable
from dsi_jax.tokenizers import Tokenizer

ROW = "row"
Batch = dict[str, Any]

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


def collate(
    examples: Mapping[str, np.ndarray],
    table: DocidTable,
    tokenizer: Tokenizer,
    lengths: Mapping[str, int],
) -> Batch:
    """Makes a batch of the model from a batch of flat examples.

    Args:
      examples: `inputs`: object [B, 1] of UTF-8 bytes, or int32 [B, S'] token ids;
        `row`: int32 [B, 1]; `is_indexing`: int32 [B, 1].
      table: rows -> docids.
      tokenizer: used where `inputs` is text.
      lengths: `lengths["inputs"]` is S, the number of source tokens kept.

    Returns:
      {"text": {"tokens": int32 [B, S], "mask": bool [B, S]},
       "decoder": {"inputs": int32 [B, L], "targets": int32 [B, L], "weights": float32
       [B, L]}, "row": int32 [B], "is_indexing": int32 [B]}.

    Raises:
      ValueError: if a row is not in the table.
    """
    rows_B = np.asarray(examples[ROW], np.int32).reshape(-1)
    outside = rows_B[(rows_B < 0) | (rows_B >= table.num_documents)]
    if outside.size:
        raise ValueError(
            f"a task targets row {outside[0]}, but the docid table has "
            f"{table.num_documents} documents"
        )
    tokens_BxS = encode_inputs(examples[features.INPUTS], tokenizer, lengths[features.INPUTS])
    targets_BxL = table.docids(rows_B)
    return {
        "text": {"tokens": tokens_BxS, "mask": tokens_BxS != 0},
        "decoder": {
            "inputs": np.pad(targets_BxL, [(0, 0), (1, 0)])[:, :-1],
            "targets": targets_BxL,
            "weights": (targets_BxL != 0).astype(np.float32),
        },
        "row": rows_B,
        "is_indexing": np.asarray(examples[features.IS_INDEXING], np.int32).reshape(-1),
    }


def encode_inputs(inputs: np.ndarray, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """Token ids int32 [B, S] of the `inputs` of a batch of examples.

    Args:
      inputs: object [B, 1] of UTF-8 bytes, or int32 [B, S'] token ids.
      tokenizer: used where `inputs` is text.
      length: S, the number of tokens kept.
    """
    inputs = np.asarray(inputs)
    if not np.issubdtype(inputs.dtype, np.integer):
        return tokenizer.encode_batch(inputs[:, 0].tolist(), length)
    tokens_BxS = np.zeros([len(inputs), length], np.int32)
    tokens_BxS[:, : inputs.shape[1]] = inputs[:, :length]
    return tokens_BxS
