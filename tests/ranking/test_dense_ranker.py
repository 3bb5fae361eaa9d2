"""Exact search against sorting in NumPy; documents embedded once for each set of parameters."""

import functools
import gc

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.dense_ranker import DenseRanker
from dsi_jax.ranking.docid_ranker import to_host
from dsi_jax.ranking.document_embedder import DocumentEmbedder
from dsi_jax.ranking.document_inputs import DocumentInputs
from dsi_jax.ranking.top_k import exact_top_k
from dsi_jax.storage.embeddings import EmbeddingStore
from dsi_jax.training import partitioning

LENGTH = 6
TEXTS = [f"{i * i} {'abcdefghijk'[i:]}"[i % 2 :] for i in range(11)]
MESH = partitioning.one_device_mesh()


def by_sorting(queries, documents, k):
    """Rows and scores [Q, k], equal scores in the order of rows, -1 where documents end."""
    scores = queries.astype(np.float64) @ documents.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    missing = [(0, 0), (0, max(0, k - len(documents)))]
    return np.pad(order, missing, constant_values=-1), np.pad(
        best, missing, constant_values=-np.inf
    )


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("chunk_size", [1, 4, 5, 16, 17, 64])
def test_top_k_equals_sorting(k, chunk_size):
    rng = np.random.default_rng(k)
    queries, documents = rng.normal(size=(6, 8)), rng.normal(size=(17, 8))
    queries, documents = queries.astype(np.float32), documents.astype(np.float32)
    for count in (17, 13):  # the rest pads
        found = exact_top_k(queries, documents[None], count, k=k, mesh=MESH, chunk_size=chunk_size)
        rows, scores = by_sorting(queries, documents[:count], k)
        np.testing.assert_array_equal(found.rows, rows)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        np.testing.assert_array_equal(found.valid, rows >= 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 3, 8]), st.sampled_from([2, 7]))
def test_equal_scores_keep_the_order_of_rows(seed, chunk_size, k):
    rng = np.random.default_rng(seed)
    # Products of small integers are exact, and many are equal.
    queries, documents = rng.integers(-1, 2, (3, 2)), rng.integers(-1, 2, (10, 2))
    queries, documents = queries.astype(np.float32), documents.astype(np.float32)
    found = exact_top_k(queries, documents[None], 10, k=k, mesh=MESH, chunk_size=chunk_size)
    rows, scores = by_sorting(queries, documents, k)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.fixture(scope="module")
def encoder():
    """A model, its parameters and the documents."""
    t5 = T5Config(
        vocab_size=259,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    model = DualEncoderModel(DualEncoderConfig(t5, embedding_dim=8))
    inputs = DocumentInputs(TEXTS, ByteTokenizer(), LENGTH)
    batch = inputs(np.arange(2))
    batch = {"text": batch, "document": batch}
    params = jax.jit(model.init, static_argnames="deterministic")(
        jax.random.key(0), batch, deterministic=True
    )["params"]
    return model, nn.meta.unbox(params), inputs


def embed(model, params, texts):
    batch = Inputs(ByteTokenizer(), {"inputs": LENGTH}).texts(texts)
    apply = jax.jit(functools.partial(model.apply, method="encode_document"))
    return np.asarray(apply({"params": params}, batch))


def test_documents_are_tokenized_by_row(encoder):
    inputs = encoder[2]
    rows = np.array([3, 0, 3])
    batch = inputs(rows)
    np.testing.assert_array_equal(
        batch["tokens"], ByteTokenizer().encode_batch([TEXTS[row] for row in rows], LENGTH)
    )
    np.testing.assert_array_equal(batch["mask"], batch["tokens"] != 0)
    shapes = inputs.shapes(3)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("batch_size", [3, 11, 50])
def test_embedder_embeds_every_document(encoder, batch_size):
    model, params, inputs = encoder
    embedder = DocumentEmbedder(model, inputs, mesh=MESH, batch_size=batch_size)
    *_, embeddings = embedder.batches(params)
    assert embeddings.shape[0] == 1
    np.testing.assert_allclose(
        embeddings[0, : len(TEXTS)], embed(model, params, TEXTS), rtol=1e-5, atol=1e-6
    )


def test_searcher_finds_the_nearest_documents(encoder):
    model, params, inputs = encoder
    searcher = DenseRanker(model, inputs, beam_size=4)
    queries = ["document", "7 hh", "abc"]
    batch = {"text": Inputs(ByteTokenizer(), {"inputs": LENGTH}).texts(queries)}
    rows, scores = by_sorting(embed(model, params, queries), embed(model, params, TEXTS), 11)
    for beam_size, count in ((None, 4), (2, 2), (50, 11)):
        found = to_host(searcher.search(params, batch, beam_size))
        np.testing.assert_array_equal(found.rows, rows[:, :count])
        np.testing.assert_allclose(found.scores, scores[:, :count], rtol=1e-5, atol=1e-6)
        assert found.valid.all()


def test_documents_are_embedded_once_for_each_set_of_parameters(encoder, monkeypatch):
    model, params, inputs = encoder
    searcher = DenseRanker(model, inputs, beam_size=2)
    batch = {"text": Inputs(ByteTokenizer(), {"inputs": LENGTH}).texts(["document"])}
    passes = []
    batches = searcher._embedder.batches

    def counted(params):
        passes.append(1)
        return batches(params)

    monkeypatch.setattr(searcher._embedder, "batches", counted)
    assert sum(1 for _ in searcher.prepare(params)) == 1  # a pause after the only batch
    assert sum(1 for _ in searcher.prepare(params)) == 0
    searcher.search(params, batch)
    assert len(passes) == 1
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    searcher.search(other, batch)
    assert len(passes) == 2
    assert searcher._embeddings is not None
    del other
    gc.collect()
    assert searcher._embeddings is None  # no memory is kept for parameters that are gone


def test_embeddings_are_kept_on_disk(encoder, tmp_path, monkeypatch):
    model, params, inputs = encoder
    batch = {"text": Inputs(ByteTokenizer(), {"inputs": LENGTH}).texts(TEXTS)}
    expected = to_host(DenseRanker(model, inputs, beam_size=3).search(params, batch))

    def search(store):
        return to_host(DenseRanker(model, inputs, beam_size=3, store=store).search(params, batch))

    old, store = (EmbeddingStore(tmp_path / "embeddings", key) for key in ("old", "new"))
    for either in (old, store):
        jax.tree.map(np.testing.assert_array_equal, search(either), expected)
    (file,) = (tmp_path / "embeddings").iterdir()
    assert file.name == "new.npy"
    with monkeypatch.context() as patch:
        patch.delattr(DocumentEmbedder, "batches")
        jax.tree.map(np.testing.assert_array_equal, search(store), expected)
    # What is damaged or of another size is made anew; what cannot be written is not kept.
    whole = file.read_bytes()
    for damaged in (whole[:100], b"", whole[:-40]):
        file.write_bytes(damaged)
        jax.tree.map(np.testing.assert_array_equal, search(store), expected)
        assert file.read_bytes() == whole
    np.save(file, np.zeros((len(TEXTS), 5), np.float32))
    jax.tree.map(np.testing.assert_array_equal, search(store), expected)
    (tmp_path / "file").write_text("")
    search(EmbeddingStore(tmp_path / "file", "key"))


def test_interrupted_preparation_leaves_nothing_half_done(encoder):
    model, params, inputs = encoder
    searcher = DenseRanker(model, inputs, beam_size=2)
    searcher._embedder = DocumentEmbedder(model, inputs, mesh=MESH, batch_size=3)
    next(searcher.prepare(params))
    batch = {"text": Inputs(ByteTokenizer(), {"inputs": LENGTH}).texts(TEXTS)}
    rows = to_host(searcher.search(params, batch)).rows
    np.testing.assert_array_equal(rows[:, 0], np.arange(len(TEXTS)))
