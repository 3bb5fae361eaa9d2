"""Names of corpora, and the functions that load them."""

from __future__ import annotations

from collections.abc import Callable

from dsi_jax.data.corpora.corpus import Corpus

CorpusFn = Callable[[int], Corpus]


_REGISTRY: dict[str, CorpusFn] = {}


def register_corpus(name: str, fn: CorpusFn) -> None:
    """Makes `fn(seed) -> Corpus` available as `load_corpus(name)`.

    Raises:
      ValueError: if another function bears the name.
    """
    if _REGISTRY.setdefault(name, fn) is not fn:
        raise ValueError(f"another corpus is already registered as '{name}'")
