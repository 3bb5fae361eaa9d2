"""Image corpora by name and from directories; those of TFDS from data that its builders wrote."""

import collections
import dataclasses
import functools
import importlib
import io
import json
import logging
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dsi_jax
from dsi_jax.data.corpora import registry
from dsi_jax.data.corpora.image_corpus import HashedFiles, ImageCorpus, ImageQuerySet
from dsi_jax.data.readers import captions as captions_lib
from dsi_jax.data.readers import image_store, tfds_data, tfds_images
from dsi_jax.data.readers.image_store import Record
from dsi_jax.data.readers.load import load_corpus, modality_of
from dsi_jax.inputs import image_files
from dsi_jax.prepare.data_config import DataConfig
from tests.fixtures import tfds_builders
from tests.fixtures.tfds_builders import jpeg

# --- directories ---------------------------------------------------------------------------------


def write(directory: Path, names) -> Path:
    for seed, name in enumerate(names):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(jpeg(seed))
    return directory


def karpathy_json(rows) -> str:
    """Of (file, split, captions)."""
    return json.dumps(
        {
            "images": [
                {"filename": name, "split": split, "sentences": [{"raw": c} for c in own]}
                for name, split, own in rows
            ]
        }
    )


ROWS = [
    ("a.jpg", "train", ["a dog", "a brown dog"]),
    ("b.jpg", "val", ["a cat", "a tabby"]),
    ("c.jpg", "test", ["a dog", "a wolf"]),
]


load_images = functools.partial(load_corpus, modality="image")


@pytest.fixture
def pictures(tmp_path) -> Path:
    write(tmp_path / "pictures", [name for name, _, _ in ROWS])
    (tmp_path / "splits.json").write_text(karpathy_json(ROWS))
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a dog\nb.jpg,a cat\nc.jpg,a dog\n")
    return tmp_path / "pictures"


def test_captions_make_the_protocol_that_is_asked_for(pictures):
    file = pictures.parent / "splits.json"
    corpus = load_images(pictures, seed=1, captions=file)
    assert (corpus.protocol, len(corpus), len(corpus.queries["test"])) == ("heldout_caption", 3, 3)
    assert len(corpus.image_queries["test"]) == 3  # views
    expected = {"karpathy_test": [2], "full_corpus": [0, 2]}
    for protocol, positives in expected.items():
        corpus = load_images(str(pictures), seed=1, captions=str(file), protocol=protocol)
        assert corpus.protocol == protocol
        test = corpus.queries["test"]
        assert test.relevant[test.texts.index("a dog")].tolist() == positives  # of two images
        assert (corpus.candidates("test") is not None) == (protocol == "karpathy_test")
    corpus = load_images(pictures, seed=1, captions=file, protocol="image_query")
    assert (list(corpus.queries), len(corpus.image_queries["test"])) == (["train"], 3)
    assert corpus.training_captions()[0] == ["a dog", "a brown dog"]
    assert corpus.training_captions()[2] == ["a dog", "a wolf"]


def test_one_caption_an_image_is_for_training(pictures):
    file = pictures.parent / "captions.csv"
    corpus = load_images(pictures, seed=1, captions=file)
    assert (corpus.protocol, list(corpus.queries)) == ("image_query", ["train"])
    assert [rows.tolist() for rows in corpus.queries["train"].relevant] == [[0, 2], [1]]
    with pytest.raises(ValueError, match="no image of two distinct captions"):
        load_images(pictures, seed=1, captions=file, protocol="heldout_caption")


def test_without_captions_there_are_classes_or_views(tmp_path, caplog):
    flat = load_images(write(tmp_path / "flat", ["a.jpg", "b.jpg"]), seed=0)
    assert (flat.protocol, flat.classes, len(flat)) == ("image_query", None, 2)
    names = [f"{kind}/{i}.jpg" for kind in ("cat", "dog") for i in range(3)]
    with caplog.at_level(logging.INFO):
        classes = load_images(write(tmp_path / "classes", names), seed=0)
    assert "2 folders are classes of images" in caplog.text
    assert (len(classes), len(classes.image_queries["test"])) == (4, 2)
    assert classes.classes.tolist() == [0, 0, 1, 1]
    split = [f"{part}/{name}" for part in ("train", "test") for name in names]
    split = load_images(write(tmp_path / "split", split), seed=0)
    assert (len(split), len(split.image_queries["test"])) == (6, 6)
    # Neither one folder, nor images beside the folders, nor flat splits are classes.
    for name, files in {
        "one": ["images/a.jpg", "images/b.jpg"],
        "mixed": [*names, "c.jpg"],
        "flat_splits": ["train/a.jpg", "test/b.jpg"],
    }.items():
        corpus = load_images(write(tmp_path / name, files), seed=0)
        assert (corpus.classes, len(corpus)) == (None, len(files))


def test_what_a_directory_cannot_be_is_named(pictures):
    for spec, message in [
        ("flickr8k", r"no image corpus 'flickr8k', which is neither a name nor .*'coco_captions'"),
        (pictures / "a.jpg", r"a\.jpg', which is a file: expected a directory of images or one"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_images(spec, seed=0)
    with pytest.raises(ValueError, match=r"protocol is 'mine'; expected one of \('heldout"):
        load_images(pictures, seed=0, protocol="mine")
    for protocol in ("heldout_caption", "karpathy_test", "full_corpus"):
        with pytest.raises(ValueError, match=f"has no captions; .* protocol '{protocol}'"):
            load_images(pictures, seed=0, protocol=protocol)
    with pytest.raises(ValueError, match="has no split 'test'"):
        file = pictures.parent / "captions.csv"
        load_images(pictures, seed=0, captions=file, protocol="karpathy_test")
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        load_images(pictures, seed=0, captions=pictures / "none.json")
    (pictures.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="give no image"):
        load_images(pictures.parent / "empty", seed=0)


def test_what_cannot_be_used_is_an_error_or_counted(pictures):
    file = pictures.parent / "captions.csv"
    file.write_text(file.read_text() + "d.jpg,a ghost\n")
    with pytest.raises(FileNotFoundError, match=r"1 captions of .*d\.jpg"):
        load_images(pictures, seed=0, captions=file)
    (pictures / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.jpg is empty"):
        load_images(pictures, seed=0)
    corpus = load_images(pictures, seed=0, captions=file, skip=True)
    assert corpus.keys == ["a.jpg", "c.jpg"]
    assert corpus.skipped == {"captions of absent images": 1, "unreadable images": 1}


def test_views_are_made_when_they_are_asked_for(pictures):
    corpus = load_images(pictures, seed=0)
    views = corpus.image_queries["test"].images
    assert views[1] == views[-2] == views[0:3][1] == list(views)[1]
    assert image_files.decode(views[1]).size < image_files.decode(corpus.images[1]).size
    (pictures / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError):
        views[1]


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("own_registries")
def test_names():
    names = ["caltech_birds2011", "cars196", "coco_captions", "demo_image", "flickr30k"]
    names += ["imagenet2012", "places365_small"]
    assert {modality_of(name) for name in names} == {"image"}
    assert registry.names("image") == names
    assert modality_of("demo_text") == modality_of(".") == "text"
    given = {}

    def mine(**options):
        given.update(options)
        return ImageCorpus("mine", "image_query", ["k"], [b"x"], {})

    dsi_jax.register_corpus("mine", mine, modality="image")
    dsi_jax.register_corpus("mine", mine, modality="image")
    assert modality_of("mine") == "image" and DataConfig(corpus="mine").of_images
    assert dsi_jax.load_corpus("mine", seed=5, skip=True).keys == ["k"]
    assert given == {"seed": 5, "protocol": None, "skip": True}
    for fn, modality in [(lambda **_: None, "image"), (mine, "text")]:
        with pytest.raises(ValueError, match="another corpus is already registered as 'mine'"):
            dsi_jax.register_corpus("mine", fn, modality)
    with pytest.raises(ValueError, match=r"captions are 'c\.csv'; the image corpus 'mine' comes"):
        load_corpus("mine", seed=0, captions="c.csv")
    with pytest.raises(ValueError, match=r"'sound'; expected one of \('text', 'image'\)"):
        dsi_jax.register_corpus("other", mine, modality="sound")


@pytest.mark.usefixtures("own_registries")
def test_images_of_another_project_load_by_name_as_the_docs_say(tmp_path, monkeypatch):
    docs = Path(__file__).resolve().parents[2] / "docs" / "image_data.md"
    (program,) = re.findall(r"```python\n(.*?)```", docs.read_text(), re.DOTALL)
    write(tmp_path / "pictures", ["dog.jpg", "cat.jpg"])
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    corpus = dsi_jax.load_corpus("my_images", seed=3)
    assert (corpus.modality, corpus.protocol) == ("image", "heldout_caption")
    assert corpus.keys == ["dog.jpg", "cat.jpg"] and len(corpus.queries["test"]) == 2
    views = dsi_jax.load_corpus("my_images", protocol="image_query")
    assert (views.hash, list(views.queries)) == (corpus.hash, ["train"])


@pytest.mark.usefixtures("own_registries")
@pytest.mark.parametrize("modality", [None, "text", "image"])
def test_an_unknown_name_lists_the_names_of_both_modalities(modality):
    dsi_jax.register_corpus("my_texts", lambda seed: None)
    dsi_jax.register_corpus("my_images", lambda **_: None, modality="image")
    listed = r"of texts \[.*'demo_text', 'my_texts'.*\], of images \[.*'demo_image'.*'my_images'"
    with pytest.raises(ValueError, match=f"corpus 'demo_imag'.*{listed}"):
        load_corpus("demo_imag", modality=modality)


def test_a_corpus_of_the_other_modality_is_named():
    with pytest.raises(ValueError, match="corpus 'demo_image' are images; expected texts"):
        load_corpus("demo_image#10")  # only texts have subsets
    with pytest.raises(ValueError, match="which is the name of a corpus of texts: expected"):
        load_corpus("demo_text", modality="image")
    with pytest.raises(ValueError, match=r"protocol is 'x'; the documents of 'demo_text' are text"):
        load_corpus("demo_text", protocol="x")
    with pytest.raises(ValueError, match=r"modality is 'sound'; expected one of"):
        load_corpus("demo_text", modality="sound")


def test_demo_image_is_one_of_them():
    corpus = load_corpus("demo_image", seed=42)
    assert (len(corpus), corpus.protocol) == (400, "heldout_caption")
    with pytest.raises(ValueError, match="has the protocol 'heldout_caption'; found 'full_corpus'"):
        load_corpus("demo_image", seed=42, protocol="full_corpus")


# --- files that are written once -----------------------------------------------------------------


def records(count: int = 4):
    return [Record(f"d{i % 2}/{i}.jpg", jpeg(i), [f"caption {i}", "é"], i) for i in range(count)]


def test_stored_images_are_what_was_given(tmp_path):
    image_store.write(tmp_path / "s", reversed(records()), {"by": "me"})
    stored, origin = image_store.load(tmp_path / "s")
    expected = sorted(records(), key=lambda record: record.key)
    assert origin == {"by": "me"}
    assert stored.keys == [record.key for record in expected]
    assert [path.read_bytes() for path in stored.files] == [record.data for record in expected]
    assert stored.captions == [record.captions for record in expected]
    assert stored.labels.tolist() == [record.label for record in expected]
    assert stored.errors == {}
    assert len(list((tmp_path / "s").rglob("*.jpg"))) == 4
    assert not list((tmp_path / "s").rglob(".*"))  # no remains


def test_hashes_are_those_of_the_files(tmp_path):
    image_store.write(tmp_path, records(), {})
    files = image_store.load(tmp_path)[0].files
    stored = ImageCorpus("n", "image_query", list("abcd"), files, {})
    read = ImageCorpus("n", "image_query", list("abcd"), list(files), {})
    encoded = [path.read_bytes() for path in files]
    held = ImageCorpus("n", "image_query", list("abcd"), encoded, {})
    assert stored.hash == read.hash == held.hash
    other = ImageCorpus("n", "image_query", list("abcd"), files.take([0, 1, 3, 2]), {})
    assert other.hash != stored.hash


def test_parts_of_files_are_joined(tmp_path):
    for name in "ab":
        image_store.write(
            tmp_path / name, [Record(f"{name}{i}.jpg", jpeg(i)) for i in range(3)], {}
        )
    parts = [image_store.load(tmp_path / name)[0].files for name in "ab"]
    joined = HashedFiles.concatenate(parts)
    assert [path.name for path in joined] == [f"{name}{i}.jpg" for name in "ab" for i in range(3)]
    assert all(path.is_file() for path in joined)
    assert [path.name for path in joined.take([4, 0])] == ["b1.jpg", "a0.jpg"]
    np.testing.assert_array_equal(joined.take([4, 0]).hashes, joined.hashes[[4, 0]])
    assert [path.name for path in joined[2:5:2]] == ["a2.jpg", "b1.jpg"]
    with pytest.raises(ValueError, match="3 names, 2 folders and 3 hashes"):
        HashedFiles([tmp_path], np.zeros(2, int), ["a"] * 3, np.zeros((3, 32), np.uint8))


def test_images_that_cannot_be_decoded_are_remembered(tmp_path):
    data = jpeg(0)
    image_store.write(
        tmp_path,
        [
            Record("empty.jpg", b""),
            Record("half.jpg", data[: len(data) // 2]),
            Record("pixel.jpg", jpeg(1, 1, 1)),
            Record("good.jpg", data),
        ],
        {},
    )
    errors = image_store.load(tmp_path)[0].errors
    assert list(errors) == ["empty.jpg", "half.jpg", "pixel.jpg"]
    assert "is empty" in errors["empty.jpg"] and "1 x 1 pixels" in errors["pixel.jpg"]


@pytest.mark.parametrize("key", ["/a.jpg", "../a.jpg", "a/../../b.jpg", "", ".", "a//b.jpg"])
def test_no_file_leaves_its_directory(tmp_path, key: str):
    with pytest.raises(ValueError, match="expected a relative path"):
        image_store.write(tmp_path / "s", [Record(key, b"x")], {})
    assert not list(tmp_path.rglob("*.jpg"))


def test_names_are_unique(tmp_path):
    with pytest.raises(ValueError, match=r"image 'a\.jpg' is there twice"):
        image_store.write(tmp_path, [Record("a.jpg", b"x"), Record("a.jpg", b"y")], {})
    assert not image_store.exists(tmp_path)


def test_writing_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "_AT_ONCE", 2)

    def stopped():
        yield from records()[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_store.write(tmp_path, stopped(), {})
    assert not image_store.exists(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"holds no complete 'dsi_jax images': manifest\.json"
    ):
        image_store.load(tmp_path)
    there = sorted(tmp_path.rglob("*.jpg"))
    assert len(there) == 2
    there[1].write_bytes(b"torn")  # another size: written anew
    first = there[0].stat().st_mtime_ns
    image_store.write(tmp_path, records(), {})
    assert there[0].stat().st_mtime_ns == first
    assert [path.read_bytes() for path in there] == [jpeg(0), jpeg(1)]
    assert len(image_store.load(tmp_path)[0].keys) == 4


def test_lost_files_and_other_formats_are_named(tmp_path):
    image_store.write(tmp_path, records(), {})
    next(tmp_path.rglob("*.jpg")).unlink()
    with pytest.raises(ValueError, match="has 3 files, its index 4 images and its manifest 4"):
        image_store.load(tmp_path)
    for text, message in [
        ("{", "not valid JSON"),
        ("[]", "says None"),
        ("{}", "expected {'format"),
    ]:
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            image_store.load(tmp_path)


# --- TFDS ----------------------------------------------------------------------------------------

COCO = {
    "train": [("COCO_train2014_2.jpg", 2, ["a dog", "two dogs", "A  DOG"])],
    "restval": [("COCO_val2014_1.jpg", 1, ["a cat", "a dog"])],
    "val": [("COCO_val2014_3.jpg", 3, ["a cow", "cattle"])],
    "test": [
        ("COCO_val2014_5.jpg", 5, ["a dog", "a sheep"]),
        ("COCO_val2014_4.jpg", 4, ["a sheep"]),
    ],
}
_CLASSED = {
    "train": [(f"{i}", i, i % 3) for i in range(9)],
    "query": [(f"{i}", 100 + i, i % 3) for i in range(6)],
}


def _imagenet(split: str, i: str) -> str:
    return f"n0{int(i) % 3}_{i}.JPEG" if split == "train" else f"ILSVRC2012_val_{i}.JPEG"


_NAMES = {  # data set -> split of the queries, name of an image
    "cars196": ("test", lambda split, i: f"{int(i):05d}"),
    "caltech_birds2011": ("test", lambda split, i: f"CUB_200_2011/images/001.Bird/{split}{i}.jpg"),
    "imagenet2012": ("validation", _imagenet),
    "places365_small": ("validation", lambda split, i: f"{split}_256/a/airfield/{i}.jpg"),
}


def classed(name: str) -> dict:
    query_split, name_of = _NAMES[name]
    record = tfds_builders.RECORDS[name]
    return {
        {"train": "train", "query": query_split}[split]: [
            record(name_of(split, i), seed, label) for i, seed, label in rows
        ]
        for split, rows in _CLASSED.items()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """TFDS data of every data set that TFDS has a builder of."""
    directory = tmp_path_factory.mktemp("tfds")
    coco = {s: [tfds_builders.coco(*row) for row in rows] for s, rows in COCO.items()}
    tfds_builders.build("coco_captions", coco, directory)
    for name in _NAMES:
        tfds_builders.build(name, classed(name), directory)
    return directory


@pytest.fixture
def data_dir(built, tmp_path, monkeypatch) -> Path:
    """A data directory of its own, with the TFDS data, as `--tfds_data_dir` names it."""
    shutil.copytree(built, tmp_path / "tfds")
    monkeypatch.setattr("seqio.utils._TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds"))
    monkeypatch.delenv(tfds_data.CACHE_VARIABLE, raising=False)
    return tmp_path / "tfds"


def small(name: str, **changes) -> tfds_images.Spec:
    """A specification with the counts of our records."""
    spec = tfds_images.SPECS[name]
    if spec.has_classes:
        query = next(split for split, own in spec.splits.items() if own == "test")
        counts = {"train": 9, query: 6}
    else:
        counts = {split: len(rows) for split, rows in COCO.items()}
    return dataclasses.replace(spec, **{"counts": counts, "every": 1, **changes})


def test_coco_has_karpathys_splits(data_dir, caplog):
    with caplog.at_level(logging.INFO):
        corpus = tfds_images.load(small("coco_captions"), seed=0)
    where = data_dir / "dsi_jax/images/coco_captions"
    assert f"once as files, 0.0 GiB, to {where}" in caplog.text
    assert (corpus.name, corpus.protocol) == ("coco_captions", "karpathy_test")
    rows = sorted(row for part in COCO.values() for row in part)  # by name, whatever the split
    assert corpus.keys == [name for name, _, _ in rows]
    assert [path.read_bytes() for path in corpus.images] == [jpeg(seed) for _, seed, _ in rows]
    assert corpus.images[0] == where / "train/files/COCO_train2014_2.jpg"
    assert {split: queries.texts for split, queries in corpus.queries.items()} == {
        "train": ["a dog", "two dogs", "a cat"], "dev": ["a cow", "cattle"],
        "test": ["a sheep", "a dog"],
    }  # fmt: skip
    # Of restval and train, and of two test images: several positives.
    assert [r.tolist() for r in corpus.queries["train"].relevant] == [[0, 1], [0], [1]]
    assert [r.tolist() for r in corpus.queries["test"].relevant] == [[3, 4], [4]]
    assert {s: r.tolist() for s, r in corpus.candidate_rows.items()} == {"dev": [2], "test": [3, 4]}
    full = tfds_images.load(small("coco_captions"), seed=0, protocol="full_corpus")
    assert [r.tolist() for r in full.queries["test"].relevant] == [[3, 4], [0, 1, 4]]
    held = tfds_images.load(small("coco_captions"), seed=0, protocol="heldout_caption")
    assert (len(held.queries["test"].texts) >= 3, len(held.image_queries["test"])) == (True, 5)


@pytest.mark.parametrize("name", _NAMES)
def test_images_of_a_class_look_for_each_other(data_dir, name: str):
    corpus = tfds_images.load(small(name), seed=0)
    assert (corpus.name, corpus.protocol, dict(corpus.queries)) == (name, "image_query", {})
    queries = corpus.image_queries["test"]
    assert (len(corpus), len(queries)) == (9, 6)
    size = (256, 256) if name == "places365_small" else ()
    label_of = {jpeg(s, *size): label for rows in _CLASSED.values() for _, s, label in rows}
    assert [label_of[path.read_bytes()] for path in corpus.images] == corpus.classes.tolist()
    for image, rows in zip(queries.images, queries.relevant, strict=True):
        same = np.flatnonzero(corpus.classes == label_of[image.read_bytes()])
        np.testing.assert_array_equal(rows, same)
    for protocol in ("karpathy_test", "heldout_caption"):
        with pytest.raises(
            ValueError, match=f"expected the protocol 'image_query', found .{protocol}"
        ):
            tfds_images.load(small(name), seed=0, protocol=protocol)


def test_a_sample_of_the_queries_has_all_classes(data_dir):
    assert tfds_images.SPECS["imagenet2012"].every == 10  # 5 of the 50 of each class
    corpus = tfds_images.load(small("imagenet2012", every=2), seed=0)
    queries = corpus.image_queries["test"]
    found = collections.Counter(int(corpus.classes[rows[0]]) for rows in queries.relevant)
    assert found == {0: 1, 1: 1, 2: 1}
    assert corpus.keys[0] == "n00/n00_0.JPEG"


def test_the_second_start_needs_no_tfds(data_dir):
    first = tfds_images.load(small("cars196"), seed=0)
    shutil.rmtree(data_dir / "cars196")
    again = tfds_images.load(small("cars196"), seed=7)
    assert (again.hash, again.keys) == (first.hash, first.keys)
    read = dataclasses.replace(again, images=list(again.images))
    assert read.hash == first.hash


def test_half_written_data_is_completed(data_dir):
    first = tfds_images.load(small("coco_captions"), seed=0)
    shutil.rmtree(data_dir / "dsi_jax/images/coco_captions/val")
    assert tfds_images.load(small("coco_captions"), seed=0).hash == first.hash


def test_the_images_may_be_elsewhere(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv(tfds_data.CACHE_VARIABLE, str(tmp_path / "elsewhere"))
    corpus = tfds_images.load(small("cars196"), seed=0)
    assert corpus.images[0] == tmp_path / "elsewhere/images/cars196/train/files/00000.jpg"
    assert not (data_dir / "dsi_jax").exists()


def test_counts_are_verified(data_dir):
    with pytest.raises(ValueError, match=r"needs 8,144 images in the split 'train'; .* has 9$"):
        load_corpus("cars196", seed=0)
    assert not (data_dir / "dsi_jax").exists()  # before anything is written
    tfds_images.load(small("cars196"), seed=0)
    with pytest.raises(ValueError, match=r"needs 8,041 images in the split 'test'; .* has 6$"):
        tfds_images.load(small("cars196", counts={"train": 9, "test": 8_041}), seed=0)
    with pytest.raises(ValueError, match=r"needs 1 images in the split 'extra'; .* has 0$"):
        changes = {"splits": {"extra": "train"}, "counts": {"extra": 1}}
        tfds_images.load(small("caltech_birds2011", **changes), seed=0)


def test_published_counts():
    counts = {name: dict(spec.counts) for name, spec in tfds_images.SPECS.items()}
    assert sum(counts["coco_captions"].values()) == 123_287  # all of COCO 2014
    assert counts["coco_captions"]["train"] + counts["coco_captions"]["restval"] == 113_287
    assert sum(counts["flickr30k"].values()) == 31_014
    assert sum(counts["cars196"].values()) == 16_185
    assert sum(counts["caltech_birds2011"].values()) == 11_788
    for spec in tfds_images.SPECS.values():
        assert spec.counts.keys() == spec.splits.keys()


def test_another_recipe_is_named(data_dir):
    tfds_images.load(small("cars196"), seed=0)
    manifest = data_dir / "dsi_jax/images/cars196/test/manifest.json"
    value = json.loads(manifest.read_text())
    value["origin"]["recipe"] = 0
    manifest.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"was made of .*'recipe': 0.*; expected .*'recipe': 1"):
        tfds_images.load(small("cars196"), seed=0)


@pytest.mark.parametrize("name", tfds_images.SPECS)
def test_without_data_the_error_says_what_to_run(name: str, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv(tfds_data.CACHE_VARIABLE, raising=False)
    command = f"Build it with: tfds build {name}"
    if name == "flickr30k":
        command = "Build it with: python -m dsi_jax.data.builders.flickr30k --manual_dir=DIR"
    with pytest.raises(FileNotFoundError, match=command) as raised:
        load_corpus(name, seed=0)
    assert f"{tmp_path}/nowhere/{name}/" in str(raised.value) and "//" not in str(raised.value)
    assert f"--data_dir={tmp_path}/nowhere" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_met_before_writing(data_dir, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free=100))
    with pytest.raises(
        OSError, match=r"images of 'cars196' need .* GiB are free: set DSI_JAX_CACH"
    ):
        tfds_images.load(small("cars196"), seed=0)
    assert not list((data_dir / "dsi_jax").rglob("*.jpg"))


def from_records(monkeypatch, tmp_path, examples_of) -> None:
    """Gives data in place of TFDS's; `examples_of(split)` yields the examples."""
    monkeypatch.setattr(tfds_data, "find", lambda name, config, **_: f"{name}{config}")
    sizes = {s: tfds_data.Size(sum(1 for _ in examples_of(s)), 0) for s in ("train", "test")}
    monkeypatch.setattr(tfds_data, "sizes", lambda directory: sizes)
    monkeypatch.setattr(
        tfds_data, "examples", lambda source, split, features, encoded: examples_of(split)
    )
    monkeypatch.setenv(tfds_data.CACHE_VARIABLE, str(tmp_path))


def test_unreadable_images_are_an_error_or_counted(tmp_path, monkeypatch):
    def examples(split):
        for i in range(4):
            data = b"" if (split, i) in [("train", 1), ("test", 2), ("test", 3)] else jpeg(i)
            yield {"id": b"%05d" % i, "image": data, "label": i % 2}

    from_records(monkeypatch, tmp_path, examples)
    spec = small("cars196", counts={"train": 4, "test": 4}, every=2)
    with pytest.raises(ValueError, match=r"3 images cannot be used, the first is '00001.jpg'"):
        tfds_images.load(spec, seed=0)
    corpus = tfds_images.load(spec, seed=0, skip=True)
    assert corpus.keys == ["00000.jpg", "00002.jpg", "00003.jpg"]
    assert corpus.image_queries["test"].ids == ["00000.jpg", "00001.jpg"]
    assert corpus.skipped == {"unreadable images": 1}  # the other two were not drawn as queries


def test_a_corpus_of_many_images_costs_no_memory_for_them(tmp_path, monkeypatch):
    """Neither when they are written nor later; a megabyte would be five images."""
    count = 200

    def examples(split):
        for i in range(count if split == "train" else 2):
            image = np.random.default_rng(i).integers(0, 256, (256, 256, 3), np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "BMP")
            yield {"id": b"%05d" % i, "image": buffer.getvalue(), "label": i % 2}

    from_records(monkeypatch, tmp_path, examples)
    monkeypatch.setattr(image_store, "_AT_ONCE", 8)
    spec = small("cars196", counts={"train": count, "test": 2})
    tracemalloc.start()
    try:
        tfds_images.load(spec, seed=0)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        corpus = tfds_images.load(spec, seed=0)
        assert len(corpus.hash) == 64
        held, opened = (value - before for value in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.jpg"))
    assert stored > 200 * 196_000
    assert written < stored / 5
    assert opened < 1e6 and held < 300_000


def test_rows_are_checked_once_a_class():
    """Of Places' 36,500 queries each has 5,000 relevant images; the check must stay cheap."""

    class Counted(np.ndarray):
        reductions = 0

        def min(self, *args, **kwargs):
            Counted.reductions += 1
            return super().min(*args, **kwargs)

    rows = np.arange(5_000, dtype=np.int32).view(Counted)
    queries = ImageQuerySet([f"q{i}" for i in range(1_000)], [b"x"] * 1_000, [rows] * 1_000)
    keys = [f"k{i}" for i in range(5_000)]
    ImageCorpus("n", "image_query", keys, [b"x"] * 5_000, {}, {"test": queries})
    assert Counted.reductions == 1


# --- Flickr30k -----------------------------------------------------------------------------------

FLICKR = [
    ("1.jpg", "train", ["A dog runs.", "Dogs."]),
    ("2.jpg", "val", ["A cat .", "Cats ."]),
    ("3.jpg", "test", ["A dog runs.", "A horse."]),
    ("4.jpg", "train", ["A cow.", "Cows."]),
]
SMALL_FLICKR = {"train": 2, "dev": 1, "test": 1}


@pytest.fixture
def flickr(tmp_path, monkeypatch) -> Path:
    """The published files; `0.jpg` has captions and no split, as 769 images of Flickr30k."""
    folder = tmp_path / "manual"
    write(folder / "flickr30k-images", [f"{i}.jpg" for i in range(5)])
    (folder / "dataset_flickr30k.json").write_text(karpathy_json(FLICKR))
    lines = [("0.jpg", "Nobody."), *((name, c) for name, _, own in FLICKR for c in own)]
    (folder / "results_20130124.token").write_text(
        "".join(f"{name}#{i % 2}\t{text}\n" for i, (name, text) in enumerate(lines))
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.delenv(tfds_data.CACHE_VARIABLE, raising=False)
    return folder


def builder():
    return importlib.import_module("dsi_jax.data.builders.flickr30k")


def load_flickr(**options) -> ImageCorpus:
    spec = dataclasses.replace(tfds_images.SPECS["flickr30k"], counts=SMALL_FLICKR)
    return tfds_images.load(spec, seed=0, **options)


def test_flickr30k_is_built_from_its_published_files(flickr):
    builder().build(flickr, tfds_data.data_dir())
    with pytest.raises(ValueError, match=r"needs 29,000 images in the split 'train'; .* has 2$"):
        load_corpus("flickr30k", seed=0)
    corpus = load_flickr()
    assert corpus.keys == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert [path.read_bytes() for path in corpus.images] == [jpeg(i) for i in range(1, 5)]
    assert {split: queries.texts for split, queries in corpus.queries.items()} == {
        "train": ["A dog runs.", "Dogs.", "A cow.", "Cows."], "dev": ["A cat .", "Cats ."],
        "test": ["A dog runs.", "A horse."],
    }  # fmt: skip
    assert corpus.candidates("test").tolist() == [2]
    full = load_flickr(protocol="full_corpus").queries["test"]
    assert [rows.tolist() for rows in full.relevant] == [[0, 2], [2]]  # of two images


def test_the_command_builds_it(flickr, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["flickr30k", f"--manual_dir={flickr}"])
    assert builder().main() == 0
    assert len(load_flickr()) == 4
    monkeypatch.setattr("sys.argv", ["flickr30k", "--manual_dir=nowhere"])
    capsys.readouterr()
    assert builder().main() == 2
    assert capsys.readouterr().err == (
        "error: nowhere is no directory; expected that of Flickr30k's files\n"
    )


def test_kaggles_file_with_its_broken_line(flickr):
    (flickr / "results_20130124.token").unlink()
    lines = [
        f"{name}| {i}| {caption.replace('.', ' .')}"
        for name, _, own in FLICKR
        for i, caption in enumerate(own)
    ]
    lines[-1] = lines[-1].replace("| Cows", "   Cows")
    (flickr / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *lines]))
    table = builder().read_table(flickr)
    assert table.captions["1.jpg"] == ["A dog runs .", "Dogs ."]  # Kaggle's
    assert table.captions["4.jpg"] == ["A cow.", "Cows."]  # Karpathy's
    assert table.splits == {"1.jpg": "train", "2.jpg": "dev", "3.jpg": "test", "4.jpg": "train"}


@pytest.mark.parametrize("folder", ["flickr30k_images/flickr30k_images", "Images", ""])
def test_karpathys_file_alone_and_other_folders(flickr, folder: str):
    (flickr / "results_20130124.token").unlink()
    (flickr / "flickr30k-images").rename(flickr / "moved")
    (flickr / folder).mkdir(parents=True, exist_ok=True)
    for path in (flickr / "moved").iterdir():
        path.rename(flickr / folder / path.name)
    builder().build(flickr, tfds_data.data_dir())
    assert load_flickr().queries["train"].texts == ["A dog runs.", "Dogs.", "A cow.", "Cows."]


def test_what_flickr30k_lacks_is_named(flickr):
    build = builder().build
    (flickr / "flickr30k-images/3.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 4 images of .*first is 3\.jpg"):
        build(flickr, tfds_data.data_dir())
    shutil.rmtree(flickr / "flickr30k-images")
    with pytest.raises(FileNotFoundError, match=r"image 1\.jpg is neither in"):
        build(flickr, tfds_data.data_dir())
    (flickr / "results_20130124.token").unlink()
    file = flickr / "dataset_flickr30k.json"
    file.write_text(karpathy_json([("1.jpg", "train", [" "])]))
    with pytest.raises(ValueError, match=r"image 1\.jpg has no caption"):
        build(flickr, tfds_data.data_dir())
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}))
    with pytest.raises(ValueError, match="has no splits"):
        build(flickr, tfds_data.data_dir())
    file.rename(flickr / "other.json")
    with pytest.raises(FileNotFoundError, match="expected Karpathy's splits"):
        build(flickr, tfds_data.data_dir())


# --- real data -----------------------------------------------------------------------------------


def test_real_photographs(shared_data):
    folder = shared_data / "coco_mini"
    file = folder / "captions_coco_subset.json"
    corpus = load_images(folder / "images", seed=0, captions=file)
    assert (corpus.protocol, len(corpus), corpus.skipped) == ("heldout_caption", 488, {})
    assert sum(map(len, captions_lib.load(folder / "images", file).captions)) == 2_441
    assert (len(corpus.queries["test"]), len(corpus.image_queries["test"])) == (488, 488)
    assert load_images(folder / "images", seed=0).protocol == "image_query"


def test_real_emoji(shared_data):
    folder = shared_data / "emoji"
    corpus = load_images(folder / "images", seed=0, captions=folder / "captions.token.txt")
    assert (corpus.protocol, len(corpus), corpus.skipped) == ("heldout_caption", 1_581, {})
    assert len(corpus.image_queries["test"]) == 1_000
    assert max(len(rows) for rows in corpus.queries["train"].relevant) > 100
