"""The dual encoder's model: pooling, projection, towers, scale."""

import dataclasses
import functools
import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.dual_encoder import LARGEST_SCALE, DualEncoderConfig, DualEncoderModel
from dsi_jax.models.t5 import T5Config

T5 = T5Config(
    vocab_size=20,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=1,
)


def make_batch(seed=0, rows=3):
    rng = np.random.default_rng(seed)
    sides = {}
    for side, length in (("text", 5), ("document", 9)):
        tokens = rng.integers(2, 20, (rows, length)).astype(np.int32)
        tokens[np.arange(length) >= rng.integers(1, length + 1, (rows, 1))] = 0
        sides[side] = {"tokens": tokens, "mask": tokens != 0}
    return sides


def new(**options):
    model = DualEncoderModel(DualEncoderConfig(T5, **options))
    variables = jax.jit(lambda key, batch: model.init(key, batch, deterministic=True))(
        jax.random.key(0), make_batch()
    )
    return model, nn.meta.unbox(variables["params"])


def apply(model, params, batch, **options):
    return jax.jit(functools.partial(model.apply, **options))({"params": params}, batch)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("embedding_dim", [None, 6])
def test_embedding_is_that_of_pooled_states(pooling, embedding_dim):
    model, params = new(pooling=pooling, embedding_dim=embedding_dim)
    text = make_batch()["text"]
    dsi = DSIModel(DSIConfig(T5, docid_vocab_size=3, docid_length=1))
    shared = {name: params[name] for name in ("token_embedder", "encoder")}
    states, _ = apply(dsi, shared, {"text": text}, method="encode")
    found = apply(model, params, {"text": text}, method="encode_query")
    for i, (state, mask) in enumerate(zip(np.asarray(states), text["mask"], strict=True)):
        pooled = state[mask].mean(axis=0) if pooling == "mean" else state[0]
        if embedding_dim is not None:
            pooled = pooled @ np.asarray(params["projection"]["kernel"])
        np.testing.assert_allclose(found[i], pooled / np.linalg.norm(pooled), atol=1e-5)


def test_padding_changes_nothing():
    model, params = new()
    text = make_batch()["text"]
    wider = {name: np.pad(array, [(0, 0), (0, 4)]) for name, array in text.items()}
    np.testing.assert_allclose(
        apply(model, params, {"text": text}, method="encode_query"),
        apply(model, params, {"text": wider}, method="encode_query"),
        atol=1e-6,
    )


def test_text_without_tokens_is_the_zero_vector_and_has_a_gradient():
    model, params = new()
    empty = {"tokens": np.zeros((1, 4), np.int32), "mask": np.zeros((1, 4), bool)}

    def total(params):
        return apply(model, params, {"text": empty}, method="encode_query").sum()

    value, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert value == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_one_encoder_serves_both_sides():
    model, params = new()
    text = make_batch()["text"]
    found = apply(model, params, {"text": text, "document": text}, deterministic=True)
    np.testing.assert_array_equal(found.queries, found.documents)
    # Under the paths of a DSI, so that its parameters, or T5's, fit in.
    dsi = DSIModel(DSIConfig(T5, docid_vocab_size=3, docid_length=1))
    batch = make_batch() | {"decoder": {"inputs": np.zeros((3, 1), np.int32)}}
    theirs = jax.eval_shape(lambda: dsi.init(jax.random.key(0), batch, deterministic=True))
    theirs = traverse_util.flatten_dict(nn.meta.unbox(theirs["params"]), sep="/")
    encoder = {path: leaf.shape for path, leaf in theirs.items() if "decoder" not in path}
    encoder = {path: shape for path, shape in encoder.items() if "docid" not in path}
    mine = traverse_util.flatten_dict(params, sep="/")
    assert {path: leaf.shape for path, leaf in mine.items()} == encoder | {"log_scale": ()}


def test_two_encoders_are_the_same_twice():
    model, params = new(shared=False, embedding_dim=6, learn_scale=False)
    query = {path: leaf for path, leaf in params.items() if path != "document"}
    assert jax.tree.map(jnp.shape, query) == jax.tree.map(jnp.shape, params["document"])
    text = make_batch()["text"]
    found = apply(model, params, {"text": text, "document": text}, deterministic=True)
    assert not np.allclose(found.queries, found.documents)
    equal = params | {"document": query}
    found = apply(model, equal, {"text": text, "document": text}, deterministic=True)
    np.testing.assert_array_equal(found.queries, found.documents)


def test_scale_is_fixed_or_learnt_up_to_a_limit():
    fixed, params = new(scale=7.0, learn_scale=False)
    assert "log_scale" not in params
    assert apply(fixed, params, make_batch(), deterministic=True).scale == 7.0
    learnt, params = new(scale=7.0)
    assert params["log_scale"] == pytest.approx(math.log(7.0))
    assert apply(learnt, params, make_batch(), deterministic=True).scale == pytest.approx(7.0)
    params = params | {"log_scale": jnp.float32(9.0)}
    assert apply(learnt, params, make_batch(), deterministic=True).scale == LARGEST_SCALE


def test_dropout_needs_a_key_and_changes_the_embeddings():
    model, params = new()
    batch = make_batch()
    run = jax.jit(functools.partial(model.apply, {"params": params}, batch, deterministic=False))
    one, two = (run(rngs={"dropout": jax.random.key(seed)}) for seed in (0, 1))
    assert not np.allclose(one.queries, two.queries)


def test_config_survives_json():
    config = DualEncoderConfig(T5, embedding_dim=4, pooling="first", shared=False, scale=5.0)
    assert DualEncoderConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match=r"unknown fields \['docid_length'\]"):
        DualEncoderConfig.from_json(config.to_json() | {"docid_length": 3})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pooling": "max"}, r"pooling is 'max'; expected one of \('mean', 'first'\)"),
        ({"embedding_dim": 0}, "embedding_dim is 0; expected at least 1"),
        ({"scale": 0.0}, r"scale is 0.0; expected it in \(0, 100\]"),
        ({"scale": 101.0}, r"scale is 101.0"),
    ],
)
def test_impossible_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DualEncoderConfig(T5), **option)
