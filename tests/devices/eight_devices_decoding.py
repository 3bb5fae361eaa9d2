"""Cases for eight simulated devices; `test_partitioning.py` runs them in a process of their own."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.decoding import single_token
from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.constraint import TrieConstraint
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.table import DocidTable
from dsi_jax.jobs.precompile import collectives
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.docid_ranker import DocidRanker, to_host
from dsi_jax.training import partitioning
from dsi_jax.training.partitioning import MeshConfig

ROWS, S, N = 8, 6, 300
V = 304  # two tokens have no document besides pad and end
MESHES = {"model": MeshConfig(data=1, model=8), "data": MeshConfig(data=2, model=4)}


def make_table() -> DocidTable:
    codes = np.random.default_rng(0).permutation(N + 2)[:N, None]
    return DocidTable.from_codes(
        codes,
        num_codes=N + 2,
        keys=[f"d{row}" for row in range(N)],
        kind="test",
        parameters={},
        corpus_hash="",
    )


TABLE = make_table()
MODEL = DSIModel(
    DSIConfig(
        T5Config(
            vocab_size=32,
            emb_dim=32,
            num_heads=8,
            head_dim=4,
            mlp_dim=32,
            num_encoder_layers=1,
            num_decoder_layers=1,
        ),
        docid_vocab_size=V,
        docid_length=1,
    )
)
TOKENS = np.random.default_rng(1).integers(1, 32, (ROWS, S)).astype(np.int32)
BATCH = {"text": {"tokens": TOKENS, "mask": TOKENS != 0}}


@functools.cache
def boxed_params():
    batch = BATCH | {"decoder": {"inputs": np.zeros([1, 1], np.int32)}}
    init = jax.jit(functools.partial(MODEL.init, deterministic=True))
    return init(jax.random.key(0), batch)["params"]


def placed(name: str):
    """DocidRanker arguments of a mesh, and the parameters on it."""
    mesh = partitioning.make_mesh(MESHES[name])
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed_params(), mesh)
    shardings = partitioning.param_shardings(boxed_params(), mesh, rules)
    return {"mesh": mesh, "rules": rules}, jax.device_put(nn.meta.unbox(boxed_params()), shardings)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("beam_size", [5, 100])  # 100 are more than a part has
def test_atomic_search_on_a_mesh_equals_that_on_one_device(name, beam_size):
    options, params = placed(name)
    expected = DocidRanker(MODEL, TABLE, beam_size=beam_size).search(
        nn.meta.unbox(boxed_params()), BATCH
    )
    searcher = DocidRanker(MODEL, TABLE, beam_size=beam_size, **options)
    found = to_host(searcher.search(params, BATCH))
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    allowed = np.random.default_rng(2).random((ROWS, N)) < 0.2
    found = to_host(searcher.search(params, BATCH, allowed=allowed))
    for query in range(ROWS):
        rows = found.rows[query][found.valid[query]]
        assert len(rows) == min(beam_size, allowed[query].sum())
        assert allowed[query, rows].all()


@pytest.mark.parametrize("name", MESHES)
def test_known_tokens_are_scored_at_once_on_a_mesh(name):
    """The first of six tokens tells all documents apart."""
    codes = np.random.default_rng(0).integers(0, 40, (40, 6))
    codes[:, 0] = np.arange(40)
    table = DocidTable.from_codes(
        codes,
        num_codes=46,  # and two more tokens, which all meshes split
        keys=[f"d{row}" for row in range(40)],
        kind="test",
        parameters={},
        corpus_hash="",
    )
    trie = build_trie(table)
    assert trie.jump is not None
    config = dataclasses.replace(
        MODEL.config, docid_vocab_size=table.vocab_size, docid_length=table.length
    )
    model = DSIModel(config)
    init = jax.jit(functools.partial(model.init, deterministic=True))
    batch = BATCH | {"decoder": {"inputs": np.zeros([1, table.length], np.int32)}}
    boxed = init(jax.random.key(0), batch)["params"]
    mesh = partitioning.make_mesh(MESHES[name])
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed, mesh)
    shardings = partitioning.param_shardings(boxed, mesh, rules)
    params = nn.meta.unbox(boxed)
    searcher = DocidRanker(model, table, beam_size=5, mesh=mesh, rules=rules)
    found = to_host(searcher.search(jax.device_put(params, shardings), BATCH))
    steps = TrieConstraint(dataclasses.replace(trie, jump=None))
    expected = make_search(model, beam_size=5)(params, BATCH, steps)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


def gathered_bytes(name: str) -> int:
    """Bytes of the largest array that a device gathers in a search of five beams."""
    options, params = placed(name)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    searcher = DocidRanker(MODEL, TABLE, beam_size=5, **options)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH)
    found = collectives.find(searcher.lower(shapes, batch).compile().as_text())
    return max(each.result_bytes for each in found if each.kind == "all-gather")


@pytest.mark.parametrize("name", MESHES)
def test_logits_are_not_gathered(name, monkeypatch):
    logits = 4 * ROWS * V // MESHES[name].data
    assert gathered_bytes(name) < logits // 2
    monkeypatch.setattr(single_token, "two_stage_top_k", jax.lax.top_k)
    assert gathered_bytes(name) >= logits  # as it would be


@pytest.mark.parametrize("name", MESHES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99))
def test_equal_scores_keep_their_order(name, seed):
    options, _ = placed(name)
    scores = np.random.default_rng(seed).integers(0, 4, (ROWS, V)).astype(np.float32)
    with partitioning.activate(**options):
        best, index = jax.jit(single_token.two_stage_top_k, static_argnums=1)(scores, 7)
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(best, np.take_along_axis(scores, expected, axis=1))
