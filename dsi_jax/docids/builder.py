"""What a docid kind is: a builder of docid tables that knows how its docids are spelled."""

import abc

import numpy as np

from dsi_jax.docids import spelling
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.base import Embedder
from dsi_jax.docids.embedders.image import ImageEmbedder
from dsi_jax.docids.embedders.precomputed import Precomputed
from dsi_jax.docids.table import END_TOKEN, PAD_TOKEN, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer


class DocidBuilder(abc.ABC):
    """A docid kind: the base class of what gin's DOCIDS names.

    A kind defines `kind` and `build`; everything else has a default. The class methods are asked
    for tables that were built long ago, so they belong to the class: `kinds.registry` finds it by
    the name that the table keeps.

    Attributes:
      embedder: makes the column `embeddings` of the documents; None: the kind does not use it.
    """

    embedder: Embedder | ImageEmbedder | Precomputed | None = None

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """The kind's name, stored in the table; a plain class attribute in a subclass."""

    @abc.abstractmethod
    def build(self, documents: DocumentColumns, seed: int = 42) -> DocidTable:
        """Builds the table of a corpus.

        Args:
          documents: the columns of the corpus; ask only for those that the docids are made of.
          seed: seed of every random choice; equal arguments give equal tables.

        Returns:
          A table of this kind, with the keys and the corpus hash of the documents.

        Raises:
          ValueError: the documents lack a column, or cannot be given docids.
        """

    def check_count(self, num_documents: int) -> None:
        """Checks that so many documents can have docids, before any column is made.

        Args:
          num_documents: N.

        Raises:
          ValueError: naming N and the most.
        """
        del num_documents  # any number by default

    def check_text_space(self, tokenizer: Tokenizer) -> None:
        """Checks that text tokens can spell these docids, before any is made.

        By default docids are spelled as numbers: see `spell`.

        Args:
          tokenizer: the tokenizer of the texts.

        Raises:
          ValueError: naming the tokenizer and what it lacks.
        """
        spelling.check_ends(tokenizer)
        spelling.check_digits(tokenizer)

    @classmethod
    def spell(cls, table: DocidTable, tokenizer: Tokenizer, vocab_size: int) -> spelling.Spelled:
        """Spells the docids of a table of this kind in text tokens.

        By default a docid is written as its codes, side by side where each is one digit and else
        with blanks between them, and tokenized like any text.

        Args:
          table: docids in a vocabulary of their own.
          tokenizer: the tokenizer of the texts.
          vocab_size: the tokens of the model's text vocabulary.

        Raises:
          ValueError: the vocabulary cannot spell a docid.
        """
        spelling.check_ends(tokenizer)
        return spelling.Spelled(spelling.as_text(table, tokenizer), vocab_size, True)

    @classmethod
    def text_tokens(cls, table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
        """Finds, for each docid token, the text token whose pretrained row it starts from.

        By default codes mean nothing to a pretrained text model: only pad and end have a row.

        Args:
          table: docids of this kind, in a vocabulary of their own.
          tokenizer: the tokenizer of the pretrained model.

        Returns:
          int64 [V], -1 where there is none.

        Raises:
          ValueError: the table was made with another tokenizer.
        """
        del tokenizer
        tokens_V = np.full(table.vocab_size, -1, np.int64)
        tokens_V[[PAD_TOKEN, END_TOKEN]] = PAD_TOKEN, END_TOKEN  # as T5's
        return tokens_V
