"""Names of corpora, and the functions that load them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.inputs.streams import MODALITIES, TEXT


@dataclasses.dataclass(frozen=True)
class Registered:
    """A corpus that is known by its name.

    Attributes:
      load: the function that loads it, see `register_corpus`.
      modality: the modality of its documents.
    """

    load: Callable[..., AnyCorpus]
    modality: str


_REGISTRY: dict[str, Registered] = {}


def register_corpus(name: str, fn: Callable[..., AnyCorpus], modality: str = TEXT) -> None:
    """Makes a corpus available as `load_corpus(name)`.

    Args:
      name: the name.
      fn: of texts `fn(seed) -> Corpus`; of images `fn(seed=..., protocol=..., skip=...) ->
        ImageCorpus`. There a protocol of None is the corpus's own choice, one that it does not
        offer a ValueError, and `skip` says whether to count and leave out what cannot be used.
      modality: the modality of the documents, known before any is loaded: "text" or "image".

    Raises:
      ValueError: if there is no such modality or another function bears the name.
    """
    if modality not in MODALITIES:
        raise ValueError(
            f"the modality of the corpus '{name}' is {modality!r}; expected one of {MODALITIES}"
        )
    registered = Registered(fn, modality)
    if _REGISTRY.setdefault(name, registered) != registered:
        raise ValueError(f"another corpus is already registered as '{name}'")


def find(name: str) -> Registered | None:
    """Returns the corpus that bears the name; None if there is none."""
    return _REGISTRY.get(name)


def names(modality: str) -> list[str]:
    """Returns the names of all corpora of a modality, sorted."""
    return sorted(name for name, found in _REGISTRY.items() if found.modality == modality)
