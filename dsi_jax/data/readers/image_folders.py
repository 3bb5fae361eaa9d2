"""Reads images of classes from folders, for image -> image retrieval as in IRGen.

Zhang et al., 2024, https://arxiv.org/abs/2303.10126: the images to be found are those of the
training split, the queries those of the test split, and every image of a query's class is relevant.
Neither tensorflow nor seqio is needed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from dsi_jax.data.corpora.image_corpus import ImageCorpus, ImageQuerySet
from dsi_jax.data.readers.captions import UNREADABLE, find_images, unreadable

logger = logging.getLogger(__name__)

_TEST_SPLITS = ("test", "val", "validation")
_HELD_OUT = 0.1


def class_names(directory: Path) -> list[str]:
    """The classes that `load` would find; none if an image lies in no folder of a class."""
    paths = find_images(directory)
    names = [str(path.relative_to(directory)) for path in paths]
    depth = 0 if _test_split(directory) is None else 1
    classes = {_class(name, depth) for name in names}
    return [] if "" in classes else sorted(classes)


def load(directory: str | Path, seed: int, *, skip: bool = False) -> ImageCorpus:
    """Reads a directory of classes.

    Args:
      directory: holds a folder a class, in which its images lie at any depth; or the folders
        `train` and `test` (or `val`), each of which holds a folder a class. Without these a seeded
        tenth of each class of two images or more, at least one, is held out as queries.
      seed: of what is held out.
      skip: whether images that cannot be decoded are counted and left out; an error otherwise.

    Returns:
      A corpus of the protocol `image_query`, with classes and the split "test".

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: there is no class or no query, a class of the test images is not among the
        training images, or an image cannot be decoded.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory; expected a folder a class in it")
    paths = {str(path.relative_to(directory)): path for path in find_images(directory)}
    bad = unreadable(paths, skip=skip)
    paths = {name: path for name, path in paths.items() if name not in bad}
    test = _test_split(directory)
    if test is not None:
        documents = {name: _class(name, 1) for name in paths if name.startswith("train/")}
        queries = {name: _class(name, 1) for name in paths if name.startswith(f"{test}/")}
    else:
        documents, queries = _hold_out({name: _class(name, 0) for name in paths}, seed)
    classes = sorted(set(documents.values()))
    missing = sorted(set(queries.values()) - set(classes))
    if missing or not queries:
        raise ValueError(
            f"{directory}: {len(queries)} query images, of which classes {missing[:5]} have no "
            "image to be found; expected queries of classes that are in the corpus"
        )
    number = {name: i for i, name in enumerate(classes)}
    class_of_row = np.array([number[name] for name in documents.values()], np.int32)
    rows = [np.flatnonzero(class_of_row == i).astype(np.int32) for i in range(len(classes))]
    return ImageCorpus(
        name=directory.resolve().name,
        protocol="image_query",
        keys=list(documents),
        images=[paths[name] for name in documents],
        queries={},
        image_queries={
            "test": ImageQuerySet(
                ids=[f"image{i}" for i in range(len(queries))],
                images=[paths[name] for name in queries],
                relevant=[rows[number[name]] for name in queries.values()],
            )
        },
        classes=class_of_row,
        skipped={UNREADABLE: len(bad)} if bad else {},
    )


def _test_split(directory: Path) -> str | None:
    """The folder of the test images, where there is one beside that of the training images."""
    if not (directory / "train").is_dir():
        return None
    return next((name for name in _TEST_SPLITS if (directory / name).is_dir()), None)


def _class(name: str, depth: int) -> str:
    """The folder at this depth of a relative path; "" of a file that lies in none."""
    folders = name.split("/")[:-1]
    return folders[depth] if len(folders) > depth else ""


def _hold_out(classes: dict[str, str], seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Documents and queries, each name -> class."""
    rng = np.random.default_rng(seed)
    members: dict[str, list[str]] = {}
    for name, own in classes.items():
        members.setdefault(own, []).append(name)
    held: set[str] = set()
    for names in members.values():
        count = max(1, round(_HELD_OUT * len(names))) if len(names) > 1 else 0
        held.update(names[i] for i in rng.permutation(len(names))[:count])
    return (
        {name: own for name, own in classes.items() if name not in held},
        {name: own for name, own in classes.items() if name in held},
    )
