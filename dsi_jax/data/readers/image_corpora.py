"""Image corpora by name, and any directory of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from dsi_jax.data.corpora import image_protocols
from dsi_jax.data.corpora.image_corpus import PROTOCOLS, ImageCorpus
from dsi_jax.data.readers import captions as captions_lib
from dsi_jax.data.readers import demo_image, image_folders, tfds_images

logger = logging.getLogger(__name__)

ImageCorpusFn = Callable[..., ImageCorpus]  # of the keywords seed, protocol, skip
_REGISTRY: dict[str, ImageCorpusFn] = {}


def register_image_corpus(name: str, fn: ImageCorpusFn) -> None:
    """Makes a corpus available as `load_image_corpus(name, seed=...)`.

    Args:
      name: the name.
      fn: `fn(seed=..., protocol=..., skip=...) -> ImageCorpus`; a protocol of None is its own
        choice, one that it does not offer a ValueError.

    Raises:
      ValueError: if another function bears the name.
    """
    if _REGISTRY.setdefault(name, fn) is not fn:
        raise ValueError(f"another image corpus is already registered as '{name}'")


def is_image_corpus(spec: str) -> bool:
    """Whether a registered image corpus bears the name."""
    return spec in _registered()


def load_image_corpus(
    spec: str | Path,
    *,
    seed: int,
    captions: str | Path | None = None,
    protocol: str | None = None,
    skip: bool = False,
) -> ImageCorpus:
    """Loads a registered image corpus or a directory of images.

    Without captions the folders of a directory are taken as classes where every image lies in one
    and there are two or more (`image_folders`); otherwise views look for their images.

    Args:
      spec: the name of a registered corpus ("demo_image", "coco_captions") or a directory.
      seed: decides all that is drawn.
      captions: of a directory: the file of its captions, in one of the forms of
        `dsi_jax.data.readers.captions`.
      protocol: one of `PROTOCOLS`; None: of a directory what `image_protocols.make` takes, of a
        registered corpus its own choice.
      skip: whether what cannot be used is counted and left out (images that cannot be decoded,
        captions of images that are absent, malformed lines); errors otherwise.

    Returns:
      The corpus, which names its protocol.

    Raises:
      FileNotFoundError: a file or a data set is absent.
      ValueError: there is no such corpus, its data is malformed, or the protocol does not suit it.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ValueError(f"protocol is '{protocol}'; expected one of {PROTOCOLS}")
    registered = _registered()
    if spec in registered:
        if captions is not None:
            raise ValueError(
                f"captions are '{captions}'; the image corpus '{spec}' comes with its own, "
                "expected none"
            )
        return registered[str(spec)](seed=seed, protocol=protocol, skip=skip)
    directory = Path(spec).expanduser()
    if not directory.is_dir():
        found = "a file" if directory.is_file() else "neither a name nor a directory"
        raise ValueError(
            f"no image corpus '{spec}', which is {found}: expected a directory of images or one of "
            f"the registered names {sorted(registered)}"
        )
    if captions is None and protocol in (None, "image_query"):
        classes = image_folders.class_names(directory)
        if len(classes) > 1:
            logger.info("%s: %d folders are classes of images", directory, len(classes))
            return image_folders.load(directory, seed, skip=skip)
    data = captions_lib.load(directory, captions, skip=skip)
    return image_protocols.make(data, protocol, seed)


def _registered() -> dict[str, ImageCorpusFn]:
    register_image_corpus("demo_image", _demo_image)
    for name, fn in tfds_images.CORPORA.items():
        register_image_corpus(name, fn)
    return _REGISTRY


def _demo_image(*, seed: int, protocol: str | None, skip: bool) -> ImageCorpus:
    del skip  # every image of it can be used
    if protocol not in (None, "heldout_caption"):
        raise ValueError(
            f"corpus 'demo_image' has the protocol 'heldout_caption'; found '{protocol}'"
        )
    return demo_image.load(seed)
