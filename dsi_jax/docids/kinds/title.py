"""Title docids: a document is spelled by the words of its title."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dsi_jax.docids import spelling
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer, bare_ids

_WORDS = 8  # of the text, in place of a title


@dataclasses.dataclass(frozen=True)
class Title(DocidBuilder):
    """A title's text tokens (GENRE, De Cao et al. 2021, section 3), at most `max_tokens` of them.

    A document without title is spelled by the first eight words of its text. Documents whose
    tokens are equal are told apart by a suffix: in corpus order, the first keeps the tokens, the
    next ends in the tokens of "(2)", the next in those of "(3)", and so on; the title is cut where
    there is no room, and numbers that would make another document's docid are passed over.

    The docid vocabulary is made of the text tokens that occur, in ascending order: the table's
    parameters list them, so that weights of a pretrained model can be borrowed row by row.

    Attributes:
      max_tokens: the longest docid, without its end token.
    """

    max_tokens: int = 32

    kind: ClassVar[str] = "title"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; expected at least 1")

    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """See `DocidBuilder`; nothing is random here.

        Raises:
          ValueError: if a document's words give no token, or there is no room to tell documents
            of one title apart.
        """
        del seed
        tokenizer = documents.tokenizer
        words = [
            title if title.strip() else " ".join(text.split()[:_WORDS])
            for title, text in zip(documents.titles, documents.texts, strict=True)
        ]
        spelled = self._spell(words, tokenizer)
        empty = next((row for row, docid in enumerate(spelled) if not docid), None)
        if empty is not None:
            raise ValueError(
                f"document {empty} (key {documents.keys[empty]!r}) has no token to be spelled "
                f"with: its words are {words[empty]!r}"
            )
        unique, renamed = self._tell_apart(spelled, tokenizer)
        return _table(unique, documents, self, renamed)

    def check_text_space(self, tokenizer: Tokenizer) -> None:
        """See `DocidBuilder`; titles are text already."""
        spelling.check_ends(tokenizer)

    @classmethod
    def spell(cls, table: DocidTable, tokenizer: Tokenizer, vocab_size: int) -> spelling.Spelled:
        """See `DocidBuilder`: the tokens that the docids stand for."""
        spelling.check_ends(tokenizer)
        tokens_NxL = cls.text_tokens(table, tokenizer)[table.tokens]
        return spelling.Spelled(tokens_NxL, vocab_size, table.variable_length)

    @classmethod
    def text_tokens(cls, table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
        """See `DocidBuilder`: the text token that each token stands for."""
        if table.parameters["tokenizer"] != tokenizer.hash:
            raise ValueError(
                f"the title docids were spelled by the tokenizer "
                f"{table.parameters['tokenizer'][:16]}; this one is {tokenizer.hash[:16]}"
            )
        return np.array([PAD_TOKEN, END_TOKEN, *table.parameters["pieces"]], np.int64)

    def _spell(self, words: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
        return [tuple(ids.tolist()) for ids in bare_ids(tokenizer, words, self.max_tokens)]

    def _tell_apart(
        self, spelled: list[tuple[int, ...]], tokenizer: Tokenizer
    ) -> tuple[list[tuple[int, ...]], int]:
        """Docids of their own, and how many documents have a suffix."""
        taken = set(spelled)
        first: set[tuple[int, ...]] = set()
        next_number: dict[tuple[int, ...], int] = {}
        docids, renamed = [], 0
        for docid in spelled:
            if docid not in first:
                first.add(docid)
                docids.append(docid)
                continue
            renamed += 1
            number = next_number.get(docid, 2)
            while (longer := self._with_number(docid, number, tokenizer)) in taken:
                number += 1
            next_number[docid] = number + 1
            taken.add(longer)
            docids.append(longer)
        return docids, renamed

    def _with_number(
        self, docid: tuple[int, ...], number: int, tokenizer: Tokenizer
    ) -> tuple[int, ...]:
        (suffix,) = self._spell([f"({number})"], tokenizer)
        if len(suffix) >= self.max_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens}: no room for the number {number} that tells "
                "documents of one title apart"
            )
        return docid[: self.max_tokens - len(suffix)] + suffix


def _table(
    docids: list[tuple[int, ...]],
    documents: DocumentColumns,
    kind: Title,
    renamed: int,
) -> DocidTable:
    lengths_N = np.array([len(docid) for docid in docids])
    flat = np.concatenate([np.array(docid, np.int32) for docid in docids])
    pieces, codes = np.unique(flat, return_inverse=True)
    codes_NxL = np.zeros((len(docids), lengths_N.max()), np.int32)
    codes_NxL[np.arange(codes_NxL.shape[1]) < lengths_N[:, None]] = codes
    parameters: dict[str, Any] = dataclasses.asdict(kind) | {
        "tokenizer": documents.tokenizer.hash,
        "pieces": pieces.tolist(),
        "collided": renamed,
    }
    return DocidTable.from_codes(
        codes_NxL,
        lengths_N,
        num_codes=len(pieces),
        keys=documents.keys,
        kind=kind.kind,
        parameters=parameters,
        corpus_hash=documents.corpus_hash,
    )
