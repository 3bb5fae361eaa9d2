"""Loads a corpus by its name or path."""

from __future__ import annotations

from pathlib import Path

from dsi_jax.data.corpora.corpus import Corpus
from dsi_jax.data.corpora.registry import _REGISTRY, register_corpus
from dsi_jax.data.corpora.splits import complete_splits


def load_corpus(spec: str, seed: int = 42, complete: bool = True) -> Corpus:
    """Loads a registered corpus, a BEIR directory or a SQuAD v1.1 file.

    Args:
      spec: the name of a registered corpus ("demo_text"), the path of a directory
        with corpus.jsonl, queries.jsonl and qrels/*.tsv, or the path of a JSON file;
        "#1000" behind any of these takes 1,000 of its documents (`subsets.subset`).
      seed: decides every random split and sample.
      complete: complete the splits where the data has only some (`complete_splits`).

    Raises:
      ValueError: if there is no such corpus or its data is malformed.
    """
    corpus = _load(spec, seed)
    return complete_splits(corpus, seed) if complete else corpus


def _load(spec: str, seed: int) -> Corpus:
    # Here, because the readers build on this module.
    from dsi_jax.data.corpora import subsets
    from dsi_jax.data.readers import beir, demo_text, squad
    from dsi_jax.data.readers.natural_questions import load as natural_questions

    register_corpus("demo_text", demo_text.load)
    natural_questions.register()
    if spec in _REGISTRY:
        return _REGISTRY[spec](seed)
    path = Path(spec).expanduser()
    if path.is_dir():
        return beir.load(path)
    if path.is_file():
        return squad.load(path, seed)
    part = subsets.split_spec(spec)
    if part is not None:
        base, count = part
        return subsets.subset(_load(base, seed), count)
    raise ValueError(
        f"no corpus '{spec}': expected an existing directory in BEIR layout, a SQuAD JSON file, "
        f"or one of the registered names {sorted(_REGISTRY)}"
    )
