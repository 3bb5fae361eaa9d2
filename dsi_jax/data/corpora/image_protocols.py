"""The protocols by which images and captions become documents and queries.

Every function gives an `ImageCorpus` that names its protocol; see
`dsi_jax.data.corpora.image_corpus`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dsi_jax.data.corpora.corpus import SPLITS, QuerySet
from dsi_jax.data.corpora.image_corpus import (
    PROTOCOLS,
    CaptionedImages,
    ImageCorpus,
    ImageQuerySet,
    ImageSource,
)
from dsi_jax.data.corpora.splits import MAX_HELD_OUT
from dsi_jax.inputs import image_files

Captions = Sequence[Sequence[str]]  # of each row


def make(data: CaptionedImages, protocol: str | None, seed: int) -> ImageCorpus:
    """Makes a corpus by the name of its protocol.

    Args:
      data: the images.
      protocol: one of `PROTOCOLS`; None: `heldout_caption` where an image has two distinct
        captions, else `image_query`.
      seed: of what the protocol draws.

    Returns:
      The corpus; in `heldout_caption` and `image_query` with unseen views, too.

    Raises:
      ValueError: there is no such protocol or it does not suit the data.
    """
    if protocol is None:
        several = any(len(_distinct(captions)) > 1 for captions in data.captions)
        protocol = "heldout_caption" if several else "image_query"
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is '{protocol}'; expected one of {PROTOCOLS}")
    if protocol == "image_query":
        return image_query(data, seed)
    if not any(data.captions):
        raise ValueError(
            f"corpus '{data.name}' has no captions; expected some for the protocol '{protocol}', "
            "or the protocol 'image_query'"
        )
    if protocol == "heldout_caption":
        return with_views(heldout_caption(data, seed), seed)
    return karpathy(data, full_corpus=protocol == "full_corpus")


def heldout_caption(data: CaptionedImages, seed: int) -> ImageCorpus:
    """Indexes every image; one caption of each, drawn at random, is a test query.

    Drawn, and not the last one: files may have their captions sorted, as Multi30k's by length.
    Images of one caption keep it for training; images without any are indexed all the same.

    Args:
      data: the images and their captions.
      seed: of the draw.

    Returns:
      A corpus with the splits "train" and "test". A test query has as positives all images that
      have its caption, be it for training or held out.

    Raises:
      ValueError: no image has two distinct captions, or as `ImageCorpus`.
    """
    rng = np.random.default_rng(seed)
    held: list[list[str]] = []
    kept: list[list[str]] = []
    for captions in map(_distinct, data.captions):
        drawn = int(rng.integers(len(captions))) if len(captions) > 1 else None
        held.append([] if drawn is None else [captions[drawn]])
        kept.append([caption for i, caption in enumerate(captions) if i != drawn])
    if not any(held):
        raise ValueError(
            f"corpus '{data.name}' has no image of two distinct captions; expected some, to hold "
            "one of them out"
        )
    queries = {
        "train": query_set("train", kept, [kept]),
        "test": query_set("test", held, [kept, held]),
    }
    return _corpus(data, "heldout_caption", queries)


def karpathy(data: CaptionedImages, *, full_corpus: bool = False) -> ImageCorpus:
    """Indexes every image; the captions of the dev and test images are dev and test queries.

    The splits are those of Karpathy and Fei-Fei, 2015, or any that the data comes with.

    Args:
      data: the images, their captions and splits.
      full_corpus: whether images of other splits may be found, too.

    Returns:
      A corpus of the protocol `karpathy_test`, or `full_corpus`.

    Raises:
      ValueError: the data has no splits, or none of them is "test", or as `ImageCorpus`.
    """
    if data.splits is None or "test" not in data.splits:
        raise ValueError(
            f"corpus '{data.name}' has no split 'test'; expected one for this protocol, or take "
            "heldout_caption"
        )
    captions = [_distinct(own) for own in data.captions]
    queries, candidate_rows = {}, {}
    for split in SPLITS:
        inside = [own == split for own in data.splits]
        part = [own if here else [] for own, here in zip(captions, inside, strict=True)]
        if not any(part):
            continue
        everywhere = full_corpus and split != "train"
        queries[split] = query_set(split, part, [captions if everywhere else part])
        if split != "train" and not full_corpus:
            candidate_rows[split] = np.flatnonzero(inside).astype(np.int32)
    protocol = "full_corpus" if full_corpus else "karpathy_test"
    return dataclasses.replace(_corpus(data, protocol, queries), candidate_rows=candidate_rows)


def with_views(corpus: ImageCorpus, seed: int, count: int = MAX_HELD_OUT) -> ImageCorpus:
    """Adds a seeded sample of unseen views, crops that look for the image they were taken from.

    Args:
      corpus: the corpus.
      seed: of the sample and of the crops.
      count: how many at most, one an image.

    Returns:
      The corpus with `image_queries["test"]`.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(corpus))[:count])
    views = ImageQuerySet(
        ids=[f"view{row}" for row in rows],
        images=Views(corpus.images, rows, seed),
        relevant=[np.array([row], np.int32) for row in rows],
    )
    return dataclasses.replace(corpus, image_queries={**corpus.image_queries, "test": views})


class Views(Sequence[bytes]):
    """A view of each of some images, made when it is asked for, so that none is held in memory."""

    def __init__(self, originals: Sequence[ImageSource], rows: Sequence[int], seed: int) -> None:
        """Initialises.

        Args:
          originals: the images.
          rows: of which.
          seed: of the crops; a view depends on it and on its row alone.
        """
        self._originals, self._rows, self._seed = originals, rows, seed

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        """The view, an encoded image; a list of views for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        return image_files.view(self._originals[row], [self._seed, row])


def image_query(data: CaptionedImages, seed: int) -> ImageCorpus:
    """Indexes every image and lets views look for them; captions, if any, are for training.

    Args:
      data: the images.
      seed: of the views.

    Returns:
      A corpus of the protocol `image_query`.
    """
    captions = [_distinct(own) for own in data.captions]
    train = query_set("train", captions, [captions])
    return with_views(_corpus(data, "image_query", {"train": train}), seed)


def query_set(prefix: str, captions: Captions, positives: Sequence[Captions]) -> QuerySet:
    """Distinct captions as queries.

    Args:
      prefix: of the query ids.
      captions: of each row, those that become queries.
      positives: where a caption makes its row a positive; captions differ neither by case nor by
        white space.

    Returns:
      The queries in the order of the rows; all positives of grade 1.
    """
    rows_of: dict[str, set[int]] = {}
    for part in positives:
        for row, own in enumerate(part):
            for caption in own:
                rows_of.setdefault(_identity(caption), set()).add(row)
    texts: dict[str, str] = {}
    for own in captions:
        for caption in own:
            texts.setdefault(_identity(caption), caption)
    relevant = [np.array(sorted(rows_of[identity]), np.int32) for identity in texts]
    return QuerySet(
        ids=[f"{prefix}{i}" for i in range(len(texts))],
        texts=list(texts.values()),
        relevant=relevant,
        relevance=[np.ones(len(rows), np.float32) for rows in relevant],
    )


def _corpus(data: CaptionedImages, protocol: str, queries: dict[str, QuerySet]) -> ImageCorpus:
    return ImageCorpus(
        name=data.name,
        protocol=protocol,
        keys=data.keys,
        images=data.images,
        queries={split: part for split, part in queries.items() if len(part)},
        skipped=data.skipped,
    )


def _identity(caption: str) -> str:
    return " ".join(caption.casefold().split())


def _distinct(captions: Sequence[str]) -> list[str]:
    found: dict[str, str] = {}
    for caption in captions:
        found.setdefault(_identity(caption), " ".join(caption.split()))
    return [caption for identity, caption in found.items() if identity]
