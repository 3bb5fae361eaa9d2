"""Images on the accelerator: normalisation, resizing and augmentation of uint8 pixels.

A batch of images is {"pixels": uint8 [B, Y, X, 3]} and, where the squares that encoders read are
still to be cut out of them and resized, {"frames": float32 [B, 2, 3]}: down and across, where the
square begins, its extent, and how many of the pixels are the image's. A negative extent mirrors.

Everything is a pure function of its arguments and may be jitted. Shape letters: B batch, Y and X
height and width, S pixels a side of a square.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

_RATIO = 4 / 3  # of a crop's sides at most, as in Szegedy et al., 2015, section 6


def normalize(
    pixels_BxYxXx3: jax.Array,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> jax.Array:
    """Scales uint8 pixels to [0, 1], subtracts the mean and divides by the standard deviation.

    Args:
      pixels_BxYxXx3: uint8.
      mean: of each channel.
      std: of each channel.

    Returns:
      float32 of the same shape.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    return pixels_BxYxXx3.astype(jnp.float32) * scale - jnp.asarray(mean) / jnp.asarray(std)


def squares(images: Mapping[str, jax.Array], size: int) -> jax.Array:
    """The squares that encoders read, cut out and resized here where the host has not done it.

    Bicubic and antialiased as `images.resize_and_crop`, from which photographs differ by 1 at most.

    Args:
      images: see above.
      size: S.

    Returns:
      uint8 [B, S, S, 3] with frames, else the pixels as they are.
    """
    if "frames" not in images:
        return images["pixels"]
    return jax.vmap(functools.partial(_resample, size))(images["pixels"], images["frames"])


def _resample(size: int, pixels_YxXx3: jax.Array, frame_2x3: jax.Array) -> jax.Array:
    height, width, _ = pixels_YxXx3.shape
    rows_SxY = _bicubic(frame_2x3[0], size, height)
    columns_SxX = _bicubic(frame_2x3[1], size, width)
    # At an accelerator's own precision the weights would be rounded to 8 bits.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    # Like Pillow, the kernel's overshoots are cut in between. Pillow rounds there, too; a rounding
    # that fell to the other side would make a difference of 2, not to round makes one of 1.
    narrow_YxSx3 = product("sx,yxc->ysc", columns_SxX, pixels_YxXx3.astype(jnp.float32))
    square_SxSx3 = product("sy,yxc->sxc", rows_SxY, jnp.clip(narrow_YxSx3, 0, 255))
    return jnp.clip(jnp.round(square_SxSx3), 0, 255).astype(jnp.uint8)


def _bicubic(frame_3: jax.Array, size: int, length: int) -> jax.Array:
    """Weights float32 [S, length] of the pixels of one axis in each of the square's.

    Keys' kernel (1981, a = -1/2), as wide as two pixels of the square where that is the coarser.
    """
    begin, extent, count = frame_3
    scale = extent / size
    centres_S = begin + (jnp.arange(size) + 0.5) * scale
    places_L = jnp.arange(length) + 0.5
    x = jnp.abs(places_L - centres_S[:, None]) / jnp.maximum(jnp.abs(scale), 1)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0)) * (places_L < count)
    return weights / weights.sum(axis=1, keepdims=True)


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter side is `size`; the longer one is rounded down."""
    shorter = min(height, width)
    return size * height // shorter, size * width // shorter


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Weak augmentation of images whose own docid is the target.

    A crop of random area, sides and place stands in for the square. Weak, because a strong crop
    drops what a caption names; no flip unless asked for, because captions may say left or right.

    Attributes:
      crop_scale: least and greatest area of a crop, as a fraction of the image's.
      flip: True mirrors half of the images.

    Raises:
      ValueError: the fractions are not ordered within (0, 1].
    """

    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(
                f"Augmentation.crop_scale is {self.crop_scale!r}; expected two fractions in (0, 1]"
            )

    def __call__(self, key: jax.Array, images: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """A random view of each image, resampled once: by `squares`.

        Args:
          key: of the batch; each row draws from its own fold, whatever the number of rows.
          images: see the module; pixels without frames must be squares.

        Returns:
          The same pixels, with other frames.

        Raises:
          ValueError: the images are not square.
        """
        pixels = images["pixels"]
        batch, height, width, _ = pixels.shape
        frames_Bx2x3 = images.get("frames")
        if frames_Bx2x3 is None:
            if height != width:
                raise ValueError(f"images to augment are {height} x {width}; expected squares")
            frames_Bx2x3 = jnp.tile(jnp.float32([0, width, width]), (batch, 2, 1))
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
        return {"pixels": pixels, "frames": jax.vmap(self._view)(keys, frames_Bx2x3)}

    def _view(self, key: jax.Array, frame_2x3: jax.Array) -> jax.Array:
        area_key, ratio_key, place_key, flip_key = jax.random.split(key, 4)
        low, high = self.crop_scale
        area = jax.random.uniform(area_key, minval=low, maxval=high)
        # Log-uniform among the ratios of a crop of this area that fits.
        limit = jnp.minimum(jnp.log(_RATIO), -jnp.log(area))
        log_ratio = jax.random.uniform(ratio_key, minval=-1.0, maxval=1.0) * limit
        sides = jnp.sqrt(area) * jnp.exp(jnp.stack([log_ratio, -log_ratio]) / 2)
        begin, extent, count = frame_2x3.T
        begin += jax.random.uniform(place_key, (2,)) * (1 - sides) * extent
        extent *= sides
        if self.flip:
            flips = jax.random.bernoulli(flip_key) & jnp.array([False, True])
            begin += jnp.where(flips, extent, 0)
            extent = jnp.where(flips, -extent, extent)
        return jnp.stack([begin, extent, count], axis=1)
