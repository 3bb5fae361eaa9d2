"""Builds Flickr30k for TFDS from its published files, which cannot be downloaded without a form.

Young et al. 2014, https://shannon.cs.illinois.edu/DenotationGraph: 31,783 photographs with five
captions each, 31,014 of which have a split in Karpathy and Fei-Fei 2015. Once:

    python -m dsi_jax.data.builders.flickr30k --manual_dir=DIR [--data_dir=TFDS_DIR]

DIR holds, as they are published,

- `dataset_flickr30k.json`, Karpathy's splits and captions;
- the images in `flickr30k-images/`, or as Kaggle packs them, or in DIR itself;
- if at hand, the original captions in `results_20130124.token` or Kaggle's `results.csv`; without
  them Karpathy's are taken.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from dsi_jax.data.readers import captions as captions_lib
from dsi_jax.data.readers import tfds_data

logger = logging.getLogger(__name__)

_SPLITS_FILE = "dataset_flickr30k.json"
_CAPTION_FILES = ("results_20130124.token", "results.csv")
_FOLDERS = ("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images", "Images")


class Flickr30k(tfds.core.GeneratorBasedBuilder):
    """Photographs with five captions each, in Karpathy's splits "train", "dev" and "test"."""

    __module__ = "flickr30k"  # TFDS would look for metadata beside a module of a package

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"manual_dir must hold {_SPLITS_FILE}, the images in flickr30k-images/ and, if at hand, "
        f"{' or '.join(_CAPTION_FILES)}."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            homepage="https://shannon.cs.illinois.edu/DenotationGraph",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "filename": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        table = read_table(root)
        folder = _folder(root, next(iter(table.captions)))
        absent = [name for name in table.captions if not (folder / name).is_file()]
        if absent:
            raise FileNotFoundError(
                f"{folder} lacks {len(absent):,} of the {len(table.captions):,} images of "
                f"{_SPLITS_FILE}, the first is {absent[0]}"
            )
        return {
            split: self._generate_examples(table, folder, split)
            for split in ("train", "dev", "test")
        }

    def _generate_examples(
        self, table: captions_lib.CaptionTable, folder: Path, split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, own in table.captions.items():
            if table.splits[name] == split:
                yield name, {"image": folder / name, "captions": own, "filename": name}


def read_table(root: Path) -> captions_lib.CaptionTable:
    """The images that have a split, with their captions.

    An image whose captions in the original file are fewer than Karpathy's takes his: a line of
    Kaggle's file lacks the bar before the caption.

    Args:
      root: the directory of the published files.

    Raises:
      FileNotFoundError: Karpathy's file is absent.
      ValueError: a file is malformed, or an image has no caption.
    """
    path = root / _SPLITS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected Karpathy's splits of Flickr30k")
    table = captions_lib.read_captions(path)
    if not table.splits:
        raise ValueError(f"{path} has no splits; expected one of every image")
    original = next((root / name for name in _CAPTION_FILES if (root / name).is_file()), None)
    if original is not None:
        found = captions_lib.read_captions(original, skip=True).captions
        complete = {
            name: found[name]
            for name, own in table.captions.items()
            if len(found.get(name, ())) >= max(1, len(own))
        }
        logger.info(
            "%s has all captions of %d of the %d images that have a split, and %d other images",
            original, len(complete), len(table.captions), len(found.keys() - table.captions.keys()),
        )  # fmt: skip
        table.captions.update(complete)
    for name, own in table.captions.items():
        if not any(caption.strip() for caption in own):
            raise ValueError(f"{path}: image {name} has no caption; expected some")
    return table


def _folder(root: Path, name: str) -> Path:
    for folder in (*(root / own for own in _FOLDERS), root):
        if (folder / name).is_file():
            return folder
    raise FileNotFoundError(
        f"image {name} is neither in {root} nor in one of its folders {_FOLDERS}"
    )


def main() -> int:
    """Builds the data set; nothing is downloaded.

    Returns:
      the exit status: 2 if a file is absent or malformed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manual_dir", required=True, help="holds the published files")
    parser.add_argument("--data_dir", default=None, help="of TFDS; default: TFDS_DATA_DIR")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        build(arguments.manual_dir, arguments.data_dir or tfds_data.data_dir())
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(manual_dir: str | Path, data_dir: str | Path) -> None:
    """Builds the data set in a TFDS directory.

    Args:
      manual_dir: holds the published files.
      data_dir: of TFDS.

    Raises:
      FileNotFoundError, ValueError: a file is absent or malformed.
    """
    if not Path(manual_dir).expanduser().is_dir():
        raise FileNotFoundError(f"{manual_dir} is no directory; expected that of Flickr30k's files")
    Flickr30k(data_dir=data_dir, file_format="tfrecord").download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=Path(manual_dir).expanduser())
    )


if __name__ == "__main__":
    sys.exit(main())
