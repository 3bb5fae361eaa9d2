"""Layers scanned over: equal to layers one by one, in values, gradients, decoding and updates."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.constraint import TrieConstraint
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.models import layer_stacking, transposed_kernels
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.training.optimizers import Adafactor, AdamW
from dsi_jax.training.schedules import Schedule

BATCH, SOURCE, LENGTH, BEAMS, DOCID_VOCAB = 3, 9, 5, 4, 12
# Beams that never take another's place.
ITSELF = np.broadcast_to(np.arange(BEAMS, dtype=np.int32)[:, None], (BATCH, BEAMS, LENGTH))
V1_0 = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
)
V1_1 = dataclasses.replace(V1_0, mlp_activations=("gelu", "linear"), tie_embeddings=False)
UMT5 = dataclasses.replace(V1_1, relpos_per_layer=True)
VERSIONS = pytest.mark.parametrize("t5", [V1_0, V1_1, UMT5], ids=["v1_0", "v1_1", "umt5"])


def model_of(t5: T5Config, *, scan: bool, length: int = LENGTH) -> DSIModel:
    t5 = dataclasses.replace(t5, scan_layers=scan)
    return DSIModel(DSIConfig(t5, docid_vocab_size=DOCID_VOCAB, docid_length=length))


def random_batch(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "text": {
            "tokens": rng.integers(1, V1_0.vocab_size, (BATCH, SOURCE), dtype=np.int32),
            "mask": np.arange(SOURCE) < rng.integers(1, SOURCE + 1, (BATCH, 1)),
        },
        "decoder": {"inputs": rng.integers(0, DOCID_VOCAB, (BATCH, LENGTH), dtype=np.int32)},
    }


def random_params(t5: T5Config, seed: int = 0) -> dict:
    """Parameters of the layers one by one, every one of them random (layer norms too)."""
    rng = np.random.default_rng(seed)
    model = model_of(t5, scan=False)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), random_batch(), deterministic=True)
    )
    flat = flatten_dict(nn.meta.unbox(variables["params"]), sep="/")
    return unflatten_dict(
        {
            path: (path.endswith("/scale") + 0.3 * rng.standard_normal(leaf.shape)).astype("f4")
            for path, leaf in flat.items()
        },
        sep="/",
    )


def assert_close(found: dict, expected: dict, **tolerances: float) -> None:
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, err_msg=path, **tolerances)


# --- The model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t5", "remat"),
    [(V1_0, False), (V1_1, True), (UMT5, "minimal")],
    ids=["v1_0", "v1_1-full", "umt5-minimal"],
)
def test_logits_and_gradients_are_those_of_the_layers_one_by_one(t5: T5Config, remat) -> None:
    params, batch = random_params(t5), random_batch()

    def loss(model: DSIModel):
        def value(params: dict) -> jax.Array:
            logits = model.apply({"params": params}, batch, deterministic=True)
            return jnp.mean(
                jnp.tanh(logits) * jnp.cos(jnp.arange(logits.size)).reshape(logits.shape)
            )

        return jax.jit(jax.value_and_grad(value))

    expected, gradient = loss(model_of(t5, scan=False))(params)
    scanned = model_of(dataclasses.replace(t5, remat=remat), scan=True)
    found, stacked_gradient = loss(scanned)(layer_stacking.stack_layers(params))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    assert_close(
        layer_stacking.unstack_layers(stacked_gradient),
        gradient,
        rtol=1e-4,
        atol=1e-5 * float(scale),
    )


@pytest.mark.parametrize("t5", [V1_0, UMT5], ids=["v1_0", "umt5"])
def test_cached_steps_are_those_of_the_layers_one_by_one(t5: T5Config) -> None:
    params, batch = random_params(t5), random_batch()
    tokens = np.random.default_rng(1).integers(0, DOCID_VOCAB, (BATCH, BEAMS, LENGTH))

    def logits(model: DSIModel, params: dict) -> jax.Array:
        def apply(*args, method: str, **options):
            return model.apply({"params": params}, *args, method=method, **options)

        memory, mask = apply(batch, method="encode")
        cache = apply(memory, mask, num_beams=BEAMS, length=LENGTH, method="init_cache")
        every = []
        for position in range(LENGTH):
            token = tokens[:, :, position]
            step, cache = apply(cache, token, position, ITSELF, method="decode_step")
            every.append(step)
        return jnp.stack(every, axis=2)

    scanned = model_of(t5, scan=True)
    stacked = layer_stacking.stack_layers(params)
    found = jax.jit(logits, static_argnums=0)(scanned, stacked)
    expected = jax.jit(logits, static_argnums=0)(model_of(t5, scan=False), params)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cached = functools.partial(several_at_once, tokens=tokens, batch=batch)
    np.testing.assert_allclose(cached(scanned, stacked), expected, rtol=1e-5, atol=1e-5)
    # And those of the whole sequence at once.
    memory, mask = scanned.apply({"params": stacked}, batch, method="encode")
    decode = jax.jit(
        lambda tokens: scanned.apply({"params": stacked}, memory, mask, tokens, method="decode")
    )
    for beam in range(BEAMS):
        np.testing.assert_allclose(found[:, beam], decode(tokens[:, beam]), rtol=1e-5, atol=1e-5)


def several_at_once(model: DSIModel, params: dict, tokens: np.ndarray, batch: dict) -> jax.Array:
    """The logits [B, M, L, V] of cached steps of one, then of all other positions."""

    def logits(params: dict) -> jax.Array:
        def apply(*args, method: str, **options):
            return model.apply({"params": params}, *args, method=method, **options)

        memory, mask = apply(batch, method="encode")
        cache = apply(memory, mask, num_beams=BEAMS, length=LENGTH, method="init_cache")
        first, cache = apply(cache, tokens[:, :, :1], 0, ITSELF, method="decode_positions")
        rest, _ = apply(cache, tokens[:, :, 1:], 1, ITSELF, method="decode_positions")
        return apply(jnp.concatenate([first, rest], axis=2), method="head")

    return jax.jit(logits)(params)


def test_beam_search_finds_the_same() -> None:
    table = NaiveString().build(DocumentColumns([f"d{i}" for i in range(30)]))
    params, batch = random_params(V1_1), random_batch()
    constraint = TrieConstraint(jax.device_put(build_trie(table)))
    results = []
    for scan in (False, True):
        model = model_of(V1_1, scan=scan, length=table.length)
        arranged = layer_stacking.arrange_layers(params, stacked=scan)
        results.append(make_search(model, beam_size=BEAMS)(arranged, batch, constraint))
    np.testing.assert_array_equal(results[0].rows, results[1].rows)
    np.testing.assert_allclose(results[0].scores, results[1].scores, rtol=1e-5)


def test_each_layer_starts_as_if_alone() -> None:
    t5 = dataclasses.replace(
        UMT5,
        emb_dim=128,
        num_heads=4,
        head_dim=32,
        mlp_dim=256,
        num_decoder_layers=1,
    )
    batch = random_batch()

    def initial(scan: bool) -> dict:
        init = jax.jit(model_of(t5, scan=scan).init, static_argnames="deterministic")
        params = nn.meta.unbox(init(jax.random.key(0), batch, deterministic=True))["params"]
        return flatten_dict(layer_stacking.unstack_layers(params), sep="/")

    scanned, expected = initial(True), initial(False)
    assert scanned.keys() == expected.keys()
    for path, value in expected.items():
        assert scanned[path].shape == value.shape, path
        np.testing.assert_allclose(scanned[path].std(), value.std(), rtol=0.25, err_msg=path)
    first, second = (scanned[f"encoder/layers_{i}/mlp/wo/kernel"] for i in range(2))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_dropout_differs_between_layers() -> None:
    t5 = dataclasses.replace(V1_0, dropout_rate=0.5, num_encoder_layers=3)
    params = layer_stacking.stack_layers(random_params(t5))

    def apply(key: jax.Array) -> jax.Array:
        model, rngs = model_of(t5, scan=True), {"dropout": key}
        return model.apply({"params": params}, random_batch(), deterministic=False, rngs=rngs)

    text = str(jax.make_jaxpr(apply)(jax.random.key(0)))
    # Each scan goes over as many keys as it has layers.
    assert "key<fry>[3]" in text and "key<fry>[2]" in text


def test_program_does_not_grow_with_the_depth() -> None:
    def lines(depth: int, *, scan: bool) -> int:
        t5 = dataclasses.replace(V1_1, num_encoder_layers=depth, num_decoder_layers=depth)
        model, batch = model_of(t5, scan=scan), random_batch()
        shapes = jax.eval_shape(
            lambda: nn.meta.unbox(model.init(jax.random.key(0), batch, deterministic=True))
        )
        gradient = jax.grad(
            lambda variables: model.apply(variables, batch, deterministic=True).sum()
        )
        return len(jax.jit(gradient).lower(shapes).as_text().splitlines())

    assert lines(6, scan=True) == lines(3, scan=True)
    assert lines(6, scan=False) > 1.5 * lines(3, scan=False)


# --- Parameters --------------------------------------------------------------------------------


@VERSIONS
def test_stacking_and_unstacking_are_inverse(t5: T5Config) -> None:
    t5 = dataclasses.replace(t5, num_encoder_layers=3)
    params = random_params(t5)
    stacked = layer_stacking.stack_layers(params)
    model = model_of(t5, scan=True)
    expected = nn.meta.unbox(
        jax.eval_shape(lambda: model.init(jax.random.key(0), random_batch(), deterministic=True))
    )["params"]
    assert jax.tree.map(np.shape, stacked) == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert stacked["encoder"]["encoder"]["mlp"]["wo"]["kernel"].shape == (24, 3, 16)
    assert_close(layer_stacking.unstack_layers(stacked), params, rtol=0)
    assert_close(layer_stacking.stack_layers(stacked), stacked, rtol=0)
    assert_close(layer_stacking.unstack_layers(params), params, rtol=0)
    leaves = jax.tree.leaves(layer_stacking.stack_layers(jax.tree.map(jnp.asarray, params)))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stacked))


def test_layers_that_differ_are_not_stacked() -> None:
    params = random_params(dataclasses.replace(V1_0, num_encoder_layers=3))
    del params["encoder"]["layers_1"]["mlp"]["wo"]
    message = r"as encoder/encoder/mlp/wo/kernel have shapes \{0: \(24, 16\), 2: .*layers 0 to 2"
    with pytest.raises(ValueError, match=message):
        layer_stacking.stack_layers(params)
    params = random_params(V1_0)
    params["decoder"]["layers_1"]["mlp"]["wo"]["kernel"] = np.zeros((24, 17), np.float32)
    with pytest.raises(ValueError, match=r"decoder/decoder/mlp/wo/kernel .*1: \(24, 17\)"):
        layer_stacking.stack_layers(params)


@pytest.mark.parametrize(
    "optimizer",
    [
        Adafactor(Schedule("constant", 0.1), weight_decay=0.01),
        AdamW(Schedule("constant", 0.1), weight_decay=0.1, max_grad_norm=1.0),
    ],
    ids=["adafactor", "adamw"],
)
def test_updates_are_those_of_the_layers_one_by_one(optimizer) -> None:
    # Wide enough for Adafactor to factor the second moments; layers of very different scales.
    t5 = dataclasses.replace(V1_1, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=160)
    params = layer_stacking.stack_layers(random_params(t5))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf * np.float32([[1.0], [0.1], [0.01]])[: leaf.shape[1]]
            if layer_stacking.is_stacked(jax.tree_util.keystr(path, simple=True, separator="/"))
            and leaf.ndim == 3
            else leaf
        ),
        params,
    )
    transformation = optimizer.build(10)

    def trained(params: dict, arrange) -> dict:
        state = transformation.init(params)
        for step in range(3):
            gradient = arrange(random_params(t5, seed=step + 1))
            updates, state = jax.jit(transformation.update)(gradient, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params

    found = trained(params, layer_stacking.stack_layers)
    expected = trained(layer_stacking.unstack_layers(params), layer_stacking.unstack_layers)
    assert_close(layer_stacking.unstack_layers(found), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("t5", "scan"), [(V1_0, False), (V1_1, True)], ids=["v1_0", "v1_1_scanned"]
)
def test_transposed_kernels_compute_the_same(t5: T5Config, scan: bool) -> None:
    model, params, batch = model_of(t5, scan=scan), random_params(t5), random_batch()
    if scan:
        params = layer_stacking.stack_layers(params)
    turned_model, turned = transposed_kernels.for_search(model, params)
    expected = jax.jit(functools.partial(model.apply, deterministic=True))(
        {"params": params}, batch
    )
    apply = jax.jit(functools.partial(turned_model.apply, deterministic=True))
    np.testing.assert_allclose(apply({"params": turned}, batch), expected, rtol=1e-5, atol=1e-5)
    # Every kernel of the stacks is turned, nothing else, and never twice.
    initial = jax.eval_shape(functools.partial(turned_model.init, deterministic=True),
                             jax.random.key(0), batch)["params"]  # fmt: skip
    shapes = functools.partial(jax.tree.map, jnp.shape)
    assert shapes(turned) == shapes(nn.meta.unbox(initial))
    again_model, again = transposed_kernels.for_search(turned_model, turned)
    assert again_model == turned_model
    assert shapes(again) == shapes(turned)
    assert T5Config.from_json(turned_model.config.t5.to_json()) == model.config.t5
