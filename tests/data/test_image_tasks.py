"""Tasks of image corpora that are registered before their data is read."""

import importlib

import numpy as np
import pytest
import seqio

from dsi_jax.data.corpora.image_corpus import ImageCorpus, ImageQuerySet
from dsi_jax.data.readers import demo_image, load, tfds_images
from dsi_jax.data.seqio_tasks import features
from dsi_jax.data.seqio_tasks import images as image_tasks
from dsi_jax.tasks import captions

CLASSES = np.array([0, 1, 0, 1, 1, 2])


def scenes(count: int) -> list[bytes]:
    return [
        demo_image.draw(scene, [0, i, 0], jitter=False)
        for i, scene in enumerate(demo_image.scenes(0, count))
    ]


def test_importing_the_tasks_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for module in ("flickr30k", "coco", "image_classes"):
        importlib.import_module(f"dsi_jax.tasks.{module}")
    for name, spec in tfds_images.SPECS.items():
        task = seqio.TaskRegistry.get(f"{name}_{'images' if spec.has_classes else 'retrieval'}")
        assert set(task.splits) == set(spec.splits.values())
        mixture = seqio.MixtureRegistry.get(f"{name}_dsi")
        rates = {t.name: mixture.get_rate(t) for t in mixture.tasks}
        indexed = sum(n for split, n in spec.counts.items() if not spec.has_classes)
        trained = sum(n for split, n in spec.counts.items() if spec.splits[split] == "train")
        ratio = indexed / trained if indexed else 1.0
        assert rates == {f"{name}_indexing": pytest.approx(ratio), task.name: 1.0}
        assert [t.name for t in seqio.MixtureRegistry.get(f"{name}_pairs").tasks] == [task.name]
        with pytest.raises(FileNotFoundError, match=name):
            task.num_input_examples("test")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("own_registries")
def test_lazy_tasks_of_captions_are_those_of_the_corpus(tmp_path):
    for i, image in enumerate(scenes(4)):
        (tmp_path / f"{i}.png").write_bytes(image)
    lines = [f"{i}.png#{j}\tcaption {j} of {i}\n" for i in range(4) for j in range(3)]
    (tmp_path / "own.token").write_text("".join(lines))
    captions.register("own", tmp_path, tmp_path / "own.token", seed=5)
    lazy = seqio.TaskRegistry.get("own_retrieval")
    corpus = load.load_corpus(
        tmp_path,
        seed=5,
        modality="image",
        captions=tmp_path / "own.token",
        protocol="heldout_caption",
    )
    examples = list(lazy.get_dataset(split="test", shuffle=False).as_numpy_iterator())
    found = [example[features.INPUTS][0].decode() for example in examples]
    assert found == corpus.queries["test"].texts
    # The same content is registered already, so that this changes nothing.
    tasks = image_tasks.register_image_tasks(corpus, "own")
    assert seqio.TaskRegistry.get(tasks.retrieval) is lazy
    assert (tasks.mixture, tasks.images) == ("own_dsi", "own_images")


@pytest.mark.usefixtures("own_registries")
def test_lazy_tasks_of_classes_draw_rows_of_the_class():
    calls = []
    images = scenes(len(CLASSES) + 1)
    queries = ImageQuerySet(["q"], images[-1:], [np.flatnonzero(CLASSES == 1).astype(np.int32)])

    def load() -> ImageCorpus:
        calls.append(1)
        return ImageCorpus(
            name="classed",
            protocol="image_query",
            keys=[f"k{row}" for row in range(len(CLASSES))],
            images=images[:-1],
            queries={},
            image_queries={"test": queries},
            classes=CLASSES,
        )

    image_tasks.register_lazily("classed", load, images=("train", "test"))
    assert not calls
    task = seqio.TaskRegistry.get("classed_images")
    assert task.num_input_examples("test") == 1
    dataset = task.get_dataset(split="train", shuffle=False, seed=1, num_epochs=8)
    drawn = [int(e[features.TARGETS][0]) for e in dataset.as_numpy_iterator()]
    rows = np.array(drawn).reshape(8, len(CLASSES))
    np.testing.assert_array_equal(CLASSES[rows], np.tile(CLASSES, (8, 1)))
    assert {*rows[:, 1]} == {1, 3, 4}  # another one each pass
    assert calls == [1]
    assert [fn.__name__ for fn in task.metric_fns] == ["retrieval_metrics", "class_metrics"]
