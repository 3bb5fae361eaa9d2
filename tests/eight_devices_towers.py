"""CLIP's towers on eight simulated devices; `test_partitioning.py` runs this in its own process."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from dsi_jax.models.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.towers import ClipTextTower, ClipVisionTower
from dsi_jax.models.towers_config import path_rules
from dsi_jax.training import partitioning
from dsi_jax.training.partitioning import MeshConfig
from dsi_jax.training.state import shardings_of, state_shapes

ROWS, WIDTH = 8, 16
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TEXT = ClipTextConfig(**SIZES, vocab_size=31, eos_token_id=1)  # 31 rows, which no mesh divides
VISION = ClipVisionConfig(**SIZES, image_size=16, patch_size=8)
RULES = path_rules(text=True, vision=True)
MESHES = {
    "fsdp": MeshConfig(data=2, fsdp=-1),
    "model": MeshConfig(data=2, model=4),
    "all": MeshConfig(replica=2, data=1, fsdp=2, model=2),
}


class Towers(nn.Module):
    """Both towers and the sum of a function of their memories."""

    @nn.compact
    def __call__(self, batch: dict, *, deterministic: bool) -> jax.Array:
        text, _ = ClipTextTower(TEXT, WIDTH)(batch["text"])
        image, _ = ClipVisionTower(VISION, WIDTH)(batch["image"])
        return (jax.numpy.sin(text).mean() + jax.numpy.cos(image).mean()) ** 2


def make_batch() -> dict:
    rng = np.random.default_rng(0)
    return {
        "text": {"tokens": rng.integers(2, 31, (ROWS, 7)).astype(np.int32)},
        "image": {"pixels": rng.integers(0, 256, (ROWS, 16, 16, 3)).astype(np.uint8)},
    }


def loss(params: dict, batch: dict) -> jax.Array:
    return Towers().apply({"params": params}, batch, deterministic=True)


@pytest.fixture(scope="module")
def one_device():
    """Parameters, the loss and its gradients."""
    params = jax.jit(Towers().init, static_argnames="deterministic")(
        jax.random.key(0), make_batch(), deterministic=True
    )["params"]
    return params, *jax.jit(jax.value_and_grad(loss))(params, make_batch())


def shapes_on(mesh):
    rules = partitioning.LOGICAL_AXIS_RULES
    return state_shapes(Towers(), optax.adam(1e-3), make_batch(), mesh, rules, RULES)


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_equals_one_device(name, one_device):
    params, expected_value, expected = one_device
    mesh = partitioning.make_mesh(MESHES[name])
    shardings = shardings_of(shapes_on(mesh)).params
    params = jax.device_put(params, shardings)
    batch = partitioning.shard_batch(make_batch(), mesh)
    with partitioning.activate(mesh, partitioning.LOGICAL_AXIS_RULES):
        out_shardings = (partitioning.replicated(mesh), shardings)
        step = jax.jit(jax.value_and_grad(loss), out_shardings=out_shardings)
        value, found = step(params, batch)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-6)


def test_no_matrix_is_replicated():
    mesh = partitioning.make_mesh(MESHES["all"])
    shapes = shapes_on(mesh)
    for tree in (shapes.params, shapes.opt_state[0].mu):
        for path, leaf in flatten_dict(tree, sep="/").items():
            if leaf.ndim > 1:
                parts = 2 if path.endswith("position_embedding/embedding") else 4
                assert np.prod(leaf.sharding.shard_shape(leaf.shape)) * parts == leaf.size, path
    layer = shapes.params["ClipTextTower_0"]["text_model"]["encoder"]["layers"]["0"]
    assert layer["mlp"]["fc1"]["kernel"].sharding.spec == PartitionSpec("fsdp", "model")
    assert layer["mlp"]["fc2"]["kernel"].sharding.spec == PartitionSpec("model", "fsdp")
