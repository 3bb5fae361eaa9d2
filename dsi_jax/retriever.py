"""A trained index as an object: text in, ranked documents out.

    retriever = Retriever.load("runs/demo")
    for hit in retriever.search("who wrote the origin of species", k=5):
        print(hit.score, hit.key, hit.title)

Needs no tensorflow, seqio or gin: a checkpoint carries the model's and the tokenizer's
specification as plain JSON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsi_jax import searcher as searcher_lib
from dsi_jax import tokenizers
from dsi_jax.docids.table import DocidTable
from dsi_jax.documents import Documents
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.training import checkpoints

_BATCH_SIZES = (1, 8, 64)  # one compiled program each


@dataclasses.dataclass(frozen=True)
class Hit:
    """A ranked document.

    Attributes:
      key: the document's string name.
      row: its position in the corpus.
      score: the model's log-probability of its docid given the query (natural log).
      title: its title, "" where the corpus has none.
      text: its text, "" where the documents are not stored beside the model.
    """

    key: str
    row: int
    score: float
    title: str = ""
    text: str = ""


class Retriever:
    """Searches one trained index. `load` is the usual way to make one.

    Attributes:
      model: the model.
      params: its parameters.
      tokenizer: turns queries into tokens.
      table: the docids of the documents.
      documents: keys, titles and texts, or None where they are not stored beside the model.
      input_length: S, tokens kept of a query.
      step: training steps of the checkpoint; 0 where there is none.
    """

    def __init__(
        self,
        *,
        model: DSIModel,
        params: Any,
        tokenizer: tokenizers.Tokenizer,
        table: DocidTable,
        documents: Documents | None = None,
        input_length: int = 32,
        beam_size: int = 10,
        constraint: str = "trie",
        step: int = 0,
    ) -> None:
        self.step = step
        self.model = model
        self.params = params
        self.tokenizer = tokenizer
        self.table = table
        self.documents = documents
        self.input_length = input_length
        self._constraint = constraint
        self._beam_size = beam_size
        self._searchers: dict[int, searcher_lib.Searcher] = {}
        self._searcher(beam_size)  # now, so that what does not fit is said now

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        *,
        step: int | None = None,
        docid_table: str | Path | None = None,
        beam_size: int = 10,
        constraint: str = "trie",
    ) -> Retriever:
        """Rebuilds the index that a training run left in `model_dir`.

        Args:
          model_dir: MODEL_DIR of the run.
          step: which checkpoint; the newest that is whole by default.
          docid_table: where the table lies, if not where the run had it.
          beam_size: beams kept a query.
          constraint: "trie" or "free".

        Raises:
          ValueError: no whole checkpoint, no docid table, or another table than the checkpoint was
            trained with (both hashes).
        """
        model_dir = Path(model_dir)
        directory = (
            checkpoints.latest_checkpoint(model_dir)
            if step is None
            else model_dir / f"checkpoint_{step}"
        )
        metadata = checkpoints.load_metadata(directory)
        table = _load_table(model_dir, metadata, docid_table)
        documents = None
        if (model_dir / "documents.arrow").exists():
            documents = Documents.open(model_dir / "documents.arrow")
        return cls(
            model=DSIModel(DSIConfig.from_json(metadata["model"])),
            params=checkpoints.load_params(directory),
            tokenizer=tokenizers.from_spec(metadata["tokenizer"]),
            table=table,
            documents=documents,
            input_length=metadata["task_feature_lengths"]["inputs"],
            beam_size=beam_size,
            constraint=constraint,
            step=int(directory.name.rpartition("_")[2]),
        )

    def search(self, query: str, k: int = 10) -> list[Hit]:
        """The k best documents for one query, best first."""
        return self.search_batch([query], k)[0]

    def search_batch(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The k best documents for each query; fewer where the corpus has fewer.

        Args:
          queries: texts; an empty one is an error.
          k: documents a query. More than the beams given at load widens the beams to k.

        Raises:
          ValueError: k below 1, or a query that is empty or not a text.
        """
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        for i, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise ValueError(f"query {i} is {query!r}; expected a text that is not empty")
        searcher = self._searcher(max(k, self._beam_size))
        ranked: list[list[Hit]] = []
        for start in range(0, len(queries), _BATCH_SIZES[-1]):
            chunk = queries[start : start + _BATCH_SIZES[-1]]
            size = next(s for s in _BATCH_SIZES if s >= len(chunk))
            tokens_BxS = self.tokenizer.encode_batch(chunk, self.input_length)
            batch = searcher_lib.text_batch(searcher_lib.pad_rows(tokens_BxS, size))
            result = searcher_lib.to_host(searcher.search(self.params, batch))
            for i in range(len(chunk)):
                keep = np.flatnonzero(result.valid[i] & (result.rows[i] >= 0))[:k]
                ranked.append(
                    [self._hit(int(result.rows[i, j]), float(result.scores[i, j])) for j in keep]
                )
        return ranked

    def _searcher(self, beam_size: int) -> searcher_lib.Searcher:
        if beam_size not in self._searchers:
            self._searchers[beam_size] = searcher_lib.Searcher(
                self.model, self.table, beam_size=beam_size, constraint=self._constraint
            )
        return self._searchers[beam_size]

    def _hit(self, row: int, score: float) -> Hit:
        if self.documents is None:
            return Hit(key=self.table.keys[row], row=row, score=score)
        document = self.documents[row]
        return Hit(document.key, row, score, document.title, document.text)


def _load_table(
    model_dir: Path, metadata: dict[str, Any], docid_table: str | Path | None
) -> DocidTable:
    if docid_table is None:
        docid_table = model_dir / "docids"
        if not docid_table.exists():
            docid_table = Path(metadata["docid_table"])
    table = DocidTable.load(docid_table)
    if table.hash != metadata["docid_table_hash"]:
        raise ValueError(
            f"docid table {docid_table} has hash {table.hash[:16]}; the checkpoint in {model_dir} "
            f"was trained with {metadata['docid_table_hash'][:16]}"
        )
    return table
