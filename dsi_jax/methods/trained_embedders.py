"""Trained dense methods as embedders of documents, for docids that cluster them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from dsi_jax.docids.embedders.batches import embed_batches
from dsi_jax.inputs import tokenizer_registry
from dsi_jax.inputs.encoder_inputs import Inputs, PixelReader
from dsi_jax.methods.base import Method
from dsi_jax.methods.contrastive import Contrastive
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.methods.registry import method_of
from dsi_jax.training import checkpoints


@dataclasses.dataclass(frozen=True)
class _Trained:
    """The newest checkpoint of a training run, as it is when first asked for.

    It is read, and a program compiled, once an embedder. Between calls the weights are in the
    host's memory alone: whatever comes next has the device for itself.

    Attributes:
      directory: MODEL_DIR of the run, or one of its checkpoints.
      batch_size: documents embedded at a time.

    Raises:
      ValueError: the batch size is below 1.
    """

    expected: ClassVar[type[Method]]  # what the run must have trained
    one_by_one: ClassVar[bool] = True

    directory: str
    batch_size: int = 128

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"{self}: expected a batch_size of at least 1")

    def describe(self) -> dict[str, Any]:
        """See `docids.embeddings.Embedder`; the model goes by the names of its directories."""
        path, metadata = self._opened
        return {
            "name": self.expected.kind,
            "model": path.parent.name,
            "checkpoint": path.name,
            "fingerprint": checkpoints.fingerprint(path),
            "corpus": metadata.get("corpus"),
            "corpus_hash": metadata.get("corpus_hash"),
        }

    def _embed(self, read: Callable[..., Any], documents: Sequence[Any]) -> np.ndarray:
        """Vectors float32 [N, E] of documents, see `docids.batches.embed_batches`."""
        params = jax.device_put(self._params)
        embed = functools.partial(self._encode, {"params": params})
        return embed_batches(embed, read, documents, self.batch_size)

    @functools.cached_property
    def _encode(self) -> Callable[..., jax.Array]:
        model = self.expected().load_model(self._opened[1]["model"])
        return jax.jit(functools.partial(model.apply, method="encode_document"))

    @functools.cached_property
    def _params(self) -> Any:
        return checkpoints.load_params(self._opened[0], check=False)

    @functools.cached_property
    def _opened(self) -> tuple[Path, Mapping[str, Any]]:
        """The checkpoint and its metadata."""
        directory = Path(self.directory).expanduser().absolute()
        if not directory.is_dir():
            raise FileNotFoundError(
                f"{type(self).__name__}.directory {directory} does not exist; expected the "
                f"MODEL_DIR of a run of {self.expected.kind}"
            )
        path = Path(checkpoints.latest_checkpoint(directory))
        metadata = checkpoints.load_metadata(path)
        method = method_of(metadata)
        if method.kind != self.expected.kind:
            raise ValueError(f"{path} holds a {method.kind}; expected a {self.expected.kind}")
        return path, metadata


@dataclasses.dataclass(frozen=True)
class TrainedDualEncoder(_Trained):
    """Embeds texts as the newest checkpoint of a dual encoder does, on the first device."""

    expected = DualEncoder

    def embed(self, texts: Sequence[str], seed: int = 42) -> np.ndarray:
        """Vectors of length 1, float32 [N, E], of N texts; nothing is random here.

        Raises:
          FileNotFoundError: there is no such directory.
          ValueError: there is no whole checkpoint, it is no dual encoder's, or there is no text.
        """
        del seed
        _, metadata = self._opened
        lengths = metadata["task_feature_lengths"]
        length = lengths.get("documents", lengths["inputs"])
        inputs = Inputs(tokenizer_registry.from_spec(metadata["tokenizer"]), {"inputs": length})
        return self._embed(inputs.texts, texts)


@dataclasses.dataclass(frozen=True)
class TrainedTowers(_Trained):
    """Embeds images as the newest checkpoint of contrastive towers does, on the first device.

    They are prepared as in that run: its number of pixels, its mean and its deviation.
    """

    expected = Contrastive

    def embed_images(self, images: Sequence[Path | bytes], seed: int = 42) -> np.ndarray:
        """Vectors of length 1, float32 [N, E]; see `image_embeddings.ImageEmbedder`.

        Raises:
          FileNotFoundError: there is no such directory, or no such image.
          ImageError: as `images.decode`.
          ValueError: there is no whole checkpoint, it is of another method, or there is no image.
        """
        del seed
        _, metadata = self._opened
        read = PixelReader(metadata["image_size"], metadata.get("image_canvas"), cache_bytes=0)
        return self._embed(read, images)
