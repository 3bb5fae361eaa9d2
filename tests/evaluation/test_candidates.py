"""Where a protocol says which images may be found, only these are ranked: against brute force."""

import functools
import json
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import CaptionedImages, ImageCorpus
from dsi_jax.data.readers import demo_image
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.data.seqio_tasks import images as image_tasks
from dsi_jax.data.seqio_tasks import metrics
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.table import DocidTable
from dsi_jax.evaluation import image_samples
from dsi_jax.evaluation.bm25 import BM25
from dsi_jax.evaluation.config import Evaluation, Target
from dsi_jax.evaluation.evaluator import candidates, has_texts
from dsi_jax.evaluation.run_evaluator import RunEvaluator
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.methods.dsi import DSI
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.dense_ranker import DenseRanker
from dsi_jax.ranking.docid_ranker import to_host
from dsi_jax.ranking.document_inputs import DocumentInputs

SPLITS = ["train", "test", "dev", "train", "test", "train", "dev", "test", "test", "train", "dev"]
TEST = np.flatnonzero([split == "test" for split in SPLITS])
LENGTH = 12
T5 = T5Config(
    vocab_size=ByteTokenizer().vocab_size,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)

pytestmark = pytest.mark.usefixtures("own_registries")


def make_corpus(protocol: str = "karpathy_test") -> ImageCorpus:
    scenes = demo_image.scenes(0, len(SPLITS))
    data = CaptionedImages(
        name="toy",
        keys=[f"k{row}" for row in range(len(SPLITS))],
        images=[demo_image.draw(s, [0, i, 0], jitter=False) for i, s in enumerate(scenes)],
        captions=[[f"picture p{row}", f"things{row}"] for row in range(len(SPLITS))],
        splits=SPLITS,
    )
    return image_protocols.make(data, protocol, seed=0)


@pytest.fixture(scope="module")
def corpus() -> ImageCorpus:
    return make_corpus()


def make_collection(corpus: ImageCorpus) -> Collection:
    table = NaiveString().build(DocumentColumns(corpus.keys, corpus.hash))
    texts = [f"text {row * 7}" for row in range(len(corpus))]
    return Collection(table, texts, ByteTokenizer(), {"inputs": LENGTH})


def init(model, batch):
    params = jax.jit(functools.partial(model.init, deterministic=True))(jax.random.key(0), batch)
    return nn.meta.unbox(params["params"])


@pytest.fixture(scope="module")
def dsi(corpus):
    """A model of random weights, the documents, its parameters."""
    collection = make_collection(corpus)
    table = collection.table
    config = DSIConfig(T5, docid_vocab_size=table.vocab_size, docid_length=table.length)
    model = DSIModel(config)
    inputs = {"inputs": np.zeros([1, table.length], np.int32)}
    text = collection.inputs.texts(["a"])
    return model, collection, init(model, {"text": text, "decoder": inputs})


def new_ranker(method, model, collection, *, beam_size, rows=None):
    return method.new_ranker(model, collection, method.ranking(beam_size=beam_size), rows=rows)


def ranked(ranker, params, collection, texts):
    return to_host(ranker.search(params, {"text": collection.inputs.texts(texts)}))


def only(rows_BxM, scores_BxM, allowed):
    """Of complete rankings what is left of some documents, in order."""
    kept = np.isin(rows_BxM, allowed)
    shape = (len(rows_BxM), len(allowed))
    return rows_BxM[kept].reshape(shape), scores_BxM[kept].reshape(shape)


@pytest.mark.parametrize("beam_size", [2, 50])
def test_dsi_ranks_the_candidates_as_if_there_were_no_others(corpus, dsi, beam_size):
    model, collection, params = dsi
    texts = corpus.queries["test"].texts
    new = functools.partial(new_ranker, DSI(), model, collection)
    everything = ranked(new(beam_size=50), params, collection, texts)
    rows, scores = only(everything.rows, everything.scores, TEST)
    found = ranked(new(beam_size=50, rows=TEST), params, collection, texts)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    few = ranked(new(beam_size=beam_size, rows=TEST), params, collection, texts)
    assert few.rows.shape == (len(texts), min(beam_size, len(TEST)))
    assert few.valid.all() and np.isin(few.rows, TEST).all()


def test_tied_candidates_keep_their_order():
    codes = np.array([[1], [0], [1], [1], [0], [1]])
    table = DocidTable.from_codes(
        codes,
        num_codes=2,
        keys=list("abcdef"),
        kind="tied",
        parameters={},
        corpus_hash="",
        tie_seed=3,
    )
    rows = np.array([0, 2, 4, 5])
    trie = build_trie(table, rows=rows)
    expected = [row for row in table.order if row in rows]
    assert trie.rows[trie.rows >= 0].tolist() == expected
    assert trie.runs[:3].tolist() == [0, 1, 4]


def test_equal_docids_of_candidates_are_named_by_their_rows():
    table = DocidTable.from_codes(
        np.array([[0], [1], [2], [1]]),
        num_codes=3,
        keys=list("abcd"),
        kind="equal",
        parameters={},
        corpus_hash="",
    )
    with pytest.raises(ValueError, match=r"'b' \(row 1\) and 'd' \(row 3\) share"):
        build_trie(table, rows=np.array([1, 2, 3]))
    build_trie(table, rows=np.array([0, 3]))


def test_dense_ranks_the_candidates_as_if_there_were_no_others(corpus):
    collection = make_collection(corpus)
    model = DualEncoderModel(DualEncoderConfig(T5))
    texts = corpus.queries["test"].texts
    text = collection.inputs.texts(texts)
    params = init(model, {"text": text, "document": text})
    new = functools.partial(new_ranker, DualEncoder(), model, collection)
    everything = ranked(new(beam_size=50), params, collection, texts)
    rows, scores = only(everything.rows, everything.scores, TEST)
    found = ranked(new(beam_size=50, rows=TEST), params, collection, texts)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)


def test_dense_embeds_no_others(corpus):
    asked = []

    class Inputs(DocumentInputs):
        def __call__(self, rows_B):
            asked.extend(rows_B.tolist())
            return super().__call__(rows_B)

    collection = make_collection(corpus)
    model = DualEncoderModel(DualEncoderConfig(T5))
    text = collection.inputs.texts(["a"])
    params = init(model, {"text": text, "document": text})
    inputs = Inputs(collection.texts, ByteTokenizer(), LENGTH)
    searcher = DenseRanker(model, inputs, rows=TEST)
    searcher.search(params, {"text": text})
    assert set(asked) == set(TEST.tolist())


def test_bm25_is_that_of_the_candidates():
    corpus = make_corpus("full_corpus")
    rows = np.array([0, 3, 5])  # images of captions to train on
    index = BM25(corpus, rows)
    found, scores = index.search(["p3 picture", "things3", "nothing"], 3)
    assert found[0, 0] == found[1, 0] == 3
    assert set(found[0].tolist()) == set(rows.tolist())
    assert found[1].tolist() == [3, -1, -1]
    assert (found[2] == -1).all() and (scores[2] == -np.inf).all()
    assert not has_texts(corpus, TEST) and has_texts(corpus, rows) and has_texts(corpus, None)


def test_candidates_are_of_own_tasks_and_their_split(corpus):
    tasks = image_tasks.register_image_tasks(corpus)
    own = candidates(corpus, tasks, Target(tasks.retrieval, "test"))
    np.testing.assert_array_equal(own, TEST)
    for target in (Target(tasks.indexing, "train"), Target("others", "test")):
        assert candidates(corpus, tasks, target) is None
    assert candidates(corpus, None, Target(tasks.retrieval, "test")) is None
    everything = make_corpus("full_corpus")
    assert candidates(everything, tasks, Target(tasks.retrieval, "test")) is None


def test_evaluation_reports_the_figures_of_the_candidates(corpus, dsi, tmp_path, monkeypatch):
    model, collection, params = dsi
    tasks = image_tasks.register_image_tasks(corpus)
    evaluations = RunEvaluator(
        Evaluation(beam_size=50, batch_size=4),
        directory=tmp_path,
        method=DSI(),
        model=model,
        assets=RunAssets(
            corpus=corpus,
            documents=None,
            tokenizer=collection.tokenizer,
            table=collection.table,
            table_path=tmp_path,
            tasks=tasks,
            mixture_or_task_name=tasks.mixture,
        ),
        collection=collection,
        write=True,
    )
    # The model has no encoder of images, which the indexing task asks back.
    monkeypatch.setattr(evaluations, "_targets_while_training", list)
    evaluations.finish(params, 7, train_seconds=1.0)
    summary = json.loads((tmp_path / "report.json").read_text())
    assert summary["protocol"] == "karpathy_test" and "bm25" not in summary
    text = (tmp_path / "report.txt").read_text()
    assert "protocol karpathy_test" in text
    assert f"toy_retrieval_test: {len(TEST)} of the documents may be found" in text
    found = set(re.findall(r"\bk\d+\b", text.partition("example searches:")[2]))
    assert found and found <= {f"k{row}" for row in TEST}
    assert (tmp_path / "contact_sheet.png").exists()
    (figures,) = summary["test"].values()
    queries = corpus.queries["test"]
    ranker = new_ranker(DSI(), model, collection, beam_size=50)
    everything = ranked(ranker, params, collection, queries.texts)
    rows, _ = only(everything.rows, everything.scores, TEST)
    targets = [
        metrics.Relevance(relevant, grades, False)
        for relevant, grades in zip(queries.relevant, queries.relevance, strict=True)
    ]
    expected = metrics.retrieval_metrics(targets, rows, {})
    assert {"hits@1", "mrr@10", "queries"} <= expected.keys()
    assert {name: figures[name] for name in expected} == pytest.approx(dict(expected))
    (run_file,) = (tmp_path / "inference_eval").glob("*.trec")
    lines = [line.split() for line in run_file.read_text().splitlines()]
    assert {line[2] for line in lines} == {f"k{row}" for row in TEST}


def test_contact_sheet_asks_for_the_split_of_its_queries(corpus):
    asked = []

    def rank(split, examples):
        asked.append((split, len(examples)))
        return np.full((len(examples), 1), TEST[0]), np.zeros((len(examples), 1))

    sheet = image_samples.sheet_rows(corpus, rank)
    assert asked == [("test", len(corpus.queries["test"]))] and len(sheet) == asked[0][1]
