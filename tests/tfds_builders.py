"""TFDS data of made images, written offline by TFDS's own builders of image data sets."""

from __future__ import annotations

import importlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16


def jpeg(seed: int, width: int = SIDE, height: int = SIDE) -> bytes:
    """A file that differs from that of any other seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def coco(name: str, seed: int, captions: list[str]) -> dict[str, Any]:
    """A record of `coco_captions`."""
    return {
        "image": io.BytesIO(jpeg(seed)),
        "image/filename": name,
        "image/id": seed,
        "objects": [],
        "captions": [{"id": i, "text": text} for i, text in enumerate(captions)],
    }


def cars(name: str, seed: int, label: int) -> dict[str, Any]:
    """A record of `cars196`."""
    import tensorflow_datasets as tfds

    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    return {"image": io.BytesIO(jpeg(seed)), "label": label, "bbox": box, "id": name}


def birds(name: str, seed: int, label: int) -> dict[str, Any]:
    """A record of `caltech_birds2011`."""
    import tensorflow_datasets as tfds

    return {
        "image": io.BytesIO(jpeg(seed)),
        "image/filename": name,
        "label": label,
        "label_name": "bird",
        "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
        "segmentation_mask": np.zeros((SIDE, SIDE, 1), np.uint8),
    }


def imagenet(name: str, seed: int, label: int) -> dict[str, Any]:
    """A record of `imagenet2012`."""
    return {"image": io.BytesIO(jpeg(seed)), "label": label, "file_name": name}


def places(name: str, seed: int, label: int) -> dict[str, Any]:
    """A record of `places365_small`."""
    return {"image": io.BytesIO(jpeg(seed, 256, 256)), "label": label, "filename": name}


RECORDS = {
    "coco_captions": coco,
    "cars196": cars,
    "caltech_birds2011": birds,
    "imagenet2012": imagenet,
    "places365_small": places,
}
_BUILDERS = {
    "coco_captions": ("object_detection.coco_captions", "CocoCaptions"),
    "cars196": ("image_classification.cars196", "Cars196"),
    "caltech_birds2011": ("image_classification.caltech_birds", "CaltechBirds2011"),
    "imagenet2012": ("datasets.imagenet2012.imagenet2012_dataset_builder", "Builder"),
    "places365_small": ("datasets.places365_small.places365_small_dataset_builder", "Builder"),
}


def build(name: str, splits: Mapping[str, list[dict[str, Any]]], data_dir: Path) -> None:
    """Writes TFDS data in the real format.

    Args:
      name: of the data set.
      splits: split -> records of `RECORDS[name]`.
      data_dir: of TFDS.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    module, class_name = _BUILDERS[name]
    real = getattr(importlib.import_module(f"tensorflow_datasets.{module}"), class_name)

    def split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in splits}

    def generate_examples(self, split):
        yield from ((f"{split}{i}", record) for i, record in enumerate(splits[split]))

    def info(self, **features):  # without the texts that lie beside the real one
        return tfds.core.DatasetInfo(builder=self, **features)

    with registered.skip_registration():
        made = type(
            class_name,
            (real,),
            {
                "__module__": name,  # TFDS looks for files beside a module of a package
                "name": name,
                "dataset_info_from_configs": info,
                "_split_generators": split_generators,
                "_generate_examples": generate_examples,
            },
        )
        made(data_dir=data_dir, file_format="tfrecord").download_and_prepare()
