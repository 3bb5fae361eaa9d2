"""CLIP's towers as encoders: memory, mask, gradients, path rules."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dsi_jax.models.contrastive import ContrastiveConfig, ContrastiveModel
from dsi_jax.models.encoders.clip_config import (
    CLIP_MEAN,
    CLIP_STD,
    ClipConfig,
    ClipTextConfig,
    ClipVisionConfig,
)
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.encoders.memory import MEMORIES
from dsi_jax.models.encoders.towers import MemoryTower

END, WIDTH, LENGTH = 1, 24, 6  # T5's end token; it pads with 0
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
CONFIG = ClipConfig(
    text=ClipTextConfig(**SIZES, vocab_size=30, eos_token_id=END),
    vision=ClipVisionConfig(**SIZES, image_size=32, patch_size=8),
    projection_dim=16,
)
TOKENS = np.array([[5, 6, 7, 8, 9, 1], [5, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], np.int32)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
STREAMS = {"text": {"tokens": TOKENS}, "image": {"pixels": PIXELS}}


def make_tower(modality: str, memory: str = "both", **changes):
    config = CONFIG.text if modality == "text" else CONFIG.vision
    return MemoryTower(dataclasses.replace(config, **changes), WIDTH, memory)


@pytest.fixture(scope="module")
def params() -> dict:
    """Random parameters of both towers, layer norms and biases too."""
    found = {}
    for seed, modality in enumerate(("text", "image")):
        shapes = jax.eval_shape(make_tower(modality).init, jax.random.key(0), STREAMS[modality])
        rng = np.random.default_rng(seed)
        found[modality] = jax.tree_util.tree_map_with_path(
            lambda path, leaf, rng=rng: np.float32(
                (path[-1].key == "scale") + 0.2 * rng.standard_normal(leaf.shape)
            ),
            shapes["params"],
        )
    return found


def memory_of(params: dict, modality: str, memory: str, stream: dict | None = None):
    tower = make_tower(modality, memory)
    return jax.jit(tower.apply)({"params": params[modality]}, stream or STREAMS[modality])


def test_memory_of_texts(params) -> None:
    both, both_mask = memory_of(params, "text", "both")
    states, states_mask = memory_of(params, "text", "states")
    pooled, pooled_mask = memory_of(params, "text", "pooled")
    assert both.shape == states.shape == (3, LENGTH, WIDTH)
    assert pooled.shape == (3, 1, WIDTH)
    np.testing.assert_array_equal(both, states)
    ends = np.array([5, 1, 0])
    np.testing.assert_array_equal(both_mask, np.arange(LENGTH) <= ends[:, None])
    np.testing.assert_array_equal(states_mask, np.arange(LENGTH) < ends[:, None])
    assert pooled_mask.all() and pooled_mask.shape == (3, 1)
    np.testing.assert_allclose(pooled[:, 0], both[np.arange(3), ends], rtol=0, atol=1e-5)


def test_padding_of_any_tokenizer_gives_one_memory(params) -> None:
    other = np.where(TOKENS == 0, END, TOKENS)
    first, mask = memory_of(params, "text", "both")
    second, other_mask = memory_of(params, "text", "both", {"tokens": other})
    np.testing.assert_array_equal(mask, other_mask)
    np.testing.assert_array_equal(first[mask], second[mask])


def test_memory_of_images(params) -> None:
    patches = CONFIG.vision.grid_size**2
    both, mask = memory_of(params, "image", "both")
    states, _ = memory_of(params, "image", "states")
    pooled, _ = memory_of(params, "image", "pooled")
    assert both.shape == (2, 1 + patches, WIDTH)
    assert mask.all() and mask.shape == both.shape[:2]
    np.testing.assert_allclose(both, np.concatenate([pooled, states], axis=1), atol=1e-5)
    assert abs(np.asarray(both[0] - both[1])).max() > 0.1  # the image matters


def test_bytes_are_normalised(params) -> None:
    pixels = (PIXELS / 255.0 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    from_floats, _ = memory_of(params, "image", "both", {"pixels": np.float32(pixels)})
    from_bytes, _ = memory_of(params, "image", "both")
    np.testing.assert_allclose(from_bytes, from_floats, rtol=0, atol=1e-4)


def test_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory of a tower is 'cls'; expected one of \('pooled'"):
        make_tower("text", "cls").init(jax.random.key(0), STREAMS["text"])


# Without effect on the output, so without gradient: a key's bias shifts all logits of a query
# alike; what is computed for a part of the memory that is not given out.
UNUSED = {
    ("text", "pooled"): [],
    ("text", "states"): [],
    ("text", "both"): [],
    ("image", "pooled"): [],
    ("image", "states"): ["vision_model/post_layernorm/scale", "vision_model/post_layernorm/bias"],
    ("image", "both"): [],
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_gradients_reach_every_parameter(params, modality: str, memory: str) -> None:
    tower = make_tower(modality, memory)

    def loss(params: dict) -> jax.Array:
        found, mask = tower.apply({"params": params}, STREAMS[modality])
        return (jnp.sin(found) * mask[..., None]).sum()

    flat = flatten_dict(jax.jit(jax.grad(loss))(params[modality]), sep="/")
    largest = {path: float(np.abs(leaf).max()) for path, leaf in flat.items()}
    without = [path for path, value in largest.items() if value < 1e-5]
    biases = [path for path in flat if path.endswith("k_proj/bias")]
    assert sorted(without) == sorted(biases + UNUSED[modality, memory])


def test_towers_are_deterministic(params) -> None:
    for modality, stream in STREAMS.items():
        tower = make_tower(modality)
        results = [
            tower.apply(
                {"params": params[modality]},
                stream,
                deterministic=deterministic,
                rngs={"dropout": jax.random.key(seed)},
            )[0]
            for seed, deterministic in enumerate((True, False))
        ]
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_bfloat16_memory(params, modality: str) -> None:
    tower = make_tower(modality, dtype="bfloat16")
    found, _ = jax.jit(tower.apply)({"params": params[modality]}, STREAMS[modality])
    expected, _ = memory_of(params, modality, "both")
    assert found.dtype == jnp.bfloat16
    difference = np.abs(found.astype(jnp.float32) - expected)
    assert 0 < difference.mean() < 0.03
    assert difference.max() < 0.3


def matches(rules, paths) -> dict[str, list[str]]:
    return {rule: [path for path in paths if re.fullmatch(rule, path)] for rule, _ in rules}


@pytest.mark.parametrize("modality", ["text", "image"])
def test_path_rules_cover_every_matrix(params, modality: str) -> None:
    flat = flatten_dict({"encoders": params[modality]}, sep="/")
    towers = {"text": CONFIG.text, "image": CONFIG.vision}
    rules = TowersConfig(**dict.fromkeys(towers) | {modality: towers[modality]}).path_rules
    found = matches(rules, flat)
    assert all(found.values())
    covered = {path: rule for rule, paths in found.items() for path in paths}
    assert sum(map(len, found.values())) == len(covered)  # no path has two rules
    assert {path for path, leaf in flat.items() if leaf.ndim > 1} <= covered.keys()
    axes = dict(rules)
    assert all(len(axes[rule]) == flat[path].ndim for path, rule in covered.items())


def test_path_rules_cover_the_contrastive_model() -> None:
    model = ContrastiveModel(ContrastiveConfig(CONFIG.text, CONFIG.vision, 16))
    batch = {"text": STREAMS["text"], "document": STREAMS["image"]}
    init = functools.partial(model.init, deterministic=True)
    flat = flatten_dict(jax.eval_shape(init, jax.random.key(0), batch)["params"], sep="/")
    found = matches(model.path_rules, flat)
    assert all(found.values())
    covered = {path for paths in found.values() for path in paths}
    assert {path for path, leaf in flat.items() if leaf.ndim > 1} <= covered
