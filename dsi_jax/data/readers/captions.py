"""Reads images with captions, in any of the forms in which they are published.

- COCO's captions JSON (Chen et al., 2015): `images` with `file_name`, `annotations` with `caption`.
- Karpathy's JSON of Flickr8k, Flickr30k and COCO: `images` with `filename`, `sentences`, `split`.
- Flickr's token file: lines `file#k<TAB>caption`.
- A CSV file with a header, columns of the file and the caption, and any usual delimiter.
- No captions: a directory of images.

Neither tensorflow nor seqio is needed.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsi_jax.data.corpora.image_corpus import CaptionedImages
from dsi_jax.inputs import image_files

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
UNREADABLE = "unreadable images"
ABSENT = "captions of absent images"
MALFORMED = "malformed lines"

_SPLIT_OF = {
    "train": "train", "restval": "train", "val": "dev", "validation": "dev", "dev": "dev",
    "test": "test",
}  # fmt: skip
_FILE_COLUMNS = ("image", "image_name", "file", "file_name", "filename")
_CAPTION_COLUMNS = ("caption", "caption_text", "comment", "text")


@dataclasses.dataclass
class CaptionTable:
    """What a file of captions says.

    Attributes:
      captions: image -> its captions.
      splits: image -> "train", "dev" or "test"; empty if the file has no splits.
      malformed: what is wrong with each line that was left out.
    """

    captions: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    splits: dict[str, str] = dataclasses.field(default_factory=dict)
    malformed: list[str] = dataclasses.field(default_factory=list)

    def add(self, image: str, captions: Iterable[str] = (), split: str | None = None) -> None:
        self.captions.setdefault(image, []).extend(captions)
        if split is not None:
            self.splits[image] = split


def load(
    images: str | Path, captions: str | Path | None = None, *, skip: bool = False
) -> CaptionedImages:
    """Reads the images of a directory with the captions of a file.

    Every image is decoded once, so that a damaged one is met here and not in the middle of a run.

    Args:
      images: the directory of the images, in which the file's names of images are looked up.
      captions: the file of captions; its images are the documents. None: all images of the
        directory and of those in it are.
      skip: whether images that cannot be decoded, captions of images that are absent and
        malformed lines are counted and left out; they are errors otherwise.

    Returns:
      The images in the order of the file, or of their names.

    Raises:
      FileNotFoundError: the directory, the file or an image is absent.
      ValueError: the file has none of the known forms, a line of it is malformed, an image cannot
        be decoded, or none is left.
    """
    directory = Path(images).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory; expected one of images")
    if captions is None:
        table = CaptionTable()
        for path in find_images(directory):
            table.add(str(path.relative_to(directory)))
    else:
        table = read_captions(Path(captions).expanduser(), skip=skip)
    skipped: collections.Counter[str] = collections.Counter()
    skipped[MALFORMED] = len(table.malformed)
    paths = {name: directory / name for name in table.captions}
    for name in [name for name, path in paths.items() if not path.is_file()]:
        count = len(table.captions[name])
        if not skip:
            raise FileNotFoundError(
                f"{captions} has {count} captions of {paths[name]}, which does not exist"
            )
        skipped[ABSENT] += count
        del paths[name]
    for name in unreadable(paths, skip=skip):
        skipped[UNREADABLE] += 1
        del paths[name]
    skipped = +skipped
    if not paths:
        raise ValueError(f"{directory} and {captions} give no image; expected at least one")
    for reason, count in skipped.items():
        logger.warning("%s: %d %s are left out", captions or directory, count, reason)
    return CaptionedImages(
        name=re.sub(r"\W+", "_", directory.resolve().name if captions is None else _stem(captions)),
        keys=list(paths),
        images=list(paths.values()),
        captions=[table.captions[name] for name in paths],
        splits=[table.splits[name] for name in paths] if table.splits else None,
        skipped=dict(skipped),
    )


def find_images(directory: Path) -> list[Path]:
    """The image files in a directory and those below it, by name."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )


def unreadable(paths: dict[str, Path], *, skip: bool) -> list[str]:
    """The names of the images that cannot be decoded; all are tried.

    Args:
      paths: name -> file.
      skip: False raises at the first.

    Returns:
      The names in order.

    Raises:
      ValueError: an image cannot be decoded and skip is False.
    """

    def error(path: Path) -> Exception | None:
        try:
            image_files.check(path)
        except image_files.ImageError as error:
            return error
        return None

    bad = []
    with ThreadPoolExecutor() as pool:
        for name, found in zip(paths, pool.map(error, paths.values()), strict=True):
            if found is not None:
                if not skip:
                    raise found
                logger.warning("%s", found)
                bad.append(name)
    return bad


def read_captions(file: Path, *, skip: bool = False) -> CaptionTable:
    """Reads a file of captions, by its suffix.

    Args:
      file: in one of the forms above.
      skip: whether malformed lines are counted and left out; they are errors otherwise.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has none of the known forms, or a line of it is malformed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected a file of captions")
    readers: dict[str, Callable[[Path], CaptionTable]] = {
        ".json": _read_json,
        ".csv": _read_csv,
        ".token": _read_tokens,
        ".txt": _read_tokens,
        ".tsv": _read_csv,
    }
    if file.suffix.lower() not in readers:
        raise ValueError(f"{file}: expected a file that ends in one of {sorted(readers)}")
    try:
        table = readers[file.suffix.lower()](file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8: {error}") from error
    if table.malformed and not skip:
        raise ValueError(table.malformed[0])
    if not table.captions:
        raise ValueError(f"{file} has no captions; expected at least one")
    if table.splits and table.splits.keys() != table.captions.keys():
        name = min(table.captions.keys() - table.splits.keys())
        raise ValueError(f"{file}: image '{name}' has no split; expected one for all or none")
    return table


def _read_json(file: Path) -> CaptionTable:
    try:
        value = json.loads(file.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        raise ValueError(f"{file}: expected an object with a list 'images', as COCO's captions are")
    try:
        return _from_coco(file, value) if "annotations" in value else _from_karpathy(value)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: a record lacks the field {error}") from error


def _from_coco(file: Path, value: dict[str, Any]) -> CaptionTable:
    table = CaptionTable()
    names = {image["id"]: image["file_name"] for image in value["images"]}
    for name in names.values():
        table.add(name)
    for annotation in value["annotations"]:
        if annotation["image_id"] not in names:
            raise ValueError(
                f"{file}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                "which is not among its images"
            )
        table.add(names[annotation["image_id"]], [annotation["caption"]])
    return table


def _from_karpathy(value: dict[str, Any]) -> CaptionTable:
    table = CaptionTable()
    for image in value["images"]:
        # COCO's images lie in two directories.
        name = str(Path(image.get("filepath", ""), image["filename"]))
        captions = [sentence["raw"] for sentence in image["sentences"]]
        table.add(name, captions, _split(image["split"]))
    return table


def _read_tokens(file: Path) -> CaptionTable:
    table = CaptionTable()
    for number, line in enumerate(file.read_text("utf-8").split("\n"), start=1):
        match = re.fullmatch(r"(.+)#\d+\t(.*)", line.rstrip("\r"))
        if match is not None:
            table.add(match[1], [match[2]])
        elif line.strip():
            table.malformed.append(
                f"{file}:{number}: expected 'file#number<TAB>caption', found {line!r}"
            )
    return table


def _read_csv(file: Path) -> CaptionTable:
    table = CaptionTable()
    with file.open(encoding="utf-8-sig", newline="") as stream:
        header = stream.readline()
        delimiter = max(",|;\t", key=header.count)
        columns = [column.strip().lower() for column in header.split(delimiter)]
        image_at = _column(file, columns, "file", _FILE_COLUMNS)
        caption_at = _column(file, columns, "caption", _CAPTION_COLUMNS)
        split_at = columns.index("split") if "split" in columns else None
        # Flickr30k's file is separated by bars and quotes nothing.
        quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
        reader = csv.reader(stream, delimiter=delimiter, quoting=quoting)
        for row in reader:
            if len(row) >= len(columns):
                split = None if split_at is None else _split(row[split_at].strip())
                table.add(row[image_at].strip(), [row[caption_at].strip()], split)
            elif any(row):
                table.malformed.append(
                    f"{file}:{reader.line_num + 1}: {len(row)} columns; expected {len(columns)}"
                )
    return table


def _column(file: Path, columns: list[str], kind: str, names: tuple[str, ...]) -> int:
    found = [columns.index(name) for name in names if name in columns]
    if not found:
        raise ValueError(
            f"{file}:1: no column of the {kind} among {columns}; expected one of {names}"
        )
    return found[0]


def _split(name: str) -> str:
    if name not in _SPLIT_OF:
        raise ValueError(f"split '{name}'; expected one of {sorted(_SPLIT_OF)}")
    return _SPLIT_OF[name]


def _stem(file: str | Path) -> str:
    return Path(file).name.split(".")[0]
