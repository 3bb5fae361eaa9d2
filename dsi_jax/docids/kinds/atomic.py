"""Atomic docids: one token a document, one decoding step."""

import dataclasses
from typing import ClassVar

import numpy as np

from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.numbers import check_id_space, draw
from dsi_jax.docids.spelling import Spelled
from dsi_jax.docids.table import FIRST_CODE, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Atomic(DocidBuilder):
    """Unstructured atomic identifiers (DSI, Tay et al. 2022, section 3.2): L = 1, V = N + 2.

    Attributes:
      id_space: codes are drawn from 0..id_space-1, and V = id_space + 2: 320,000 in DSI, whatever
        the subset of NQ. None: from 0..N-1.
    """

    id_space: int | None = None

    kind: ClassVar[str] = "atomic"

    def __post_init__(self) -> None:
        check_id_space(self.id_space)

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`; codes follow no order of the data.

        Raises:
          ValueError: if there are more documents than codes in `id_space`.
        """
        codes, id_space = draw(len(documents), self.id_space, seed)
        return DocidTable.from_codes(
            codes[:, None],
            num_codes=id_space,
            keys=documents.keys,
            kind=self.kind,
            parameters={"id_space": id_space, "seed": seed},
            corpus_hash=documents.corpus_hash,
        )

    def check_text_space(self, tokenizer: Tokenizer) -> None:
        """See `DocidBuilder`; no tokenizer has a say in new tokens."""

    @classmethod
    def spell(cls, table: DocidTable, tokenizer: Tokenizer, vocab_size: int) -> Spelled:
        """See `DocidBuilder`: new tokens behind the text's, the paper's `[W_tokens; W_docs]`."""
        del tokenizer
        tokens_NxL = table.tokens.astype(np.int64) - FIRST_CODE + vocab_size
        grown = vocab_size + table.vocab_size - FIRST_CODE
        return Spelled(tokens_NxL, grown, table.variable_length)
