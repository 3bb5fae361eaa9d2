"""The lexical head against a sparse matrix product, alone and beside a decoder."""

import dataclasses
import json

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from dsi_jax.docids.table import FIRST_CODE
from dsi_jax.inputs import streams
from dsi_jax.models.dsi import FIRST_DOCUMENT, DSIConfig, DSIModel
from dsi_jax.models.lexical_head import LexicalHead, LexicalHeadConfig
from dsi_jax.models.t5 import T5Config

T5 = T5Config(
    vocab_size=50,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
B, W, S, IDS, N, V = 3, 4, 5, 7, 6, 10


@st.composite
def postings(draw):
    """(parameters, sparse [ids, N]): random postings of each id but 0, some of none.

    Postings behind those of the last id belong to nobody, so that all examples have one shape.
    """
    lists = [[]] + [draw(st.lists(st.integers(0, N - 1), unique=True)) for _ in range(IDS - 1)]
    indptr = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    documents = np.array([d for own in lists for d in own], np.int32)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weights = rng.normal(size=len(documents)).astype(np.float32)
    sparse = sp.csr_matrix((weights, documents, indptr), (IDS, N))
    rest = IDS * N - len(documents)
    documents = np.append(documents, rng.integers(0, N, rest, dtype=np.int32))
    weights = np.append(weights, rng.normal(size=rest).astype(np.float32))
    return {"indptr": indptr, "documents": documents, "weights": weights}, sparse


@st.composite
def words(draw):
    """int32 [B, W]: distinct known ids, then zeros; also none at all."""
    rows = []
    for _ in range(B):
        own = draw(st.lists(st.integers(1, IDS - 1), unique=True, max_size=W))
        rows.append(own + [0] * (W - len(own)))
    return np.array(rows, np.int32)


@jax.jit
def scores_of(params, words_BxW):
    head = LexicalHead(LexicalHeadConfig(IDS, IDS * N, N, N))
    return head.apply({"params": params}, words_BxW)


@hypothesis.settings(max_examples=60)
@hypothesis.given(postings(), words())
def test_scores_equal_the_sparse_product(head, words_BxW):
    params, sparse = head
    query_BxI = np.zeros((B, IDS))
    np.put_along_axis(query_BxI, words_BxW, 1, axis=1)
    query_BxI[:, 0] = 0
    scores = scores_of(params, words_BxW)
    assert scores.shape == (B, N)
    np.testing.assert_allclose(scores, query_BxI @ sparse, rtol=1e-5, atol=1e-5)


def example():
    rng = np.random.default_rng(1)
    sparse = sp.random(IDS - 1, N, 0.6, "csr", rng=rng, dtype=np.float32)
    sparse = sp.vstack([sp.csr_matrix((1, N), dtype=np.float32), sparse], "csr")
    head = LexicalHeadConfig(IDS, sparse.nnz, int(np.diff(sparse.indptr).max()), N)
    own = {"indptr": sparse.indptr, "documents": sparse.indices, "weights": sparse.data}
    own = {name: jnp.asarray(value) for name, value in own.items()}
    batch = {
        "text": {
            "tokens": rng.integers(1, T5.vocab_size, (B, S), dtype=np.int32),
            "mask": np.ones((B, S), bool),
            "words": np.array([[1, 3, 0, 0], [0, 0, 0, 0], [6, 2, 5, 4]], np.int32),
        },
        "decoder": {"inputs": np.zeros((B, 1), np.int32)},
    }
    model = DSIModel(DSIConfig(T5, V, 1, lexical_head=head))
    params = nn.meta.unbox(model.init(jax.random.key(0), batch, deterministic=True)["params"])
    assert params["lexical_head"].keys() == own.keys()
    for name, value in own.items():
        assert params["lexical_head"][name].shape == value.shape
        assert params["lexical_head"][name].dtype == value.dtype
    prior = np.zeros((B, V), np.float32)
    query = np.zeros((B, IDS))
    np.put_along_axis(query, batch["text"]["words"], 1, axis=1)
    query[:, 0] = 0
    prior[:, FIRST_DOCUMENT : FIRST_DOCUMENT + N] = query @ sparse
    return model, params | {"lexical_head": own}, batch, prior


def test_logits_are_those_of_the_decoder_and_the_prior():
    model, params, batch, prior = example()
    plain = DSIModel(dataclasses.replace(model.config, lexical_head=None))
    without = {name: value for name, value in params.items() if name != "lexical_head"}
    expected = plain.apply({"params": without}, batch, deterministic=True)
    found = model.apply({"params": params}, batch, deterministic=True)
    np.testing.assert_allclose(found.logits, expected + prior[:, None], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.lexical, prior[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.logits[1], expected[1])  # of no known word


def test_cached_step_equals_teacher_forcing():
    model, params, batch, _ = example()
    variables = {"params": params}
    whole = model.apply(variables, batch, deterministic=True).logits
    memory, mask = model.apply(variables, batch, method="encode")
    beams = 2
    cache = model.apply(variables, memory, mask, num_beams=beams, length=1, method="init_cache")
    first = np.zeros((B, beams), np.int32)
    lineage = np.broadcast_to(np.arange(beams, dtype=np.int32)[:, None], (B, beams, 1))
    logits, after = model.apply(variables, cache, first, 0, lineage, method="decode_step")
    assert jax.tree.structure(after) == jax.tree.structure(cache)
    for beam in range(beams):
        np.testing.assert_allclose(logits[:, beam], whole[:, 0], rtol=1e-5, atol=1e-5)


def test_images_have_no_words_and_no_scores():
    model, params, batch, prior = example()
    batch = {"text": batch["text"], "image": {"pixels": np.zeros((B, 2, 2, 3), np.uint8)}}
    scores = model.apply({"params": params}, batch, method="_document_scores")
    documents = prior[:, FIRST_DOCUMENT : FIRST_DOCUMENT + N]
    expected = streams.interleave([documents, np.zeros_like(documents)])
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_without_words_is_refused():
    model, params, batch, _ = example()
    del batch["text"]["words"]
    with pytest.raises(ValueError, match=r"\['mask', 'tokens'\]; a lexical head expects 'words'"):
        model.apply({"params": params}, batch, method="encode")


def test_config_is_plain_json_and_that_of_older_checkpoints_loads():
    model, *_ = example()
    value = json.loads(json.dumps(model.config.to_json()))
    assert DSIConfig.from_json(value) == model.config
    older = dataclasses.replace(model.config, lexical_head=None)
    value = json.loads(json.dumps(older.to_json()))
    assert "lexical_head" not in value
    assert DSIConfig.from_json(value) == older


def test_first_document_is_the_first_code_of_a_table():
    assert FIRST_DOCUMENT == FIRST_CODE


def test_impossible_configs_are_refused():
    head = LexicalHeadConfig(IDS, 4, 2, N)
    with pytest.raises(ValueError, match=r"docids of length 3 .*for atomic docids so far"):
        DSIConfig(T5, V, 3, lexical_head=head)
    with pytest.raises(ValueError, match="in 'text' space; it is for atomic docids so far"):
        DSIConfig(T5, T5.vocab_size, 1, "text", lexical_head=head)
    with pytest.raises(ValueError, match="has 6 documents; expected at most the 5"):
        DSIConfig(T5, 7, 1, lexical_head=head)
    with pytest.raises(ValueError, match=r"num_postings is 0; expected at least 1"):
        LexicalHeadConfig(IDS, 0, 2, N)
