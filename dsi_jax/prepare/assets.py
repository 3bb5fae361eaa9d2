"""What a run needs before its first step: corpus, tokenizer, docid table, seqio tasks.

The `docids` and the `train` commands call the same `prepare`, so that a table built by hand and
one built by training are the same table. Everything is checked before anything is written.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Callable
from pathlib import Path

import jax
import seqio
from jax.experimental import multihost_utils

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.corpora.splits import complete_splits
from dsi_jax.data.readers.load import load_corpus
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.data.seqio_tasks import images as image_tasks
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.data.seqio_tasks.corpus_tasks import CorpusTasks, is_external
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.models.dsi import TEXT_SPACE
from dsi_jax.prepare import docid_table as docid_table_lib
from dsi_jax.prepare import tokenizer as tokenizers
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.storage import documents as documents_lib
from dsi_jax.storage import model_dir as model_dir_lib
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import checkpoints

logger = logging.getLogger(__name__)


def prepare(
    data: DataConfig,
    model_dir: str | Path,
    *,
    write: bool = True,
    check: Callable[[int], None] = lambda num_documents: None,
    text_vocab_size: Callable[[Tokenizer], int] | None = None,
) -> RunAssets:
    """Reads or builds the corpus's files in `model_dir` and registers its seqio tasks.

    Args:
      data: what to read.
      model_dir: MODEL_DIR.
      write: False builds what is missing in memory only.
      check: called with the number of documents before anything long begins; may raise.
      text_vocab_size: tokens of the model's text vocabulary, for docids in text space; None
        leaves docids in their own space.

    Raises:
      ValueError, FileNotFoundError: bad input, named; nothing has been written then.
      OSError: `model_dir` cannot be written.
    """
    model_dir = model_dir_lib.model_directory(model_dir)

    def prepared() -> RunAssets:
        found = _prepare(data, model_dir, write, check)
        if text_vocab_size is None or data.space != TEXT_SPACE:
            return found
        path = ModelDir(model_dir).text_docids
        vocab_size = text_vocab_size(found.tokenizer)
        table = docid_table_lib.in_text_space(
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
    data: DataConfig, model_dir: Path, write: bool, check: Callable[[int], None]
) -> RunAssets:
    if data.corpus is None and data.images is None:
        return _prepare_external(data, model_dir, write, check)
    corpus, external = load_corpus_for(data)
    path = table_path(data, model_dir)
    # A table from elsewhere may serve runs of several seeds.
    seed = data.seed if data.docid_table is None else None
    table = docid_table_lib.existing(path, corpus, data.docids, seed)
    tasks = register_tasks(corpus, data, with_mixture=not external)
    name = data.mixture_or_task_name or tasks.mixture
    _check_task(name)
    origin = tokenizers.Origin(corpus.hash, data.vocabulary_size, data.seed)
    if data.vocabulary is not None:
        tokenizer = tokenizers.given(data.vocabulary)
    else:
        tokenizer = tokenizers.trained(model_dir, origin)
    check(len(corpus))
    if write:
        checkpoints.check_writable(model_dir)
    if tokenizer is None:
        tokenizer = tokenizers.train(corpus, origin, model_dir, write=write)
    embeddings = None
    if table is None:
        if data.space == TEXT_SPACE:
            data.docids.check_text_space(tokenizer)
        table, embeddings = docid_table_lib.build(
            data.docids,
            corpus,
            tokenizer,
            seed=data.seed,
            path=path if write else None,
        )
    store = ModelDir(model_dir).documents
    if write and not store.exists():
        documents_lib.write_documents(store, corpus.keys, corpus.titles, corpus.texts)
    return RunAssets(
        corpus=corpus,
        documents=documents_lib.Documents.open(store) if store.exists() else None,
        tokenizer=tokenizer,
        table=table,
        table_path=path,
        tasks=tasks,
        mixture_or_task_name=name,
        embeddings=embeddings,
    )


def load_corpus_for(data: DataConfig) -> tuple[AnyCorpus, bool]:
    """Loads the corpus, and tells whether the tasks are another project's.

    These bring their own queries, and the corpus is taken as it is. Else its splits are completed.

    Raises:
      ValueError, OSError: bad data, named.
    """
    corpus = load_corpus(
        data.images or data.corpus,
        data.seed,
        complete=False,
        modality=IMAGE if data.of_images else TEXT,
        captions=data.captions,
        protocol=data.protocol,
        skip=data.skip_unreadable,
    )
    if is_external(data.mixture_or_task_name, corpus):
        return corpus, True
    return complete_splits(corpus, data.seed), False


def register_tasks(corpus: AnyCorpus, data: DataConfig, *, with_mixture: bool) -> CorpusTasks:
    """Registers the corpus's own tasks; see `seqio_tasks.text` and `seqio_tasks.images`."""
    if corpus.modality == IMAGE:
        return image_tasks.register_image_tasks(
            corpus, indexing_ratio=data.indexing_ratio, with_mixture=with_mixture
        )
    return text_tasks.register_corpus_tasks(
        corpus,
        indexing_ratio=data.indexing_ratio,
        chunk_ratio=data.chunk_ratio,
        document_form=data.document_form,
        shuffle_buffer=data.shuffle_buffer_size,
        with_mixture=with_mixture,
    )


def table_path(data: DataConfig, model_dir: Path) -> Path:
    """Where the run's docid table lies."""
    if data.docid_table is not None:
        return Path(data.docid_table).expanduser()
    return ModelDir(model_dir).docids


def _prepare_external(
    data: DataConfig, model_dir: Path, write: bool, check: Callable[[int], None]
) -> RunAssets:
    """Another project's registered tasks: their docid table and vocabulary must be given."""
    given = {
        "MIXTURE_OR_TASK_NAME": data.mixture_or_task_name,
        "DOCID_TABLE": data.docid_table,
        "VOCABULARY": data.vocabulary,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"CORPUS is None, so {', '.join(missing)} must be given")
    _check_task(data.mixture_or_task_name)
    path = table_path(data, model_dir)
    table = DocidTable.load(path)
    tokenizer = tokenizers.given(data.vocabulary)
    check(table.num_documents)
    if write:
        checkpoints.check_writable(model_dir)
    return RunAssets(
        corpus=None,
        documents=None,
        tokenizer=tokenizer,
        table=table,
        table_path=path,
        tasks=None,
        mixture_or_task_name=data.mixture_or_task_name,
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
