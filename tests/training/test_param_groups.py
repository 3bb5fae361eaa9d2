"""Groups of parameters: rates, layer-wise decay, freezing, and what a resumed run may change."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.towers import MemoryTower
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import param_groups, partitioning, program
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.losses.cross_entropy import Mean
from dsi_jax.training.optimizers import Adafactor, AdamW
from dsi_jax.training.param_groups import ParamGroup
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import param_shapes

CONSTANT = Schedule("constant", 0.01)
OPTIMIZERS = pytest.mark.parametrize(
    "optimizer",
    [
        Adafactor(Schedule("constant * rsqrt_decay", 0.1), weight_decay=0.01),
        AdamW(CONSTANT, weight_decay=0.1, max_grad_norm=1.0),
    ],
    ids=["adafactor", "adamw"],
)


class Body(nn.Module):
    """Two layers behind an embedding, with T5's names."""

    @nn.compact
    def __call__(self, tokens_BxS: jax.Array) -> jax.Array:
        x_BxD = nn.Embed(16, 8, name="embedder")(tokens_BxS).mean(1)
        for index in range(2):
            x_BxD = x_BxD + nn.relu(nn.Dense(8, name=f"layers_{index}")(x_BxD))
        return nn.LayerNorm(name="norm")(x_BxD)


class Toy(nn.Module):
    """A tower and a head; the head's gradient does not depend on what the tower's groups are."""

    @nn.compact
    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        del deterministic
        scale = self.param("logit_scale", nn.initializers.ones, ())
        x_BxD = Body(name="tower")(batch["tokens"])
        return nn.Dense(4, name="head")(x_BxD) * scale


def make_batch(index: int) -> dict:
    rng = np.random.default_rng(index)
    return {
        "tokens": rng.integers(0, 16, (8, 5)).astype(np.int32),
        "labels": rng.integers(0, 4, 8).astype(np.int32),
    }


def loss(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    total, count = losses.sum(), jnp.float32(len(losses))
    return total, {"loss": Mean(total, count)}


def build(optimizer, groups=(), microbatches=1) -> program.Program:
    return program.build(
        Toy(),
        dataclasses.replace(optimizer, groups=groups),
        partitioning.one_device_mesh(),
        make_batch(0),
        train_steps=20,
        microbatches=microbatches,
        loss=loss,
    )


def train(run: program.Program, state, start: int, stop: int) -> list[dict[str, np.ndarray]]:
    """The parameters at `start` and after each step, and the last state."""
    states = [flat(state.params)]
    for index in range(start, stop):
        state, _ = run.step(state, make_batch(index))
        states.append(flat(state.params))
    return states, state


def flat(tree) -> dict:
    return {k: np.array(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def updates_of(optimizer, params, gradients, steps=1):
    """The last of several updates, of unchanging parameters and gradients."""
    transformation = optimizer.build(10)
    state = transformation.init(params)
    for _ in range(steps):
        updates, state = transformation.update(gradients, state, params)
    return flat(updates)


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    shapes = {"tower": {"kernel": (4, 3), "bias": (3,)}, "head": {"kernel": (3, 5)}}
    is_shape = {"is_leaf": lambda leaf: isinstance(leaf, tuple)}
    params, gradients = (
        jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), shapes, **is_shape)
        for _ in range(2)
    )
    return params, gradients


@OPTIMIZERS
def test_each_group_moves_with_its_own_rate(optimizer, tree):
    groups = [ParamGroup("bias", ".*/bias", rate=0.25), ParamGroup("tower", "tower/.*", rate=0.01)]
    plain = updates_of(optimizer, *tree, steps=3)
    ours = updates_of(dataclasses.replace(optimizer, groups=groups), *tree, steps=3)
    rates = {"tower/kernel": 0.01, "tower/bias": 0.25, "head/kernel": 1.0}
    for path, rate in rates.items():
        assert np.abs(plain[path]).max() > 0
        np.testing.assert_allclose(ours[path], rate * plain[path], rtol=1e-6)


@OPTIMIZERS
def test_norms_biases_and_scalars_have_no_weight_decay(optimizer):
    params = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
        "logit_scale": jnp.float32(1.0),
        "decoder": {"decoder": {"layer_norm": {"scale": jnp.ones((2, 3))}}},  # three layers'
    }
    still = jax.tree.map(jnp.zeros_like, params)
    updates = updates_of(optimizer, params, still, steps=2)
    assert [path for path, update in updates.items() if update.any()] == ["kernel"]


@OPTIMIZERS
@pytest.mark.parametrize("microbatches", [1, 2])
def test_frozen_group_keeps_every_bit_and_no_moments(optimizer, microbatches):
    run = build(optimizer, [ParamGroup("tower", "tower/.*", frozen=True)], microbatches)
    state = run.init(0)
    params = state.params
    params["tower"]["norm"]["bias"] = jnp.full(8, -0.0)
    params["tower"]["layers_0"]["bias"] = jnp.full(8, 1e-42)  # denormal
    before = flat(params)
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    }
    assert any("head" in path for path in moments)
    assert not any("tower" in path for path in moments)
    states, _ = train(run, state, 0, 3)
    for path, value in states[-1].items():
        same = value.tobytes() == before[path].tobytes()
        assert same == path.startswith("tower/"), path


def test_backward_pass_of_a_frozen_group_is_not_computed():
    """The tower's kernels are read once, going forward; nothing has the shape of its gradients."""
    optimizer = AdamW(CONSTANT)
    run = build(optimizer, [ParamGroup("tower", "tower/.*", frozen=True)])
    whole, ours = (p.lower().compile().cost_analysis()["flops"] for p in (build(optimizer), run))
    assert ours < 0.7 * whole


def test_frozen_gradients_do_not_count_in_the_norm():
    params = {"tower": jnp.ones(3), "head": jnp.ones(3)}
    gradients = {"tower": jnp.full(3, 1e9), "head": jnp.full(3, 0.1)}
    optimizer = AdamW(CONSTANT, eps=1.0, weight_decay=0.0, max_grad_norm=1.0)
    frozen = dataclasses.replace(optimizer, groups=[ParamGroup("tower", "tower", frozen=True)])
    alone = updates_of(optimizer, {"head": params["head"]}, {"head": gradients["head"]})
    ours = updates_of(frozen, params, gradients)
    np.testing.assert_array_equal(ours["head"], alone["head"])
    broken = updates_of(frozen, params, gradients | {"tower": jnp.full(3, jnp.nan)})
    np.testing.assert_array_equal(broken["head"], alone["head"])


@OPTIMIZERS
def test_group_moves_from_its_step_on(optimizer):
    run = build(optimizer, [ParamGroup("tower", "tower/.*", unfreeze_at=2)])
    states, _ = train(run, run.init(0), 0, 4)
    for path in states[0]:
        moved = [
            before[path].tobytes() != after[path].tobytes()
            for before, after in itertools.pairwise(states)
        ]
        assert moved == ([False, False, True, True] if path.startswith("tower/") else [True] * 4)


def test_moments_gather_while_a_group_waits(tree):
    optimizer = AdamW(CONSTANT)
    waiting = dataclasses.replace(optimizer, groups=[ParamGroup("all", ".*", unfreeze_at=3)])
    plain, ours = (updates_of(choice, *tree, steps=4) for choice in (optimizer, waiting))
    jax.tree.map(np.testing.assert_array_equal, ours, plain)
    assert not any(update.any() for update in updates_of(waiting, *tree, steps=3).values())


# Layer-wise decay


def tower_shapes(layers: int) -> dict:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }
    text = MemoryTower(ClipTextConfig(**sizes, vocab_size=9), 8)
    vision = MemoryTower(ClipVisionConfig(**sizes, image_size=8, patch_size=4), 8)
    key = jax.random.key(0)
    streams = {"tokens": np.zeros((1, 4), np.int32)}, {"pixels": np.zeros((1, 8, 8, 3), np.uint8)}
    return {
        "text_tower": jax.eval_shape(text.init, key, streams[0])["params"],
        "image_tower": jax.eval_shape(vision.init, key, streams[1])["params"],
    }


def decoder_shapes(**options) -> dict:
    t5 = T5Config(
        vocab_size=8,
        emb_dim=8,
        num_heads=2,
        head_dim=4,
        mlp_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=3,
        **options,
    )
    model = DSIModel(DSIConfig(t5, docid_vocab_size=12, docid_length=2))
    tokens = np.zeros((1, 2), np.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens}, "decoder": {"inputs": tokens}}
    return nn.meta.unbox(param_shapes(model, batch))


def factors(groups, shapes) -> dict[str, float]:
    shares = traverse_util.flatten_dict(param_groups.resolve(groups, shapes), sep="/")
    return {path: share.factor for path, share in shares.items()}


def test_decay_of_clip():
    group = ParamGroup("vision", "image_tower/vision_model/.*", rate=0.1, decay=0.5)
    found = factors([group], tower_shapes(layers=3))
    expected = {
        r"image_tower/vision_model/embeddings/patch_embedding/kernel": 0.1 / 8,
        r"image_tower/vision_model/embeddings/class_embedding": 0.1 / 8,
        r"image_tower/vision_model/embeddings/position_embedding/embedding": 0.1 / 8,
        r"image_tower/vision_model/pre_layrnorm/scale": 0.1 / 8,
        r"image_tower/vision_model/encoder/layers/0/mlp/fc1/kernel": 0.1 / 4,
        r"image_tower/vision_model/encoder/layers/1/self_attn/q_proj/bias": 0.1 / 2,
        r"image_tower/vision_model/encoder/layers/2/layer_norm1/scale": 0.1,
        r"image_tower/vision_model/post_layernorm/scale": 0.1,
        r"image_tower/memory_projection/kernel": 1.0,
        r"text_tower/text_model/encoder/layers/0/mlp/fc1/kernel": 1.0,
    }
    for path, factor in expected.items():
        assert found[path] == pytest.approx(factor), path


def test_decay_of_t5():
    found = factors([ParamGroup("decoder", "decoder/.*", decay=0.5)], decoder_shapes())
    expected = {
        "decoder/layers_0/mlp/wi/kernel": 0.25,
        "decoder/layers_1/pre_mlp_layer_norm/scale": 0.5,
        "decoder/layers_2/self_attention/out/kernel": 1.0,
        "decoder/decoder_norm/scale": 1.0,
        "decoder/relpos_bias/rel_embedding": 0.125,
        "encoder/layers_0/mlp/wi/kernel": 1.0,
    }
    for path, factor in expected.items():
        assert found[path] == pytest.approx(factor), path


def test_decay_reaches_the_updates():
    groups = [ParamGroup("tower", "tower/.*", decay=0.5)]
    params = build(AdamW(CONSTANT)).init(0).params
    gradients = jax.tree.map(jnp.ones_like, params)
    plain, ours = (updates_of(AdamW(CONSTANT, groups=g), params, gradients) for g in ((), groups))
    shares = factors(groups, params)
    assert set(shares.values()) == {0.25, 0.5, 1.0}
    for path, factor in shares.items():
        np.testing.assert_allclose(ours[path], factor * plain[path], rtol=1e-6)


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        ({"pattern": "decoder/.*"}, {"scan_layers": True}, "holds all layers at once.*scan_layers"),
        ({"pattern": "(en|de)coder/.*"}, {}, "layers of decoder/layers and encoder/layers; expect"),
        ({"pattern": "decoder/decoder_norm/.*"}, {}, "layers of no stack"),
    ],
)
def test_decay_without_meaning_is_refused(group, options, message):
    with pytest.raises(ValueError, match=f"learning-rate group 'g' has a decay, .*{message}"):
        param_groups.resolve([ParamGroup("g", decay=0.5, **group)], decoder_shapes(**options))


# Errors


def test_pattern_without_a_match_is_refused_before_anything_is_computed():
    message = (
        r"group 'text': pattern 'text/\.\*' matches no parameter.*look like head/bias, .*tower/"
    )
    with pytest.raises(ValueError, match=message):
        build(AdamW(CONSTANT), [ParamGroup("text", "text/.*")])
    groups = [ParamGroup("tower", "tower/.*"), ParamGroup("norm", "tower/norm/.*")]
    with pytest.raises(ValueError, match=r"'norm'.* that no group before it matches"):
        build(Adafactor(CONSTANT), groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "("}, r"group 'g': pattern '\(' is no regex"),
        ({"rate": 0.0}, "rate is 0.0, expected more than 0"),
        ({"decay": 1.5}, r"decay is 1.5, expected one in \(0, 1\]"),
        ({"unfreeze_at": 0}, "unfreeze_at is 0, expected at least 1"),
        ({"frozen": True, "unfreeze_at": 3}, "frozen for the whole run and unfreeze_at 3"),
    ],
)
def test_group_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ParamGroup(**{"name": "g", "pattern": ".*"} | options)


def test_names_are_unique(tree):
    with pytest.raises(ValueError, match=r"named .*'a', 'a'.*each name once"):
        param_groups.resolve([ParamGroup("a", "tower/.*"), ParamGroup("a", "head/.*")], tree[0])


# Checkpoints and model-info.txt


@OPTIMIZERS
def test_resumed_run_equals_an_uninterrupted_one(optimizer, tmp_path):
    groups = [
        ParamGroup("embedder", "tower/embedder/.*", frozen=True),
        ParamGroup("tower", "tower/.*", rate=0.1, decay=0.5, unfreeze_at=3),
    ]
    run = build(optimizer, groups)
    states, _ = train(run, run.init(0), 0, 4)
    _, state = train(run, run.init(0), 0, 2)
    save(tmp_path, state)
    again = build(optimizer, groups)
    resumed, _ = train(again, Checkpointer(tmp_path).restore_latest(again.shapes).state, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, resumed, states[2:])


def test_resuming_with_other_groups(tmp_path):
    """Rates and times may change; moments that are not there are an error that names them."""
    run = build(AdamW(CONSTANT), [ParamGroup("tower", "tower/.*", frozen=True)])
    save(tmp_path / "frozen", run.init(0))
    for groups in ([ParamGroup("tower", "tower/.*", rate=0.5)], ()):
        other = build(AdamW(CONSTANT), groups)
        with pytest.raises(ValueError, match=r"opt_state.* has .*expected.*: another .* optimizer"):
            Checkpointer(tmp_path / "frozen").restore_latest(other.shapes)
    run = build(AdamW(CONSTANT), [ParamGroup("tower", "tower/.*", unfreeze_at=9)])
    save(tmp_path / "waiting", run.init(0))
    other = build(AdamW(CONSTANT), [ParamGroup("norm", "tower/norm/.*", rate=0.5)])
    state = Checkpointer(tmp_path / "waiting").restore_latest(other.shapes).state
    states, _ = train(other, state, 0, 1)
    assert (states[0]["tower/norm/bias"] != states[1]["tower/norm/bias"]).any()


def save(directory, state) -> None:
    checkpointer = Checkpointer(directory)
    checkpointer.save(2, state, data=b"", metadata={})
    checkpointer.close()


def test_model_info_lists_the_groups():
    groups = [
        ParamGroup("embedder", "tower/embedder/.*", frozen=True),
        ParamGroup("tower", "tower/.*", rate=0.5, decay=0.5, unfreeze_at=3000),
    ]
    lines = build(AdamW(CONSTANT), groups).model_info().splitlines()
    assert lines[-3:] == [
        "embedder: 128 parameters, frozen",
        "tower: 160 parameters, learning rate x 0.25 to 0.5, frozen until step 3,000",
        "all others: 37 parameters, learning rate x 1",
    ]
