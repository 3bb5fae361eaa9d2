"""The experiments on images: what they configure, what they aim at, and what their models are."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import gin
from dsi_jax.convert.hf_clip import param_shapes, save_clip
from dsi_jax.data.readers import tfds_images
from dsi_jax.docids.embedders.image import PretrainedImageEncoder
from dsi_jax.methods.contrastive import Contrastive
from dsi_jax.methods.trained_embedders import TrainedTowers
from dsi_jax.models.encoders.clip_config import ClipConfig, ClipTextConfig, ClipVisionConfig
from dsi_jax.prepare import model as model_lib
from dsi_jax.prepare import train_config
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.training import partitioning
from dsi_jax.training import state as state_lib
from tests.cli.test_gin import GIN, clean, evaluated, parse
from tests.cli.test_gin_nq import header

_ = clean  # the fixture that leaves no configuration behind

# R@1 / R@5 / R@10 of GRACE on the test images.
CAPTIONS = {
    "flickr30k_atomic": "68.4 / 88.9 / 93.7",
    "flickr30k_naive": None,
    "flickr30k_semantic": "37.4 / 59.5 / 66.2",
    "coco_atomic": "41.5 / 69.1 / 79.1",
    "coco_naive": None,
    "coco_semantic": "16.7 / 39.2 / 50.3",
}
CORPUS_OF = {"flickr30k": "flickr30k", "coco": "coco_captions"}
# corpus, layers of the decoder, steps, warmup, what is published
IRGEN = {
    "cars196": ("cars196", 12, 3_200, 320, "90.1 / 89.9 / 90.2 / 90.5"),
    "cub200": ("caltech_birds2011", 12, 2_400, 240, "82.7 / 82.7 / 83.0 / 82.8"),
    "imagenet": ("imagenet2012", 24, 500_400, 50_040, None),
    "places365": ("places365_small", 24, 704_600, 70_460, None),
}
SHARED = ["captions", "clip_docids", "irgen"]


def configured(name: str, **macros: str) -> TrainConfig:
    parse(f"experiments/images/{name}.gin", MODEL_DIR="somewhere", **macros)
    config = evaluated(gin.query_parameter("dsi_jax.jobs.trainer.train.config"))
    train_config.check(config)
    return config


def test_every_file_is_one_of_these():
    files = {path.stem for path in (GIN / "experiments" / "images").glob("*.gin")}
    assert files == {*CAPTIONS, *(f"irgen_{name}" for name in IRGEN), *SHARED}


@pytest.mark.parametrize("name", CAPTIONS)
def test_texts_look_for_images(name):
    config = configured(name)
    dataset, kind = name.split("_")
    data = config.data
    assert (data.corpus, data.protocol) == (CORPUS_OF[dataset], "karpathy_test")
    assert config.encoders.checkpoint == data.vocabulary == "openai/clip-vit-base-patch32"
    assert data.docids.kind == kind
    if kind == "semantic":
        assert (data.docids.clusters, data.docids.leaf_size) == (30, 30)
        assert data.docids.embedder == PretrainedImageEncoder(config.encoders.checkpoint)
    counts = tfds_images.SPECS[data.corpus].counts
    captioned = counts["train"] + counts.get("restval", 0)
    a_pass = captioned + sum(counts.values())  # a caption and an image each
    schedule = config.schedule
    assert schedule.train_steps * schedule.batch_size == pytest.approx(25 * a_pass, abs=256)
    assert peak(config.optimizer, config.schedule.train_steps) == pytest.approx(1e-4)
    assert peak(config.baseline.optimizer, config.schedule.train_steps) == pytest.approx(1e-5)
    assert {g.name: g.rate for g in config.optimizer.groups}["vision"] == 0.01
    text = header(f"experiments/images/{name}.gin")
    published = CAPTIONS[name]
    assert (published or "could not be verified") in text
    assert (f"R@1 / R@5 / R@10 {published}" in text) == (published is not None)


@pytest.mark.parametrize("name", IRGEN)
def test_irgen(name):
    corpus, layers, steps, warmup, published = IRGEN[name]
    config = configured(f"irgen_{name}")
    assert (config.data.corpus, config.data.indexing_ratio) == (corpus, 0)
    decoder = config.model.architecture
    assert (decoder.emb_dim, decoder.num_heads, decoder.mlp_dim) == (768, 12, 4 * 768)
    assert decoder.num_decoder_layers == layers
    assert (config.model.dropout_rate, config.model.dtype) == (0, "float32")
    assert config.encoders.memory == "both"
    assert (config.method.label_smoothing, config.method.z_loss) == (0.1, 0)
    docids = config.data.docids
    assert docids.embedder == PretrainedImageEncoder("openai/clip-vit-base-patch16")
    assert (docids.levels, docids.codes, docids.vocabulary) == (4, 256, "shared")
    assert docids.supervision == "classes" and docids.collisions == "ties"
    optimizer = config.optimizer
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.9, 0.96, 1e-8)
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.05, None)
    assert {g.name: g.rate for g in optimizer.groups} == {
        "vision": 0.01,
        "docid embedding": 1,
        "decoder": 1,
    }
    assert (config.schedule.batch_size, config.schedule.train_steps) == (512, steps)
    schedule = optimizer.learning_rate.build(steps)
    found = [schedule(t) for t in (0, warmup // 2, warmup, steps)]
    assert found == pytest.approx([5e-7, 4e-5, 8e-5, 5e-7], rel=1e-4)
    images = tfds_images.SPECS[corpus].counts["train"]
    assert steps / 200 * 512 == pytest.approx(images, abs=512)
    assert not config.encoders.augmentation.flip
    assert config.evaluation.beam_size == 30
    text = header(f"experiments/images/irgen_{name}.gin")
    assert f"{images:,} training images, a decoder of {layers} layers" in text
    assert "textbook's" in text
    if published is None:
        assert "could not be verified" in text
    else:
        assert f"P@1 / P@2 / P@4 / P@8 {published}" in text


ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = re.findall(
    r"```\n(from __gin__.*?)```", (ROOT / "docs" / "images.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_files_of_the_documentation_parse(snippet, tmp_path):
    (tmp_path / "mine.gin").write_text(snippet)
    files = ("experiments/own_images.gin", "docids/semantic.gin", str(tmp_path / "mine.gin"))
    parse(*files, IMAGES="somewhere", MODEL_DIR="elsewhere")
    embedder = evaluated(gin.query_parameter("%DOCIDS")).embedder
    assert isinstance(embedder, PretrainedImageEncoder | TrainedTowers)
    assert embedder.directory in snippet


def test_documentation_has_files_for_both_embedders_with_weights():
    assert len(SNIPPETS) == 2


def peak(optimizer, train_steps: int) -> float:
    schedule = optimizer.learning_rate
    return float(schedule.build(train_steps)(schedule.warmup_steps))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> str:
    """A CLIP in Hugging Face's format, of random weights."""
    sizes = (16, 32, 1, 2)
    config = ClipConfig(
        text=ClipTextConfig(*sizes, vocab_size=40, max_position_embeddings=77, eos_token_id=39),
        vision=ClipVisionConfig(*sizes, image_size=16, patch_size=8),
        projection_dim=8,
    )
    flat = {path: np.zeros(shape, np.float32) for path, shape in param_shapes(config).items()}
    directory = tmp_path_factory.mktemp("clip")
    save_clip(directory, config, unflatten_dict(flat, sep="/"))
    return str(directory)


@pytest.mark.parametrize("name", ["coco_naive", "irgen_cub200", "irgen_places365"])
def test_model_and_its_dense_baseline_have_shapes(name, tiny_clip):
    config = configured(name, CLIP_CHECKPOINT=tiny_clip)
    towers, pretrained = model_lib.towers_of(config)
    assert pretrained.image == dataclasses.replace(towers.image, dtype=pretrained.image.dtype)
    pixels = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)
    batch = {"image": {"pixels": pixels}, "document": {"pixels": pixels}}
    if config.data.indexing_ratio == 0:  # images alone
        towers = dataclasses.replace(towers, text=None)
    else:
        tokens = jax.ShapeDtypeStruct((2, 77), jnp.int32)
        batch |= {"text": {"tokens": tokens, "mask": tokens}}
    queries = 2 * (len(batch) - 1)
    batch["decoder"] = {"inputs": jax.ShapeDtypeStruct((queries, 4), jnp.int32)}
    check(config.method, config.optimizer, config, towers, batch)
    assert isinstance(config.baseline.method, Contrastive)
    check(config.baseline.method, config.baseline.optimizer, config, towers, batch)


def check(method, optimizer, config, towers, batch) -> None:
    model = method.new_model(
        model_lib.with_options(config.model.architecture, config.model), None, towers
    )
    mesh = partitioning.make_mesh(partitioning.MeshConfig())
    state = state_lib.state_shapes(model, optimizer.build(config.schedule.train_steps), batch, mesh)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(state))
