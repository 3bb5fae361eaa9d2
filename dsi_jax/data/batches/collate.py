"""From flat examples to batches of the model: where rows become docids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dsi_jax.data.batches.converters import ROW
from dsi_jax.data.batches.indexing_strategies import DEFAULT_STRATEGY, Strategy
from dsi_jax.data.seqio_tasks import features
from dsi_jax.docids.table import PAD_TOKEN, DocidTable
from dsi_jax.inputs.encoder_inputs import Inputs, text_stream
from dsi_jax.inputs.streams import IMAGE, MODALITIES, TEXT, interleave

Batch = dict[str, Any]
Examples = Mapping[str, np.ndarray]
FEATURES = {TEXT: features.INPUTS, IMAGE: features.IMAGE}  # that hold the inputs of a modality


class Collator:
    """Makes batches in NumPy, with the encoders' inputs, the docid table and the strategy."""

    def __init__(
        self, table: DocidTable, inputs: Inputs, strategy: Strategy = DEFAULT_STRATEGY
    ) -> None:
        """Keeps its arguments.

        Args:
          table: rows -> docids, in text space where the strategy needs it.
          inputs: makes the streams of texts and images.
          strategy: what indexing examples ask of the model.

        Raises:
          ValueError: if a docid does not fit where the strategy puts it.
        """
        self._table, self._inputs, self._strategy = table, inputs, strategy
        self._target_length = strategy.target_length(table.length, inputs.length)

    def batch(
        self,
        examples: Mapping[str, Examples],
        *,
        step: int = 0,
        places: Mapping[str, np.ndarray] | None = None,
    ) -> Batch:
        """Makes a batch of the model from flat examples of each modality.

        Args:
          examples: modality -> `inputs`: object [b, 1] of UTF-8 bytes or int32 [b, S'] token ids,
            or `image`: object [b, 1] of encoded files; `row`: int32 [b, 1]; `is_indexing`:
            int32 [b, 1]. B is the sum of the b.
          step: number of the batch, of which a strategy's random choices are a function.
          places: modality -> the place of each example in the global stream, likewise; None: this
            is all of it.

        Returns:
          {"text": {"tokens": int32 [b, S], "mask": bool [b, S]}, with "words" for a lexical head,
           see `Inputs.texts`; "image": images, see `inputs.PixelReader`, where there are such
           examples; "decoder": {"inputs": int32 [B, T], "targets": int32 [B, T], "weights":
           float32 [B, T]}, "row": int32 [B], "is_indexing": int32 [B]};
          T is L but where the strategy makes documents targets. The order of the B examples is
          that of `models.streams.interleave`.

        Raises:
          ValueError: if a row is not in the table.
        """
        streams, parts = {}, []
        for modality in MODALITIES:
            if modality not in examples:
                continue
            own = examples[modality]
            stream = self._inputs.stream(modality, np.asarray(own[FEATURES[modality]]))
            rows_B = np.asarray(own[ROW], np.int32).reshape(-1)
            is_indexing_B = np.asarray(own[features.IS_INDEXING], np.int32).reshape(-1)
            targets_BxT = self._docids(rows_B)
            if modality == TEXT:
                places_B = np.arange(len(rows_B)) if places is None else places[modality]
                tokens_BxS, targets_BxT = self._strategy.apply(
                    stream["tokens"], targets_BxT, is_indexing_B, step=step, places_B=places_B
                )
                stream |= text_stream(tokens_BxS, self._inputs.tokenizer)
            streams[modality] = stream
            parts.append((targets_BxT, rows_B, is_indexing_B))
        targets_BxT, rows_B, is_indexing_B = map(interleave, zip(*parts, strict=True))
        return streams | {
            "decoder": {
                "inputs": np.pad(targets_BxT, [(0, 0), (1, 0)])[:, :-1],
                "targets": targets_BxT,
                "weights": (targets_BxT != PAD_TOKEN).astype(np.float32),
            },
            "row": rows_B,
            "is_indexing": is_indexing_B,
        }

    def shapes(self, sizes: Mapping[str, int]) -> Batch:
        """ShapeDtypeStructs of a batch of so many examples of each modality."""
        batch_size = sum(sizes.values())

        def shape(dtype: Any, *lengths: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch_size, *lengths), dtype)

        target = self._target_length
        return self._inputs.shapes(sizes) | {
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
