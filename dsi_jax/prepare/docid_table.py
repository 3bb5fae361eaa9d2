"""The docid table of a run: the one that lies there, or the one that DOCIDS builds."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.docids import text_space
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.base import Embedder
from dsi_jax.docids.embedders.image import ImageEmbedder
from dsi_jax.docids.embedders.precomputed import Precomputed
from dsi_jax.docids.health import oracle_recall as oracle_recall_lib
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.prepare import table_embeddings

logger = logging.getLogger(__name__)


def existing(
    path: Path, corpus: AnyCorpus, builder: DocidBuilder | None, seed: int | None
) -> DocidTable | None:
    """The table that lies there, if it is what the run asks for; None if there is none.

    Args:
      path: where it lies.
      corpus: the documents.
      builder: what would build it; None: any table will do.
      seed: what it would build it with; None: any will do.

    Raises:
      ValueError: it is of other documents, or would have been built otherwise; or there is neither
        a table nor a builder.
    """
    if not path.exists():
        if builder is None:
            raise ValueError(
                f"no docid table at {path} and no DOCIDS to build one with: pass a file of "
                "docids/, for example --gin_file=docids/atomic.gin"
            )
        return None
    table = DocidTable.load(path)
    if table.corpus_hash != corpus.hash:
        raise ValueError(
            f"docid table {path} belongs to the corpus {table.corpus_hash[:16]}; CORPUS "
            f"{corpus.name!r} is {corpus.hash[:16]}"
        )
    if builder is not None:
        _check_built_by(table, path, builder, seed)
    return table


def _check_built_by(table: DocidTable, path: Path, builder: DocidBuilder, seed: int | None) -> None:
    """Raises where DOCIDS would build another table than the one that lies there."""
    remedy = "remove the directory or choose another MODEL_DIR"
    if table.kind != builder.kind:
        raise ValueError(
            f"docid table {path} is of kind {table.kind!r}; DOCIDS asks for {builder.kind!r}: "
            f"{remedy}"
        )
    for name, value in (vars(builder) | {"seed": seed}).items():
        if value is None or name not in table.parameters:
            continue  # the builder's own choice
        if value is builder.embedder:
            value = value.describe()
        if table.parameters[name] != value:
            raise ValueError(
                f"docid table {path} was built with {name} {table.parameters[name]!r}; this run "
                f"asks for {value!r}: {remedy}"
            )


def build(
    builder: DocidBuilder,
    corpus: AnyCorpus,
    tokenizer: Tokenizer,
    *,
    seed: int,
    path: Path | None,
) -> tuple[DocidTable, np.ndarray | None]:
    """Builds a table.

    Args:
      builder: the docid kind.
      corpus: the documents.
      tokenizer: the tokenizer of the texts, for kinds that spell docids in words.
      seed: seed of every random choice.
      path: where to save it, with its embeddings beside it; None: nowhere.

    Returns:
      The table, and the embeddings that it was made of, if it was.

    Raises:
      ValueError: the corpus lacks what the kind needs or has too many documents for it, or the
        builder does not keep its promises.
    """
    builder.check_count(len(corpus))
    documents = CorpusColumns(corpus, tokenizer, builder, seed)
    table = builder.build(documents, seed)
    _check_built(table, builder, corpus)
    embeddings = documents.made_embeddings
    if path is not None:
        table.save(path)
        table = DocidTable.load(path)
        if embeddings is not None:
            table_embeddings.keep(embeddings, table, path, builder, seed)
    return table, embeddings


class CorpusColumns(DocumentColumns):
    """The columns of a corpus as a docid kind asks for them; embeddings by its embedder."""

    def __init__(
        self, corpus: AnyCorpus, tokenizer: Tokenizer, builder: DocidBuilder, seed: int
    ) -> None:
        super().__init__(corpus.keys, corpus.hash, tokenizer=tokenizer, classes=corpus.classes)
        self._corpus = corpus
        self._builder = builder
        self._seed = seed

    @functools.cached_property
    def titles(self) -> Sequence[str]:
        """See `DocumentColumns`."""
        return self._corpus.titles

    @functools.cached_property
    def texts(self) -> Sequence[str]:
        """See `DocumentColumns`."""
        return self._corpus.texts

    @functools.cached_property
    def embeddings(self) -> np.ndarray:
        """See `DocumentColumns`."""
        if self._builder.embedder is None:
            raise ValueError(
                f"{self._builder.kind} docids need embeddings of the documents, and their embedder "
                "is None; expected one, for example @text.TfidfSvd()"
            )
        return embed_documents(self._builder.embedder, self._corpus, self._seed)

    @property
    def made_embeddings(self) -> np.ndarray | None:
        """The embeddings, if the kind has asked for them."""
        return vars(self).get("embeddings")

    def _lacks(self, column: str) -> NoReturn:
        raise ValueError(
            f"{self._builder.kind} docids need {column} of the documents; the corpus "
            f"{self._corpus.name!r} has none"
        )


def embed_documents(
    embedder: Embedder | ImageEmbedder | Precomputed,
    corpus: AnyCorpus,
    seed: int,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Embeddings float [N, E]: of images where the embedder reads them, else of texts.

    Args:
      embedder: what embeds them.
      corpus: the documents.
      seed: of whatever is random.
      rows: of these documents; None: of all.

    Raises:
      ValueError: the embedder has no use for the documents.
    """

    def chosen(documents: Sequence[Any]) -> Sequence[Any]:
        return documents if rows is None else [documents[row] for row in rows]

    if isinstance(embedder, Precomputed):
        return embedder.vectors(chosen(corpus.keys))
    described = embedder.describe()
    if described.get("corpus_hash") not in (None, corpus.hash):  # as good as any other encoder
        logger.info(
            "the embedder %s was trained on the corpus %r; the documents are those of %r",
            described["model"],
            described["corpus"],
            corpus.name,
        )
    if not hasattr(embedder, "embed_images"):
        return embedder.embed(corpus.document_texts(rows), seed=seed)
    if corpus.images is None:
        raise ValueError(f"{embedder} embeds images; the documents of '{corpus.name}' are texts")
    return embedder.embed_images(chosen(corpus.images), seed=seed)


def oracle_recall(
    assets: RunAssets, builder: DocidBuilder | None, seed: int, *, write: bool
) -> oracle_recall_lib.OracleRecall | None:
    """Measures a table that is made of embeddings against them; None for other kinds.

    Args:
      assets: the table, and the embeddings that it was just built from; of a table that lay there,
        those that are kept beside it, or else they are made again.
      builder: the table's kind, if it is known.
      seed: seed of the embeddings.
      write: whether embeddings that are made again are kept.
    """
    table, corpus = assets.table, assets.corpus
    if builder is None or builder.embedder is None or corpus is None or len(corpus) < 2:
        return None
    embeddings = assets.embeddings
    if embeddings is None:
        embeddings = _embeddings_of(assets, builder, seed, write)
    return oracle_recall_lib.oracle_recall(table, embeddings)


def _embeddings_of(assets: RunAssets, builder: DocidBuilder, seed: int, write: bool) -> np.ndarray:
    """The embeddings of a table that lay there already."""
    if isinstance(builder.embedder, Precomputed):
        return embed_documents(builder.embedder, assets.corpus, seed)
    known = (assets.table, assets.table_path, builder, seed)
    embeddings = table_embeddings.kept(*known)
    if embeddings is None:
        embeddings = embed_documents(builder.embedder, assets.corpus, seed)
        if write:
            table_embeddings.keep(embeddings, *known)
    return embeddings


def _check_built(table: DocidTable, builder: DocidBuilder, corpus: AnyCorpus) -> None:
    """Raises where a builder, maybe another project's, does not keep its promises."""
    promised = {
        "documents": (table.num_documents, len(corpus)),
        "corpus_hash": (table.corpus_hash, corpus.hash),
        "kind": (table.kind, builder.kind),
    }
    for name, (found, expected) in promised.items():
        if found != expected:
            raise ValueError(
                f"the docid table that {type(builder).__name__} built has {name} {found!r}; "
                f"expected {expected!r}"
            )
    if list(table.keys) != list(corpus.keys):
        raise ValueError(f"{type(builder).__name__} changed the order or the names of the keys")
    table.validate()


def in_text_space(
    compact: DocidTable, tokenizer: Tokenizer, vocab_size: int, path: Path, *, write: bool
) -> DocidTable:
    """The same docids in text tokens, built or found at `path`.

    Args:
      compact: the docids in their own vocabulary.
      tokenizer: of the texts.
      vocab_size: tokens of the model's text vocabulary; more where docids need more.
      path: where the table lies, or will lie.
      write: whether to save it.

    Raises:
      ValueError: the table that lies there was spelled otherwise.
    """
    if path.exists():
        table = DocidTable.load(path)
        origin = {"compact": compact.hash, "spelled_by": tokenizer.hash}
        for name, value in origin.items():
            if table.parameters.get(name) != value:
                raise ValueError(
                    f"docid table {path} was spelled with {name} {table.parameters.get(name)}; "
                    f"this run has {value}: remove the directory or choose another MODEL_DIR"
                )
    else:
        least = text_space.least_vocab_size(tokenizer)
        table = text_space.spell(compact, tokenizer, max(least, vocab_size))
        if write:
            table.save(path)
            table = DocidTable.load(path)
    return table
