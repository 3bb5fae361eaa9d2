"""Readers of images with captions, and the protocols that make corpora of them."""

import collections
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import CaptionedImages, ImageCorpus
from dsi_jax.data.corpora.image_protocols import heldout_caption, image_query, karpathy, with_views
from dsi_jax.data.readers import captions, demo_image, image_folders
from dsi_jax.inputs import image_files

NAMES = ("a.jpg", "b.png", "c d.jpg")


def write_image(path, seed: int = 0, size: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size + 4, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def directory(tmp_path):
    for seed, name in enumerate(NAMES):
        write_image(tmp_path / "images" / name, seed)
    return tmp_path / "images"


EXPECTED = {"a.jpg": ["A dog.", "A brown dog"], "b.png": ["A cat, asleep"], "c d.jpg": ["A cow"]}


def coco() -> str:
    annotations = [
        {"id": 10 + i, "image_id": NAMES.index(name), "caption": caption}
        for name, own in EXPECTED.items()
        for i, caption in enumerate(own)
    ]
    records = [{"id": i, "file_name": name} for i, name in enumerate(NAMES)]
    return json.dumps({"images": records, "annotations": annotations})


def karpathys() -> str:
    return json.dumps(
        {
            "dataset": "flickr8k",
            "images": [
                {
                    "filename": name,
                    "split": split,
                    "sentences": [{"raw": c} for c in EXPECTED[name]],
                }
                for name, split in zip(NAMES, ("restval", "val", "test"), strict=True)
            ],
        }
    )


FILES = {
    "captions.json": coco(),
    "dataset_flickr8k.json": karpathys(),
    "results.token": "".join(
        f"{name}#{i}\t{caption}\n"
        for name, own in EXPECTED.items()
        for i, caption in enumerate(own)
    ),
    "captions.txt": "a.jpg#0\tA dog.\r\na.jpg#1\tA brown dog\r\n\r\nb.png#0\tA cat, asleep\r\n"
    "c d.jpg#0\tA cow\r\n",
    "captions.csv": 'image,caption\na.jpg,A dog.\na.jpg,A brown dog\nb.png,"A cat, asleep"\n'
    "c d.jpg,A cow\n",
    "results.csv": "image_name| comment_number| comment\na.jpg| 0| A dog.\na.jpg| 1| A brown dog\n"
    "b.png| 0| A cat, asleep\nc d.jpg| 0| A cow\n",
    "more.tsv": "\ufeffCaption\tsource\tFile\nA dog.\tx\ta.jpg\nA brown dog\tx\ta.jpg\n"
    "A cat, asleep\tx\tb.png\nA cow\tx\tc d.jpg\n",
}


@pytest.mark.parametrize("name", FILES)
def test_every_form_gives_the_same(directory, name: str) -> None:
    file = directory.parent / name
    file.write_text(FILES[name], "utf-8")
    data = captions.load(directory, file)
    assert dict(zip(data.keys, data.captions, strict=True)) == EXPECTED
    assert [path.name for path in data.images] == list(EXPECTED)
    assert data.splits == (["train", "dev", "test"] if "dataset" in name else None)
    assert data.skipped == {}
    assert data.name == file.stem


def test_a_directory_without_captions(directory) -> None:
    (directory / "notes.txt").write_text("no image")
    write_image(directory / "deeper" / "e.PNG")
    write_image(directory / ".thumbnails" / "f.png")
    data = captions.load(directory)
    assert data.keys == ["a.jpg", "b.png", "c d.jpg", "deeper/e.PNG"]
    assert data.captions == [[]] * 4
    corpus = image_query(data, seed=0)
    assert (corpus.protocol, dict(corpus.queries)) == ("image_query", {})
    assert len(corpus.image_queries["test"]) == 4


def test_what_cannot_be_used_is_an_error_or_counted(directory) -> None:
    file = directory.parent / "captions.token"
    good = (directory / "a.jpg").read_bytes()
    cases = {
        "empty.jpg": b"",
        "half.jpg": good[: len(good) // 2],
        "text.png": b"no image",
    }
    for name, data in cases.items():
        (directory / name).write_bytes(data)
    write_image(directory / "pixel.png", size=1)
    lines = [f"{name}#0\tA caption" for name in ("a.jpg", *cases, "pixel.png")]
    for line, message in [
        ("absent.jpg#0\tA ghost", r"1 captions of .*absent\.jpg, which does not exist"),
        ("a.jpg\tno number", r"captions\.token:1: expected 'file#number<TAB>caption'"),
        (lines[1], r"empty\.jpg is empty"),
        (lines[2], r"half\.jpg cannot be decoded"),
        (lines[3], r"text\.png cannot be decoded"),
        (lines[4], r"pixel\.png is 5 x 1 pixels"),
    ]:
        file.write_text(line)
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            captions.load(directory, file)
    lines += ["absent.jpg#0\tA ghost", "absent.jpg#1\tA spectre", "malformed"]
    file.write_text("\n".join(lines))
    data = captions.load(directory, file, skip=True)
    assert data.keys == ["a.jpg"]
    assert data.skipped == {
        "unreadable images": 4,
        "captions of absent images": 2,
        "malformed lines": 1,
    }
    # Nothing is lost uncounted.
    assert sum(data.skipped.values()) + sum(map(len, data.captions)) == len(lines)
    file.write_text(lines[1])
    with pytest.raises(ValueError, match="give no image"):
        captions.load(directory, file, skip=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "not a JSON file"),
        ("x.json", "[]", "expected an object with a list 'images'"),
        ("x.json", '{"images": [{"id": 1}], "annotations": []}', "lacks the field 'file_name'"),
        (
            "x.json",
            '{"images": [], "annotations": [{"id": 7, "image_id": 1, "caption": "x"}]}',
            "annotation 7 is of image 1, which is not among its images",
        ),
        ("x.json", karpathys().replace("restval", "extra"), "split 'extra'; expected one of"),
        ("x.csv", "picture,caption\na.jpg,A dog", "no column of the file among"),
        ("x.csv", "image,words\na.jpg,A dog", "no column of the caption among"),
        ("x.csv", "image,caption\na.jpg", r"x\.csv:2: 1 columns; expected 2"),
        ("x.csv", "", "no column of the file among"),
        ("x.token", "", "has no captions"),
        ("x.yaml", "", "expected a file that ends in one of"),
    ],
)
def test_malformed_files(directory, name: str, text: str, message: str) -> None:
    file = directory.parent / name
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        captions.load(directory, file)


def test_absent_files(directory) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no directory"):
        captions.load(directory / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        captions.load(directory, directory / "nothing.json")


def made(own: list[list[str]], splits: list[str] | None = None) -> CaptionedImages:
    keys = [f"k{i}" for i in range(len(own))]
    return CaptionedImages("made", keys, [key.encode() for key in keys], own, splits)


def test_one_caption_is_held_out_at_random() -> None:
    own = [[f"image {i} caption {k}" for k in range(5)] for i in range(200)]
    corpus = heldout_caption(made(own), seed=3)
    train, test = corpus.queries["train"], corpus.queries["test"]
    assert (len(train), len(test), corpus.protocol) == (800, 200, "heldout_caption")
    assert sorted(train.texts + test.texts) == sorted(itertools.chain(*own))
    places = collections.Counter(text[-1] for text in test.texts)
    assert all(20 < places[str(k)] < 60 for k in range(5))  # not always the same one
    assert [rows.tolist() for rows in test.relevant] == [[i] for i in range(200)]
    assert heldout_caption(made(own), seed=3).queries["test"].texts == test.texts
    assert heldout_caption(made(own), seed=4).queries["test"].texts != test.texts
    assert corpus.documents_with_training_query().all()


def test_equal_captions_are_one_query_of_several_images() -> None:
    own = [["Two dogs", "two  dogs ", "a park"], ["two dogs"], ["a lake"], []]
    seen = set()
    for seed in range(10):
        corpus = heldout_caption(made(own), seed)
        test = corpus.queries["test"]
        assert len(test) == 1
        seen.add(test.texts[0])
        if test.texts == ["Two dogs"]:
            # Held out for the first image, for training for the second: both are right answers.
            assert test.relevant[0].tolist() == [0, 1]
            assert corpus.training_captions() == [["a park"], ["two dogs"], ["a lake"], []]
        else:
            assert corpus.training_captions()[:2] == [["Two dogs"], ["Two dogs"]]
            assert corpus.queries["train"].relevant[0].tolist() == [0, 1]
        np.testing.assert_array_equal(
            corpus.documents_with_training_query(), [True, True, True, False]
        )
    assert seen == {"Two dogs", "a park"}
    with pytest.raises(ValueError, match="has no image of two distinct captions"):
        heldout_caption(made([["one"], ["Two", "two"]]), 0)


def test_protocols_of_splits() -> None:
    own = [["a", "b"], ["c"], ["d", "a"], ["e", "d"]]
    data = made(own, ["train", "dev", "test", "test"])
    corpus = karpathy(data)
    assert corpus.protocol == "karpathy_test"
    assert len(corpus) == 4
    assert {split: queries.texts for split, queries in corpus.queries.items()} == {
        "train": ["a", "b"], "dev": ["c"], "test": ["d", "a", "e"],
    }  # fmt: skip
    assert [rows.tolist() for rows in corpus.queries["test"].relevant] == [[2, 3], [2], [3]]
    assert {split: rows.tolist() for split, rows in corpus.candidate_rows.items()} == {
        "dev": [1], "test": [2, 3],
    }  # fmt: skip
    full = karpathy(data, full_corpus=True)
    assert (full.protocol, dict(full.candidate_rows)) == ("full_corpus", {})
    assert [rows.tolist() for rows in full.queries["test"].relevant] == [[2, 3], [0, 2], [3]]
    assert full.queries["train"].relevant[0].tolist() == [0]
    for splits in (None, ["train"] * 4):
        with pytest.raises(ValueError, match="has no split 'test'"):
            karpathy(made(own, splits))


def test_views_are_parts_of_their_images(directory) -> None:
    corpus = image_query(captions.load(directory), seed=0)
    views = corpus.image_queries["test"]
    for view, rows in zip(views.images, views.relevant, strict=True):
        part, whole = image_files.decode(view), image_files.decode(corpus.images[rows[0]])
        assert 0.35 < part.width * part.height / (whole.width * whole.height) < 0.95
        wanted = np.asarray(part)
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(whole), wanted.shape)
        assert (windows == wanted).all(axis=(-3, -2, -1)).any()
    again = image_query(captions.load(directory), seed=0).image_queries["test"]
    assert list(again.images) == list(views.images) == views.images[:]
    assert len(with_views(corpus, seed=0, count=2).image_queries["test"]) == 2


def test_corpora_name_what_is_wrong() -> None:
    query = image_protocols.query_set("q", [["a"]], [[["a"]]])
    for changes, message in [
        ({"protocol": "mine"}, "protocol is 'mine'; expected one of"),
        ({"keys": [], "images": []}, "is empty; expected at least one image"),
        ({"images": [b"x"]}, "has 2 keys and 1 images"),
        ({"classes": np.zeros(3, np.int32)}, "and a class for each or for none"),
        ({"keys": ["a", "a"]}, "image 1: the key 'a' is already that of image 0"),
        ({"keys": ["a", ""]}, "image 1: the key is empty"),
        ({"keys": ["a"], "images": [b"x"], "queries": {"test": query}}, None),
    ]:
        given = {"name": "n", "protocol": "image_query", "keys": ["a", "b"], "images": [b"x", b"y"]}
        given |= {"queries": {}} | changes
        if message is None:
            ImageCorpus(**given)
            query.relevant[0][0] = 1
            message = r"split 'test', query 'q0': rows \[1\]; expected some of the 1 images"
        with pytest.raises(ValueError, match=message):
            ImageCorpus(**given)


def test_folders_of_classes(tmp_path) -> None:
    for kind, count in (("cat", 20), ("dog", 5), ("eel", 1)):
        for i in range(count):
            write_image(tmp_path / "pets" / kind / f"{i}.png", i)
    corpus = image_folders.load(tmp_path / "pets", seed=0)
    queries = corpus.image_queries["test"]
    assert (len(corpus), len(queries)) == (23, 3)  # two cats and a dog are held out
    assert collections.Counter(corpus.classes.tolist()) == {0: 18, 1: 4, 2: 1}
    assert sorted(len(rows) for rows in queries.relevant) == [4, 18, 18]
    for image, rows in zip(queries.images, queries.relevant, strict=True):
        assert image not in corpus.images
        assert all(corpus.images[row].parent == image.parent for row in rows)
    again = image_folders.load(tmp_path / "pets", seed=0)
    assert (again.keys, again.hash) == (corpus.keys, corpus.hash)
    assert image_folders.load(tmp_path / "pets", seed=1).hash != corpus.hash


def test_folders_with_splits(tmp_path) -> None:
    for split, kind in (("train", "cat"), ("train", "dog"), ("val", "dog")):
        for i in range(2):
            write_image(tmp_path / split / kind / f"{i}.png", i)
    corpus = image_folders.load(tmp_path, seed=0)
    assert corpus.keys == [f"train/{kind}/{i}.png" for kind in ("cat", "dog") for i in range(2)]
    assert [rows.tolist() for rows in corpus.image_queries["test"].relevant] == [[2, 3], [2, 3]]
    write_image(tmp_path / "val" / "emu" / "0.png")
    with pytest.raises(ValueError, match=r"classes \['emu'\] have no image to be found"):
        image_folders.load(tmp_path, seed=0)
    (tmp_path / "val" / "emu" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        image_folders.load(tmp_path, seed=0)
    assert image_folders.load(tmp_path, seed=0, skip=True).skipped == {"unreadable images": 1}
    with pytest.raises(FileNotFoundError, match="nowhere is no directory"):
        image_folders.load(tmp_path / "nowhere", seed=0)


@pytest.fixture(scope="module")
def scenes():
    return demo_image.load(7, count=60)


def test_demo_is_a_function_of_its_seed(scenes) -> None:
    again = demo_image.load(7, count=60)
    assert (again.hash, again.queries["test"].texts) == (scenes.hash, scenes.queries["test"].texts)
    assert again.image_queries["test"].images == scenes.image_queries["test"].images
    assert demo_image.load(8, count=60).hash != scenes.hash
    assert demo_image.scenes(7, 100)[:60] == demo_image.scenes(7, 60)


def test_demo_is_the_same_in_every_process_and_needs_no_tensorflow(scenes) -> None:
    program = (
        "import sys; from dsi_jax.data.readers import demo_image as d, load\n"
        "print(d.load(7, count=60).hash, 'tensorflow' in sys.modules, 'seqio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == [scenes.hash, "False", "False"], done.stderr


def test_demo_describes_what_it_draws(scenes) -> None:
    """Every caption names both shapes and their colours; they are there to be seen."""
    described = demo_image.scenes(7, 60)
    own = scenes.training_captions()
    for scene, image, texts in zip(described, scenes.images, own, strict=True):
        pixels = np.asarray(image_files.decode(image)).astype(int)
        assert pixels.shape == (demo_image.SIZE, demo_image.SIZE, 3)
        assert len(texts) == demo_image.NUM_CAPTIONS - 1
        for thing in (scene.left, scene.right):
            names = demo_image.SHAPES[thing.shape]
            assert all(any(f"{thing.colour} {name}" in text for name in names) for text in texts)
            column = slice(int(13 + 18.6 * thing.column) - 3, int(13 + 18.6 * thing.column) + 4)
            row = slice(int(13 + 18.6 * thing.row) - 3, int(13 + 18.6 * thing.row) + 4)
            near = abs(pixels[row, column] - demo_image.COLOURS[thing.colour]).max(axis=-1)
            assert (near < 12).mean() > 0.5
    views = scenes.image_queries["test"]
    for view, image in zip(views.images, scenes.images, strict=True):
        difference = abs(
            np.asarray(image_files.decode(view)).astype(int) - image_files.decode(image)
        ).mean()
        assert 2 < difference < 60  # another view, of the same scene


def test_real_photographs(shared_data) -> None:
    folder = shared_data / "coco_mini"
    data = captions.load(folder / "images", folder / "captions_coco_subset.json")
    assert (len(data.keys), sum(map(len, data.captions)), data.skipped) == (488, 2441, {})
    corpus = heldout_caption(data, seed=0)
    assert len(corpus.queries["test"]) == 488


def test_real_emoji(shared_data) -> None:
    folder = shared_data / "emoji"
    data = captions.load(folder / "images", folder / "captions.token.txt")
    assert (len(data.keys), sum(map(len, data.captions)), data.skipped) == (1581, 10_777, {})
    corpus = heldout_caption(data, seed=0)
    train = corpus.queries["train"]
    assert max(len(rows) for rows in train.relevant) > 100  # "face"
    assert len(corpus.queries["test"].texts) < 1581
