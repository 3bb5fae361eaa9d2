"""A corpus of images: documents in a fixed order, and texts and images that look for them.

Readers give `CaptionedImages`; a protocol, named in every result, makes an `ImageCorpus` of them:

- `heldout_caption`: every image is indexed, one caption of each is a query and the rest train.
- `karpathy_test`: every image is indexed, the captions of the test split's images are queries, and
  only images of that split may be found; in `full_corpus` every image may be.
- `image_query`: images look for images of their class, or for the image they are a view of.

They are made in `dsi_jax.data.corpora.image_protocols`. Neither tensorflow nor seqio is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from dsi_jax.data.corpora.corpus import QuerySet
from dsi_jax.inputs.image_files import ImageSource
from dsi_jax.inputs.streams import IMAGE

PROTOCOLS = ("heldout_caption", "karpathy_test", "full_corpus", "image_query")


class HashedFiles(Sequence[Path]):
    """Image files whose content was hashed when they were written; a path is made when asked for.

    So millions of images cost the memory of their names, and their corpus opens without reading
    them.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        folder_of: np.ndarray,
        names: Sequence[str],
        hashes: np.ndarray,
    ) -> None:
        """Initialises.

        Args:
          folders: where the files lie.
          folder_of: int [N], the folder of each file.
          names: N paths within the folders.
          hashes: uint8 [N, 32], SHA-256 of each file.

        Raises:
          ValueError: the lengths differ.
        """
        if not len(folder_of) == len(names) == len(hashes):
            raise ValueError(
                f"{len(names)} names, {len(folder_of)} folders and {len(hashes)} hashes of files; "
                "expected one of each a file"
            )
        self._folders, self._folder_of, self._names = folders, folder_of, names
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row):
        """The path of a row; a list of paths for a slice."""
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        return self._folders[self._folder_of[row]] / self._names[row]

    @classmethod
    def concatenate(cls, parts: Sequence[HashedFiles]) -> HashedFiles:
        """The files of all parts, one after the other."""
        starts = np.cumsum([0, *(len(part._folders) for part in parts)])
        return cls(
            folders=[folder for part in parts for folder in part._folders],
            folder_of=np.concatenate(
                [part._folder_of + start for part, start in zip(parts, starts, strict=False)]
            ),
            names=[name for part in parts for name in part._names],
            hashes=np.concatenate([part.hashes for part in parts]),
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> HashedFiles:
        """The files of some rows, in their order."""
        rows = np.asarray(rows, np.int64)
        return HashedFiles(
            self._folders, self._folder_of[rows], [self._names[i] for i in rows], self.hashes[rows]
        )


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionedImages:
    """What the readers give.

    Attributes:
      name: of the corpus.
      keys: N unique names of images.
      images: N images.
      captions: the captions of each image, possibly none.
      splits: the split of each image ("train", "dev", "test"), or None if the data has no splits.
      skipped: reason -> how many images or captions were left out for it.
    """

    name: str
    keys: list[str]
    images: Sequence[ImageSource]
    captions: list[list[str]]
    splits: list[str] | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageQuerySet:
    """Images of one split that look for documents.

    Attributes:
      ids: Q query ids.
      images: Q images.
      relevant: Q arrays int32 [R_q] of rows.
    """

    ids: list[str]
    images: Sequence[ImageSource]
    relevant: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCorpus:
    """Images, in the order that defines their rows, and queries by split.

    Attributes:
      name: a short name, used in names of tasks and files.
      protocol: one of PROTOCOLS.
      keys: N unique document keys; the row of a document is its position.
      images: N images.
      queries: split -> captions with the rows of all images that have them, so that a caption of
        two images has two positives. "train" may be absent.
      image_queries: split -> images with the rows they look for.
      candidate_rows: split -> int32 [C], the rows that may be found; all where a split is absent.
      classes: int32 [N], the class of each image, if images of a class look for each other.
      skipped: reason -> how many images or captions were left out for it.

    Raises:
      ValueError: at construction, if there is no image, the columns differ in length, a key is
        empty or repeated, or a row is outside the corpus.
    """

    name: str
    protocol: str
    keys: Sequence[str]
    images: Sequence[ImageSource]
    queries: Mapping[str, QuerySet]
    image_queries: Mapping[str, ImageQuerySet] = dataclasses.field(default_factory=dict)
    candidate_rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    classes: np.ndarray | None = None
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    modality: ClassVar[str] = IMAGE

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}; expected one of {PROTOCOLS}")
        if not self.keys:
            raise ValueError(f"corpus '{self.name}' is empty; expected at least one image")
        lengths = {len(self.keys), len(self.images)}
        if self.classes is not None:
            lengths.add(len(self.classes))
        if len(lengths) > 1:
            raise ValueError(
                f"corpus '{self.name}' has {len(self.keys)} keys and {len(self.images)} images; "
                "expected one of each, and a class for each or for none"
            )
        check_keys(self.name, self.keys)
        checked: set[int] = set()  # images of a class share one array of thousands of rows
        for kind in (self.queries, self.image_queries):
            for split, queries in kind.items():
                for query_id, rows in zip(queries.ids, queries.relevant, strict=True):
                    if id(rows) in checked:
                        continue
                    checked.add(id(rows))
                    if not len(rows) or np.min(rows) < 0 or np.max(rows) >= len(self.keys):
                        raise ValueError(
                            f"corpus '{self.name}', split '{split}', query '{query_id}': rows "
                            f"{rows}; expected some of the {len(self.keys)} images"
                        )

    def __len__(self) -> int:
        return len(self.keys)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) over keys and files in order; queries do not enter.

        Reads every file, but for `HashedFiles`.
        """
        digest = hashlib.sha256()
        for key, content in zip(self.keys, _content_hashes(self.images), strict=True):
            digest.update(hashlib.sha256(key.encode()).digest() + content)
        return digest.hexdigest()

    def training_captions(self) -> list[list[str]]:
        """The training captions of each row, of which a step samples one an image."""
        captions: list[list[str]] = [[] for _ in self.keys]
        if "train" in self.queries:
            train = self.queries["train"]
            for text, rows in zip(train.texts, train.relevant, strict=True):
                for row in rows:
                    captions[row].append(text)
        return captions

    @property
    def has_training_queries(self) -> bool:
        """Whether there are training captions."""
        return "train" in self.queries

    @property
    def titles(self) -> list[str]:
        """N empty titles: an image goes by its key."""
        return [""] * len(self)

    @functools.cached_property
    def texts(self) -> list[str]:
        """N texts to show and to search by words: the training captions of each image."""
        return [" / ".join(captions) for captions in self.training_captions()]

    def document_texts(self, rows: Sequence[int] | None = None) -> list[str]:
        """As of `Corpus`: the training captions."""
        return list(self.texts) if rows is None else [self.texts[row] for row in rows]

    def documents_with_training_query(self) -> np.ndarray:
        """bool [N]: whether a training caption points to the image (*seen*)."""
        return np.array([bool(captions) for captions in self.training_captions()], bool)

    def seen(self, split: str) -> np.ndarray:
        """bool [Q]: whether a relevant image of a caption had a training caption."""
        documents = self.documents_with_training_query()
        return np.array([documents[rows].any() for rows in self.queries[split].relevant], bool)

    def candidates(self, split: str) -> np.ndarray | None:
        """Returns int32 [C], the rows that may be found in a split; None: all."""
        return self.candidate_rows.get(split)

    def describe(self) -> str:
        """Returns name, protocol, sizes and hash in one line, for a person to read."""
        sizes = [f"{len(q):,} {split}" for split, q in self.queries.items()]
        sizes += [f"{len(q):,} images {split}" for split, q in self.image_queries.items()]
        sizes += [f"left out: {n:,} {why}" for why, n in self.skipped.items()]
        return (
            f"{self.name}: {len(self):,} documents, protocol {self.protocol}; queries: "
            f"{', '.join(sizes) or 'none'}; {self.hash[:12]}"
        )


def _content_hashes(images: Sequence[ImageSource]) -> Iterator[bytes]:
    if isinstance(images, HashedFiles):
        yield from map(bytes, images.hashes)
        return
    for image in images:
        data = image if isinstance(image, bytes) else image.read_bytes()
        yield hashlib.sha256(data).digest()


def check_keys(name: str, keys: Sequence[str]) -> None:
    """Raises unless keys are unique and not empty.

    Raises:
      ValueError: naming the row.
    """
    seen: dict[str, int] = {}
    for row, key in enumerate(keys):
        if not key:
            raise ValueError(f"corpus '{name}', image {row}: the key is empty")
        if seen.setdefault(key, row) != row:
            raise ValueError(
                f"corpus '{name}', image {row}: the key '{key}' is already that of image "
                f"{seen[key]}"
            )
