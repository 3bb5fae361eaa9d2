"""Tasks cached offline: the same examples, new passes, exact resumption, the right corpus."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dsi_jax import train
from dsi_jax.data.batches import cached_tasks, pipeline
from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import features, metrics, preprocessors
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.data.seqio_tasks.corpus_tasks import CorpusTasks
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.evaluation import evaluator
from dsi_jax.evaluation.config import Target
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.tokenizer import ByteTokenizer
from tests.fixtures.resuming import assert_resumes_again_and_again
from tests.fixtures.small_corpus import write_corpus

MODULE = """
from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import text
text.register_corpus_tasks(load.load_corpus({corpus!r}), chunk_ratio=1.0)
"""


pytestmark = pytest.mark.usefixtures("own_registries")


def write_cache(task: seqio.Task, directory: Path) -> None:
    """What `seqio_cache_tasks` writes, in its order of examples: for tests that need no Beam."""
    place = directory / task.name
    place.mkdir(parents=True)
    for split in task.splits:
        dataset = task.preprocess_precache(task.source.get_dataset(split, shuffle=False), seed=1)
        examples = list(dataset)
        record = seqio.get_cached_tfrecord_prefix(str(place), split) + "-00000-of-00001"
        with tf.io.TFRecordWriter(record) as writer:
            for example in examples:
                writer.write(seqio.dict_to_tfexample(example).SerializeToString())
        described = {
            name: {"dtype": value.dtype.name, "shape": [None, *value.shape[1:]][: value.ndim]}
            for name, value in examples[0].items()
        }
        info = {"num_shards": 1, "seqio_version": seqio.__version__, "features": described}
        Path(seqio.get_cached_info_path(str(place), split)).write_text(json.dumps(info))
        stats = json.dumps({"examples": len(examples)})
        Path(seqio.get_cached_stats_path(str(place), split)).write_text(stats)
    (place / "COMPLETED").write_text("")


def make_pipeline(name, corpus, batch_size=8, **kwargs):
    table = Atomic().build(DocumentColumns(corpus.keys, corpus.hash))
    lengths = {"inputs": 200}
    return pipeline.TrainPipeline(
        name, table, Inputs(ByteTokenizer(), lengths), batch_size, 1, **kwargs
    )


def texts(batch) -> list[tuple[int, bytes]]:
    """(row, text) of each example of a batch of ByteTokenizer's tokens."""
    tokens = batch["text"]["tokens"]
    decoded = [bytes(int(t) - 3 for t in row if t >= 3) for row in tokens]
    return list(zip(batch["row"].tolist(), decoded, strict=True))


def assert_batches_equal(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


# ------------------------------------------------- tasks of ours, written by seqio_cache_tasks


@pytest.fixture(scope="module")
def beam_cache(tmp_path_factory):
    """(corpus directory, cache directory) after `seqio_cache_tasks` on all tasks of a corpus."""
    pytest.importorskip("apache_beam", reason="pip install 'dsi-jax[beam]'")
    base = tmp_path_factory.mktemp("cached")
    directory = write_corpus(base / "corpus_of_cached", num_documents=24)
    (base / "my_tasks.py").write_text(MODULE.format(corpus=str(directory)))
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=my_tasks"]
    command += ["--tasks=corpus_of_cached_.*", f"--output_cache_dir={base / 'cache'}"]
    # As from a checkout; what is installed comes after.
    path = os.pathsep.join([str(base), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [*command, "--min_shards=2"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory, base / "cache"


@pytest.fixture
def tasks_and_corpus(beam_cache):
    directory, cache = beam_cache
    seqio.add_global_cache_dirs([str(cache)])
    corpus = load.load_corpus(str(directory))
    return text_tasks.register_corpus_tasks(corpus, chunk_ratio=1.0), corpus


def test_a_pass_holds_the_same_examples_with_and_without_the_cache(tasks_and_corpus):
    tasks, corpus = tasks_and_corpus
    for name, count in ((tasks.indexing, 24), (tasks.retrieval, 20)):
        plain, from_cache = (
            make_pipeline(name, corpus, batch_size=count, use_cached=use) for use in (False, True)
        )
        assert from_cache.num_examples == count
        for _ in range(3):
            assert sorted(texts(next(from_cache))) == sorted(texts(next(plain)))
        orders = [next(from_cache)["row"].tolist() for _ in range(2)]
        assert orders[0] != orders[1]


def test_chunks_from_the_cache_are_new_each_pass(tasks_and_corpus):
    tasks, corpus = tasks_and_corpus
    stream = make_pipeline(tasks.chunks, corpus, batch_size=24, use_cached=True)
    passes = [dict(texts(next(stream))) for _ in range(2)]
    documents = corpus.document_texts()
    for chunks in passes:
        assert sorted(chunks) == list(range(24))
        assert all(f" {text.decode()}" in f" {documents[row]}" for row, text in chunks.items())
    assert sum(passes[0][row] == passes[1][row] for row in range(24)) < 12


def test_the_cached_mixture_resumes_exactly(tasks_and_corpus):
    tasks, corpus = tasks_and_corpus
    make = functools.partial(make_pipeline, tasks.mixture, corpus, use_cached=True)
    stream = make()
    for _ in range(7):
        next(stream)
    state = stream.state()
    assert len(state) < 20_000
    expected = [next(stream) for _ in range(30)]
    resumed = make()
    resumed.restore(state)
    assert_batches_equal([next(resumed) for _ in range(30)], expected)
    assert_resumes_again_and_again(make)
    with pytest.raises(ValueError, match="use_cached = True, this one has False"):
        make_pipeline(tasks.mixture, corpus).restore(state)


def test_evaluation_splits_are_cached_too(tasks_and_corpus):
    tasks, corpus = tasks_and_corpus
    stream = make_pipeline(tasks.retrieval, corpus, batch_size=8, split="test", use_cached=True)
    assert sorted(row for row, _ in texts(next(stream))) == np.repeat([5, 11, 17, 23], 2).tolist()


def test_train_command_reads_the_cache(beam_cache, tmp_path, capsys):
    directory, cache = beam_cache
    options = [
        "--gin_file=experiments/own_text.gin",
        "--gin_file=models/t5_tiny.gin",
        f"--gin.CORPUS={directory}",
        f"--gin.MODEL_DIR={tmp_path / 'model'}",
        "--gin.USE_CACHED_TASKS=True",
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=16",
        "--gin.VOCABULARY=bytes",
        "--gin.train_config.TrainConfig.evaluation=None",
    ]
    assert train.main(options) == 2
    assert re.search("task 'corpus_of_cached_.*' has no cache", capsys.readouterr().err)
    assert train.main([*options, f"--seqio_additional_cache_dirs={cache}"]) == 0
    assert (tmp_path / "model/checkpoint_2").is_dir()


# ---------------------------------------------------------- any task, its cache written by hand


def add_task(name="foreign", texts=("a", "bb", "ccc"), corpus_hash=None, **kwargs):
    data = {"question": list(texts), "row": list(range(len(texts)))}
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(data),
            ["train"],
            {"train": len(texts)},
        ),
        preprocessors=[
            functools.partial(
                preprocessors.examples, inputs="question", row="row", corpus_hash=corpus_hash
            ),
            lambda ds: ds.filter(lambda e: e["inputs"][0] != "skipped"),
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features=features.output_features(),
        **kwargs,
    )


def toy(count=3, name="toy") -> corpus_lib.Corpus:
    names = [f"{name}{i}" for i in range(count)]
    return corpus_lib.Corpus(name, names, names, names, {})


def test_foreign_task_is_read_from_its_cache_in_true_epochs(tmp_path):
    write_cache(add_task(texts=["a", "skipped", "ccc"]), tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    stream = make_pipeline("foreign", toy(), batch_size=2, use_cached=True)
    assert stream.num_examples == 2
    for _ in range(5):
        assert sorted(texts(next(stream))) == [(0, b"a"), (2, b"ccc")]


def test_task_that_must_be_cached_is_evaluated_from_its_cache(tmp_path):
    task = add_task()
    required = seqio.CacheDatasetPlaceholder(required=True)
    seqio.TaskRegistry.remove("foreign")
    task = task.replace(
        preprocessors=[task.preprocessors[0], required], metric_fns=[metrics.retrieval_metrics]
    )
    seqio.TaskRegistry.add_provider("foreign", task)
    write_cache(task, tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    evaluators = evaluator.Evaluator(
        [Target("foreign", "train")],
        keys=["a", "b", "c"],
        feature_lengths={"inputs": 8},
        output_dir=None,
    )._evaluators
    (one,) = evaluators.values()
    examples = one.cached_task_datasets["foreign"].as_numpy_iterator()
    assert [e["inputs"][0] for e in examples] == [b"a", b"bb", b"ccc"]


def test_features_of_any_form_come_back_from_the_cache(tmp_path):
    def widen(dataset):
        return dataset.map(
            lambda e: (
                e
                | {
                    "long": tf.range(e["targets"][0]),
                    "number": tf.cast(e["targets"][0], tf.float32),
                    "name": e["inputs"][0],
                }
            )
        )

    task = add_task()
    task = task.replace(
        preprocessors=[task.preprocessors[0], widen, seqio.CacheDatasetPlaceholder()]
    )
    write_cache(task, tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    examples = list(cached_tasks.read(task, "train").get_dataset(shuffle=False).as_numpy_iterator())
    assert [e["long"].tolist() for e in examples] == [[], [0], [0, 1]]
    assert [e["number"] for e in examples] == [0.0, 1.0, 2.0]
    assert [e["name"] for e in examples] == [b"a", b"bb", b"ccc"]


def test_cache_of_another_corpus_is_refused(tmp_path):
    corpus, other = toy(), toy(name="other")
    write_cache(add_task(corpus_hash=other.hash), tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    pattern = f"corpus {corpus.hash}, the task 'foreign', cached in .*foreign, .* {other.hash}"
    with pytest.raises(ValueError, match=pattern):
        make_pipeline("foreign", corpus, use_cached=True)
    with pytest.raises(ValueError, match=f"{corpus.hash}, the task 'foreign' .* {other.hash}"):
        make_pipeline("foreign", corpus)


def test_state_of_another_cache_is_refused(tmp_path):
    states = []
    for name, words in (("one", ["a", "b", "c"]), ("two", ["a", "c", "b"])):
        task = add_task(texts=words)
        write_cache(task, tmp_path / name)
        seqio.utils._GLOBAL_CACHE_DIRECTORIES[:] = [str(tmp_path / name)]
        stream = make_pipeline("foreign", toy(), use_cached=True)
        states.append(stream.state())
        seqio.TaskRegistry.remove("foreign")
    stream.restore(states[1])
    with pytest.raises(ValueError, match=r"saved input pipeline has caches = \{'foreign': "):
        stream.restore(states[0])


def register(**options) -> CorpusTasks:
    """Registers the tasks of a corpus without queries, in place of those registered before."""
    for name in ("toy_indexing", "toy_retrieval"):
        if name in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove(name)
    return text_tasks.register_corpus_tasks(toy(), **options)


def test_cache_of_other_options_is_refused(tmp_path):
    task = seqio.TaskRegistry.get(register().indexing)
    write_cache(task, tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    make_pipeline("toy_indexing", toy(), use_cached=True)
    register(document_form="set")
    with pytest.raises(ValueError, match="toy_indexing was made from other queries or options"):
        make_pipeline("toy_indexing", toy(), use_cached=True)
    register(shuffle_buffer=2)
    with pytest.raises(ValueError, match="SHUFFLE_BUFFER_SIZE is 2"):
        make_pipeline("toy_indexing", toy(), use_cached=True)


def test_missing_cache_is_named(tmp_path):
    add_task()
    seqio.add_global_cache_dirs([str(tmp_path)])
    pattern = f"'foreign' has no cache in .*{tmp_path}.*seqio_cache_tasks --tasks=foreign"
    with pytest.raises(ValueError, match=pattern):
        make_pipeline("foreign", toy(), use_cached=True)


def test_damaged_cache_is_named(tmp_path):
    write_cache(add_task(), tmp_path)
    seqio.add_global_cache_dirs([str(tmp_path)])
    record = next((tmp_path / "foreign").glob("train.tfrecord*"))
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"the cache .*foreign cannot be read"):
        make_pipeline("foreign", toy(), use_cached=True)


def test_task_that_cannot_be_cached_is_read_from_its_source(caplog):
    task = add_task()
    cacheless = task.replace(name="cacheless", preprocessors=task.preprocessors[:-1])
    seqio.TaskRegistry.add_provider("cacheless", cacheless)
    stream = make_pipeline("cacheless", toy(), use_cached=True)
    assert {row for row, _ in texts(next(stream))} == {0, 1, 2}
    assert "'cacheless' cannot be cached" in caplog.text
