"""Opens and completes what a run needs before its first step.

That is corpus, tokenizer, docid table and seqio tasks. The `docids` and the `train` commands call
the same functions, so that a table built by hand and one built by training are the same table.
Everything is checked before anything is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
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
from dsi_jax.prepare import lexical_head as lexical_head_lib
from dsi_jax.prepare import tokenizer as tokenizers
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.prepare.lexical_head import LexicalHead
from dsi_jax.storage import documents as documents_lib
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.training import checkpoints


@dataclasses.dataclass(frozen=True)
class OpenedAssets:
    """What lies there of a run's assets; nothing has been written.

    Attributes:
      data: what the run reads.
      directory: MODEL_DIR.
      corpus: the corpus; None where the task is another project's.
      tokenizer: the tokenizer; None: it is to be trained.
      table: the docid table; None: it is to be built.
      tasks: names of the corpus's seqio tasks; None where the task is another project's.
      mixture_or_task_name: what to train on.
    """

    data: DataConfig
    directory: Path
    corpus: AnyCorpus | None
    tokenizer: Tokenizer | None
    table: DocidTable | None
    tasks: CorpusTasks | None
    mixture_or_task_name: str

    @property
    def num_documents(self) -> int:
        """Documents that are indexed."""
        return self.table.num_documents if self.corpus is None else len(self.corpus)

    @property
    def table_path(self) -> Path:
        """Where the docid table lies, or will lie."""
        return table_path(self.data, self.directory)


def prepare(data: DataConfig, model_dir: str | Path, *, write: bool = True) -> RunAssets:
    """Opens a run's assets and completes them, as the `docids` command does.

    Args:
      data: what to read.
      model_dir: MODEL_DIR.
      write: False builds what is missing in memory only.

    Raises:
      ValueError, FileNotFoundError: bad input, named; nothing has been written then.
      OSError: `model_dir` cannot be written.
    """
    opened = open_assets(data, model_directory(model_dir), write=write)
    return complete_assets(opened, write=write)


def open_assets(data: DataConfig, directory: Path, *, write: bool = True) -> OpenedAssets:
    """Reads the corpus and what else lies there, and registers the corpus's seqio tasks.

    Nothing is written to MODEL_DIR.

    Args:
      data: what to read.
      directory: MODEL_DIR.
      write: whether the assets are then completed in MODEL_DIR.

    Raises:
      ValueError, OSError: bad input, named.
    """
    with _lead_host_first("opened", write=write):
        if data.corpus is None and data.images is None:
            return _open_external(data, directory)
        return _open(data, directory)


def complete_assets(opened: OpenedAssets, *, write: bool = True) -> RunAssets:
    """Trains the tokenizer, builds the docid table and keeps the documents, where they are missing.

    Args:
      opened: what lies there.
      write: False does so in memory only.

    Raises:
      ValueError: the corpus lacks what the docids need.
      OSError: MODEL_DIR cannot be written.
    """
    with _lead_host_first("completed", write=write):
        if write:
            checkpoints.check_writable(opened.directory)
        tokenizer = opened.tokenizer or _new_tokenizer(opened, write=write)
        table, embeddings = opened.table, None
        if table is None:
            table, embeddings = _new_table(opened, tokenizer, write=write)
        return RunAssets(
            corpus=opened.corpus,
            documents=_documents(opened, write=write),
            tokenizer=tokenizer,
            table=table,
            table_path=opened.table_path,
            tasks=opened.tasks,
            mixture_or_task_name=opened.mixture_or_task_name,
            embeddings=embeddings,
        )


def in_text_space(
    assets: RunAssets, directory: Path, vocab_size: int, *, write: bool = True
) -> RunAssets:
    """Returns the assets with docids in text tokens.

    Args:
      assets: assets with docids in a space of their own.
      directory: MODEL_DIR, where the table of such docids lies or will lie.
      vocab_size: tokens of the model's text vocabulary.
      write: whether to save a new table.

    Raises:
      ValueError: the table that lies there was spelled otherwise.
    """
    path = ModelDir(directory).text_docids
    with _lead_host_first("in text space", write=write):
        table = docid_table_lib.in_text_space(
            assets.table, assets.tokenizer, vocab_size, path, write=write
        )
    return dataclasses.replace(assets, table=table, table_path=path)


def with_lexical_index(
    assets: RunAssets, directory: Path, head: LexicalHead, *, seed: int, write: bool = True
) -> RunAssets:
    """Returns the assets with the weights of a lexical head.

    Args:
      assets: the other assets.
      directory: MODEL_DIR, where the weights lie or will lie.
      head: how to fit them.
      seed: seed of the fit.
      write: whether to save new ones.

    Raises:
      ValueError: the docids are not atomic, or the weights that lie there are of another run.
    """
    lexical_head_lib.check_table(assets.table)
    path = ModelDir(directory).lexical_index
    with _lead_host_first("with word weights", write=write):
        index = lexical_head_lib.existing_or_fitted(
            head, assets.corpus, path, seed=seed, write=write
        )
    return dataclasses.replace(assets, lexical=index)


@contextlib.contextmanager
def _lead_host_first(name: str, *, write: bool) -> Iterator[None]:
    """Makes the other hosts wait until the lead host has written what they then find there."""
    if jax.process_count() == 1 or not write:
        yield
        return
    multihost_utils.sync_global_devices(f"to be {name}")  # no host reads what is written next
    is_lead = jax.process_index() == 0
    if not is_lead:
        multihost_utils.sync_global_devices(name)
    yield
    if is_lead:
        multihost_utils.sync_global_devices(name)


def _open(data: DataConfig, directory: Path) -> OpenedAssets:
    corpus, external = load_corpus_for(data)
    table = _existing_table(data, directory, corpus)
    tasks = register_tasks(corpus, data, with_mixture=not external)
    name = data.mixture_or_task_name or tasks.mixture
    _check_task(name)
    if data.vocabulary is not None:
        tokenizer = tokenizers.given(data.vocabulary)
    else:
        tokenizer = tokenizers.trained(directory, _origin(data, corpus))
    return OpenedAssets(data, directory, corpus, tokenizer, table, tasks, name)


def _open_external(data: DataConfig, directory: Path) -> OpenedAssets:
    """Opens another project's registered tasks, whose docid table and vocabulary must be given."""
    given = {
        "MIXTURE_OR_TASK_NAME": data.mixture_or_task_name,
        "DOCID_TABLE": data.docid_table,
        "VOCABULARY": data.vocabulary,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"CORPUS is None, so {', '.join(missing)} must be given")
    _check_task(data.mixture_or_task_name)
    return OpenedAssets(
        data=data,
        directory=directory,
        corpus=None,
        tokenizer=tokenizers.given(data.vocabulary),
        table=DocidTable.load(table_path(data, directory)),
        tasks=None,
        mixture_or_task_name=data.mixture_or_task_name,
    )


def _origin(data: DataConfig, corpus: AnyCorpus) -> tokenizers.Origin:
    return tokenizers.Origin(corpus.hash, data.vocabulary_size, data.seed)


def _existing_table(data: DataConfig, directory: Path, corpus: AnyCorpus) -> DocidTable | None:
    # A table from elsewhere may serve runs of several seeds.
    seed = data.seed if data.docid_table is None else None
    return docid_table_lib.existing(table_path(data, directory), corpus, data.docids, seed)


def _new_tokenizer(opened: OpenedAssets, *, write: bool) -> Tokenizer:
    """Trains a tokenizer on the corpus, unless the lead host has done so by now."""
    origin = _origin(opened.data, opened.corpus)
    return tokenizers.trained(opened.directory, origin) or tokenizers.train(
        opened.corpus, origin, opened.directory, write=write
    )


def _new_table(
    opened: OpenedAssets, tokenizer: Tokenizer, *, write: bool
) -> tuple[DocidTable, np.ndarray | None]:
    """Builds the docid table, unless the lead host has done so by now; see `docid_table.build`."""
    table = _existing_table(opened.data, opened.directory, opened.corpus)
    if table is not None:
        return table, None
    if opened.data.space == TEXT_SPACE:
        opened.data.docids.check_text_space(tokenizer)
    return docid_table_lib.build(
        opened.data.docids,
        opened.corpus,
        tokenizer,
        seed=opened.data.seed,
        path=opened.table_path if write else None,
    )


def _documents(opened: OpenedAssets, *, write: bool) -> documents_lib.Documents | None:
    """Opens keys, titles and texts as a search shows them; they are written where they are not."""
    corpus, store = opened.corpus, ModelDir(opened.directory).documents
    if corpus is None:
        return None
    if write and not store.exists():
        documents_lib.write_documents(store, corpus.keys, corpus.titles, corpus.texts)
    return documents_lib.Documents.open(store) if store.exists() else None


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


def _check_task(name: str) -> None:
    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"MIXTURE_OR_TASK_NAME is {name!r}, of which no task or mixture is registered"
            + (f"; did you mean {close[0]!r}?" if close else "")
            + "; a gin file must import the module that registers it (import my_project.tasks)"
        )
