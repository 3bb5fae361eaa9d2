"""The lexical head of a run: its configuration, its fitted weights, its place in the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary, check_language
from dsi_jax.inputs.streams import TEXT
from dsi_jax.methods.base import Method
from dsi_jax.methods.dsi import DSI
from dsi_jax.models.dsi import COMPACT_SPACE, FIRST_DOCUMENT, DSIModel
from dsi_jax.models.lexical_head import LexicalHeadConfig
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.storage.lexical_index import LexicalIndex
from dsi_jax.training import assignment, lexical_weights
from dsi_jax.training.optimizers import Optimizer
from dsi_jax.training.param_groups import ParamGroup
from dsi_jax.utils import checks


@dataclasses.dataclass(frozen=True)
class LexicalHead:
    """A head of word weights beside the decoder; gin's macro LEXICAL_HEAD.

    The weights are fitted on the training questions; those of BM25 stand in where there are none,
    and where documents are images, whose captions hold every training query word for word.

    Attributes:
      language: name of a Snowball stemmer; None: words are not stemmed.
      most_postings: documents kept of a stem, those with the largest weights.
      epochs: passes over the training questions; the best on the dev questions counts.
      train_weights: train the weights further with the model; False: they are frozen.
    """

    language: str | None = "english"
    most_postings: int = 512
    epochs: int = 3
    train_weights: bool = False


def check(head: LexicalHead | None, data: DataConfig, method: Method) -> None:
    """Raises where the head is impossible, or a loss needs one and there is none; reads nothing.

    Raises:
      ValueError: naming it.
    """
    if head is None:
        if isinstance(method, DSI) and method.soft_targets:
            raise ValueError(
                "SOFT_TARGETS is True, and LEXICAL_HEAD, which gives them, is None; expected one: "
                "--gin_file=lexical/head.gin"
            )
        return
    checks.check_whole_numbers(most_postings=head.most_postings, epochs=head.epochs)
    check_language(head.language)
    if not isinstance(method, DSI):
        raise ValueError(
            f"LEXICAL_HEAD is given, and METHOD is a {method.title}; expected a DSI, or None"
        )
    if data.corpus is None and data.images is None:
        raise ValueError("LEXICAL_HEAD is given, and CORPUS is None; expected the corpus to fit it")
    if data.docids is not None and data.docids.kind != "atomic":
        raise ValueError(_atomic_only(f"DOCIDS are {data.docids.kind!r}"))
    if data.space != COMPACT_SPACE:
        raise ValueError(_atomic_only(f"DOCID_SPACE is {data.space!r}"))


def check_table(table: DocidTable) -> None:
    """Checks that a docid table suits the head.

    Raises:
      ValueError: its docids are longer than a token.
    """
    if table.length != 1:
        raise ValueError(_atomic_only(f"the docid table is of kind {table.kind!r}"))


def _atomic_only(found: str) -> str:
    return (
        f"LEXICAL_HEAD is given, and {found}; it is for atomic docids so far, in a vocabulary of "
        "their own: expected --gin_file=docids/atomic.gin, or LEXICAL_HEAD = None"
    )


def existing_or_fitted(
    head: LexicalHead, corpus: AnyCorpus, path: Path, *, seed: int, write: bool
) -> LexicalIndex:
    """Reads the weights that lie there, or fits them.

    Args:
      head: how to fit.
      corpus: documents and questions.
      path: the file.
      seed: seed of the order of the questions.
      write: whether to save fitted weights.

    Raises:
      ValueError: the file is of another corpus or configuration, or no document has words.
    """
    origin = _origin(head, corpus, seed)
    if path.exists():
        index = LexicalIndex.load(path)
        if index.origin != origin:
            raise ValueError(
                f"{path} was made of {index.origin}; this run expects {origin}: remove it, or use "
                "another MODEL_DIR"
            )
        return index
    index = _fitted(head, corpus, seed, origin)
    if write:
        index.save(path)
    return index


def _origin(head: LexicalHead, corpus: AnyCorpus, seed: int) -> str:
    """Returns what decides the weights, as a short text."""
    digest = hashlib.sha256(corpus.hash.encode())
    for split in ("train", "dev"):
        if split in corpus.queries:
            digest.update(split.encode())
            corpus.queries[split].update_hash(digest)
    options = {name: getattr(head, name) for name in ("language", "most_postings", "epochs")}
    return f"corpus {digest.hexdigest()[:16]}, {json.dumps(options | {'seed': seed})}"


def _fitted(head: LexicalHead, corpus: AnyCorpus, seed: int, origin: str) -> LexicalIndex:
    vocabulary = LexicalVocabulary.of_documents(corpus.document_texts(), head.language)
    if not vocabulary.stems:
        raise ValueError(
            f"LEXICAL_HEAD is given, and no document of the corpus '{corpus.name}' has a word; "
            "expected texts, or CAPTIONS of the images"
        )
    features = lexical_weights.document_features(vocabulary, corpus.titles, corpus.texts)
    questions = {
        split: lexical_weights.questions_of(
            vocabulary, corpus.queries[split].texts, corpus.queries[split].relevant, len(corpus)
        )
        for split in ("train", "dev")
        if split in corpus.queries and corpus.modality == TEXT
    }
    if "train" in questions:
        fit = lexical_weights.Fit(epochs=head.epochs, seed=seed)
        weights = lexical_weights.fitted_weights(
            features, questions["train"], questions.get("dev"), fit
        )
    else:
        weights = lexical_weights.bm25_weights(features)
    return lexical_weights.lexical_index(
        vocabulary, features, weights, most_postings=head.most_postings, origin=origin
    )


def with_head(model: DSIModel, index: LexicalIndex, table: DocidTable) -> DSIModel:
    """Returns the model with a head of the index's shape."""
    head = LexicalHeadConfig(
        vocabulary_size=index.vocabulary.size,
        num_postings=len(index.weights),
        most_postings=index.most_postings,
        num_documents=table.vocab_size - FIRST_DOCUMENT,
    )
    return model.clone(config=dataclasses.replace(model.config, lexical_head=head))


def with_frozen_head(optimizer: Optimizer, head: LexicalHead) -> Optimizer:
    """Returns the optimizer that leaves the head as it is, or trains its weights alone."""
    what, pattern = "lexical head", "lexical_head/.*"
    if head.train_weights:
        what, pattern = "places of the lexical head", "lexical_head/(indptr|documents)"
    group = ParamGroup(what, pattern, frozen=True)
    return dataclasses.replace(optimizer, groups=(group, *optimizer.groups))


def initialize(params: Any, index: LexicalIndex, table: DocidTable) -> Any:
    """Puts the weights into the parameters of a new model.

    Args:
      params: nested dict of jax.Arrays; all but the head's are returned as they are.
      index: postings by row.
      table: the docid of each row.
    """
    number_of_row = table.tokens[:, 0].astype("int32") - FIRST_DOCUMENT
    head = {
        "indptr": index.indptr,
        "documents": number_of_row[index.rows],
        "weights": index.weights,
    }
    keep_others = [("(?!lexical_head/).*", None)]
    return assignment.apply_assignment_map(params, {"lexical_head": head}, keep_others)
