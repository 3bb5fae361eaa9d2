"""From flat examples to batches of the model: where rows become docids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsi_jax.data import features
from dsi_jax.data.converters import ROW
from dsi_jax.data.strategies import DEFAULT_STRATEGY, Strategy
from dsi_jax.docids.table import PAD_TOKEN, DocidTable
from dsi_jax.tokenizers import Tokenizer

Batch = dict[str, Any]


class Collator:
    """Makes batches in NumPy, with the tokenizer, the docid table and the indexing strategy."""

    def __init__(
        self,
        table: DocidTable,
        tokenizer: Tokenizer,
        lengths: Mapping[str, int],
        strategy: Strategy = DEFAULT_STRATEGY,
    ) -> None:
        """Keeps its arguments.

        Args:
          table: rows -> docids, in text space where the strategy needs it.
          tokenizer: used where `inputs` is text.
          lengths: `lengths["inputs"]` is S, the number of source tokens kept.
          strategy: what indexing examples ask of the model.

        Raises:
          ValueError: if S is not positive, or a docid does not fit where the strategy puts it.
        """
        if lengths.get(features.INPUTS, 0) < 1:
            raise ValueError(f"feature_lengths is {dict(lengths)}; expected a positive 'inputs'")
        self._table, self._tokenizer, self._strategy = table, tokenizer, strategy
        self._source_length = lengths[features.INPUTS]
        self._target_length = strategy.target_length(table.length, self._source_length)

    def batch(
        self,
        examples: Mapping[str, np.ndarray],
        *,
        step: int = 0,
        places_B: np.ndarray | None = None,
    ) -> Batch:
        """Makes a batch of the model from a batch of flat examples.

        Args:
          examples: `inputs`: object [B, 1] of UTF-8 bytes, or int32 [B, S'] token ids;
            `row`: int32 [B, 1]; `is_indexing`: int32 [B, 1].
          step: number of the batch, of which a strategy's random choices are a function.
          places_B: place of each example in the global batch, likewise; None: this is all of it.

        Returns:
          {"text": {"tokens": int32 [B, S], "mask": bool [B, S]},
           "decoder": {"inputs": int32 [B, T], "targets": int32 [B, T], "weights": float32
           [B, T]}, "row": int32 [B], "is_indexing": int32 [B]}; T is L but where the strategy
          makes documents targets.

        Raises:
          ValueError: if a row is not in the table.
        """
        rows_B = np.asarray(examples[ROW], np.int32).reshape(-1)
        is_indexing_B = np.asarray(examples[features.IS_INDEXING], np.int32).reshape(-1)
        tokens_BxS = encode_inputs(examples[features.INPUTS], self._tokenizer, self._source_length)
        if places_B is None:
            places_B = np.arange(len(rows_B))
        tokens_BxS, targets_BxT = self._strategy.apply(
            tokens_BxS, self._docids(rows_B), is_indexing_B, step=step, places_B=places_B
        )
        return {
            "text": {"tokens": tokens_BxS, "mask": tokens_BxS != PAD_TOKEN},
            "decoder": {
                "inputs": np.pad(targets_BxT, [(0, 0), (1, 0)])[:, :-1],
                "targets": targets_BxT,
                "weights": (targets_BxT != PAD_TOKEN).astype(np.float32),
            },
            "row": rows_B,
            "is_indexing": is_indexing_B,
        }

    def shapes(self, batch_size: int) -> Batch:
        """ShapeDtypeStructs of a batch of so many examples."""

        def shape(dtype: Any, *lengths: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, *lengths), dtype)

        source, target = self._source_length, self._target_length
        return {
            "text": {"tokens": shape(np.int32, source), "mask": shape(np.bool_, source)},
            "decoder": {
                "inputs": shape(np.int32, target),
                "targets": shape(np.int32, target),
                "weights": shape(np.float32, target),
            },
            "row": shape(np.int32),
            "is_indexing": shape(np.int32),
        }

    def _docids(self, rows_B: np.ndarray) -> np.ndarray:
        try:
            return self._table.docids(rows_B)
        except ValueError as error:
            raise ValueError(f"a task targets a document that is not there: {error}") from error


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
