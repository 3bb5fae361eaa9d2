"""Preprocessing of images against transformers' processor, odd files, augmentation."""

import functools
import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dsi_jax.inputs import image_files, pixels
from dsi_jax.inputs.image_files import ImageError
from dsi_jax.inputs.pixels import Augmentation
from dsi_jax.models.encoders.clip_config import CLIP_MEAN, CLIP_STD

SIZE = 48


@pytest.fixture(scope="module")
def photographs(shared_data):
    """Of several shapes; the two greyscale files among them."""
    paths = sorted((shared_data / "coco_mini" / "images").glob("*.jpg"))
    greys = [path for path in paths if Image.open(path).mode == "L"]
    assert len(greys) == 2
    return paths[::40] + greys


def processed(image: Image.Image, size: int) -> np.ndarray:
    """Transformers' own result, without its normalisation, in [0, 1]."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_normalize=False
    )
    found = processor(image, return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ][0]
    return found.transpose(1, 2, 0)


@pytest.mark.parametrize("size", [224, 32])
def test_photographs_equal_transformers(photographs, size: int) -> None:
    for path in photographs:
        found = image_files.read(path, size)
        assert found.shape == (size, size, 3) and found.dtype == np.uint8
        expected = processed(Image.open(path), size) * 255
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01)


def test_normalised_pixels_equal_transformers(photographs) -> None:
    from transformers import CLIPImageProcessor

    expected = CLIPImageProcessor()(Image.open(photographs[0]), return_tensors="np")
    normalize = functools.partial(pixels.normalize, mean=CLIP_MEAN, std=CLIP_STD)
    found = jax.jit(normalize)(image_files.read(photographs[0], 224)[None])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found.transpose(0, 3, 1, 2), expected["pixel_values"], rtol=0, atol=1e-5
    )


squares = jax.jit(pixels.squares, static_argnums=1)


def on_canvases(pictures: list[Image.Image], size: int, canvas: int) -> dict[str, np.ndarray]:
    found = zip(
        *(image_files.on_canvas(picture, size, canvas) for picture in pictures), strict=True
    )
    return dict(zip(("pixels", "frames"), map(np.stack, found), strict=True))


def resized(pictures: list[Image.Image], size: int) -> np.ndarray:
    return np.stack([image_files.resize_and_crop(picture, size) for picture in pictures]).astype(
        int
    )


def test_photographs_resized_on_the_accelerator_equal_pillow(photographs) -> None:
    pictures = [image_files.decode(path) for path in photographs[:12]]
    assert len({picture.size for picture in pictures}) > 3
    sent = on_canvases(pictures, 224, 640)
    assert sent["pixels"].shape == (12, 640, 640, 3) and sent["pixels"].dtype == np.uint8
    found = squares(sent, 224)
    assert found.dtype == jnp.uint8 and found.shape == (12, 224, 224, 3)
    assert abs(found - resized(pictures, 224)).max() <= 1


@settings(deadline=None, max_examples=60)
@given(width=st.integers(2, 200), height=st.integers(2, 200), seed=st.integers(0, 99))
def test_any_image_that_fits_is_resized_as_by_pillow(width: int, height: int, seed: int) -> None:
    """A shorter side of up to 80 pixels leaves room for the kernel.

    Noise whose overshoots stay within a byte: where they are cut, it matters which of rows and
    columns are resized first, and that Pillow decides by the sizes.
    """
    assume(min(width, height) <= 80)
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(48, 208, (height, width, 3), np.uint8))
    found = squares(on_canvases([picture], 30, 96), 30)
    assert abs(found - resized([picture], 30)).max() <= 1


@pytest.mark.parametrize("shape", [(97, 97), (300, 200), (191, 700), (1000, 1003)])
def test_larger_images_are_reduced_and_keep_their_places(shape: tuple[int, int]) -> None:
    """The colours of the image are its coordinates: a shift by a pixel of it would be seen."""
    down, across = (np.linspace(0, 255, length) for length in shape)
    colours = np.stack(np.broadcast_arrays(down[:, None], across, 128.0), axis=-1)
    picture = Image.fromarray(np.round(colours).astype(np.uint8))
    sent = on_canvases([picture], 30, 64)
    assert sent["pixels"].shape == (1, 64, 64, 3)
    assert 30 <= sent["frames"][0, :, 1].min() <= sent["frames"][0, :, 1].max() <= 64
    assert abs(squares(sent, 30) - resized([picture], 30)).max() <= 2


@settings(deadline=None, max_examples=60)
@given(width=st.integers(2, 90), height=st.integers(2, 90), size=st.integers(1, 60))
def test_any_size_equals_transformers(width: int, height: int, size: int) -> None:
    rng = np.random.default_rng(width * 100 + height)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    expected = processed(image, size) * 255
    np.testing.assert_allclose(
        image_files.resize_and_crop(image, size), expected, rtol=0, atol=0.01
    )


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y, 8 * x, 255 - 4 * (x + y)], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_formats(format: str) -> None:
    image = Image.fromarray(gradient())
    options = {"lossless": True} if format == "WEBP" else {}
    found = np.asarray(image_files.decode(encoded(image, format, **options))).astype(int)
    tolerance = {"JPEG": 30, "GIF": 40}.get(format, 0)
    assert abs(found - gradient()).max() <= tolerance


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_modes_equal_transformers(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    data = encoded(image, "PNG" if mode in ("L", "1", "P") else "TIFF")
    expected = processed(Image.open(io.BytesIO(data)), 16) * 255
    np.testing.assert_allclose(image_files.read(data, 16), expected, rtol=0, atol=0.01)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    greys = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)
    found = np.asarray(image_files.decode(encoded(Image.fromarray(greys))))
    np.testing.assert_array_equal(found[..., 0], np.arange(256).reshape(16, 16))
    assert (found == found[..., :1]).all()


def test_transparency_shows_the_background() -> None:
    rgba = np.dstack([gradient(), np.zeros((20, 30), np.uint8)])
    rgba[:, 15:, 3] = 255
    rgba[0, 0] = (200, 0, 0, 128)
    data = encoded(Image.fromarray(rgba))
    white = np.asarray(image_files.decode(data))
    assert (white[1:, :15] == 255).all()
    np.testing.assert_array_equal(white[:, 15:], gradient()[:, 15:])
    assert abs(white[0, 0].astype(int) - (227, 127, 127)).max() <= 1
    green = np.asarray(image_files.decode(data, background=(0, 255, 0)))
    assert (green[1:, :15] == (0, 255, 0)).all()
    dropped = image_files.read(data, 16, background=None)
    expected = processed(Image.open(io.BytesIO(data)), 16) * 255
    np.testing.assert_allclose(dropped, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_other_ways_to_be_transparent(mode: str) -> None:
    rgba = np.dstack([gradient(), np.full((20, 30), 255, np.uint8)])
    rgba[:5] = 0
    image = Image.fromarray(rgba).convert(mode)
    options = {"transparency": image.getpixel((0, 0))} if mode == "P" else {}
    found = np.asarray(image_files.decode(encoded(image, **options)))
    assert (found[:5] == 255).all()
    assert not (found[5:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    image = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {  # how a camera must be held for the sensor to see this, undone
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }
    found = np.asarray(image_files.decode(encoded(image, "PNG", exif=exif)))
    np.testing.assert_array_equal(found, turned[orientation](gradient()))


def test_unusable_files_are_named(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg, png = (encoded(Image.fromarray(noise), format) for format in ("JPEG", "PNG"))
    cases = {
        "empty.jpg": (b"", "is empty; expected an image"),
        "text.jpg": (b"this is no image", "cannot be decoded"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "cannot be decoded: .*truncated"),
        "half.png": (png[: len(png) // 2], "cannot be decoded"),
        "damaged.png": (png[:60] + bytes(40) + png[100:], "cannot be decoded"),
        "header.png": (png[:20], "cannot be decoded"),
        "pixel.png": (
            encoded(Image.fromarray(gradient(1, 1))),
            "is 1 x 1 pixels; expected at least 2 a side",
        ),
        "line.png": (encoded(Image.fromarray(gradient(1, 30))), "is 30 x 1 pixels"),
        "stripe.png": (encoded(Image.fromarray(gradient(2, 300))), "expected sides of a ratio"),
        "float.tiff": (
            encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
            "floating point",
        ),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=rf"{name} .*{message}"):
            image_files.read(tmp_path / name, SIZE)
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg does not exist"):
        image_files.decode(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="an image of 16 bytes cannot be decoded"):
        image_files.decode(b"this is no image")


def test_two_pixels_are_enough() -> None:
    assert image_files.read(encoded(Image.fromarray(gradient(2, 2))), SIZE).shape == (SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    return np.asarray(jax.image.resize(small, (5, SIZE, SIZE, 3), "nearest"))


@functools.partial(jax.jit, static_argnums=0)
def views_of(augmentation: Augmentation, key: jax.Array, squares: np.ndarray) -> jax.Array:
    return pixels.squares(augmentation(key, {"pixels": squares}), squares.shape[1])


def test_augmentation_is_a_function_of_the_key(batch) -> None:
    augment = functools.partial(views_of, Augmentation())
    first, again, other = (augment(jax.random.key(seed), batch) for seed in (0, 0, 1))
    assert first.dtype == jnp.uint8 and first.shape == batch.shape
    np.testing.assert_array_equal(first, again)
    assert (first != other).any(axis=(1, 2, 3)).all()
    # A row's view does not depend on the rows beside it.
    np.testing.assert_array_equal(augment(jax.random.key(0), batch[:2]), first[:2])


def test_augmentation_of_everything_changes_nothing(batch) -> None:
    found = views_of(Augmentation(crop_scale=(1.0, 1.0)), jax.random.key(0), batch)
    np.testing.assert_array_equal(found, batch)


def test_flips_are_asked_for(batch) -> None:
    augment = functools.partial(views_of, Augmentation(crop_scale=(1.0, 1.0), flip=True))
    flipped = 0
    for seed in range(20):
        for view, image in zip(augment(jax.random.key(seed), batch), batch, strict=True):
            is_flipped = not (view == image).all()
            np.testing.assert_array_equal(view, image[:, ::-1] if is_flipped else image)
            flipped += is_flipped
    assert 30 < flipped < 70  # of 100


@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 0.5)])
def test_views_are_crops_of_the_asked_area(scale) -> None:
    """An image whose colours are its coordinates tells which part of it a view shows."""
    size = 64
    ramp = np.linspace(0, 255, size, dtype=np.float32)
    image = np.stack(
        [np.broadcast_to(ramp[:, None], (size, size)), np.broadcast_to(ramp, (size, size)),
         np.zeros((size, size))], axis=-1,
    ).astype(np.uint8)  # fmt: skip
    views = views_of(Augmentation(scale), jax.random.key(3), np.stack([image] * 64))
    views = np.asarray(views).astype(float)
    inner = slice(8, -8)  # away from the edges, where the kernel is cut
    tall = (views[:, -9, 32, 0] - views[:, 8, 32, 0]) / (ramp[-9] - ramp[8])
    wide = (views[:, 32, -9, 1] - views[:, 32, 8, 1]) / (ramp[-9] - ramp[8])
    areas, ratios = tall * wide, wide / tall
    assert (areas > scale[0] - 0.03).all() and (areas < scale[1] + 0.03).all()
    assert areas.max() - areas.min() > 0.7 * (scale[1] - scale[0])
    limit = min(4 / 3, 1 / scale[0])
    assert (ratios > 1 / limit - 0.05).all() and (ratios < limit + 0.05).all()
    corners = views[:, inner, inner, 0].min(axis=(1, 2))
    assert corners.std() > 1  # in different places


def test_augmentation_names_what_is_wrong() -> None:
    for scale in [(0.0, 1.0), (0.9, 0.8), (0.5, 1.5), (0.5,)]:
        with pytest.raises(ValueError, match=r"crop_scale is .*; expected two fractions"):
            Augmentation(scale)
    with pytest.raises(ValueError, match="images to augment are 4 x 6; expected squares"):
        Augmentation()(jax.random.key(0), {"pixels": np.zeros((1, 4, 6, 3), np.uint8)})


@pytest.mark.parametrize("flip", [False, True])
def test_views_do_not_depend_on_who_resizes(photographs, flip: bool) -> None:
    pictures = [image_files.decode(path) for path in photographs[:4]]
    augment = Augmentation((0.5, 0.9), flip=flip)
    key = jax.random.key(1)
    here = views_of(augment, key, resized(pictures, 96).astype(np.uint8))
    there = squares(augment(key, on_canvases(pictures, 96, 512)), 96)
    difference = abs(here.astype(int) - there.astype(int)).mean(axis=(1, 2, 3))
    assert (difference < 6).all()  # resampled once in place of twice
    other = squares(augment(jax.random.key(2), on_canvases(pictures, 96, 512)), 96)
    assert abs(other.astype(int) - there.astype(int)).mean() > 12


def test_no_warnings(photographs) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_files.read(photographs[0], SIZE)
