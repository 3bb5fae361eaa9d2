"""Differentiable search indexes (generative retrieval) in JAX, for texts and images.

    import dsi_jax

    retriever = dsi_jax.Retriever.load("runs/demo")

Names are imported when they are first used: `import dsi_jax` alone loads no other library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsi_jax.data.corpora.corpus import Corpus
    from dsi_jax.data.corpora.registry import register_corpus
    from dsi_jax.data.readers.load import load_corpus
    from dsi_jax.docids.table import DocidTable
    from dsi_jax.ranking.hits import Hit
    from dsi_jax.retriever import Retriever

__version__ = "0.1.0"

__all__ = [
    "Corpus",
    "DocidTable",
    "Hit",
    "Retriever",
    "__version__",
    "load_corpus",
    "register_corpus",
]

_HOMES = {
    "Corpus": "data.corpora.corpus",
    "DocidTable": "docids.table",
    "Hit": "ranking.hits",
    "Retriever": "retriever",
    "load_corpus": "data.readers.load",
    "register_corpus": "data.corpora.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up finds it here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
