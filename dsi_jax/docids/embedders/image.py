"""Embeddings of images for the docid kinds that cluster documents."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dsi_jax.docids.embedders.batches import embed_batches, in_parts
from dsi_jax.inputs.encoder_inputs import PixelReader
from dsi_jax.inputs.pixels import normalize
from dsi_jax.models.encoders.clip_config import ClipConfig

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
class ClipEmbedder:
    """The image features of a pretrained CLIP (Radford et al. 2021), of length 1.

    The files are read, and the program is compiled, once an embedder. Between calls the weights are
    in the host's memory alone.

    Attributes:
      directory: a CLIP, or its vision half, as Hugging Face saves it, or a hub id; see
        `dsi_jax.convert.hf_clip`. A model without projections gives the class token's state.
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
          FileNotFoundError, ImageError: as `load_clip` and `images.decode`.
          ValueError: as `load_clip`, or there is no image.
        """
        del seed
        clip = self._clip
        read = PixelReader(clip.config.vision.image_size, cache_bytes=0)
        embed = functools.partial(clip.features, jax.device_put(clip.params))
        return embed_batches(embed, read, images, self.batch_size)

    @functools.cached_property
    def _clip(self) -> "_LoadedClip":
        # Transformers' CLIP takes seconds to import: only who embeds with it pays for it.
        from dsi_jax.convert.hf_clip import load_clip, load_clip_config

        config, params = load_clip(self.directory, load_clip_config(self.directory, text=False))

        @jax.jit
        def features(params: Any, read: Mapping[str, jax.Array]) -> jax.Array:
            return _features(config, params, read["pixels"])

        return _LoadedClip(config, params, features)

    def describe(self) -> dict[str, Any]:
        """See `ImageEmbedder`; the model goes by the name of its directory or its hub id."""
        return {"name": "clip", "model": Path(self.directory).resolve().name}


class _LoadedClip(NamedTuple):
    """A CLIP, or its vision half.

    Attributes:
      config: its architecture.
      params: the parameters, float32 NumPy arrays.
      features: (params, what is read of B images) -> float32 [B, E], under `jax.jit`.
    """

    config: ClipConfig
    params: Any
    features: Callable[[Any, Mapping[str, jax.Array]], jax.Array]


def _features(config: ClipConfig, params: Any, pixels_BxYxXx3: jax.Array) -> jax.Array:
    """Unit vectors float32 [B, E] of uint8 images."""
    from dsi_jax.models.encoders.clip import Clip, ClipVisionTransformer

    vision = config.vision
    inputs_BxYxXx3 = normalize(pixels_BxYxXx3, vision.image_mean, vision.image_std)
    if config.projection_dim:
        return Clip(config).apply({"params": params}, inputs_BxYxXx3, method="embed_image")
    transformer = ClipVisionTransformer(vision)
    _, pooled_BxD = transformer.apply({"params": params["vision_model"]}, inputs_BxYxXx3)
    return pooled_BxD / jnp.linalg.norm(pooled_BxD, axis=-1, keepdims=True)
