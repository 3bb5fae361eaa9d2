"""A trained dual encoder as the embedder of semantic docids (`docids.embeddings.Embedder`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsi_jax import tokenizers
from dsi_jax.dense.documents import DocumentInputs
from dsi_jax.dense.embedding import DocumentEmbedder
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.methods.registry import method_of
from dsi_jax.training import checkpoints, partitioning


@dataclasses.dataclass(frozen=True)
class TrainedDualEncoder:
    """Embeds documents as the newest checkpoint of a dual encoder does, on the first device.

    Attributes:
      directory: MODEL_DIR of its training run, or one of its checkpoints.
      batch_size: documents embedded at a time.
    """

    directory: str
    batch_size: int = 128

    def embed(self, texts: Sequence[str], seed: int = 42) -> np.ndarray:
        """Vectors of length 1, float32 [N, E], of N texts; nothing is random here.

        Raises:
          ValueError: there is no whole checkpoint, it is no dual encoder's, or there is no text.
        """
        del seed
        if not texts:
            raise ValueError("no texts to embed")
        path = checkpoints.latest_checkpoint(self._path)
        metadata = checkpoints.load_metadata(path)
        method = method_of(metadata)
        if method.kind != DualEncoder.kind:
            raise ValueError(f"{path} holds a {method.title}; expected a {DualEncoder.title}")
        lengths = metadata["task_feature_lengths"]
        inputs = DocumentInputs(
            texts,
            tokenizers.from_spec(metadata["tokenizer"]),
            lengths.get("documents", lengths["inputs"]),
        )
        embedder = DocumentEmbedder(
            method.load_model(metadata["model"]),
            inputs,
            mesh=partitioning.one_device_mesh(),
            batch_size=self.batch_size,
        )
        params = jax.device_put(checkpoints.load_params(path, check=False))
        *_, embeddings_1xNxE = embedder.batches(params)
        return np.asarray(embeddings_1xNxE)[0, : len(texts)]

    def describe(self) -> dict[str, Any]:
        """See `docids.embeddings.Embedder`; the model goes by the names of its directories."""
        path = Path(checkpoints.latest_checkpoint(self._path))
        return {"name": "dual_encoder", "model": path.parent.name, "checkpoint": path.name}

    @property
    def _path(self) -> Path:
        return Path(self.directory).expanduser().absolute()
