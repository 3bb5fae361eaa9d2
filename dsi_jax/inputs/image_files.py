"""Image files -> uint8 pixels as CLIP was trained on, with Pillow.

Equal to transformers' `CLIPImageProcessor` up to normalisation, which runs on the accelerator
(`inputs.pixels`). Besides, orientation by EXIF, 16-bit greys and transparency are respected.
"""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dsi_jax.inputs.pixels import resized_shape

Colour = tuple[int, int, int]
WHITE: Colour = (255, 255, 255)
ImageSource = Path | bytes  # a file, or the bytes of one

MIN_SIDE = 2
_MAX_RATIO = 100  # beyond it the resized image would not fit into memory


class ImageError(ValueError):
    """An image that cannot be used; the message names it."""


def read(source: str | Path | bytes, size: int, *, background: Colour | None = WHITE) -> np.ndarray:
    """The pixels of an image file, see `decode` and `resize_and_crop`.

    Args:
      source: path, or the bytes of the file.
      size: of the square.
      background: see `decode`.

    Returns:
      uint8 [size, size, 3].

    Raises:
      FileNotFoundError, ImageError: as `decode`.
    """
    return resize_and_crop(decode(source, background=background), size)


def decode(source: str | Path | bytes, *, background: Colour | None = WHITE) -> Image.Image:
    """Decodes an image file of any format that Pillow knows; the first frame of several.

    Args:
      source: path, or the bytes of the file.
      background: shows through transparent pixels; None drops transparency as transformers does,
        so that whatever colour a transparent pixel has becomes visible.

    Returns:
      The upright image in RGB.

    Raises:
      FileNotFoundError: there is no such file.
      ImageError: the file is empty, cut short, no image, or of a size that cannot be used.
    """
    return _decode(source, background)


def check(source: str | Path | bytes) -> None:
    """Raises unless `decode` can read the whole image; several times faster for JPEG.

    Raises:
      FileNotFoundError, ImageError: as `decode`.
    """
    _decode(source, WHITE, draft=True)


def view(source: str | Path | bytes, seed: int | Sequence[int]) -> bytes:
    """A random crop of between a half and four fifths of an image's area, of its proportions.

    Args:
      source: path, or the bytes of the file.
      seed: of the area and the place.

    Returns:
      The bytes of a PNG file.

    Raises:
      FileNotFoundError, ImageError: as `decode`.
    """
    image = decode(source)
    rng = np.random.default_rng(seed)
    side = rng.uniform(0.5, 0.8) ** 0.5
    width, height = (max(MIN_SIDE, round(side * length)) for length in image.size)
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    buffer = io.BytesIO()
    image.crop((left, top, left + width, top + height)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def resize_and_crop(image: Image.Image, size: int) -> np.ndarray:
    """Bicubic, antialiased resize of the shorter side to `size`, then the square in the middle.

    Args:
      image: in RGB.
      size: of the square.

    Returns:
      uint8 [size, size, 3].
    """
    height, width = resized_shape(image.height, image.width, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def on_canvas(image: Image.Image, size: int, canvas: int) -> tuple[np.ndarray, np.ndarray]:
    """What `resize_and_crop` reads of an image, for `pixels.squares` to resize.

    Where that does not fit, the image is first reduced by the least whole factor that makes it fit;
    what comes out is then but near to `resize_and_crop`.

    Args:
      image: in RGB.
      size: of the square to come.
      canvas: pixels a side, at least twice `size`, so that no image is reduced to much less.

    Returns:
      uint8 [canvas, canvas, 3], the image in its upper left corner, and its frame float32 [2, 3].
    """
    lengths = np.array([image.height, image.width])
    resized = np.array(resized_shape(image.height, image.width, size))
    for factor in itertools.count(1):
        scales = lengths / factor / resized
        begins = (resized - size) // 2 * scales
        margins = 2 * np.maximum(scales, 1) + 1  # how far the kernel reaches
        firsts = np.maximum(np.floor(begins - margins), 0).astype(int)
        ends = np.ceil(np.minimum(begins + size * scales + margins, lengths / factor)).astype(int)
        if (ends - firsts).max() <= canvas:
            break
    (top, left), (bottom, right) = firsts * factor, np.minimum(ends * factor, lengths)
    part = image.crop((left, top, right, bottom)).reduce(factor)
    pixels_YxXx3 = np.zeros((canvas, canvas, 3), np.uint8)
    pixels_YxXx3[: part.height, : part.width] = part
    frame_2x3 = np.stack([begins - firsts, size * scales, ends - firsts], axis=1)
    return pixels_YxXx3, frame_2x3.astype(np.float32)


def _decode(
    source: str | Path | bytes, background: Colour | None, draft: bool = False
) -> Image.Image:
    name = f"an image of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes):
        if not Path(source).is_file():
            raise FileNotFoundError(f"image {source} does not exist")
        source = Path(source).read_bytes()
    if not source:
        raise ImageError(f"{name} is empty; expected an image")
    try:
        with Image.open(io.BytesIO(source)) as image:
            _check_size(name, *image.size)
            if draft:  # a JPEG is read whole, but only an eighth of its sides computed
                image.draft("RGB", (1, 1))
            return _to_rgb(ImageOps.exif_transpose(image), background)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds on damaged files
        raise ImageError(f"{name} cannot be decoded: {error}") from error


def _check_size(name: str, width: int, height: int) -> None:
    shorter, longer = sorted((width, height))
    if shorter < MIN_SIDE:
        raise ImageError(
            f"{name} is {width} x {height} pixels; expected at least {MIN_SIDE} a side"
        )
    if longer > _MAX_RATIO * shorter:
        raise ImageError(
            f"{name} is {width} x {height} pixels; expected sides of a ratio of at most "
            f"{_MAX_RATIO}"
        )


def _to_rgb(image: Image.Image, background: Colour | None) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating point; expected integers")
    if image.mode.startswith("I"):  # 16-bit greys; Pillow would clip them at 255
        greys = np.clip(np.asarray(image).astype(np.int64), 0, 65_535)
        image = Image.fromarray(((greys * 255 + 32_767) // 65_535).astype(np.uint8))
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
    return image.convert("RGB")
