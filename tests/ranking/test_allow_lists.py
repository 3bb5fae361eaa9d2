"""Allow-lists and deny-lists through the Retriever, against the scores of all documents."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsi_jax.decoding.score import score_docids
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.allow_lists import AllowLists, rows_of
from dsi_jax.retriever import Retriever
from dsi_jax.storage.string_columns import open_columns, write_columns

N, S = 24, 8
KEYS = [f"k{row}" for row in range(N)]
QUERIES = ["ants", "bees work", "wasps"]
T5 = T5Config(
    vocab_size=ByteTokenizer().vocab_size,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


def make_table() -> DocidTable:
    """Docids of one to three codes out of five, of which some documents share one."""
    rng = np.random.default_rng(0)
    return DocidTable.from_codes(
        rng.integers(0, 5, (N, 3)),
        rng.integers(1, 4, N),
        num_codes=5,
        keys=KEYS,
        kind="test",
        parameters={},
        corpus_hash="",
        tie_seed=0,
    )


def init(model, batch):
    params = jax.jit(functools.partial(model.init, deterministic=True))(jax.random.key(0), batch)
    return nn.meta.unbox(params["params"])


@pytest.fixture(scope="module")
def collection() -> Collection:
    texts = [f"text {row * 7}" for row in range(N)]
    return Collection(make_table(), texts, ByteTokenizer(), {"inputs": S})


@pytest.fixture(scope="module")
def dsi(collection):
    """A retriever, and the scores [B, N] of all documents, from teacher forcing."""
    table, text = collection.table, collection.inputs.texts(QUERIES)
    model = DSIModel(DSIConfig(T5, table.vocab_size, table.length))
    decoder = {"inputs": np.zeros([1, table.length], np.int32)}
    params = init(model, {"text": collection.inputs.texts(["a"]), "decoder": decoder})
    docids = table.docids(np.arange(N))
    scores = []
    for query in range(len(QUERIES)):
        repeated = jax.tree.map(lambda x, q=query: np.repeat(x[q : q + 1], N, axis=0), text)
        batch = {"text": repeated, "decoder": {"inputs": shift_right(docids)}}
        logits = model.apply({"params": params}, batch, deterministic=True)
        scores.append(score_docids(logits, docids))
    retriever = Retriever(model=model, params=params, collection=collection, beam_size=N)
    return retriever, np.stack(scores)


@pytest.fixture(scope="module")
def dual_encoder(collection):
    """The same for a dual encoder."""
    model = DualEncoderModel(DualEncoderConfig(T5))
    text = collection.inputs.texts(QUERIES)
    documents = collection.document_inputs(np.arange(N))
    params = init(model, {"text": text, "document": documents})
    queries = model.apply({"params": params}, {"text": text}, method="encode_query")
    embeddings = model.apply({"params": params}, documents, method="encode_document")
    retriever = Retriever(
        model=model, params=params, collection=collection, beam_size=N, method=DualEncoder()
    )
    return retriever, np.asarray(queries @ embeddings.T)


def assert_found(hits, scores_N, allowed):
    """The allowed documents, all of them, best first; near ties may change places."""
    rows = [hit.row for hit in hits]
    assert sorted(rows) == sorted(allowed)
    np.testing.assert_allclose([hit.score for hit in hits], scores_N[rows], atol=1e-4)
    np.testing.assert_allclose(scores_N[rows], np.sort(scores_N[rows])[::-1], atol=1e-4)


some = st.none() | st.lists(st.integers(0, N - 1), max_size=N)
per_query = some | st.lists(some, min_size=len(QUERIES), max_size=len(QUERIES))


def of_query(lists, query):
    """What `lists`, one for all or one a query, says of a query."""
    if lists is not None and any(item is None or isinstance(item, list) for item in lists):
        return lists[query]
    return lists


@pytest.mark.parametrize("kind", ["dsi", "dual_encoder"])
@settings(max_examples=15, deadline=None)
@given(allow=per_query, deny=per_query, by_key=st.booleans())
@example(allow=[], deny=None, by_key=True)
@example(allow=[[], None, [3, 3]], deny=[1], by_key=False)
@example(allow=None, deny=list(range(N)), by_key=True)
def test_documents_found_are_the_best_of_those_allowed(request, kind, allow, deny, by_key):
    retriever, scores = request.getfixturevalue(kind)

    def named(lists):
        if lists is None or not by_key:
            return lists
        return [
            KEYS[x] if isinstance(x, int) else None if x is None else [KEYS[row] for row in x]
            for x in lists
        ]

    found = retriever.search_batch(QUERIES, k=N, allow=named(allow), deny=named(deny))
    for query, hits in enumerate(found):
        own, not_own = of_query(allow, query), of_query(deny, query)
        allowed = set(range(N) if own is None else own) - set(not_own or [])
        assert_found(hits, scores[query], allowed)


@pytest.mark.parametrize("kind", ["dsi", "dual_encoder"])
def test_lists_compile_two_programs_and_no_other(request, kind, compiled):
    """One for lists of all queries, one for lists of each; whatever is on them."""
    retriever, _ = request.getfixturevalue(kind)
    retriever.search_batch(QUERIES[:2], k=7, allow=[1, 2, 3])
    retriever.search_batch(QUERIES[:2], k=7, deny=[[1], [2]])
    compiled.clear()
    retriever.search_batch(QUERIES, k=5, allow=np.arange(17))
    retriever.search_batch(QUERIES[1:], k=5, deny=["k3"], allow=[None, [5, 6]])
    retriever.search_batch(QUERIES[1:], k=5, allow=[])
    assert not compiled
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert compiled


def test_the_k_best_of_those_allowed(dsi):
    retriever, _ = dsi
    for hits, every in zip(
        retriever.search_batch(QUERIES, k=4, deny=["k0", "k1"]),
        retriever.search_batch(QUERIES, k=N, deny=["k0", "k1"]),
        strict=True,
    ):
        assert hits == every[:4]


def test_lists_of_batches_that_are_cut(dsi, monkeypatch):
    """More queries than the largest program takes: each keeps its own list."""
    monkeypatch.setattr("dsi_jax.retriever._BATCH_SIZES", (8,))
    lists = [[query % N] for query in range(19)]
    found = dsi[0].search_batch(["ants"] * 19, k=3, allow=lists)
    assert [[hit.row for hit in hits] for hits in found] == lists


def test_free_beams_heed_no_lists(dsi, collection):
    retriever, _ = dsi
    free = Retriever(
        model=retriever.model, params=retriever.params, collection=collection, constraint="free"
    )
    with pytest.raises(ValueError, match="constraint is 'free'; expected 'trie'"):
        free.search("ants", allow=["k1"])


@pytest.mark.parametrize("kind", ["dsi", "dual_encoder"])
def test_rankers_are_given_a_bool_for_each_document(request, kind):
    retriever, _ = request.getfixturevalue(kind)
    batch = {"text": retriever.collection.inputs.texts(QUERIES)}
    for bad in (np.ones([2, N], bool), np.ones([3, N - 1], bool), np.ones([3, N], np.int32)):
        with pytest.raises(ValueError, match=r"expected bool of shape \(1, 24\) or \(3, 24\)"):
            retriever._ranker.search(retriever.params, batch, allowed=bad)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (
            ["k1", "x", "y"],
            "allow has 2 of 3 keys that no document has, first 'x'; .* such as 'k0'",
        ),
        ([0, N], "allow has the row 24; expected rows of the 24 documents"),
        ([-1], "allow has the row -1"),
        ([0.5], "allow begins with 0.5; expected all keys, or all whole rows"),
        (["k1", 2], "allow begins with 'k1'; expected all keys"),
        (np.ones(N, bool), "allow begins with .*True"),
        ([["k1"], None], "allow has 2 lists for 3 queries"),
        ([["k1"], None, ["x"]], r"allow\[2\] has 1 of 1 keys that no document has, first 'x'"),
    ],
)
def test_bad_lists_are_named(dsi, lists, message):
    with pytest.raises(ValueError, match=message):
        dsi[0].search_batch(QUERIES, allow=lists)


def test_keys_of_a_mapped_table_are_looked_up(tmp_path):
    write_columns(tmp_path / "keys.arrow", {"key": KEYS}, rows_per_batch=7)
    (keys,) = open_columns(tmp_path / "keys.arrow", ["key"])
    assert rows_of(["k23", "k0", "k8", "k0"], keys, "list").tolist() == [23, 0, 8, 0]
    assert AllowLists(keys, 2, deny=["k8"]).of(slice(0, 2), 8).tolist() == [
        [r != 8 for r in range(N)]
    ]
    assert AllowLists(keys, 2).of(slice(0, 2), 8) is None
