"""CLIP's transformers: parity with transformers' PyTorch CLIP, weights from and to its formats."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from dsi_jax.convert import hub
from dsi_jax.convert.hf_clip import load_clip, load_clip_config, param_shapes, save_clip
from dsi_jax.convert.hub import local_directory
from dsi_jax.convert.position_embeddings import resize_positions
from dsi_jax.models.encoders import clip_sizes
from dsi_jax.models.encoders.clip import (
    ClipTextTransformer,
    ClipVisionTransformer,
    end_positions,
)
from dsi_jax.models.encoders.clip_config import ClipConfig, ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.towers import EmbeddingTowers

VOCAB, LENGTH, END = 99, 12, 98
TOLERANCE = {"rtol": 0, "atol": 1e-4}


class Clip(EmbeddingTowers):
    """Contrastive towers that compare every text with every image."""

    def __call__(self, tokens, pixels) -> jax.Array:
        """Scaled cosines float32 [texts, images]."""
        text_BxE = self.embed_text({"tokens": tokens})
        image_BxE = self.embed_image({"pixels": pixels})
        return jnp.exp(self.logit_scale) * (text_BxE @ image_BxE.T)


def clip_of(config: ClipConfig) -> Clip:
    return Clip(config.text, config.vision, config.projection_dim)


PATCH_SIZES = pytest.mark.parametrize("patch_size", [8, 16])


def text_options(**changes) -> dict:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH + 2,
        "eos_token_id": END,
    } | changes


def vision_options(**changes) -> dict:
    return {
        "hidden_size": 40,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "image_size": 48,
        "patch_size": 8,
    } | changes


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="parity with PyTorch needs the extra `parity` (torch)"
    )


def torch_config(text: dict | None = None, vision: dict | None = None):
    from transformers import CLIPConfig

    return CLIPConfig(text or text_options(), vision or vision_options(), projection_dim=24)


def random_torch_model(torch, name: str, config):
    """A model of transformers with random layer norms and biases, which are ones and zeros anew."""
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.5)
    return model


@pytest.fixture(scope="module")
def checkpoint(torch, tmp_path_factory):
    """A CLIP that transformers' PyTorch class has saved, and that class's model."""
    directory = tmp_path_factory.mktemp("clip")
    model = random_torch_model(torch, "CLIPModel", torch_config())
    model.save_pretrained(directory)
    return directory, model


def texts(end: int = END, pad: int = 0) -> np.ndarray:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, END - 1, (4, LENGTH), dtype=np.int32)
    for row, stop in zip(tokens, (LENGTH - 1, 1, 5, 0), strict=True):
        row[stop] = end
        row[stop + 1 :] = pad
    return tokens


def images(size: int = 48) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, size, size, 3), np.float32)


@functools.cache
def compiled(module, method: str | None):
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs, method=method))


def run(module, params: dict, *inputs, method: str | None = None):
    """Compiled, because an eager call compiles every operation by itself."""
    return compiled(module, method)(params, *inputs)


def torch_images(torch, pixels: np.ndarray):
    return torch.tensor(pixels.transpose(0, 3, 1, 2))


@PATCH_SIZES
def test_whole_model_equals_torch(torch, tmp_path, patch_size: int) -> None:
    vision = vision_options(patch_size=patch_size)
    model = random_torch_model(torch, "CLIPModel", torch_config(vision=vision))
    model.save_pretrained(tmp_path)
    config, params = load_clip(tmp_path)
    assert config.vision.patch_size == patch_size
    assert config.text.eos_token_id == END
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(texts()).long(), pixel_values=torch_images(torch, images())
        )
    clip = clip_of(config)
    found = run(clip, params, texts(), images())
    np.testing.assert_allclose(found, expected.logits_per_text, **TOLERANCE)
    found = run(clip, params, {"tokens": texts()}, method="embed_text")
    np.testing.assert_allclose(found, expected.text_embeds, **TOLERANCE)
    found = run(clip, params, {"pixels": images()}, method="embed_image")
    np.testing.assert_allclose(found, expected.image_embeds, **TOLERANCE)


@PATCH_SIZES
def test_vision_states_equal_torch(torch, tmp_path, patch_size: int) -> None:
    from transformers import CLIPVisionConfig

    options = vision_options(patch_size=patch_size)
    model = random_torch_model(torch, "CLIPVisionModel", CLIPVisionConfig(**options))
    model.save_pretrained(tmp_path)
    config, params = load_clip(tmp_path)
    assert config.text is None
    assert config.projection_dim is None
    with torch.no_grad():
        expected = model(torch_images(torch, images()))
    states, pooled = run(ClipVisionTransformer(config.vision), params["vision_model"], images())
    np.testing.assert_allclose(states, expected.last_hidden_state, **TOLERANCE)
    np.testing.assert_allclose(pooled, expected.pooler_output, **TOLERANCE)
    assert abs(np.asarray(states[:, 0]) - pooled).max() > 0.1  # states are not layer-normed


# Under the legacy convention whatever has the highest id ends a text.
@pytest.mark.parametrize("eos_token_id", [END, 2, 5], ids=["own", "legacy", "low"])
def test_text_states_equal_torch(torch, tmp_path, eos_token_id: int) -> None:
    from transformers import CLIPTextConfig

    options = text_options(eos_token_id=eos_token_id)
    model = random_torch_model(torch, "CLIPTextModelWithProjection", CLIPTextConfig(**options))
    model.save_pretrained(tmp_path)
    config, params = load_clip(tmp_path)
    assert config.text.eos_token_id == (None if eos_token_id == 2 else eos_token_id)
    tokens = texts(end=END if eos_token_id == 2 else eos_token_id)
    with torch.no_grad():
        expected = model(torch.tensor(tokens).long())
    states, pooled = run(ClipTextTransformer(config.text), params["text_model"], tokens)
    np.testing.assert_allclose(states, expected.last_hidden_state, **TOLERANCE)
    embedded = pooled @ params["text_projection"]["kernel"]
    np.testing.assert_allclose(embedded, expected.text_embeds, **TOLERANCE)


@PATCH_SIZES
@pytest.mark.parametrize("image_size", [32, 80])
def test_interpolated_positions_equal_torch(torch, tmp_path, patch_size, image_size) -> None:
    """A model of another image size is transformers' of that size with interpolated positions."""
    from transformers import CLIPVisionConfig

    options = vision_options(patch_size=patch_size)
    model = random_torch_model(torch, "CLIPVisionModel", CLIPVisionConfig(**options))
    model.save_pretrained(tmp_path)
    config = load_clip_config(tmp_path, image_size=image_size)
    _, params = load_clip(tmp_path, config)
    positions = params["vision_model"]["embeddings"]["position_embedding"]["embedding"]
    assert positions.shape[0] == 1 + (image_size // patch_size) ** 2
    name = "vision_model.embeddings.position_embedding.weight"
    weights = {key: value for key, value in model.state_dict().items() if "position" not in key}
    other = type(model)(CLIPVisionConfig(**options | {"image_size": image_size})).eval()
    missing, unknown = other.load_state_dict(
        weights | {name: torch.tensor(np.array(positions))}, strict=False
    )
    assert not unknown and all("position_ids" in key for key in missing)
    pixels = images(image_size)
    with torch.no_grad():
        expected = other(torch_images(torch, pixels))
    states, _ = run(ClipVisionTransformer(config.vision), params["vision_model"], pixels)
    np.testing.assert_allclose(states, expected.last_hidden_state, **TOLERANCE)


@pytest.mark.parametrize(("old", "new"), [(7, 9), (14, 24), (24, 16), (3, 1), (5, 5)])
def test_positions_equal_torchs_interpolation(torch, old: int, new: int) -> None:
    table = np.random.default_rng(0).standard_normal((1 + old * old, 6), np.float32)
    grid = torch.tensor(table[1:]).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    found = resize_positions(table, new)
    np.testing.assert_array_equal(found[0], table[0])
    expected = resized[0].permute(1, 2, 0).reshape(new * new, 6)
    np.testing.assert_allclose(found[1:], expected, rtol=0, atol=1e-5)


def test_positions_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="has 7 rows; expected one more than a square"):
        resize_positions(np.zeros((7, 2), np.float32), 3)


def test_halves_of_a_whole_model(checkpoint) -> None:
    directory, _ = checkpoint
    whole = load_clip(directory)[1]
    assert whole.keys() == {
        "text_model", "vision_model", "text_projection", "visual_projection", "logit_scale",
    }  # fmt: skip
    for half in ("text", "vision"):
        config = load_clip_config(directory, text=half == "text", vision=half == "vision")
        _, params = load_clip(directory, config)
        assert params.keys() == {
            f"{half}_model", "text_projection" if half == "text" else "visual_projection",
        }  # fmt: skip
        assert_equal(params, {name: whole[name] for name in params})


def test_a_hub_id_goes_the_way_of_a_directory(checkpoint, monkeypatch) -> None:
    directory, _ = checkpoint
    calls = []

    def download(name, revision, allow_patterns):
        calls.append((name, revision))
        assert "*.safetensors" in allow_patterns
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert_equal(load_clip("openai/clip-vit-tiny@main")[1], load_clip(directory)[1])
    assert set(calls) == {("openai/clip-vit-tiny", "main")}


def test_errors_of_the_hub_are_one_line(monkeypatch, tmp_path) -> None:
    def offline(*_, **__):
        raise OSError("cannot reach\nthe network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"^openai/clip is no directory.*cannot reach$"):
        local_directory("openai/clip")
    with pytest.raises(FileNotFoundError, match="absent is neither a directory nor the id"):
        local_directory(tmp_path / "absent")
    assert local_directory(tmp_path) == tmp_path


def test_msgpack_and_the_models_of_transformers_in_flax(checkpoint, tmp_path) -> None:
    from transformers import FlaxCLIPModel

    model = FlaxCLIPModel(torch_config(), _do_init=False)
    # Parameter paths are those of transformers: ours serve it as they are.
    expected = load_clip(checkpoint[0])[1]
    model.save_pretrained(tmp_path, params=expected)
    assert [path.name for path in tmp_path.iterdir() if path.name != "config.json"] == [
        "flax_model.msgpack"
    ]
    config, params = load_clip(tmp_path)
    assert_equal(params, expected)
    pixels = images().transpose(0, 3, 1, 2)
    logits = jax.jit(lambda params: model(texts(), pixels, params=params).logits_per_text)(params)
    found = run(clip_of(config), params, texts(), images())
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)


def test_torch_reads_what_is_written(torch, checkpoint, tmp_path) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    directory, model = checkpoint
    config, params = load_clip(directory)
    vision = dataclasses.replace(config.vision, image_mean=(0.1, 0.2, 0.3))
    config = dataclasses.replace(config, vision=vision)
    save_clip(tmp_path, config, params)
    again, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    for (name, value), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), name
    processor = CLIPImageProcessor.from_pretrained(tmp_path)
    assert (processor.size, processor.image_mean) == ({"shortest_edge": 48}, [0.1, 0.2, 0.3])
    found, loaded = load_clip(tmp_path)
    assert found == config
    assert_equal(loaded, params)


@pytest.mark.parametrize("projection_dim", [None, 24])
@pytest.mark.parametrize("half", ["text", "vision"])
def test_halves_are_written_too(torch, tmp_path, half: str, projection_dim) -> None:
    import transformers

    tiny = clip_sizes.clip_tiny(VOCAB)
    config = dataclasses.replace(
        tiny,
        text=tiny.text if half == "text" else None,
        vision=tiny.vision if half == "vision" else None,
        projection_dim=projection_dim,
    )
    rng = np.random.default_rng(0)
    flat = {path: rng.random(shape, np.float32) for path, shape in param_shapes(config).items()}
    save_clip(tmp_path, config, unflatten_dict(flat, sep="/"))
    assert load_clip(tmp_path)[0] == config
    name = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name)
    assert not any(model.from_pretrained(tmp_path, output_loading_info=True)[1].values())


def test_published_sizes() -> None:
    """Parameters of OpenAI's models, https://github.com/openai/CLIP."""
    expected = {
        "vit_b32": 151_277_313,
        "vit_b16": 149_620_737,
        "vit_l14": 427_616_513,
        "vit_l14_336": 427_944_193,
    }
    for name, parameters in expected.items():
        shapes = param_shapes(getattr(clip_sizes, name)())
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters


def test_where_a_text_ends() -> None:
    tokens = jnp.array([[7, 3, 9, 9], [9, 1, 9, 0], [1, 2, 3, 4]])
    assert end_positions(tokens, 9).tolist() == [2, 0, 3]  # none in the last row
    assert end_positions(tokens, 3).tolist() == [1, 3, 2]
    assert end_positions(tokens, None).tolist() == [2, 0, 3]


def test_what_follows_the_end_changes_nothing(checkpoint) -> None:
    config, params = load_clip(checkpoint[0])
    model = ClipTextTransformer(config.text)
    padded = [texts(pad=pad) for pad in (0, END, 50)]
    states, pooled = zip(
        *(run(model, params["text_model"], tokens) for tokens in padded), strict=True
    )
    np.testing.assert_array_equal(pooled[0], pooled[1])
    np.testing.assert_array_equal(pooled[0], pooled[2])
    np.testing.assert_array_equal(states[0][2, :6], states[1][2, :6])


def test_bfloat16_keeps_parameters_and_softmax_in_float32(checkpoint) -> None:
    directory, _ = checkpoint
    config = load_clip_config(directory, dtype="bfloat16", remat=True)
    _, params = load_clip(directory, config)
    expected = run(clip_of(load_clip_config(directory)), params, texts(), images())
    model = clip_of(config)
    init = jax.eval_shape(model.init, jax.random.key(0), texts(), images())
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    found = run(model, params, texts(), images())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.15)  # of cosines times 14
    text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, texts(), images()))(params))
    assert ":bf16[4,12,32]" in text  # residuals
    exponentials = re.findall(r":(\w+)\[[\d,]*\b12,12\] = exp ", text)
    assert exponentials == ["f32"] * config.text.num_hidden_layers


def test_remat_changes_no_value(checkpoint) -> None:
    directory, _ = checkpoint
    params = load_clip(directory)[1]["vision_model"]

    def gradients(remat: bool):
        model = ClipVisionTransformer(load_clip_config(directory, remat=remat).vision)

        def loss(params: dict) -> jax.Array:
            return jnp.square(model.apply({"params": params}, images()[:1])[1]).mean()

        return jax.jit(jax.grad(loss))(params)

    found, expected = map(jax.tree.leaves, (gradients(True), gradients(False)))
    for leaf, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)


def test_errors_of_configs() -> None:
    sizes = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    text = {**sizes, "vocab_size": 9}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    for cls, options, message in [
        (ClipTextConfig, {"eos_token_id": 9}, "eos_token_id is 9; .* below vocab_size 9"),
        (ClipTextConfig, {"num_attention_heads": 3}, "hidden_size is 8; .* of the 3 attention"),
        (ClipTextConfig, {"hidden_act": "step"}, "hidden_act is 'step'; expected one of"),
        (ClipTextConfig, {"dtype": "float16"}, "dtype is 'float16'"),
        (ClipTextConfig, {"vocab_size": 0}, "vocab_size is 0; expected a positive integer"),
        (ClipVisionConfig, {"patch_size": 9}, "patch_size is 9; expected at most image_size 8"),
        (ClipVisionConfig, {"image_mean": (0.5,)}, r"image_mean is \(0.5,\); expected three"),
    ]:
        given = text if cls is ClipTextConfig else vision
        with pytest.raises(ValueError, match=message):
            cls(**(given | options))
        config = cls(**given)
        assert cls.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="neither text nor vision"):
        ClipConfig(None, None, 8)


def test_errors_of_inputs() -> None:
    tiny = clip_sizes.clip_tiny(VOCAB)
    with pytest.raises(ValueError, match="texts have 78 tokens; CLIP's text tower takes 77"):
        ClipTextTransformer(tiny.text).init(jax.random.key(0), jnp.zeros((1, 78), jnp.int32))
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\); .* expects \(32, 32, 3\)"):
        ClipVisionTransformer(tiny.vision).init(jax.random.key(0), jnp.zeros((1, 3, 32, 32)))


def test_load_names_what_is_wrong(checkpoint, tmp_path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(checkpoint[0], directory)
    config, weights = directory / "config.json", directory / "model.safetensors"
    original, tensors = json.loads(config.read_text()), load_file(weights)
    for changes, message in [
        ({"model_type": "siglip"}, "model_type is 'siglip'; expected one of"),
        ({"projection_dim": 23}, r"text_projection/kernel has shape \(32, 24\); expected \(32, 23"),
        ({"text_config": {"num_hidden_layers": 3}}, r"absent \['text_model/encoder/layers/2"),
        ({"text_config": {"num_hidden_layers": 1}}, r"unknown \['text_model/encoder/layers/1"),
        ({"text_config": {"hidden_act": "step"}}, r"config\.json: .*hidden_act is 'step'"),
        ({"vision_config": {"num_channels": 1}}, "num_channels is 1; expected 3"),
    ]:
        nested = {
            key: original[key] | value if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        config.write_text(json.dumps(original | nested))
        with pytest.raises(ValueError, match=message):
            load_clip(directory)
    nested = {"text_config": original["text_config"] | {"eos_token_id": 49407}}
    config.write_text(json.dumps(original | nested))
    with pytest.warns(UserWarning, match="eos_token_id 49407 is outside the vocabulary of 99"):
        assert load_clip(directory)[0].text.eos_token_id is None
    config.write_text(json.dumps(original))
    with pytest.raises(ValueError, match=r"none of the wanted halves of a CLIP: \[\]"):
        load_clip_config(directory, text=False, vision=False)
    # Buffers that old versions saved are no parameters.
    save_file(tensors | {"text_model.embeddings.position_ids": np.arange(3)}, weights)
    load_clip(directory)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor"):
        load_clip_config(directory)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        load_clip(directory)


def test_save_names_what_is_wrong(tmp_path) -> None:
    config = clip_sizes.clip_tiny(VOCAB)
    flat = {path: np.zeros(shape, np.float32) for path, shape in param_shapes(config).items()}
    flat.pop("logit_scale")
    with pytest.raises(ValueError, match="1 parameters do not fit the config, first logit_scale"):
        save_clip(tmp_path, config, unflatten_dict(flat, sep="/"))
    legacy = dataclasses.replace(config, text=dataclasses.replace(config.text, eos_token_id=2))
    with pytest.raises(ValueError, match=r"eos_token_id is 2; in a config\.json of CLIP"):
        save_clip(tmp_path, legacy, {})
    with pytest.raises(ValueError, match="projection_dim is None"):
        save_clip(tmp_path, dataclasses.replace(config, projection_dim=None), {})
    assert not list(tmp_path.iterdir())


def assert_equal(found: dict, expected: dict) -> None:
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
