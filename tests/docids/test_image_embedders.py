"""Embeddings of images for semantic docids."""

import io
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from dsi_jax.convert.hf_clip import param_shapes, save_clip
from dsi_jax.data.readers import demo_image
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.image import PixelPca, PretrainedImageEncoder
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.inputs import image_files
from dsi_jax.inputs.pixels import normalize
from dsi_jax.models.encoders.clip_config import ClipConfig, ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.towers import EmbeddingTowers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Means and deviations unlike OpenAI's, which come from the checkpoint.
VISION = ClipVisionConfig(
    **SIZES, image_size=32, patch_size=8, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4)
)
TEXT = ClipTextConfig(**SIZES, vocab_size=30, max_position_embeddings=8, eos_token_id=29)


@pytest.fixture(scope="module")
def scenes() -> list[bytes]:
    return [
        demo_image.draw(scene, [0, i, 0], jitter=False)
        for i, scene in enumerate(demo_image.scenes(0, 40))
    ]


def save(directory, config: ClipConfig) -> dict:
    """A checkpoint of random parameters, in PyTorch's naming."""
    rng = np.random.default_rng(0)
    flat = {
        path: np.asarray(path.endswith("scale") + 0.2 * rng.standard_normal(shape), np.float32)
        for path, shape in param_shapes(config).items()
    }
    params = unflatten_dict(flat, sep="/")
    save_clip(directory, config, params)
    return params


def pixels_of(sources: list[bytes], size: int) -> np.ndarray:
    return np.stack([image_files.read(source, size) for source in sources])


# PCA


def test_pca_equals_scikit_learns(scenes):
    decomposition = pytest.importorskip("sklearn.decomposition")
    ours = PixelPca(size=8, dimensions=10).embed_images(scenes)
    pixels = pixels_of(scenes, 8).reshape(len(scenes), -1) / 255
    theirs = decomposition.PCA(10, svd_solver="full").fit_transform(pixels)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.mean(axis=0), 0, atol=1e-5)


def test_pca_keeps_distances_if_it_keeps_all_dimensions(scenes):
    vectors = PixelPca(size=4, dimensions=1000).embed_images(scenes)
    assert vectors.shape == (40, 40)  # fewer images than 4 * 4 * 3 pixels
    pixels = pixels_of(scenes, 4).reshape(40, -1) / 255
    ours, theirs = (np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (vectors, pixels))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_pca_is_the_same_from_files_and_in_many_parts(scenes, tmp_path, monkeypatch):
    whole = PixelPca().embed_images(scenes)
    np.testing.assert_array_equal(PixelPca().embed_images(scenes, seed=1), whole)
    paths = []
    for index, scene in enumerate(scenes):
        paths.append(tmp_path / f"{index}.bmp")
        paths[-1].write_bytes(scene)
    np.testing.assert_array_equal(PixelPca().embed_images(paths), whole)
    monkeypatch.setattr("dsi_jax.docids.embedders.image._CHUNK", 7)
    few = [PixelPca(dimensions=8).embed_images(scenes) for _ in range(2)]
    np.testing.assert_array_equal(*few)
    np.testing.assert_allclose(few[0], whole[:, :8], atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_pca_of_equal_images(scenes, count):
    vectors = PixelPca().embed_images(scenes[:1] * count)
    assert vectors.shape == (count, count)
    np.testing.assert_allclose(vectors, 0, atol=1e-6)


def test_docids_of_pixels_group_scenes_by_their_ground(scenes):
    """The ground is most of the pixels: it mostly decides the first digit."""
    embedder = PixelPca()
    builder = Semantic(clusters=3, leaf_size=20, embedder=embedder, n_init=5)
    vectors = embedder.embed_images(scenes)
    table = builder.build(
        DocumentColumns([f"scene{i}" for i in range(40)], "hash", embeddings=vectors)
    )
    described = json.loads(json.dumps(table.parameters))["embedder"]
    assert described == {"name": "pixel_pca", "size": 16, "dimensions": 64}
    grounds = np.array([scene.ground for scene in demo_image.scenes(0, 40)])
    digits = np.asarray(table.tokens)[:, 0]
    alike = sum(
        np.unique_counts(digits[grounds == ground]).counts.max() for ground in demo_image.GROUNDS
    )
    assert alike >= 0.75 * len(scenes)  # a third of them by chance


# CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny-clip")
    config = ClipConfig(TEXT, VISION, projection_dim=16)
    return directory, config, save(directory, config)


def test_features_are_those_of_clip_whatever_the_batches(clip, scenes):
    directory, config, params = clip
    inputs = normalize(pixels_of(scenes, 32), VISION.image_mean, VISION.image_std)
    model = EmbeddingTowers(config.text, config.vision, config.projection_dim)
    embed = jax.jit(lambda params, x: model.apply({"params": params}, x, method="embed_image"))
    expected = embed(params, {"pixels": inputs})
    for batch_size in (16, 64):
        found = PretrainedImageEncoder(str(directory), batch_size).embed_images(scenes)
        assert found.dtype == np.float32 and found.shape == (40, 16)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    described = PretrainedImageEncoder(str(directory)).describe()
    assert described == {"name": "clip", "model": directory.name}


def test_a_clip_is_read_and_compiled_once(clip, scenes, tmp_path, compiled):
    copy = shutil.copytree(clip[0], tmp_path / "copy")
    embedder = PretrainedImageEncoder(str(copy), batch_size=16)
    vectors = embedder.embed_images(scenes)
    shutil.rmtree(copy)
    compiled.clear()
    np.testing.assert_array_equal(embedder.embed_images(scenes), vectors)
    assert not compiled
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert compiled


def test_features_equal_torch(clip, scenes):
    torch = pytest.importorskip(
        "torch", reason="parity with PyTorch needs the extra `parity` (torch)"
    )
    from transformers import CLIPImageProcessor, CLIPModel

    directory, _, _ = clip
    rng = np.random.default_rng(0)
    sources = [*scenes[:5], png(rng.integers(0, 256, (50, 70, 3), np.uint8))]
    model = CLIPModel.from_pretrained(directory).eval()
    processor = CLIPImageProcessor.from_pretrained(directory)
    decoded = [image_files.decode(source) for source in sources]
    with torch.no_grad():
        inputs = processor(decoded, return_tensors="pt")["pixel_values"]
        expected = model.get_image_features(pixel_values=inputs)
        expected = expected / expected.norm(dim=-1, keepdim=True)
    found = PretrainedImageEncoder(str(directory)).embed_images(sources)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_vision_half_without_projection_gives_the_class_token(tmp_path, scenes):
    config = ClipConfig(None, VISION, projection_dim=None)
    params = save(tmp_path, config)
    found = PretrainedImageEncoder(str(tmp_path)).embed_images(scenes[:3])
    assert found.shape == (3, SIZES["hidden_size"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    # The same weights behind a projection that changes nothing.
    identity = {"visual_projection": {"kernel": np.eye(32, dtype=np.float32)}}
    save_clip(tmp_path / "projected", ClipConfig(None, VISION, 32), params | identity)
    projected = PretrainedImageEncoder(str(tmp_path / "projected")).embed_images(scenes[:3])
    np.testing.assert_allclose(found, projected, atol=1e-6)


def test_errors(tmp_path, scenes):
    with pytest.raises(ValueError, match="no documents to embed"):
        PixelPca().embed_images([])
    with pytest.raises(FileNotFoundError, match="nowhere/at/all"):
        PretrainedImageEncoder("nowhere/at/all").embed_images(scenes)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(image_files.ImageError, match=re.escape(str(broken))):
        PixelPca().embed_images([scenes[0], broken])
    save(tmp_path / "text", ClipConfig(TEXT, None, 16))
    with pytest.raises(ValueError, match=r"text has an encoder of texts alone; expected an"):
        PretrainedImageEncoder(str(tmp_path / "text")).embed_images(scenes)
    with pytest.raises(ValueError, match="dimensions of at least 1"):
        PixelPca(dimensions=0)
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        PretrainedImageEncoder("x", batch_size=0)
