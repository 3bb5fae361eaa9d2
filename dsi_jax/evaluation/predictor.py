"""Ranks documents for the examples of a task, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dsi_jax.data.batches import collate
from dsi_jax.inputs.encoder_inputs import Inputs, pad_rows
from dsi_jax.methods.base import Ranker
from dsi_jax.ranking import docid_ranker
from dsi_jax.training import partitioning


class Interrupted(Exception):
    """The evaluation was asked to stop; it left no metrics of what it was at."""


def _never() -> bool:
    return False


class Predictor:
    """Ranks rows for the flat examples of a task.

    Args:
      ranker: of the documents.
      inputs: makes the encoders' inputs of texts and images.
      batch_size: queries a device step, rounded up to what the mesh divides; the last batch is
        padded to it.
      mesh: where the parameters lie; None: on one device.
    """

    def __init__(
        self,
        ranker: Ranker,
        *,
        inputs: Inputs,
        batch_size: int,
        mesh: Mesh | None = None,
    ) -> None:
        self._ranker = ranker
        self._inputs = inputs
        self._batch_size = batch_size
        if mesh is not None:
            self._batch_size = partitioning.round_batch_size(batch_size, mesh)

    def rank(
        self,
        params: Any,
        examples: Sequence[Mapping[str, np.ndarray]],
        should_stop: Callable[[], bool] = _never,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows int32 [n, M] and scores float32 [n, M] for n flat examples, best first.

        Args:
          params: the parameters.
          examples: at least one, all of one modality; the same on all processes.
          should_stop: asked before each batch; with several processes, all get one answer.

        Returns:
          (rows, scores); a row of -1 stands for no document.

        Raises:
          Interrupted: `should_stop` said so.
        """
        for _ in self._ranker.prepare(params):
            if should_stop():
                raise Interrupted
        modality, feature = next(
            (modality, feature)
            for modality, feature in collate.FEATURES.items()
            if feature in examples[0] and len(examples[0][feature])
        )
        rows, scores = [], []
        for start in range(0, len(examples), self._batch_size):
            if should_stop():
                raise Interrupted
            chunk = examples[start : start + self._batch_size]
            stream = self._inputs.stream(modality, np.stack([e[feature] for e in chunk]))
            batch = {modality: pad_rows(stream, self._batch_size)}
            result = docid_ranker.to_host(self._ranker.search(params, batch))
            rows.append(result.rows[: len(chunk)])
            scores.append(result.scores[: len(chunk)])
        return np.concatenate(rows), np.concatenate(scores)
