"""A trained index as an object: text or image in, ranked documents out.

    retriever = Retriever.load("runs/demo")
    for hit in retriever.search("who wrote the origin of species", k=5):
        print(hit.score, hit.key, hit.title)

Needs no tensorflow, seqio or gin: a checkpoint carries the model's and the tokenizer's
specification as plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from dsi_jax.decoding.strategies import BeamSearch, Decoding
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs import tokenizer_registry
from dsi_jax.inputs.encoder_inputs import pad_rows
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.methods.base import Collection, Method
from dsi_jax.methods.dsi import DSI
from dsi_jax.methods.registry import method_of
from dsi_jax.models import transposed_kernels
from dsi_jax.models.dsi import DSIModel
from dsi_jax.ranking import docid_ranker
from dsi_jax.ranking.allow_lists import AllowLists, Listed, Lists, rows_of
from dsi_jax.ranking.hits import Hit
from dsi_jax.storage.documents import Documents, FullTexts
from dsi_jax.storage.embeddings import EmbeddingStore
from dsi_jax.storage.model_dir import ModelDir, model_directory, step_of
from dsi_jax.training import checkpoints

_BATCH_SIZES = (1, 8, 64)  # one compiled program each


class Retriever:
    """Searches one trained index. `load` is the usual way to make one.

    Attributes:
      model: the model; on CPUs with transposed kernels (`dsi_jax.models.transposed_kernels`).
      params: its parameters.
      collection: docids, texts and tokenizer.
      documents: keys, titles and texts to show, or None where they are not stored beside the model.
      method: how the model ranks.
      step: training steps of the checkpoint; 0 where there is none.
      metadata: what the checkpoint says of itself; empty where there is none.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        params: Any,
        collection: Collection,
        documents: Documents | None = None,
        beam_size: int = 10,
        constraint: str = "trie",
        step: int = 0,
        metadata: Mapping[str, Any] | None = None,
        method: Method = DSI(),
        decoding: Decoding = BeamSearch(),
    ) -> None:
        self.step = step
        self.metadata = dict(metadata or {})
        self.method = method
        if isinstance(model, DSIModel) and transposed_kernels.pays():
            model, params = transposed_kernels.for_search(model, params)
        self.model = model
        self.params = jax.device_put(params)
        self.collection = collection
        self.documents = documents
        self._ranking = method.ranking(
            beam_size=beam_size, constraint=constraint, decoding=decoding
        )
        self._ranker = method.new_ranker(model, collection, self._ranking)

    @classmethod
    def load(
        cls,
        model_dir: str | Path,
        *,
        step: int | None = None,
        docid_table: str | Path | None = None,
        beam_size: int = 10,
        constraint: str = "trie",
        decoding: Decoding = BeamSearch(),
    ) -> Retriever:
        """Rebuilds the index that a training run left in `model_dir`.

        Args:
          model_dir: MODEL_DIR of the run.
          step: which checkpoint; the newest that is whole by default.
          docid_table: where the table lies, if not where the run had it.
          beam_size: beams kept a query.
          constraint: "trie" or "free".
          decoding: the decoding strategy: beam search, `Greedy` or `Sampling`.

        Raises:
          ValueError: no whole checkpoint, or nowhere the docid table that it was trained with
            (the places that were searched, and what lies there).
        """
        files = ModelDir(model_directory(model_dir))
        directory = (
            checkpoints.latest_checkpoint(files.path) if step is None else files.checkpoint(step)
        )
        metadata = checkpoints.load_metadata(directory)
        table = _load_table(files, metadata, docid_table)
        documents = texts = None
        if files.documents.exists():
            documents = Documents.open(files.documents)
            texts = FullTexts(documents.titles, documents.texts)
        method, vocabulary = method_of(metadata), metadata.get("lexical_vocabulary")
        return cls(
            method=method,
            model=method.load_model(metadata["model"]),
            params=checkpoints.load_params(directory, check=step is not None),
            collection=Collection(
                table=table,
                texts=texts,
                tokenizer=tokenizer_registry.from_spec(metadata["tokenizer"]),
                lengths=metadata["task_feature_lengths"],
                image_size=metadata.get("image_size"),
                image_canvas=metadata.get("image_canvas"),
                store=EmbeddingStore(files.embeddings, checkpoints.fingerprint(directory)),
                lexical_vocabulary=vocabulary and LexicalVocabulary.from_spec(vocabulary),
            ),
            documents=documents,
            beam_size=beam_size,
            constraint=constraint,
            decoding=decoding,
            step=step_of(directory.name),
            metadata=metadata,
        )

    def search(
        self, query: str, k: int = 10, *, allow: Listed | None = None, deny: Listed | None = None
    ) -> list[Hit]:
        """The k best documents for one text, best first; see `search_batch`."""
        return self.search_batch([query], k, allow=allow, deny=deny)[0]

    def search_image(
        self,
        image: str | Path | bytes,
        k: int = 10,
        *,
        allow: Listed | None = None,
        deny: Listed | None = None,
    ) -> list[Hit]:
        """The k best documents for one image, a file or the bytes of one, best first."""
        return self.search_images([image], k, allow=allow, deny=deny)[0]

    def search_batch(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        allow: Lists | None = None,
        deny: Lists | None = None,
    ) -> list[list[Hit]]:
        """The k best documents for each query; fewer where fewer may be found.

        Args:
          queries: texts; an empty one is an error.
          k: documents a query. More than the beams given at load widens the beams to k.
          allow: the only documents that may be found, by key or by row; None: all. One list for all
            queries, or a list of as many as there are queries, in which None stands for all. What
            is found is what a search among these documents alone would find.
          deny: documents that must not be found, allowed or not; given as `allow` is.

        Raises:
          ValueError: k below 1, a query that is empty or not a text, a key or row of no document,
            or lists for beams that are free to leave the table.
        """
        for i, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise ValueError(f"query {i} is {query!r}; expected a text that is not empty")
        return self._search(TEXT, queries, k, allow, deny)

    def search_images(
        self,
        images: Sequence[str | Path | bytes],
        k: int = 10,
        *,
        allow: Lists | None = None,
        deny: Lists | None = None,
    ) -> list[list[Hit]]:
        """The k best documents for each image; fewer where fewer may be found.

        Args:
          images: files, or the bytes of such.
          k: documents a query, as in `search_batch`.
          allow: as in `search_batch`.
          deny: as in `search_batch`.

        Raises:
          ValueError: as `search_batch`, or the index was not trained with images.
          FileNotFoundError, images.ImageError: as `images.decode`.
        """
        return self._search(IMAGE, images, k, allow, deny)

    def rows_of(self, keys: Sequence[str], name: str = "the list") -> np.ndarray:
        """The rows of documents, for lists that serve many searches.

        Args:
          keys: documents.
          name: what is listed, for the error message.

        Raises:
          ValueError: a key that no document has.
        """
        return rows_of(keys, self.collection.table.keys, name)

    def _search(
        self,
        modality: str,
        queries: Sequence[Any],
        k: int,
        allow: Lists | None,
        deny: Lists | None,
    ) -> list[list[Hit]]:
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        if not self._encodes(modality):
            raise ValueError(f"the index was not trained with {modality}s and cannot read them")
        allowed = AllowLists(self.collection.table.keys, len(queries), allow=allow, deny=deny)
        inputs = self.collection.inputs
        encode = inputs.images if modality == IMAGE else inputs.texts
        beam_size = max(k, self._ranking.beam_size)
        ranked: list[list[Hit]] = []
        for start in range(0, len(queries), _BATCH_SIZES[-1]):
            chunk = queries[start : start + _BATCH_SIZES[-1]]
            size = next(s for s in _BATCH_SIZES if s >= len(chunk))
            batch = {modality: pad_rows(encode(chunk), size)}
            mine = allowed.of(slice(start, start + len(chunk)), size)
            result = self._ranker.search(self.params, batch, beam_size, mine)
            ranked += self._hits(docid_ranker.to_host(result), len(chunk), k)
        return ranked

    def _hits(self, result: Any, num_queries: int, k: int) -> list[list[Hit]]:
        """The first k documents found for each of the first queries of a batch."""
        found = []
        for rows, scores, valid in zip(
            *(field[:num_queries] for field in (result.rows, result.scores, result.valid)),
            strict=True,
        ):
            keep = np.flatnonzero(valid & (rows >= 0))[:k]
            found.append([self._hit(int(rows[j]), float(scores[j])) for j in keep])
        return found

    def _encodes(self, modality: str) -> bool:
        """Whether the model has an encoder of this modality."""
        config = self.model.config
        towers = getattr(config, "towers", config)  # those of a DSI, or contrastive ones
        if not hasattr(towers, "image"):
            return modality == TEXT
        return (towers.text if modality == TEXT else towers.image) is not None

    def _hit(self, row: int, score: float) -> Hit:
        if self.documents is None:
            return Hit(key=self.collection.table.keys[row], row=row, score=score)
        document = self.documents[row]
        return Hit(document.key, row, score, document.title, document.text)


def _load_table(
    files: ModelDir, metadata: Mapping[str, Any], docid_table: str | Path | None
) -> DocidTable:
    """The first table among the places where it may lie that the checkpoint was trained with."""
    wanted = metadata["docid_table_hash"]
    found = []
    for place in files.docid_tables(docid_table, metadata["docid_table"]):
        try:
            table = DocidTable.load(place)
        except (OSError, ValueError) as error:
            found.append(f"{place}: {error}")
            continue
        if table.hash == wanted:
            return table
        found.append(f"{place} has {table.hash[:16]}")
    raise ValueError(
        f"the checkpoint in {files.path} was trained with the docid table {wanted[:16]}; "
        + "; ".join(found)
    )
