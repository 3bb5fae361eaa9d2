"""Images on the accelerator: normalisation, resizing and augmentation of uint8 pixels.

Everything is a pure function of its arguments and may be jitted. Shape letters: B batch, Y and X
height and width.
"""

import dataclasses

import jax
import jax.numpy as jnp

# Of OpenAI's CLIP, https://github.com/openai/CLIP, and of nearly every CLIP since.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_RATIO = 4 / 3  # of a crop's sides at most, as in Szegedy et al., 2015, section 6


def normalize(
    pixels_BxYxXx3: jax.Array,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
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


def resize_and_crop(pixels_BxYxXx3: jax.Array, size: int) -> jax.Array:
    """`dsi_jax.images.resize_and_crop` of images that all have one size; differs by 1 at most.

    Args:
      pixels_BxYxXx3: uint8.
      size: of the square.

    Returns:
      uint8 [B, size, size, 3].
    """
    batch, height, width, channels = pixels_BxYxXx3.shape
    new_height, new_width = resized_shape(height, width, size)
    # Like Pillow: columns first, and bytes in between, for the kernel's overshoots are cut there.
    for shape in ((batch, height, new_width, channels), (batch, new_height, new_width, channels)):
        resized = jax.image.resize(pixels_BxYxXx3.astype(jnp.float32), shape, "cubic")
        pixels_BxYxXx3 = _to_uint8(resized)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    return pixels_BxYxXx3[:, top : top + size, left : left + size]


def resized_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter side is `size`; the longer one is rounded down."""
    shorter = min(height, width)
    return size * height // shorter, size * width // shorter


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Weak augmentation of images whose own docid is the target.

    A crop of random area, sides and place is resized back. Weak, because a strong crop drops what
    a caption names; no flip unless asked for, because captions may say left or right.

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

    def __call__(self, key: jax.Array, pixels_BxYxYx3: jax.Array) -> jax.Array:
        """A random view of each image.

        Args:
          key: of the batch; each row draws from its own fold, whatever the number of rows.
          pixels_BxYxYx3: uint8, square.

        Returns:
          uint8 of the same shape.

        Raises:
          ValueError: the images are not square.
        """
        batch, height, width, _ = pixels_BxYxYx3.shape
        if height != width:
            raise ValueError(f"images to augment are {height} x {width}; expected squares")
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch))
        return jax.vmap(self._view)(keys, pixels_BxYxYx3)

    def _view(self, key: jax.Array, pixels_YxYx3: jax.Array) -> jax.Array:
        size = pixels_YxYx3.shape[0]
        area_key, ratio_key, place_key, flip_key = jax.random.split(key, 4)
        low, high = self.crop_scale
        area = jax.random.uniform(area_key, minval=low, maxval=high)
        # Log-uniform among the ratios of a crop of this area that fits.
        limit = jnp.minimum(jnp.log(_RATIO), -jnp.log(area))
        log_ratio = jax.random.uniform(ratio_key, minval=-1.0, maxval=1.0) * limit
        sides = jnp.sqrt(area) * jnp.exp(jnp.stack([log_ratio, -log_ratio]) / 2)
        corner = jax.random.uniform(place_key, (2,)) * (1 - sides) * size
        view = jax.image.scale_and_translate(
            pixels_YxYx3.astype(jnp.float32),
            pixels_YxYx3.shape,
            spatial_dims=(0, 1),
            scale=1 / sides,
            translation=-corner / sides,
            method="cubic",
        )
        if self.flip:
            view = jnp.where(jax.random.bernoulli(flip_key), view[:, ::-1], view)
        return _to_uint8(view)


def _to_uint8(pixels: jax.Array) -> jax.Array:
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
