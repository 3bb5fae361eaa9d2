"""Batches of texts and images: sizes, order, hosts, state, what is drawn, what is decoded."""

import collections
import io

import numpy as np
import pytest
import seqio
import tensorflow as tf

from dsi_jax.data.batches import converters, pipeline
from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import CaptionedImages
from dsi_jax.data.readers.load import load_corpus
from dsi_jax.data.seqio_tasks import features
from dsi_jax.data.seqio_tasks.images import register_image_tasks
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.evaluation.config import Target
from dsi_jax.evaluation.evaluator import Evaluator
from dsi_jax.evaluation.predictor import Predictor
from dsi_jax.inputs import image_files
from dsi_jax.inputs.encoder_inputs import Inputs, PixelReader
from dsi_jax.inputs.pixels import squares
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.ranking.top_k import Ranking
from tests.fixtures.resuming import assert_resumes_again_and_again
from tests.fixtures.small_images import COLOURS, NUM_IMAGES, SHAPES, SIDE, draw, write_pictures

LENGTHS = {"inputs": 24}
pytestmark = pytest.mark.usefixtures("own_registries")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pipeline") / "streamed")


@pytest.fixture(scope="module")
def corpus(pictures):
    """Twelve images; one of the two captions of each is for training."""
    directory, captions = pictures
    return load_corpus(directory, seed=1, captions=captions, modality="image")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """The same pictures in a folder a shape; each looks for those of its shape."""
    directory = tmp_path_factory.mktemp("classes") / "shapes"
    for shape in SHAPES:
        (directory / shape).mkdir(parents=True)
        for colour in COLOURS:
            draw(colour, shape).save(directory / shape / f"{colour}.png")
    return load_corpus(directory, seed=1, modality="image")


def make_pipeline(name, corpus, batch_size=12, seed=1, **options):
    table = Atomic().build(DocumentColumns(corpus.keys, corpus.hash))
    inputs = Inputs(ByteTokenizer(), LENGTHS, SIDE)
    return pipeline.TrainPipeline(name, table, inputs, batch_size, seed, **options)


def take(stream, count: int) -> list[dict]:
    return [next(stream) for _ in range(count)]


def decode(tokens: np.ndarray) -> str:
    return bytes(token - 3 for token in tokens if token >= 3).decode()


def assert_batches_equal(first: list, second: list) -> None:
    for a, b in zip(first, second, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, a, b)


def by_modality(batch) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the texts and of the images in the batch, from the order that is promised."""
    sizes = len(batch["text"]["tokens"]), len(batch["image"]["pixels"])
    groups = np.gcd(*sizes)
    run = np.repeat([0, 1], [size // groups for size in sizes])
    kinds = np.tile(run, groups)
    return np.flatnonzero(kinds == 0), np.flatnonzero(kinds == 1)


def test_a_batch_has_a_stream_a_modality(corpus):
    tasks = register_image_tasks(corpus, indexing_ratio=0.5)
    stream = make_pipeline(tasks.mixture, corpus)
    assert stream.rates()["modalities"] == {
        "image": {"asked": pytest.approx(1 / 3), "effective": 1 / 3, "examples": 4},
        "text": {"asked": pytest.approx(2 / 3), "effective": 2 / 3, "examples": 8},
    }
    mixture, modalities = stream.lines()
    assert "streamed_indexing 0.333" in mixture and "streamed_retrieval 0.667" in mixture
    assert "text 0.667 (asked 0.667, 8 examples)" in modalities
    batch = next(stream)
    assert tf.nest.map_structure(lambda x: (x.shape, x.dtype), batch) == tf.nest.map_structure(
        lambda x: (x.shape, x.dtype), stream.batch_shapes()
    )
    table = Atomic().build(DocumentColumns(corpus.keys, corpus.hash))
    captions = corpus.training_captions()
    for batch in take(stream, 4):
        texts, pictures = by_modality(batch)
        for position, tokens in zip(texts, batch["text"]["tokens"], strict=True):
            row = batch["row"][position]
            assert decode(tokens) in [caption[:23] for caption in captions[row]]
            assert batch["is_indexing"][position] == 0
        for position, pixels in zip(pictures, batch["image"]["pixels"], strict=True):
            row = batch["row"][position]
            np.testing.assert_array_equal(pixels, image_files.read(corpus.images[row], SIDE))
            assert batch["is_indexing"][position] == 1
        np.testing.assert_array_equal(batch["decoder"]["targets"], table.docids(batch["row"]))


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_hold_parts_of_the_same_batches(corpus, num_hosts):
    tasks = register_image_tasks(corpus, indexing_ratio=0.5)
    whole = make_pipeline(tasks.mixture, corpus, num_parts=4)
    parts = np.split(np.arange(4), num_hosts)
    hosts = [make_pipeline(tasks.mixture, corpus, num_parts=4, parts=tuple(own)) for own in parts]
    for _ in range(5):
        found = [next(host) for host in hosts]
        joined = tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *found)
        assert_batches_equal([joined], [next(whole)])
    # The state of any host serves all.
    again = make_pipeline(tasks.mixture, corpus, num_parts=2)
    again.restore(hosts[-1].state())
    assert_batches_equal(take(again, 2), take(whole, 2))


@pytest.mark.parametrize("consumed", [0, 5])
def test_state_resumes_exactly(corpus, consumed):
    tasks = register_image_tasks(corpus)
    stream = make_pipeline(tasks.mixture, corpus, batch_size=8)
    take(stream, consumed)
    state, expected = stream.state(), take(stream, 4)
    assert len(state) < 20_000
    again = make_pipeline(tasks.mixture, corpus, batch_size=8)
    again.restore(state)
    assert again.step == consumed
    assert_batches_equal(take(again, 4), expected)
    other = make_pipeline(tasks.mixture, corpus, batch_size=8, seed=2)
    with pytest.raises(ValueError, match="saved input pipeline has seed = 1, this one has 2"):
        other.restore(state)


def test_restored_streams_resume_exactly(corpus):
    tasks = register_image_tasks(corpus)
    assert_resumes_again_and_again(lambda: make_pipeline(tasks.mixture, corpus, batch_size=8))


def captioned(captions) -> CaptionedImages:
    """Images held in memory, one of each colour."""
    files = []
    for colour in COLOURS[: len(captions)]:
        buffer = io.BytesIO()
        draw(colour, "disc").save(buffer, "PNG")
        files.append(buffer.getvalue())
    return CaptionedImages("own", list(COLOURS[: len(captions)]), files, captions)


def test_a_caption_is_drawn_anew_each_pass():
    own = [[f"{colour} {i}" for i in range(3)] for colour in COLOURS]
    corpus = image_protocols.make(captioned(own), "image_query", seed=0)
    tasks = register_image_tasks(corpus)
    stream = make_pipeline(tasks.retrieval, corpus, batch_size=len(COLOURS))
    met = collections.defaultdict(list)
    for batch in take(stream, 30):
        assert sorted(batch["row"]) == list(range(len(COLOURS)))  # each image once a pass
        for row, tokens in zip(batch["row"], batch["text"]["tokens"], strict=True):
            met[row].append(decode(tokens))
    for row, captions in met.items():
        assert set(captions) == set(own[row])
        # Uniform: 10 of each on average, with a standard deviation of 2.6.
        assert min(map(captions.count, own[row])) > 1
    assert len({tuple(captions) for captions in met.values()}) == len(COLOURS)


def test_images_of_a_class_look_for_each_other(classes):
    tasks = register_image_tasks(classes, indexing_ratio=0)
    stream = make_pipeline(tasks.mixture, classes, batch_size=8)
    assert list(stream.rates()["modalities"]) == ["image"]
    pixels_of = np.stack([image_files.read(image, SIDE) for image in classes.images])
    met = collections.defaultdict(set)
    for batch in take(stream, 40):
        assert "text" not in batch and not batch["is_indexing"].any()
        for pixels, row in zip(batch["image"]["pixels"], batch["row"], strict=True):
            (query,) = np.flatnonzero((pixels_of == pixels).all(axis=(1, 2, 3)))
            assert classes.classes[query] == classes.classes[row]
            met[query].add(int(row))
    assert met.keys() == set(range(len(classes)))
    for query, rows in met.items():
        assert rows == set(np.flatnonzero(classes.classes == classes.classes[query]).tolist())


# What is read


def test_files_and_bytes_give_the_pixels_of_the_reader(corpus):
    inputs = Inputs(ByteTokenizer(), LENGTHS, SIDE)
    files = list(corpus.images)
    expected = np.stack([image_files.read(file, SIDE) for file in files])
    for sources in (files, list(map(str, files)), [file.read_bytes() for file in files]):
        np.testing.assert_array_equal(inputs.images(sources)["pixels"], expected)


def test_canvases_are_read_for_the_device_to_resize(corpus):
    inputs = Inputs(ByteTokenizer(), LENGTHS, SIDE // 2, image_canvas=SIDE)
    files = list(corpus.images)
    found = inputs.images(files)
    shapes = inputs.shapes({"image": len(files)})["image"]
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }
    expected = np.stack([image_files.read(file, SIDE // 2) for file in files])
    assert abs(squares(found, SIDE // 2) - expected.astype(int)).max() <= 1
    with pytest.raises(ValueError, match="IMAGE_CANVAS is 15; expected at least twice the 8 pixel"):
        PixelReader(8, 15)


def test_remembered_pixels_are_bounded_and_right(corpus, monkeypatch):
    reader = PixelReader(SIDE, cache_bytes=4 * SIDE * SIDE * 3)
    files = list(corpus.images)
    expected = {file: image_files.read(file, SIDE) for file in files}
    decoded = []
    read = image_files.read
    monkeypatch.setattr(
        image_files, "read", lambda file, size: decoded.append(file) or read(file, size)
    )

    def ask(rows) -> list:
        decoded.clear()
        found = reader([files[row] for row in rows])["pixels"]
        np.testing.assert_array_equal(found, np.stack([expected[files[row]] for row in rows]))
        return sorted(files.index(file) for file in decoded)

    assert ask([0, 1, 0, 1]) == [0, 1]
    assert ask([1, 0, 2]) == [2]
    assert ask([3, 4]) == [3, 4]  # 1 was met longest ago
    assert ask([0, 2, 3, 4]) == []
    assert ask([1]) == [1]
    assert ask(range(12)) == [0, 5, 6, 7, 8, 9, 10, 11]  # more than are kept


@pytest.mark.parametrize(
    ("texts", "files", "found"), [(1, 1, "text and image"), (0, 0, "neither text nor image")]
)
def test_an_example_has_one_modality(corpus, texts, files, found):
    def examples(split, shuffle_files, seed=None):
        example = {
            "inputs": tf.fill([texts], "a disc"),
            "image": tf.fill([files], corpus.images[0].read_bytes()),
            "targets": tf.zeros([1], tf.int32),
            "is_indexing": tf.zeros([1], tf.int32),
        }
        return tf.data.Dataset.from_tensors(example)

    seqio.TaskRegistry.add(
        "strange",
        source=seqio.FunctionDataSource(examples, splits=["train"]),
        preprocessors=[],
        output_features=features.output_features(images=True),
    )
    with pytest.raises(ValueError, match=f"'strange' has {found}; expected one of text and image"):
        make_pipeline("strange", corpus)


def test_a_model_of_texts_refuses_images(corpus):
    tasks = register_image_tasks(corpus)
    table = Atomic().build(DocumentColumns(corpus.keys, corpus.hash))
    stream = pipeline.TrainPipeline(tasks.mixture, table, Inputs(ByteTokenizer(), LENGTHS), 4, 1)
    with pytest.raises(ValueError, match="tasks have images, and the model has no encoder of im"):
        stream.batch_shapes()
    with pytest.raises(ValueError, match="reads texts alone; found images"):
        next(stream)


# Evaluation


class KnowsAll:
    """Stands for a ranker: finds an image by the pixels of its view or the words of a caption."""

    def __init__(self, corpus):
        views = corpus.image_queries["test"].images
        self._pixels = np.stack([image_files.read(view, SIDE) for view in views])
        self._names = [key.removesuffix(".png").split("_") for key in corpus.keys]
        self.asked = collections.Counter()

    def prepare(self, params):
        return iter(())

    def search(self, params, batch, beam_size=None):
        rows = []
        for tokens in batch.get("text", {}).get("tokens", ()):
            words = decode(tokens).split()
            self.asked["text"] += 1
            rows.append([i for i, name in enumerate(self._names) if set(name) <= set(words)])
        for pixels in batch.get("image", {}).get("pixels", ()):
            self.asked["image"] += 1
            rows.append(np.flatnonzero((self._pixels == pixels).all(axis=(1, 2, 3))))
        rows = np.array(rows, np.int32)
        return Ranking(rows, np.zeros(rows.shape, np.float32), np.ones(rows.shape, bool))


def test_every_query_of_both_tasks_is_counted(corpus, tmp_path):
    tasks = register_image_tasks(corpus)
    targets = [Target(tasks.retrieval, "test"), Target(tasks.images, "test")]
    table = Atomic().build(DocumentColumns(corpus.keys, corpus.hash))
    collection = Collection(
        table, None, ByteTokenizer(), LENGTHS, images=corpus.images, image_size=SIDE
    )
    ranker = KnowsAll(corpus)
    predictor = Predictor(ranker, inputs=collection.inputs, batch_size=5)
    evaluator = Evaluator(
        targets, keys=table.keys, feature_lengths=LENGTHS, output_dir=tmp_path / "eval"
    )
    figures = evaluator.evaluate(predictor, None, 3)
    assert ranker.asked == {"text": 15, "image": 15}  # three batches of five, the last one padded
    for target in targets:
        assert figures[target.name]["queries"] == NUM_IMAGES
        assert figures[target.name]["hits@1"] == 1.0
        lines = (tmp_path / "eval" / f"{target.name}-000003.trec").read_text().splitlines()
        assert len({line.split()[0] for line in lines}) == NUM_IMAGES


def test_splits_of_the_tasks(corpus, classes):
    tasks = register_image_tasks(corpus)
    assert tasks.evaluation_splits == ("test",)
    splits = {name: set(seqio.TaskRegistry.get(name).splits) for name in (
        tasks.indexing, tasks.retrieval, tasks.images)}  # fmt: skip
    assert splits == {
        "streamed_indexing": {"train"},
        "streamed_retrieval": {"train", "test"},
        "streamed_images": {"test"},
    }
    assert {task.name for task in seqio.get_subtasks(seqio.MixtureRegistry.get(tasks.pairs))} == {
        tasks.retrieval,
        tasks.images,
    }
    assert converters.modality(seqio.TaskRegistry.get(tasks.images), "test") == "image"
    own = register_image_tasks(classes)
    assert own.retrieval is None and own.images == "shapes_images"
    assert set(seqio.TaskRegistry.get(own.images).splits) == {"train", "test"}


def test_duplicate_captions_have_several_positives():
    own = [["a disc", "red"], ["A  disc", "green"], ["blue", "azure"]]
    data = captioned(own)
    corpus = image_protocols.make(data, "heldout_caption", seed=3)
    tasks = register_image_tasks(corpus)
    task = seqio.TaskRegistry.get(tasks.retrieval)
    examples = list(task.get_dataset(split="test", shuffle=False).as_numpy_iterator())
    relevant = {example["inputs"][0].decode(): example["relevant"].tolist() for example in examples}
    held = corpus.queries["test"]
    assert list(relevant) == held.texts and len(held) >= 2
    plain = [[" ".join(caption.lower().split()) for caption in captions] for captions in own]
    for text, rows in relevant.items():
        assert rows == [row for row, captions in enumerate(plain) if text.lower() in captions]
    assert any(len(rows) == 2 for rows in relevant.values())


def test_nothing_to_train_on_is_refused(pictures):
    corpus = load_corpus(pictures[0], seed=1, modality="image")
    with pytest.raises(ValueError, match="INDEXING_RATIO is 0 and the images of 'streamed' have"):
        register_image_tasks(corpus, indexing_ratio=0)
    assert register_image_tasks(corpus).pairs is None
