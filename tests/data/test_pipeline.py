"""The training stream: order, epochs, mixing, hosts, state, foreign tasks."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dsi_jax.data.batches import collate, pipeline
from dsi_jax.data.batches.indexing_strategies import Strategy
from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.corpora.splits import CHUNK_WORDS
from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import features, preprocessors, sources
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.data.seqio_tasks.corpus_tasks import CorpusTasks
from dsi_jax.docids import text_space
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.tasks import demo  # here, so that what it registers outlives each test
from tests.fixtures.resuming import assert_resumes_again_and_again

LENGTHS = {"inputs": 24}
NUM_DOCUMENTS = 50


pytestmark = pytest.mark.usefixtures("own_registries")


def make_corpus(
    count: int = NUM_DOCUMENTS, with_training_queries: bool = True
) -> corpus_lib.Corpus:
    """Documents of 20 words; one training query of the first half, and four to evaluate."""
    texts = [" ".join(f"d{i}w{j}" for j in range(20)) for i in range(count)]
    sets = {"test": (0, 1, count - 2, count - 1)}
    if with_training_queries:
        sets["train"] = range(count // 2)
    queries = {
        split: corpus_lib.make_query_set(
            {f"{split}{i}": f"{split} query Of {i}" for i in rows},
            {f"{split}{i}": {i: 1.0} for i in rows},
        )
        for split, rows in sets.items()
    }
    keys = [f"key{i}" for i in range(count)]
    return corpus_lib.Corpus("toy", keys, [f"Title{i}" for i in range(count)], texts, queries)


def make_pipeline(name, corpus=None, batch_size=8, seed=1, builder=None, **kwargs):
    corpus = corpus or make_corpus()
    table = (builder or Atomic()).build(DocumentColumns(corpus.keys, corpus.hash))
    return pipeline.TrainPipeline(
        name, table, Inputs(ByteTokenizer(), LENGTHS), batch_size, seed, **kwargs
    )


def take(stream, count: int) -> list[collate.Batch]:
    return [next(stream) for _ in range(count)]


def decode(tokens: np.ndarray) -> str:
    """Text of one row of a ByteTokenizer's tokens."""
    return bytes(token - 3 for token in tokens if token >= 3).decode()


def assert_batches_equal(first: list, second: list) -> None:
    for a, b in zip(first, second, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


# ------------------------------------------------------------------ the source


def make_source(count: int = 20, name: str = "s") -> sources.InMemorySource:
    columns = {"x": np.arange(count)[:, None], "long": [np.arange(i % 3) for i in range(count)]}
    return sources.InMemorySource({"train": columns}, name, "corpus", "content")


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_endless_source_gives_a_permutation_each_pass(count):
    dataset = make_source(count).endless().get_dataset(seed=5).take(6 * count)
    passes = np.array(order_of(dataset)).reshape(6, count)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(count), (6, 1)))
    if count == 20:
        assert len({tuple(p) for p in passes}) == 6


def test_a_lazy_source_is_made_when_it_is_asked_and_then_once():
    made = []

    def make():
        made.append(1)
        return make_source()

    source = sources.LazySource(make, ["train"])
    assert list(source.splits) == ["train"] and not made
    assert (source.fingerprint, source.corpus_hash) == ("content", "corpus")
    assert source.num_input_examples("train") == 20
    lazy = order_of(source.endless().get_dataset(seed=5).take(20))
    assert lazy == order_of(make_source().endless().get_dataset(seed=5).take(20))
    assert len(made) == 1


def test_a_source_of_one_shard_refuses_to_be_split():
    info = seqio.ShardInfo(index=0, num_shards=2)
    with pytest.raises(ValueError, match="source 's' has one shard; shard its examples instead"):
        make_source().get_dataset(seed=5, shard_info=info)


def order_of(dataset: tf.data.Dataset) -> list[int]:
    return [int(example["x"][0]) for example in dataset.as_numpy_iterator()]


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_each_pass_is_a_permutation(count):
    dataset = make_source(count).get_dataset(seed=5).repeat(6)
    passes = np.array(order_of(dataset)).reshape(6, count)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(count), (6, 1)))
    if count == 20:
        assert len({tuple(p) for p in passes}) == 6


def test_order_depends_on_seed_and_name_alone():
    order = order_of(make_source().get_dataset(seed=5))
    assert order_of(make_source().get_dataset(seed=5)) == order
    assert order_of(make_source().get_dataset(seed=6)) != order
    assert order_of(make_source(name="t").get_dataset(seed=5)) != order
    assert order_of(make_source().get_dataset(shuffle=False)) == list(range(20))


@pytest.mark.parametrize("endless", [False, True])
def test_orders_are_as_good_as_random(endless):
    source = make_source(6)
    dataset = source.endless().get_dataset(seed=0) if endless else source.get_dataset(seed=0)
    passes = np.array(order_of(dataset.repeat(600).take(3600))).reshape(600, 6)
    # 600 of the 720 orders: 407 differ on average, with a standard deviation of 9.
    assert abs(len({tuple(p) for p in passes}) - 407) < 45
    counts = np.stack([np.bincount(place, minlength=6) for place in passes.T])
    # 100 of each example in each place, with a standard deviation of 9.1.
    assert np.abs(counts - 100).max() < 46


def test_features_of_varying_length_keep_to_their_example():
    for example in make_source().get_dataset(seed=5).as_numpy_iterator():
        assert len(example["long"]) == example["x"][0] % 3


def test_shuffling_needs_a_seed():
    with pytest.raises(ValueError, match="seed None"):
        make_source().get_dataset(seed=None)


# ------------------------------------------------------------ registered tasks


def test_batches_hold_what_the_tasks_say():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, indexing_ratio=1.0)
    table = NaiveString().build(DocumentColumns(corpus.keys, corpus.hash))
    stream = make_pipeline(tasks.mixture, corpus, builder=NaiveString())
    for batch in take(stream, 5):
        assert batch["text"]["tokens"].shape == (8, LENGTHS["inputs"])
        assert batch["text"]["tokens"].dtype == np.int32
        np.testing.assert_array_equal(batch["text"]["mask"], batch["text"]["tokens"] != 0)
        targets = table.docids(batch["row"])
        decoder = batch["decoder"]
        np.testing.assert_array_equal(decoder["targets"], targets)
        np.testing.assert_array_equal(decoder["inputs"][:, 0], 0)
        np.testing.assert_array_equal(decoder["inputs"][:, 1:], targets[:, :-1])
        np.testing.assert_array_equal(decoder["weights"], (targets != 0).astype(np.float32))
        for tokens, row, is_indexing in zip(
            batch["text"]["tokens"], batch["row"], batch["is_indexing"], strict=True
        ):
            full = corpus.document_texts()[row] if is_indexing else f"train query Of {row}"
            assert decode(tokens) == full[: LENGTHS["inputs"] - 1]


def test_chunks_of_documents_are_mixed_in_at_their_ratio():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, indexing_ratio=1.0, chunk_ratio=2.0)
    texts, flags = [], []
    for batch in take(make_pipeline(tasks.mixture), 60):
        texts += [decode(tokens) for tokens in batch["text"]["tokens"]]
        flags += batch["is_indexing"].tolist()
    kinds = ["query" if t.startswith("train") else "whole" if "title" in t.lower() else "chunk"
             for t in texts]  # fmt: skip
    shares = {kind: kinds.count(kind) / len(kinds) for kind in ("whole", "chunk", "query")}
    # A chunk may begin with the title: a few count as whole.
    assert shares["query"] == pytest.approx(0.25, abs=0.05)
    assert shares["chunk"] == pytest.approx(0.5, abs=0.1)
    assert flags == [int(kind != "query") for kind in kinds]
    assert text_tasks.register_corpus_tasks(corpus, name="without").chunks is None


@pytest.mark.parametrize("ratio", [0.5, 4.0])
def test_indexing_ratio_is_the_realised_sampling_ratio(ratio):
    tasks = text_tasks.register_corpus_tasks(make_corpus(), indexing_ratio=ratio)
    batch = next(make_pipeline(tasks.mixture, batch_size=1_000))
    share = ratio / (1 + ratio)
    deviation = np.sqrt(share * (1 - share) / 1_000)
    assert abs(batch["is_indexing"].mean() - share) < 4 * deviation


def test_without_a_ratio_tasks_mix_by_their_sizes():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    rates = make_pipeline(tasks.mixture).rates()
    assert rates["tasks"] == pytest.approx({tasks.indexing: 2 / 3, tasks.retrieval: 1 / 3})
    assert rates["modalities"] == {"text": {"asked": 1.0, "effective": 1.0, "examples": 8}}


def test_every_pair_of_query_and_document_is_an_example():
    corpus = make_corpus()
    queries = {"train": corpus_lib.make_query_set({"q": "many"}, {"q": {4: 1.0, 7: 2.0}})}
    corpus = corpus_lib.Corpus("pairs", corpus.keys, corpus.titles, corpus.texts, queries)
    tasks = text_tasks.register_corpus_tasks(corpus)
    rows = [next(make_pipeline(tasks.retrieval, corpus, batch_size=2))["row"] for _ in range(2)]
    assert np.sort(rows).tolist() == [[4, 7]] * 2


def test_evaluation_examples_carry_what_metrics_read():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    assert tasks.evaluation_splits == ("test",)
    dataset = seqio.TaskRegistry.get(tasks.retrieval).get_dataset(split="test", shuffle=False)
    examples = list(dataset.as_numpy_iterator())
    assert [e["query_id"][0] for e in examples] == [b"test0", b"test1", b"test48", b"test49"]
    assert [e["seen"][0] for e in examples] == [1, 1, 0, 0]
    assert [e["relevant"].tolist() for e in examples] == [[0], [1], [48], [49]]
    assert all(e["targets"].tolist() == e["relevant"].tolist() for e in examples)


def test_chunks_stand_for_queries_and_change_each_pass():
    corpus = make_corpus(with_training_queries=False)
    tasks = text_tasks.register_corpus_tasks(corpus)
    stream = make_pipeline(tasks.retrieval, corpus, batch_size=NUM_DOCUMENTS)
    documents = corpus.document_texts()
    passes = []
    for batch in take(stream, 3):
        assert sorted(batch["row"]) == list(range(NUM_DOCUMENTS))
        texts = dict(zip(batch["row"], map(decode, batch["text"]["tokens"]), strict=True))
        for row, text in texts.items():
            assert f" {text}" in f" {documents[row]}"
        passes.append([texts[row] for row in range(NUM_DOCUMENTS)])
    assert sum(a == b for a, b in zip(passes[0], passes[1], strict=True)) < NUM_DOCUMENTS / 2
    again = make_pipeline(tasks.retrieval, corpus, batch_size=NUM_DOCUMENTS)
    assert_batches_equal(
        take(again, 2), take(make_pipeline(tasks.retrieval, corpus, NUM_DOCUMENTS), 2)
    )


def test_chunks_have_lengths_in_the_stated_range():
    shortest, longest = CHUNK_WORDS
    words = " ".join(f"w{j}" for j in range(40))
    dataset = tf.data.Dataset.from_tensors({"document": tf.constant([words])}).repeat(400)
    with seqio.utils.map_seed_manager(1):
        chunks = preprocessors.chunk_documents(dataset)
    texts = [e["inputs"][0].decode() for e in chunks.as_numpy_iterator()]
    assert {len(text.split()) for text in texts} == set(range(shortest, longest + 1))
    assert all(f" {text} " in f" {words} " for text in texts)
    assert {text.split()[0] for text in texts} > {"w0", "w20"}
    assert any(text.endswith("w39") for text in texts)


def test_short_documents_are_whole_chunks():
    dataset = tf.data.Dataset.from_tensors({"document": tf.constant(["only two"])})
    chunk = next(preprocessors.chunk_documents(dataset).as_numpy_iterator())
    assert chunk["inputs"].tolist() == [b"only two"]


def test_registering_again_changes_nothing_and_other_content_is_refused():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, indexing_ratio=2.0)
    task = seqio.TaskRegistry.get(tasks.indexing)
    assert text_tasks.register_corpus_tasks(corpus, indexing_ratio=2.0) == tasks
    assert seqio.TaskRegistry.get(tasks.indexing) is task
    with pytest.raises(ValueError, match="already registered with the rates"):
        text_tasks.register_corpus_tasks(corpus, indexing_ratio=3.0)
    with pytest.raises(ValueError, match="'toy_indexing' is already registered with other"):
        text_tasks.register_corpus_tasks(make_corpus(10), indexing_ratio=2.0)
    other = text_tasks.register_corpus_tasks(make_corpus(10), name="other corpus")
    assert other.mixture == "other_corpus_dsi"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"indexing_ratio": -0.5}, "indexing_ratio is -0.5"),
        ({"indexing_ratio": float("nan")}, "indexing_ratio is nan"),
        ({"chunk_ratio": -1.0}, "chunk_ratio is -1.0"),
        ({"document_form": "last"}, "DOCUMENT_FORM is 'last'"),
    ],
)
def test_bad_registration_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        text_tasks.register_corpus_tasks(make_corpus(), **kwargs)


def test_demo_tasks_are_there_once_imported():
    corpus = load.load_corpus("demo_text")
    batch = next(make_pipeline(demo.TASKS.mixture, corpus, batch_size=400))
    assert demo.TASKS.mixture == "demo_text_dsi"
    assert 0 < batch["is_indexing"].mean() < 1
    assert set(seqio.TaskRegistry.get(demo.TASKS.retrieval).splits) == set(corpus_lib.SPLITS)


# ------------------------------------------------------------ order and epochs


def test_epochs_are_true_and_differ():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    stream = make_pipeline(tasks.indexing, batch_size=10)
    epochs = [np.concatenate([b["row"] for b in take(stream, 5)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(NUM_DOCUMENTS))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_tasks_of_one_size_do_not_share_their_order():
    corpus = make_corpus(with_training_queries=False)
    tasks = text_tasks.register_corpus_tasks(corpus)
    orders = [
        next(make_pipeline(task, corpus, NUM_DOCUMENTS))["row"].tolist()
        for task in (tasks.indexing, tasks.retrieval)
    ]
    assert orders[0] != orders[1]


def test_another_seed_is_another_order():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    first, same, other = (make_pipeline(tasks.mixture, seed=s) for s in (1, 1, 2))
    batches = take(first, 4)
    assert_batches_equal(batches, take(same, 4))
    rows, others = (np.stack([b["row"] for b in x]) for x in (batches, take(other, 4)))
    assert (rows != others).any()


def test_without_shuffling_tasks_keep_their_order():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    stream = make_pipeline(tasks.indexing, shuffle=False)
    assert np.concatenate([b["row"] for b in take(stream, 3)]).tolist() == list(range(24))


@pytest.mark.parametrize("held", [[(0,), (1,)], [(0,), (1,), (2,), (3,)], [(0, 2), (1, 3)]])
def test_hosts_hold_parts_of_the_same_batches(held):
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    whole = take(make_pipeline(tasks.mixture), 7)
    num_parts = sum(map(len, held))
    hosts = [make_pipeline(tasks.mixture, parts=parts, num_parts=num_parts) for parts in held]
    size = 8 // num_parts
    order = np.concatenate([np.arange(size) + part * size for parts in held for part in parts])
    for expected, *found in zip(whole, *(take(host, 7) for host in hosts), strict=True):
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *found)
        assert_batches_equal([joined], [tf.nest.map_structure(lambda x: x[order], expected)])


# ------------------------------------------------------------------------ state


@pytest.mark.parametrize("with_training_queries", [True, False])
@pytest.mark.parametrize("consumed", [0, 3, 13])
def test_state_resumes_exactly(with_training_queries, consumed):
    corpus = make_corpus(with_training_queries=with_training_queries)
    tasks = text_tasks.register_corpus_tasks(corpus)
    stream = make_pipeline(tasks.mixture, corpus)
    take(stream, consumed)
    state = stream.state()
    # Over the end of several epochs; taking the state disturbs nothing.
    expected = take(stream, 25)
    resumed = make_pipeline(tasks.mixture, corpus)
    take(resumed, 2)
    resumed.restore(state)
    assert resumed.step == consumed
    assert_batches_equal(take(resumed, 25), expected)
    uninterrupted = make_pipeline(tasks.mixture, corpus)
    take(uninterrupted, consumed)
    assert_batches_equal(take(uninterrupted, 25), expected)


@pytest.mark.parametrize("shuffle", [True, False])
def test_restored_streams_resume_exactly(shuffle):
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus)
    assert_resumes_again_and_again(lambda: make_pipeline(tasks.mixture, corpus, shuffle=shuffle))


def test_state_moves_between_hosts_and_meshes():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    two = make_pipeline(tasks.mixture, parts=[1], num_parts=2)
    take(two, 5)
    one = make_pipeline(tasks.mixture, num_parts=4)
    one.restore(two.state())
    for whole, half in zip(take(one, 5), take(two, 5), strict=True):
        np.testing.assert_array_equal(whole["row"][4:], half["row"])


def test_state_is_small_and_does_not_grow():
    tasks = text_tasks.register_corpus_tasks(make_corpus(1_000))
    stream = make_pipeline(tasks.mixture, make_corpus(1_000), batch_size=100)
    take(stream, 1)
    early = len(stream.state())
    take(stream, 60)
    assert len(stream.state()) < min(early + 100, 20_000)


def test_state_of_another_stream_is_refused():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    state = make_pipeline(tasks.mixture, seed=1).state()
    for kwargs, message in (
        ({"seed": 2}, "seed = 1, this one has 2"),
        ({"batch_size": 16}, "batch_size = 8, this one has 16"),
        ({"shuffle": False}, "shuffle = True, this one has False"),
    ):
        with pytest.raises(ValueError, match=message):
            make_pipeline(tasks.mixture, **kwargs).restore(state)
    with pytest.raises(ValueError, match="name = toy_dsi, this one has toy_indexing"):
        make_pipeline(tasks.indexing).restore(state)
    with pytest.raises(ValueError, match="not the state of an input pipeline"):
        make_pipeline(tasks.mixture).restore(b"something else")
    with pytest.raises(ValueError, match="not the state of an input pipeline"):
        make_pipeline(tasks.mixture).restore(state[: len(state) // 2])


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_parts": 5}, "batch of 8 does not divide into 5 parts"),
        ({"num_parts": 2, "parts": [2]}, r"parts \(2,\) are not all among 2"),
        ({"split": "dev"}, "no task of 'toy_dsi' has the split 'dev'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    with pytest.raises(ValueError, match=message):
        make_pipeline(tasks.mixture, **kwargs)


def test_table_of_another_corpus_is_refused():
    tasks = text_tasks.register_corpus_tasks(make_corpus())
    with pytest.raises(ValueError, match=f"to the corpus {make_corpus().hash}"):
        make_pipeline(tasks.mixture, corpus=make_corpus(60))


def test_task_without_our_features_is_refused():
    vocabulary = seqio.PassThroughVocabulary(10)
    seqio.TaskRegistry.add(
        "plain",
        source=make_source(),
        output_features={n: seqio.Feature(vocabulary) for n in ("inputs", "targets")},
    )
    with pytest.raises(ValueError, match="'text' has no output feature 'is_indexing'"):
        make_pipeline("plain", make_corpus_of_hash("corpus"))


def make_corpus_of_hash(value: str) -> corpus_lib.Corpus:
    corpus = make_corpus()
    corpus.__dict__["hash"] = value  # where functools.cached_property keeps it
    return corpus


@pytest.mark.parametrize(
    ("rates", "batch", "shards", "expected"),
    [
        ({"text": 1.0}, 8, 4, {"text": 8}),
        ({"text": 3.0, "image": 1.0}, 32, 4, {"text": 24, "image": 8}),
        ({"text": 2.0, "image": 1.0}, 32, 4, {"text": 20, "image": 12}),
        ({"text": 1.0, "image": 0.0}, 8, 2, {"text": 8, "image": 0}),
    ],
)
def test_streams_have_the_nearest_sizes(rates, batch, shards, expected):
    assert pipeline.stream_sizes(rates, batch, shards) == expected


def test_a_modality_that_would_get_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'image' would get no example: .* 0\.0100 of a batch"):
        pipeline.stream_sizes({"text": 99.0, "image": 1.0}, 32, 8)


# ---------------------------------------------------- tasks of other projects


def foreign_data(split, shuffle_files, seed=None, count=30):
    return tf.data.Dataset.from_tensor_slices(
        {"question": [f"what is {i}" for i in range(count)], "document": list(range(count))}
    )


def add_foreign_text_task(name="foreign", buffer=4, count=30):
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            functools.partial(foreign_data, count=count), ["train"], {"train": count}
        ),
        preprocessors=[
            functools.partial(preprocessors.examples, inputs="question", row="document")
        ],
        output_features=features.output_features(),
        shuffle_buffer_size=buffer,
    )


def test_foreign_text_task_is_shuffled_in_full_and_resumes():
    add_foreign_text_task(buffer=2)
    stream = make_pipeline("foreign", batch_size=10)
    first = take(stream, 1)[0]
    # A buffer of 2 would give nothing beyond the first 12 examples.
    assert first["row"].max() > 12
    assert [decode(t) for t in first["text"]["tokens"]] == [f"what is {r}" for r in first["row"]]
    state = stream.state()
    expected = take(stream, 6)
    resumed = make_pipeline("foreign", batch_size=10)
    resumed.restore(state)
    assert_batches_equal(take(resumed, 6), expected)


def test_foreign_and_own_tasks_mix_at_their_rates():
    tasks = text_tasks.register_corpus_tasks(make_corpus(), indexing_ratio=1.0)
    add_foreign_text_task()
    seqio.MixtureRegistry.add("both", [(tasks.mixture, 3.0), ("foreign", 1.0)])
    stream = make_pipeline("both", batch_size=2_000)
    assert stream.rates()["tasks"] == pytest.approx(
        {tasks.indexing: 0.375, tasks.retrieval: 0.375, "foreign": 0.25}
    )
    state = stream.state()
    batch = next(stream)
    resumed = make_pipeline("both", batch_size=2_000)
    resumed.restore(state)
    assert_batches_equal([batch], take(resumed, 1))
    assert_resumes_again_and_again(lambda: make_pipeline("both"))
    texts = [decode(tokens) for tokens in batch["text"]["tokens"]]
    share = np.mean([text.startswith("what is") for text in texts])
    assert share == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 2_000))


def test_foreign_row_outside_the_table_is_an_error():
    add_foreign_text_task(count=80)
    with pytest.raises(ValueError, match="row 53 is outside the docid table of 50 documents"):
        take(make_pipeline("foreign", batch_size=80), 1)


def test_foreign_tokens_are_padded_and_cut():
    vocabulary = seqio.ByteVocabulary()
    lengthen = seqio.map_over_dataset(lambda e: e | {"inputs": e["question"] + e["tail"]})
    seqio.TaskRegistry.add(
        "tokens",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                {"question": ["short", "long"], "tail": ["", "er" * 40], "row": [3, 4]}
            ),
            ["train"],
            {"train": 2},
        ),
        preprocessors=[
            lengthen,
            seqio.preprocessors.tokenize,
            lambda ds: ds.map(
                lambda e: {
                    "inputs": e["inputs"],
                    "targets": tf.cast(e["row"], tf.int32)[None],
                    "is_indexing": tf.zeros([1], tf.int32),
                }
            ),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=features.output_features(vocabulary),
        shuffle_buffer_size=2,
    )
    batch = next(make_pipeline("tokens", batch_size=16))
    of_row = dict(zip(batch["row"], batch["text"]["tokens"], strict=True))
    expected = ByteTokenizer().encode_batch(["short", "long" + "er" * 40], LENGTHS["inputs"])
    np.testing.assert_array_equal(of_row[3], expected[0])
    np.testing.assert_array_equal(of_row[4], expected[1])


# ------------------------------------------- forms, strategies, shuffle buffer


def indexed_texts(tasks: CorpusTasks, seed: int = 0, **kwargs) -> dict[int, str]:
    """Row -> the text that one pass over the indexing task shows of it."""
    dataset = seqio.get_mixture_or_task(tasks.indexing).get_dataset(
        sequence_length=kwargs.get("lengths"), split="train", shuffle=False, seed=seed
    )
    return {
        int(e["targets"][0]): e["inputs"][0].decode() for e in dataset.as_numpy_iterator()
    }  # fmt: skip


def test_the_set_form_holds_each_term_once_without_stop_words():
    texts = ["The red fox and the RED hen, a fox!", "of the and"]
    corpus = corpus_lib.Corpus("forms", ["a", "b"], ["", ""], texts, {})
    tasks = text_tasks.register_corpus_tasks(corpus, document_form="set")
    assert indexed_texts(tasks) == {0: "red fox hen", 1: "of the and"}


def test_the_inverted_form_shows_another_chunk_each_pass():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, document_form="inverted")
    passes = [indexed_texts(tasks, seed, lengths={"inputs": 6}) for seed in range(20)]
    for shown in passes:
        for row, text in shown.items():
            assert len(text.split()) == 6
            assert f" {text} " in f" {corpus.document_texts()[row]} "
    firsts = {shown[3].split()[0] for shown in passes}
    assert len(firsts) > 8
    read_whole = indexed_texts(tasks, lengths={"inputs": 64})
    assert read_whole[3] == corpus.document_texts()[3]


def test_indexing_ratio_zero_indexes_nothing():
    tasks = text_tasks.register_corpus_tasks(make_corpus(), indexing_ratio=0)
    stream = make_pipeline(tasks.mixture)
    assert not any(batch["is_indexing"].any() for batch in take(stream, 10))


def test_a_shuffle_buffer_keeps_examples_near_their_place():
    columns = {"x": np.arange(1000)[:, None]}
    source = sources.InMemorySource({"train": columns}, "s", "c", "f", shuffle_buffer=10)
    order = np.array(order_of(source.get_dataset(seed=4)))
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (order != np.arange(1000)).any()
    assert (order <= np.arange(1000) + 9).all()  # nothing comes before it entered the buffer


def test_with_a_buffer_documents_without_training_query_come_last():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, shuffle_buffer=5)
    rows = list(indexed_texts(tasks))
    seen = corpus.documents_with_training_query()[rows]
    assert seen[:25].all() and not seen[25:].any()


@pytest.mark.parametrize("strategy", ["bidirectional", "span_corruption"])
def test_buffered_streams_of_random_strategies_resume_exactly(strategy):
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus, document_form="inverted", shuffle_buffer=7)
    table = text_space.spell(
        NaiveString().build(DocumentColumns(corpus.keys, corpus.hash)), ByteTokenizer()
    )

    def stream(**kwargs):
        return pipeline.TrainPipeline(
            tasks.mixture, table, Inputs(ByteTokenizer(), LENGTHS), 8, 1,
            strategy=Strategy(strategy, seed=1, first_sentinel=259), **kwargs,
        )  # fmt: skip

    uninterrupted = stream()
    for _ in range(5):
        next(uninterrupted)
    state = uninterrupted.state()
    expected = take(uninterrupted, 12)
    resumed = stream()
    resumed.restore(state)
    assert_batches_equal(take(resumed, 12), expected)
    assert_resumes_again_and_again(stream)
    assert expected[0]["decoder"]["targets"].shape == (8, LENGTHS["inputs"])
    shapes = tf.nest.map_structure(lambda s: (s.shape, s.dtype), uninterrupted.batch_shapes())
    found = tf.nest.map_structure(lambda a: (a.shape, a.dtype), expected[0])
    assert shapes == found
    halves = [stream(parts=[i], num_parts=2) for i in range(2)]
    whole = take(stream(), 3)
    for batch in whole:
        parts = [next(half) for half in halves]
        joined = tf.nest.map_structure(lambda *p: np.concatenate(p), *parts)
        assert_batches_equal([batch], [joined])
