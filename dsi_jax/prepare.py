"""What a run needs before its first step: corpus, tokenizer, docid table, seqio tasks.

The `docids` and the `train` commands call the same `prepare`, so that a table built by hand and
one built by training are the same table. Everything is checked before anything is written.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import seqio
from jax.experimental import multihost_utils

from dsi_jax import checks, docid_tables, tokenizers, vocabularies
from dsi_jax import documents as documents_lib
from dsi_jax.data import (
    document_forms,
    image_corpora,
    image_registration,
    registration,
    strategies,
)
from dsi_jax.data.image_corpus import ImageCorpus
from dsi_jax.docids import plots, report
from dsi_jax.docids.table import DocidBuilder, DocidTable
from dsi_jax.methods.base import Collection
from dsi_jax.models.dsi import COMPACT_SPACE, DOCID_SPACES, TEXT_SPACE
from dsi_jax.training import checkpoints

logger = logging.getLogger(__name__)

TEXT_TABLE = "docids_text"  # in MODEL_DIR: the docids in text tokens
PLOT = "docids_report.png"  # in MODEL_DIR: the health of the docid table


@dataclasses.dataclass(frozen=True)
class Sources:
    """Names of everything that a run reads; gin fills it from the macros.

    Attributes:
      corpus: a registered corpus ("demo_text", "demo_image"), a directory in BEIR layout, or a
        SQuAD JSON file, each of texts with "#1000" behind it for 1,000 of its documents; None where
        the task comes from another project and its docid table is given, or `images` are.
      images: a directory of images, in place of a corpus.
      captions: the file of their captions; None: there are none.
      protocol: what is indexed and what looks for it, one of `image_corpus.PROTOCOLS`; None: what
        suits the images.
      skip_unreadable: count and leave out images and captions that cannot be used; else an error.
      docids: builder of the docid table (`docids.atomic.Atomic()` ...); used where no table lies
        at `docid_table`.
      docid_table: directory of the table; by default MODEL_DIR/docids.
      vocabulary: a SentencePiece model file or a directory with spiece.model; a CLIP, by its
        directory or hub id; a checkpoint, a MODEL_DIR or its tokenizer.json; or "bytes". None
        trains one on the corpus.
      vocabulary_size: pieces of a trained vocabulary, at most.
      mixture_or_task_name: a registered seqio mixture or task; by default the corpus's own.
      indexing_ratio: indexing examples for each retrieval example; None: as many as keep documents
        and queries equally often seen; 0: none.
      chunk_ratio: random chunks of documents for each retrieval example, as generated queries.
      document_form: what text stands for a document, one of `document_forms.FORMS`.
      indexing_strategy: what an indexing example asks, one of `strategies.STRATEGIES`.
      docid_space: "compact" or "text" (see `DSIConfig`); None: what the strategy needs.
      shuffle_buffer_size: examples in a task's shuffle buffer, as in the original; None shuffles
        fully.
      seed: seed of the vocabulary, the docids and the corpus splits.
    """

    corpus: str | None = "demo_text"
    docids: DocidBuilder | None = None
    docid_table: str | None = None
    vocabulary: str | None = None
    vocabulary_size: int = 8192
    mixture_or_task_name: str | None = None
    indexing_ratio: float | None = None
    chunk_ratio: float = 0.0
    document_form: str = document_forms.FIRST
    indexing_strategy: str = strategies.INPUTS2TARGETS
    docid_space: str | None = None
    shuffle_buffer_size: int | None = None
    seed: int = 42
    images: str | None = None
    captions: str | None = None
    protocol: str | None = None
    skip_unreadable: bool = False

    @property
    def of_images(self) -> bool:
        """Whether documents are images."""
        return self.images is not None or image_corpora.is_image_corpus(self.corpus or "")

    @property
    def space(self) -> str:
        """The space of docids, decided."""
        needs_text = strategies.Strategy(self.indexing_strategy).needs_text_space
        return self.docid_space or (TEXT_SPACE if needs_text else COMPACT_SPACE)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` found or made.

    Attributes:
      corpus: the corpus; None where the task is another project's.
      documents: keys, titles and texts to show; None likewise, and in a dry run.
      tokenizer: of the text.
      table: docids of the documents, in the space asked for.
      table_path: where the table lies.
      tasks: names of the corpus's seqio tasks; None where the task is another project's.
      mixture_or_task_name: what to train on.
      embeddings: what the table was built from, if it was, and just now; float32 [N, D].
    """

    corpus: docid_tables.AnyCorpus | None
    documents: documents_lib.Documents | None
    tokenizer: tokenizers.Tokenizer
    table: DocidTable
    table_path: Path
    tasks: registration.CorpusTasks | None
    mixture_or_task_name: str
    embeddings: np.ndarray | None = None

    def collection(
        self,
        lengths: Mapping[str, int],
        image_size: int | None = None,
        image_canvas: int | None = None,
    ) -> Collection:
        """The documents as a method reads them.

        Args:
          lengths: tokens of each feature.
          image_size: pixels a side of images; None: the model reads none.
          image_canvas: pixels a side of what the model resizes to that; None: the host resizes.
        """
        corpus = self.corpus
        texts = images = None
        if isinstance(corpus, ImageCorpus):
            images = corpus.images
        elif corpus is not None:
            texts = documents_lib.FullTexts(corpus.titles, corpus.texts)
        return Collection(
            *(self.table, texts, self.tokenizer, lengths),
            images=images,
            image_size=image_size,
            image_canvas=image_canvas,
        )

    def lines(self) -> tuple[str, ...]:
        """What there is, for a person to read."""
        table = self.table
        lines = [
            f"vocabulary   {self.tokenizer.vocab_size:,} tokens, {self.tokenizer.hash[:12]}",
            f"docids       {table.kind}: {table.num_documents:,} documents, length "
            f"{table.length}, {table.vocab_size:,} tokens, {table.hash[:12]}",
        ]
        if self.corpus is not None:
            sizes = [f"{len(q):,} {split}" for split, q in self.corpus.queries.items()]
            line = f"corpus       {self.corpus.name}: {len(self.corpus):,} documents"
            if isinstance(self.corpus, ImageCorpus):
                line += f", protocol {self.corpus.protocol}"
                of_images = self.corpus.image_queries.items()
                sizes += [f"{len(q):,} images {split}" for split, q in of_images]
                sizes += [f"left out: {n:,} {why}" for why, n in self.corpus.skipped.items()]
            sizes = ", ".join(sizes) or "none"
            lines.insert(0, f"{line}; queries: {sizes}; {self.corpus.hash[:12]}")
        return tuple(lines)


def prepare(
    sources: Sources,
    model_dir: str | Path,
    *,
    write: bool = True,
    check: Callable[[int], None] = lambda num_documents: None,
    text_vocab_size: Callable[[tokenizers.Tokenizer], int] | None = None,
) -> Prepared:
    """Reads or builds the corpus's files in `model_dir` and registers its seqio tasks.

    Args:
      sources: what to read.
      model_dir: MODEL_DIR.
      write: False builds what is missing in memory only.
      check: called with the number of documents before anything long begins; may raise.
      text_vocab_size: tokens of the model's text vocabulary, for docids in text space; None
        leaves docids in their own space.

    Raises:
      ValueError, FileNotFoundError: bad input, named; nothing has been written then.
      OSError: `model_dir` cannot be written.
    """
    model_dir = checks.model_directory(model_dir)

    def prepared() -> Prepared:
        found = _prepare(sources, model_dir, write, check)
        if text_vocab_size is None or sources.space != TEXT_SPACE:
            return found
        path = model_dir / TEXT_TABLE
        vocab_size = text_vocab_size(found.tokenizer)
        table = docid_tables.in_text_space(
            found.table, found.tokenizer, vocab_size, path, write=write
        )
        return dataclasses.replace(found, table=table, table_path=path)

    if jax.process_count() == 1 or not write:
        return prepared()
    # The lead host writes; the others then find everything there.
    if jax.process_index() == 0:
        result = prepared()
    multihost_utils.sync_global_devices("prepared")
    if jax.process_index() != 0:
        result = prepared()
    return result


def _prepare(
    sources: Sources, model_dir: Path, write: bool, check: Callable[[int], None]
) -> Prepared:
    if sources.corpus is None and sources.images is None:
        return _prepare_foreign(sources, model_dir, write, check)
    corpus, foreign = load_corpus_for(sources)
    path = table_path(sources, model_dir)
    # A table from elsewhere may serve runs of several seeds.
    seed = sources.seed if sources.docid_table is None else None
    table = docid_tables.existing(path, corpus, sources.docids, seed)
    tasks = register_tasks(corpus, sources, with_mixture=not foreign)
    name = sources.mixture_or_task_name or tasks.mixture
    _check_task(name)
    origin = vocabularies.Origin(corpus.hash, sources.vocabulary_size, sources.seed)
    if sources.vocabulary is not None:
        tokenizer = vocabularies.given(sources.vocabulary)
    else:
        tokenizer = vocabularies.trained(model_dir, origin)
    check(len(corpus))
    if write:
        checkpoints.check_writable(model_dir)
    if tokenizer is None:
        tokenizer = vocabularies.train(corpus, origin, model_dir, write=write)
    embeddings = None
    if table is None:
        table, embeddings = docid_tables.build(
            sources.docids,
            corpus,
            tokenizer,
            seed=sources.seed,
            path=path if write else None,
        )
    store = model_dir / "documents.arrow"
    if write and not store.exists():
        documents_lib.write_documents(store, corpus.keys, corpus.titles, corpus.texts)
    return Prepared(
        corpus=corpus,
        documents=documents_lib.Documents.open(store) if store.exists() else None,
        tokenizer=tokenizer,
        table=table,
        table_path=path,
        tasks=tasks,
        mixture_or_task_name=name,
        embeddings=embeddings,
    )


def load_corpus_for(sources: Sources) -> tuple[docid_tables.AnyCorpus, bool]:
    """The corpus, and whether the tasks are another project's.

    Raises:
      ValueError, OSError: bad data, named.
    """
    name = sources.mixture_or_task_name
    if not sources.of_images:
        return registration.load_corpus_for(sources.corpus, sources.seed, name)
    corpus = image_corpora.load_image_corpus(
        sources.images or sources.corpus,
        seed=sources.seed,
        captions=sources.captions,
        protocol=sources.protocol,
        skip=sources.skip_unreadable,
    )
    return corpus, registration.is_foreign(name, corpus)


def register_tasks(
    corpus: docid_tables.AnyCorpus, sources: Sources, *, with_mixture: bool
) -> registration.CorpusTasks:
    """Registers the corpus's own tasks; see `data.registration` and `data.image_registration`."""
    if isinstance(corpus, ImageCorpus):
        return image_registration.register_image_tasks(
            corpus, indexing_ratio=sources.indexing_ratio, with_mixture=with_mixture
        )
    return registration.register_corpus_tasks(
        corpus,
        indexing_ratio=sources.indexing_ratio,
        chunk_ratio=sources.chunk_ratio,
        document_form=sources.document_form,
        shuffle_buffer=sources.shuffle_buffer_size,
        with_mixture=with_mixture,
    )


def build_docids(
    model_dir: str, sources: Sources, *, config_text: str = "", dry_run: bool = False
) -> None:
    """The `docids` command: prepares a run's files, reports on the health of its docid table.

    Raises:
      ValueError, OSError: as `prepare`.
    """
    del config_text  # `train` keeps the configuration; this command has no run of its own
    checks.check_type("MODEL_DIR", model_dir, str)
    check_sources(sources)
    prepared = prepare(sources, model_dir, write=not dry_run)
    oracle = docid_tables.oracle_recall(
        prepared.table, sources.docids, prepared.corpus, sources.seed, prepared.embeddings
    )
    logger.info("%s\n\n%s", "\n".join(prepared.lines()), report.report(prepared.table, oracle))
    if dry_run:
        return
    logger.info("docid table: %s", prepared.table_path)
    if plots.available():
        path = checks.model_directory(model_dir) / PLOT
        plots.plot_report(prepared.table, path, oracle)
        logger.info("plot: %s", path)
    else:
        logger.info("no plot: matplotlib is not installed (pip install 'dsi-jax[plots]')")


def table_path(sources: Sources, model_dir: Path) -> Path:
    """Where the run's docid table lies."""
    if sources.docid_table is not None:
        return Path(sources.docid_table).expanduser()
    return model_dir / "docids"


def check_sources(sources: Sources) -> None:
    """Raises where a field is of the wrong type or out of range; reads nothing.

    Raises:
      ValueError: naming it.
    """
    checks.check_fields(sources)
    checks.check_whole_numbers(
        VOCABULARY_SIZE=sources.vocabulary_size, SHUFFLE_BUFFER_SIZE=sources.shuffle_buffer_size
    )
    checks.check_whole_numbers(least=0, RANDOM_SEED=sources.seed)
    document_forms.check(sources.document_form)
    if sources.space not in DOCID_SPACES:
        raise ValueError(f"DOCID_SPACE is {sources.space!r}; expected one of {DOCID_SPACES}")
    strategy = strategies.Strategy(sources.indexing_strategy)
    if strategy.needs_text_space and sources.space != TEXT_SPACE:
        raise ValueError(
            f"INDEXING_STRATEGY is {strategy.name!r}, which needs docids in text tokens; "
            f"DOCID_SPACE is {sources.space!r}, expected {TEXT_SPACE!r} or None"
        )
    _check_modality(sources)


def _check_modality(sources: Sources) -> None:
    """Raises where a field is given that texts, or images, have no use for."""
    default = Sources()
    if sources.of_images:
        what, names = (
            "images",
            {
                "CHUNK_RATIO": "chunk_ratio",
                "DOCUMENT_FORM": "document_form",
                "INDEXING_STRATEGY": "indexing_strategy",
                "SHUFFLE_BUFFER_SIZE": "shuffle_buffer_size",
            },
        )
    else:
        what, names = "texts", {"CAPTIONS": "captions", "PROTOCOL": "protocol"}
    for macro, name in names.items():
        if getattr(sources, name) != getattr(default, name):
            raise ValueError(
                f"{macro} is {getattr(sources, name)!r}, and documents are {what}; expected "
                f"{getattr(default, name)!r}"
            )


def _prepare_foreign(
    sources: Sources, model_dir: Path, write: bool, check: Callable[[int], None]
) -> Prepared:
    """Another project's registered tasks: their docid table and vocabulary must be given."""
    given = {
        "MIXTURE_OR_TASK_NAME": sources.mixture_or_task_name,
        "DOCID_TABLE": sources.docid_table,
        "VOCABULARY": sources.vocabulary,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"CORPUS is None, so {', '.join(missing)} must be given")
    _check_task(sources.mixture_or_task_name)
    path = table_path(sources, model_dir)
    table = DocidTable.load(path)
    tokenizer = vocabularies.given(sources.vocabulary)
    check(table.num_documents)
    if write:
        checkpoints.check_writable(model_dir)
    return Prepared(
        corpus=None,
        documents=None,
        tokenizer=tokenizer,
        table=table,
        table_path=path,
        tasks=None,
        mixture_or_task_name=sources.mixture_or_task_name,
    )


def _check_task(name: str) -> None:
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"MIXTURE_OR_TASK_NAME is {name!r}, of which no task or mixture is registered"
            + (f"; did you mean {close[0]!r}?" if close else "")
            + "; a gin file must import the module that registers it (import my_project.tasks)"
        )
