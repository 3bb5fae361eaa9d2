"""Corpora of images from TFDS data sets that were built before.

The first use writes the images as files, encoded as they are, beside the TFDS data; from then on a
corpus is names and paths, and TFDS is not read. With captions: Flickr30k and COCO in the splits of
Karpathy and Fei-Fei (2015). With classes, as in IRGen (Zhang et al. 2024,
https://arxiv.org/abs/2303.10126): the documents are the training images, the queries the images of
another split, and every document of a query's class is relevant.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import (
    CaptionedImages,
    HashedFiles,
    ImageCorpus,
    ImageQuerySet,
)
from dsi_jax.data.readers import image_store, tfds_data
from dsi_jax.data.readers.captions import UNREADABLE

logger = logging.getLogger(__name__)

_RECIPE = 1  # counted up when something else is stored of the same data
Example = Mapping[str, Any]  # as `tfds.as_numpy` gives it


@dataclasses.dataclass(frozen=True)
class Spec:
    """A data set and what to make of it.

    Attributes:
      name: of the corpus and of the TFDS data set.
      splits: TFDS split -> split of the corpus.
      counts: TFDS split -> how many images it must have.
      features: what is read besides "image", as for `tfds.decode.PartialDecoding`.
      record: example -> key, captions and class of the image.
      config: of the data set.
      size: what must be downloaded to build it.
      command: what builds it; None: TFDS's own command.
      every: of the query images of each class, by name, every so many is taken.
    """

    name: str
    splits: Mapping[str, str]
    counts: Mapping[str, int]
    features: Mapping[str, Any]
    record: Callable[[Example], image_store.Record]
    config: str = ""
    size: str = ""
    command: str | None = None
    every: int = 1

    @property
    def has_classes(self) -> bool:
        """Whether its images have classes; captions otherwise."""
        return "label" in self.features

    def origin(self, split: str) -> dict[str, Any]:
        """What the stored images of a split depend on, as plain JSON."""
        return {"recipe": _RECIPE, "tfds": self.name, "config": self.config, "split": split}


def _flickr30k(example: Example) -> image_store.Record:
    return image_store.Record(
        example["filename"].decode(),
        example["image"],
        captions=[caption.decode() for caption in example["captions"]],
    )


def _coco(example: Example) -> image_store.Record:
    return image_store.Record(
        example["image/filename"].decode(),
        example["image"],
        captions=[caption.decode() for caption in example["captions"]["text"]],
    )


def _classified(
    key: str, example: Example, name: Callable[[str], str] = lambda name: name
) -> image_store.Record:
    return image_store.Record(
        name(example[key].decode()), example["image"], label=int(example["label"])
    )


def _imagenet_name(name: str) -> str:
    """A folder a synset, as in the archive; names of validation images have none."""
    return name if name.startswith("ILSVRC2012") else f"{name.split('_')[0]}/{name}"


_KARPATHY = {"train": "train", "restval": "train", "val": "dev", "test": "test"}
_BY_CLASS = {"train": "train", "test": "test"}
SPECS = {
    spec.name: spec
    for spec in (
        Spec(
            "flickr30k",
            splits={"train": "train", "dev": "dev", "test": "test"},
            counts={"train": 29_000, "dev": 1_014, "test": 1_000},
            features={"filename": True, "captions": True},
            record=_flickr30k,
            command="python -m dsi_jax.data.builders.flickr30k --manual_dir=DIR",
        ),
        Spec(
            "coco_captions",
            splits=_KARPATHY,
            counts={"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000},
            features={"image/filename": True, "captions": {"text": True}},
            record=_coco,
            config="2014",
            size="38 GiB",
        ),
        Spec(
            "cars196",
            splits=_BY_CLASS,
            counts={"train": 8_144, "test": 8_041},
            features={"id": True, "label": True},
            record=functools.partial(_classified, "id", name=lambda name: f"{name}.jpg"),
            size="1.8 GiB",
        ),
        Spec(
            "caltech_birds2011",
            splits=_BY_CLASS,
            counts={"train": 5_994, "test": 5_794},
            features={"image/filename": True, "label": True},
            record=functools.partial(_classified, "image/filename"),
            size="1.1 GiB",
        ),
        Spec(
            "imagenet2012",
            splits={"train": "train", "validation": "test"},
            counts={"train": 1_281_167, "validation": 50_000},
            features={"file_name": True, "label": True},
            record=functools.partial(_classified, "file_name", name=_imagenet_name),
            size="134 GiB, by hand,",
            every=10,  # IRGen's 5,000 queries (its data/imagenet/gnd_generater.py)
        ),
        Spec(
            "places365_small",
            splits={"train": "train", "validation": "test"},
            counts={"train": 1_803_460, "validation": 36_500},
            features={"filename": True, "label": True},
            record=functools.partial(_classified, "filename"),
            size="29 GiB",
        ),
    )
}


def load(spec: Spec, *, seed: int, protocol: str | None = None, skip: bool = False) -> ImageCorpus:
    """The corpus of a data set.

    Args:
      spec: which.
      seed: of what the protocol draws.
      protocol: None: `karpathy_test` where there are captions, `image_query` where there are
        classes.
      skip: whether images that cannot be decoded are counted and left out; an error otherwise.

    Raises:
      FileNotFoundError: neither the stored images nor TFDS data are there; the message says what
        to run.
      OSError: there is no space to store the images.
      ValueError: the protocol does not suit the data, the data has other counts than it should, or
        an image cannot be decoded.
    """
    if spec.has_classes:
        if protocol not in (None, "image_query"):
            raise ValueError(
                f"corpus '{spec.name}' has classes and no captions; expected the protocol "
                f"'image_query', found '{protocol}'"
            )
        return _by_class(spec, _stored(spec), skip)
    data = _captioned(spec, _stored(spec), skip)
    return image_protocols.make(data, protocol or "karpathy_test", seed)


CORPORA = {name: functools.partial(load, spec) for name, spec in SPECS.items()}


def directory_of(spec: Spec) -> Path:
    """Where the images of a data set are stored, a folder a split."""
    return tfds_data.cache_dir() / "images" / spec.name


def _stored(spec: Spec) -> dict[str, image_store.Stored]:
    """The stored images of each split of TFDS; stores those that are not."""
    parts = {}
    missing = [s for s in spec.splits if not image_store.exists(directory_of(spec) / s)]
    if missing:
        _store(spec, missing)
    for split in spec.splits:
        directory = directory_of(spec) / split
        parts[split], origin = image_store.load(directory)
        if origin != spec.origin(split):
            raise ValueError(
                f"{directory} was made of {origin}; expected {spec.origin(split)}: remove the "
                "directory to write it anew"
            )
        _check_count(spec, split, len(parts[split].keys), directory)
    return parts


def _store(spec: Spec, splits: list[str]) -> None:
    source = tfds_data.find(spec.name, spec.config, size=spec.size, command=spec.command)
    found = tfds_data.sizes(source)
    for split in spec.splits:
        _check_count(spec, split, found[split].examples if split in found else 0, source)
    root = directory_of(spec)
    root.mkdir(parents=True, exist_ok=True)
    needed, free = sum(found[split].bytes for split in splits), shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"the images of '{spec.name}' need {needed / 2**30:.1f} GiB in {root}; "
            f"{free / 2**30:.1f} GiB are free: set {tfds_data.CACHE_VARIABLE} to another directory"
        )
    logger.info(
        "%s: writing the images of %s once as files, %.1f GiB, to %s",
        spec.name,
        source,
        needed / 2**30,
        root,
    )
    for split in splits:
        image_store.write(root / split, _records(spec, source, split), spec.origin(split))


def _records(spec: Spec, source: str, split: str) -> Iterator[image_store.Record]:
    features = {"image": True, **spec.features}
    return map(spec.record, tfds_data.examples(source, split, features, encoded=["image"]))


def _check_count(spec: Spec, split: str, found: int, where: str | os.PathLike) -> None:
    if found != spec.counts[split]:
        raise ValueError(
            f"corpus '{spec.name}' needs {spec.counts[split]:,} images in the split '{split}'; "
            f"{where} has {found:,}"
        )


def _captioned(spec: Spec, parts: Mapping[str, image_store.Stored], skip: bool) -> CaptionedImages:
    """All images by name, whatever the split."""
    keys = [key for part in parts.values() for key in part.keys]
    captions = [own for part in parts.values() for own in part.captions]
    splits = [spec.splits[split] for split, part in parts.items() for _ in part.keys]
    bad = _unreadable(spec, parts, skip)
    rows = [i for i in sorted(range(len(keys)), key=keys.__getitem__) if keys[i] not in bad]
    return CaptionedImages(
        name=spec.name,
        keys=[keys[i] for i in rows],
        images=HashedFiles.concatenate([part.files for part in parts.values()]).take(rows),
        captions=[captions[i] for i in rows],
        splits=[splits[i] for i in rows],
        skipped={UNREADABLE: len(bad)} if bad else {},
    )


def _by_class(spec: Spec, parts: Mapping[str, image_store.Stored], skip: bool) -> ImageCorpus:
    documents, queries = (
        next(part for split, part in parts.items() if spec.splits[split] == own)
        for own in ("train", "test")
    )
    _unreadable(spec, parts, skip)
    rows = [i for i, key in enumerate(documents.keys) if key not in documents.errors]
    by_class = np.argsort(queries.labels, kind="stable")[:: spec.every]
    asked = [i for i in sorted(by_class) if queries.keys[i] not in queries.errors]
    bad = len(documents.keys) - len(rows) + len(by_class) - len(asked)
    classes = documents.labels[rows]
    members = {int(c): np.flatnonzero(classes == c).astype(np.int32) for c in np.unique(classes)}
    none = np.zeros(0, np.int32)
    return ImageCorpus(
        name=spec.name,
        protocol="image_query",
        keys=[documents.keys[i] for i in rows],
        images=documents.files.take(rows),
        queries={},
        image_queries={
            "test": ImageQuerySet(
                ids=[queries.keys[i] for i in asked],
                images=queries.files.take(asked),
                relevant=[members.get(int(queries.labels[i]), none) for i in asked],
            )
        },
        classes=classes,
        skipped={UNREADABLE: bad} if bad else {},
    )


def _unreadable(spec: Spec, parts: Mapping[str, image_store.Stored], skip: bool) -> dict[str, str]:
    """Key -> why it cannot be decoded."""
    bad = {key: error for part in parts.values() for key, error in part.errors.items()}
    if bad and not skip:
        key, error = next(iter(bad.items()))
        raise ValueError(
            f"corpus '{spec.name}': {len(bad)} images cannot be used, the first is '{key}': {error}"
        )
    if bad:
        logger.warning("%s: %d %s are left out: %s", spec.name, len(bad), UNREADABLE, list(bad)[:5])
    return bad
