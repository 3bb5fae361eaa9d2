"""Embeddings of images for the docid kinds that cluster documents."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np
from flax import traverse_util

from dsi_jax.convert import encoder_formats, hub
from dsi_jax.convert.encoder_format import EncoderFormat
from dsi_jax.docids.embedders.batches import embed_batches, in_parts
from dsi_jax.inputs.encoder_inputs import PixelReader
from dsi_jax.models.encoders.towers import EmbeddingTowers

_CHUNK = 1024  # images in memory at a time


class ImageEmbedder(Protocol):
    """Turns images into vectors; `one_by_one` as for `embeddings.Embedder`."""

    def embed_images(self, images: Sequence[Path | bytes], seed: int = 42) -> np.ndarray:
        """Embeds N images as float32 [N, E]; equal arguments give equal vectors.

        Args:
          images: paths, or the bytes of files.
          seed: of what is random, if anything is.
        """

    def describe(self) -> dict[str, Any]:
        """The embedder and its parameters as plain JSON, kept in the docid table."""


@dataclasses.dataclass(frozen=True)
class PixelPca:
    """The principal components of small images; needs no weights.

    It groups images by layout and colour, not by what they show.

    Attributes:
      size: images are cut to a square and scaled down to so many pixels a side.
      dimensions: E; lower where there are fewer images or pixels.

    Raises:
      ValueError: a value is below 1.
    """

    size: int = 16
    dimensions: int = 64

    def __post_init__(self) -> None:
        if min(self.size, self.dimensions) < 1:
            raise ValueError(f"{self}: expected size and dimensions of at least 1")

    def embed_images(self, images: Sequence[Path | bytes], seed: int = 42) -> np.ndarray:
        """See `ImageEmbedder`; nothing is random here.

        Raises:
          FileNotFoundError, ImageError: as `images.decode`.
          ValueError: there is no image.
        """
        from threadpoolctl import threadpool_limits

        del seed
        read = PixelReader(self.size, cache_bytes=0)
        small_NxF = np.concatenate([part["pixels"] for part in in_parts(read, images, _CHUNK)])
        small_NxF = small_NxF.reshape(len(images), -1)
        mean_F = small_NxF.mean(axis=0, dtype=np.float64) / 255

        def centred(start: int) -> np.ndarray:
            return small_NxF[start : start + _CHUNK] / 255 - mean_F

        starts = range(0, len(images), _CHUNK)
        with threadpool_limits(limits=1):  # sums in a fixed order: the same vectors every time
            scatter_FxF = sum(centred(start).T @ centred(start) for start in starts)
            _, axes_FxF = np.linalg.eigh(scatter_FxF)  # the largest eigenvalue's last
            dimensions = min(self.dimensions, *small_NxF.shape)
            axes_FxE = axes_FxF[:, ::-1][:, :dimensions]
            # An axis has two directions: towards its largest coordinate.
            largest_E = np.abs(axes_FxE).argmax(axis=0)
            axes_FxE = axes_FxE * np.sign(axes_FxE[largest_E, np.arange(dimensions)])
            vectors = [(centred(start) @ axes_FxE).astype(np.float32) for start in starts]
        return np.concatenate(vectors)

    def describe(self) -> dict[str, Any]:
        """See `ImageEmbedder`."""
        return {"name": "pixel_pca", **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class PretrainedImageEncoder:
    """The image features of a pretrained encoder, of length 1.

    The files are read, and the program is compiled, once an embedder. Between calls the weights are
    in the host's memory alone.

    Attributes:
      directory: an encoder of images as Hugging Face saves it, or a hub id; of a format that
        `dsi_jax.convert.encoder_formats` knows, such as CLIP's. A model without projections gives
        the pooled state.
      batch_size: images encoded at a time.

    Raises:
      ValueError: the batch size is below 1.
    """

    directory: str
    batch_size: int = 64

    one_by_one: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"{self}: expected a batch_size of at least 1")

    def embed_images(self, images: Sequence[Path | bytes], seed: int = 42) -> np.ndarray:
        """See `ImageEmbedder`; nothing is random here.

        Raises:
          FileNotFoundError, ImageError: as `EncoderFormat.load_params` and `images.decode`.
          ValueError: as `EncoderFormat.load_params`, or there is no image.
        """
        del seed
        encoder = self._encoder
        read = PixelReader(encoder.image_size, cache_bytes=0)
        embed = functools.partial(encoder.features, jax.device_put(encoder.params))
        return embed_batches(embed, read, images, self.batch_size)

    @functools.cached_property
    def _source(self) -> tuple[EncoderFormat, Path]:
        """The format of the checkpoint and its directory."""
        directory = hub.local_directory(self.directory)
        return encoder_formats.format_in(directory), directory

    @functools.cached_property
    def _encoder(self) -> "_LoadedEncoder":
        encoder_format, directory = self._source
        encoders = encoder_format.load_configs(directory)
        if encoders.image is None:
            raise ValueError(
                f"{directory} has an encoder of texts alone; expected an encoder of images"
            )
        encoders = dataclasses.replace(encoders, text=None)
        flat = encoder_format.load_params(directory, encoders)
        towers = EmbeddingTowers(None, encoders.image, encoders.embedding_dim)

        @jax.jit
        def features(params: Any, read: Mapping[str, jax.Array]) -> jax.Array:
            return towers.apply({"params": params}, read, method="embed_image")

        params = traverse_util.unflatten_dict(flat, sep="/")
        return _LoadedEncoder(encoders.image.image_size, params, features)

    def describe(self) -> dict[str, Any]:
        """See `ImageEmbedder`; the model goes by the name of its directory or its hub id."""
        return {"name": self._source[0].family, "model": Path(self.directory).resolve().name}


class _LoadedEncoder(NamedTuple):
    """A pretrained encoder of images.

    Attributes:
      image_size: pixels a side of an image.
      params: the parameters, float32 NumPy arrays.
      features: (params, what is read of B images) -> float32 [B, E], under `jax.jit`.
    """

    image_size: int
    params: Any
    features: Callable[[Any, Mapping[str, jax.Array]], jax.Array]
