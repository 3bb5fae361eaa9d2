"""Reads a directory of images: with captions, in folders of classes, or alone."""

from __future__ import annotations

import logging
from pathlib import Path

from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import ImageCorpus
from dsi_jax.data.readers import captions as captions_lib
from dsi_jax.data.readers import image_folders

logger = logging.getLogger(__name__)


def load(
    directory: Path,
    seed: int,
    *,
    captions: str | Path | None = None,
    protocol: str | None = None,
    skip: bool = False,
) -> ImageCorpus:
    """Reads a directory of images.

    Without captions the folders of a directory are taken as classes where every image lies in one
    and there are two or more (`image_folders`); otherwise views look for their images.

    Args:
      directory: the directory, which exists.
      seed: decides all that is drawn.
      captions: the file of its captions, in one of the forms of `readers.captions`.
      protocol: one of `PROTOCOLS`; None: what `image_protocols.make` takes.
      skip: whether what cannot be used is counted and left out (images that cannot be decoded,
        captions of images that are absent, malformed lines); errors otherwise.

    Returns:
      The corpus, which names its protocol.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError: the data is malformed, or the protocol does not suit it.
    """
    if captions is None and protocol in (None, "image_query"):
        classes = image_folders.class_names(directory)
        if len(classes) > 1:
            logger.info("%s: %d folders are classes of images", directory, len(classes))
            return image_folders.load(directory, seed, skip=skip)
    data = captions_lib.load(directory, captions, skip=skip)
    return image_protocols.make(data, protocol, seed)
