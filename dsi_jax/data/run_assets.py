"""The files and objects of a run: corpus, tokenizer, docid table, tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.seqio_tasks.corpus_tasks import CorpusTasks
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.base import Collection
from dsi_jax.storage import documents as documents_lib
from dsi_jax.storage.lexical_index import LexicalIndex


@dataclasses.dataclass(frozen=True)
class RunAssets:
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
      lexical: weights of words in documents; None: the model has no lexical head.
    """

    corpus: AnyCorpus | None
    documents: documents_lib.Documents | None
    tokenizer: Tokenizer
    table: DocidTable
    table_path: Path
    tasks: CorpusTasks | None
    mixture_or_task_name: str
    embeddings: np.ndarray | None = None
    lexical: LexicalIndex | None = None

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
        if corpus is not None:
            images = corpus.images
            if images is None:
                texts = documents_lib.FullTexts(corpus.titles, corpus.texts)
        return Collection(
            *(self.table, texts, self.tokenizer, lengths),
            images=images,
            image_size=image_size,
            image_canvas=image_canvas,
            lexical_vocabulary=self.lexical and self.lexical.vocabulary,
            seen=None if corpus is None else corpus.documents_with_training_query(),
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
            lines.insert(0, f"corpus       {self.corpus.describe()}")
        return tuple(lines)
