"""Docids spelled in the tokens of a text vocabulary, as the original DSI spells them.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022, section 3.2,
https://arxiv.org/abs/2202.06991: a naive or semantic docid is a string of digits that T5's own
vocabulary tokenises; an atomic docid is one new token behind that vocabulary.
"""

import dataclasses

from dsi_jax.docids.kinds.registry import kind_of
from dsi_jax.docids.table import DocidTable, token_dtype
from dsi_jax.inputs.tokenizer import Tokenizer

NUM_SENTINELS = 100  # T5's <extra_id_0> to <extra_id_99>
_SPELLED_BY = "spelled_by"  # the parameter that tells a table in text space


def first_sentinel(tokenizer: Tokenizer) -> int:
    """The id of T5's last sentinel, <extra_id_99>; that of number n is `first + 99 - n`.

    Sentinels follow the vocabulary's own pieces, whether or not the tokenizer can read them.
    """
    return getattr(tokenizer, "first_sentinel", tokenizer.vocab_size)


def least_vocab_size(tokenizer: Tokenizer) -> int:
    """The tokens that a model in text space must have: text and sentinels."""
    return max(tokenizer.vocab_size, first_sentinel(tokenizer) + NUM_SENTINELS)


def spell(table: DocidTable, tokenizer: Tokenizer, vocab_size: int | None = None) -> DocidTable:
    """Spells the docids of a table in text tokens, as their kind does: `DocidBuilder.spell`.

    Args:
      table: docids in a vocabulary of their own.
      tokenizer: of the text.
      vocab_size: tokens of the model's text vocabulary, a borrowed checkpoint's;
        None: `least_vocab_size`.

    Returns:
      The table in text space; its V is the whole vocabulary of the model.

    Raises:
      ValueError: the vocabulary is smaller than the tokenizer's, cannot spell a docid, or pads and
        ends texts otherwise than T5's.
    """
    least = least_vocab_size(tokenizer)
    vocab_size = least if vocab_size is None else vocab_size
    if vocab_size < least:
        raise ValueError(
            f"a text vocabulary of {vocab_size} tokens was asked for; the tokenizer and T5's "
            f"sentinels need {least}"
        )
    docids = kind_of(table).spell(table, tokenizer, vocab_size)
    spelled = dataclasses.replace(
        table,
        tokens=docids.tokens.astype(token_dtype(docids.vocab_size)),
        vocab_size=docids.vocab_size,
        variable_length=docids.variable_length,
        parameters=table.parameters | {_SPELLED_BY: tokenizer.hash, "compact": table.hash},
    )
    spelled.validate()
    return spelled


def is_spelled(table: DocidTable) -> bool:
    """Whether the table's docids are in text tokens."""
    return _SPELLED_BY in table.parameters
