"""Encoders of another project: registered, built into models, saved, sharded, and refused."""

import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from dsi_jax.convert import encoder_formats
from dsi_jax.convert.encoder_format import EncoderFormat, PretrainedEncoders
from dsi_jax.docids.embedders.image import PretrainedImageEncoder
from dsi_jax.models.contrastive import ContrastiveConfig, ContrastiveModel
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.encoders import clip_sizes, registry
from dsi_jax.models.encoders.base import Encoded, ImageEncoderConfig, TextEncoderConfig
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.encoders.memory import MEMORIES
from dsi_jax.models.t5 import T5Config
from dsi_jax.prepare import warm_start_towers
from dsi_jax.training import param_groups, partitioning
from dsi_jax.training.param_groups import ParamGroup

# One encoder of texts and one of images, as another project would write them.


class Words(nn.Module):
    """The embeddings of a text's tokens, and their mean."""

    config: "WordsConfig"

    @nn.compact
    def encode(self, inputs: Mapping[str, jax.Array], *, deterministic: bool) -> Encoded:
        embed = nn.Embed(self.config.vocab_size, self.config.hidden_size, name="embeddings")
        states_BxSxD = embed(inputs["tokens"])
        x_BxSxD = nn.Dense(self.config.hidden_size, name="blocks_0")(states_BxSxD)
        mask_BxSx1 = inputs["mask"][..., None]
        pooled_BxD = (x_BxSxD * mask_BxSx1).sum(axis=1) / mask_BxSx1.sum(axis=1)
        return Encoded(x_BxSxD, inputs["mask"], pooled_BxD)


@dataclasses.dataclass(frozen=True)
class WordsConfig(TextEncoderConfig):
    kind: ClassVar[str] = "toy_words"
    family: ClassVar[str] = "toy"
    path_rules: ClassVar = ((r"embeddings/embedding", (None, "model")),)
    layers_name: ClassVar[str] = "blocks"

    vocab_size: int
    hidden_size: int = 8
    max_length: int = 6
    dtype: str = "float32"

    def build(self) -> nn.Module:
        return Words(self)

    def for_vocabulary(self, vocab_size: int, end_id: int) -> Self:
        return dataclasses.replace(self, vocab_size=vocab_size)


class Stripes(nn.Module):
    """A state for each row of an image, behind one for its mean colour."""

    config: "StripesConfig"

    @nn.compact
    def encode(self, inputs: jax.Array, *, deterministic: bool) -> Encoded:
        rows_BxSxF = inputs.reshape(*inputs.shape[:2], -1)
        colour_Bx1xF = rows_BxSxF.mean(axis=1, keepdims=True)
        parts_BxSxF = jnp.concatenate([colour_Bx1xF, rows_BxSxF], axis=1)
        x_BxSxD = nn.Dense(self.config.hidden_size, name="rows")(parts_BxSxF)
        place_BxS = jnp.zeros(x_BxSxD.shape[:2], bool).at[:, 0].set(True)
        return Encoded(x_BxSxD, ~place_BxS, x_BxSxD[:, 0], place_BxS)


@dataclasses.dataclass(frozen=True)
class StripesConfig(ImageEncoderConfig):
    kind: ClassVar[str] = "toy_stripes"
    family: ClassVar[str] = "toy"
    path_rules: ClassVar = ((r"rows/kernel", (None, "model")),)

    image_size: int = 4
    hidden_size: int = 6

    def build(self) -> nn.Module:
        return Stripes(self)


class ToyFormat(EncoderFormat):
    """Checkpoints of both: config.json, and the parameters in one file."""

    family: ClassVar[str] = "toy"
    model_types: ClassVar[tuple[str, ...]] = ("toy",)

    def load_configs(self, directory: Path) -> PretrainedEncoders:
        return PretrainedEncoders(TEXT, IMAGE, embedding_dim=10)

    def load_params(self, directory: Path, encoders: PretrainedEncoders) -> dict:
        flat = dict(np.load(directory / "params.npz"))
        return flat if encoders.text else {k: v for k, v in flat.items() if k.startswith("vis")}


# The tests.

TEXT, IMAGE = WordsConfig(vocab_size=20), StripesConfig()
T5 = T5Config(
    vocab_size=8,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_KINDS", dict(registry._KINDS))
        patch.setattr(encoder_formats, "_FORMATS", dict(encoder_formats._FORMATS))
        registry.register(WordsConfig, StripesConfig)
        encoder_formats.register(ToyFormat())
        yield


def batch_of() -> dict:
    rng = np.random.default_rng(0)
    tokens = np.int32([[5, 6, 7, 1, 0, 0], [8, 9, 1, 0, 0, 0]])
    pixels = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    return {
        "text": {"tokens": tokens, "mask": tokens != 0},
        "image": {"pixels": pixels},
        "document": {"pixels": np.concatenate([pixels, pixels])},
        "decoder": {"inputs": np.zeros((4, 2), np.int32)},
    }


def initialized(model: nn.Module, batch: dict) -> dict:
    init = jax.jit(lambda: model.init(jax.random.key(0), batch, deterministic=True))
    return nn.meta.unbox(init()["params"])


def applied(model: nn.Module, params: dict, batch: dict, method: str | None = None):
    call = functools.partial(model.apply, deterministic=True, method=method)
    return jax.jit(call)({"params": params}, batch)


def dsi(memory: str = "both") -> DSIModel:
    return DSIModel(DSIConfig(T5, 12, 2, towers=TowersConfig(TEXT, IMAGE, memory)))


def read_again(config):
    return type(config).from_json(json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_dsi_of_other_encoders(memory):
    model, batch = dsi(memory), batch_of()
    assert read_again(model.config) == model.config
    params = initialized(model, batch)
    assert {"embeddings", "blocks_0"} == params["text_tower"]["text_model"].keys()
    assert params["image_tower"]["memory_projection"]["kernel"].shape == (6, 16)
    logits = applied(model, params, batch)
    assert logits.shape == (4, 2, 12) and np.isfinite(logits).all()
    _, mask = applied(model, params, batch, "encode")
    of_texts = {"pooled": [1, 1], "states": [3 + 1, 2 + 1], "both": [5, 4]}
    of_images = {"pooled": 1, "states": 4, "both": 5}
    expected = [*of_texts[memory], of_images[memory], of_images[memory]]
    assert sorted(mask.sum(axis=1)) == sorted(expected)


def test_contrastive_towers_of_other_encoders():
    model, batch = ContrastiveModel(ContrastiveConfig(TEXT, IMAGE, 10)), batch_of()
    assert read_again(model.config) == model.config
    params = initialized(model, batch)
    names = {"text_model", "text_projection", "vision_model", "visual_projection", "logit_scale"}
    assert {name: part.keys() for name, part in params.items()} == {"toy": names}
    found = applied(model, params, batch)
    assert found.queries.shape == found.documents.shape == (4, 10)
    np.testing.assert_allclose(np.linalg.norm(found.queries, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.scale, 1 / 0.07, rtol=1e-4)
    images = applied(model, params, {"image": batch["image"]}, "encode_query")
    np.testing.assert_allclose(images, found.documents[:2], rtol=1e-6)


def test_pretrained_weights_of_other_encoders(tmp_path):
    batch = batch_of()
    contrastive = ContrastiveModel(ContrastiveConfig(TEXT, IMAGE, 10))
    lent = flatten_dict(initialized(contrastive, batch)["toy"], sep="/")
    np.savez(tmp_path / "params.npz", **lent)
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    pretrained = warm_start_towers.open_pretrained(tmp_path)
    assert (pretrained.text, pretrained.image) == (TEXT, IMAGE)
    places = {f"toy/{path}": path for path in lent}
    of_dsi = {"text_tower/text_model": "text_model", "image_tower/vision_model": "vision_model"}
    for model, expected in ((contrastive, places), (dsi(), of_dsi)):
        zeros = jax.tree.map(jnp.zeros_like, initialized(model, batch))
        found = flatten_dict(pretrained.initialize(model.config, zeros), sep="/")
        for place, source in expected.items():
            paths = [path for path in lent if path == source or path.startswith(f"{source}/")]
            assert paths
            for path in paths:
                np.testing.assert_array_equal(found[place + path.removeprefix(source)], lent[path])
    embedder = PretrainedImageEncoder(str(tmp_path))
    assert embedder.describe() == {"name": "toy", "model": tmp_path.name}
    buffer = io.BytesIO()
    Image.fromarray(batch["image"]["pixels"][0]).save(buffer, "PNG")
    params = {"toy": unflatten_dict(lent, sep="/")}
    queries = applied(contrastive, params, {"image": batch["image"]}, "encode_query")
    np.testing.assert_allclose(embedder.embed_images([buffer.getvalue()])[0], queries[0], atol=1e-5)
    (tmp_path / "config.json").write_text('{"model_type": "tea"}')
    with pytest.raises(
        ValueError, match=r"model_type is 'tea'; expected one of \['bert', .*'clip', .*'toy', .*\]"
    ):
        warm_start_towers.open_pretrained(tmp_path)


def test_encoders_of_two_families_serve_one_model():
    vision = clip_sizes.clip_tiny().vision
    config = ContrastiveConfig(TEXT, vision, 10)
    assert config.scope == "towers" and read_again(config) == config
    assert config.to_json()["text"]["kind"] == "toy_words"
    assert ContrastiveConfig(None, vision, 10).scope == "clip"


@pytest.mark.parametrize("model", [dsi(), ContrastiveModel(ContrastiveConfig(TEXT, IMAGE, 10))])
def test_sharding_rules_of_other_encoders(model):
    batch = batch_of()
    init = functools.partial(model.init, jax.random.key(0), batch, deterministic=True)
    boxed = jax.eval_shape(init)["params"]
    mesh = partitioning.one_device_mesh()
    shardings = partitioning.param_shardings(
        boxed, mesh, partitioning.LOGICAL_AXIS_RULES, model.path_rules
    )
    specs = {path: s.spec for path, s in flatten_dict(nn.meta.unbox(shardings), sep="/").items()}
    found = {re.sub(r"^.*?_?(tower|toy)/", "", path): spec for path, spec in specs.items()}
    assert tuple(found["text_model/embeddings/embedding"]) == (None, "model")
    assert tuple(found["vision_model/rows/kernel"]) == (None, "model")
    assert not any(found["vision_model/rows/bias"])


def test_layers_of_other_encoders_decay():
    params = initialized(dsi(), batch_of())
    group = ParamGroup("text", "text_tower/text_model/.*", decay=0.5)
    shares = flatten_dict(param_groups.resolve([group], params), sep="/")
    assert shares["text_tower/text_model/blocks_0/kernel"].factor == 1
    assert shares["text_tower/text_model/embeddings/embedding"].factor == 0.5


def test_options_and_vocabulary():
    changed = TEXT.with_options(dtype="bfloat16", max_length=None).for_vocabulary(30, end_id=1)
    assert changed == WordsConfig(vocab_size=30, dtype="bfloat16")
    assert IMAGE.with_options(image_size=8) == StripesConfig(image_size=8)
    with pytest.raises(ValueError, match=r"remat is True, and an encoder of kind 'toy_words' has"):
        TEXT.with_options(remat=True)


def test_json_of_a_checkpoint_before_there_were_kinds():
    tiny = clip_sizes.clip_tiny()
    towers = TowersConfig(tiny.text, tiny.vision)
    value = towers.to_json()
    assert "kind" not in value["text"] and "kind" not in value["image"]  # as it was written then
    assert TowersConfig.from_json(json.loads(json.dumps(value))) == towers
    assert registry.from_json({"kind": "clip_text"} | value["text"], "text") == tiny.text
    assert registry.from_json({"kind": "clip_vision"} | value["image"], "image") == tiny.vision


def test_what_is_refused():
    value = TowersConfig(TEXT, IMAGE).to_json()
    value["text"]["kind"] = "toy_letters"
    known = r"\['bert', 'clip_text', 'clip_vision', 'toy_stripes', 'toy_words'\]"
    message = f"kind of an encoder is 'toy_letters'; expected one of {known}"
    with pytest.raises(ValueError, match=message):
        TowersConfig.from_json(value)
    with pytest.raises(ValueError, match=r"text is of kind 'toy_stripes', which encodes 'image'"):
        TowersConfig(IMAGE, None)

    class Other(WordsConfig):
        pass

    with pytest.raises(ValueError, match="Other has the kind 'toy_words', which WordsConfig has"):
        registry.register(Other)


def test_images_of_another_size_need_no_other_weights_unless_a_format_says_so():
    params = {"vision_model/embeddings": np.ones(3, np.float32)}
    larger = dataclasses.replace(IMAGE, image_size=2 * IMAGE.image_size)
    assert encoder_formats.fit_image_size(params, IMAGE, larger) is params


def test_a_directory_without_a_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; expected a Hugg"):
        encoder_formats.format_in(tmp_path)
