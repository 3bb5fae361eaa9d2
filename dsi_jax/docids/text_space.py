"""Docids spelled in the tokens of a text vocabulary, as the original DSI spells them.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022, section 3.2,
https://arxiv.org/abs/2202.06991: a naive or semantic docid is a string of digits that T5's own
vocabulary tokenises; an atomic docid is one new token behind that vocabulary.
"""

import dataclasses

import numpy as np

from dsi_jax.docids.kinds import title
from dsi_jax.docids.table import END_TOKEN, FIRST_CODE, PAD_TOKEN, DocidTable, token_dtype
from dsi_jax.inputs.tokenizer import Tokenizer

NUM_SENTINELS = 100  # T5's <extra_id_0> to <extra_id_99>
_ATOMIC = "atomic"
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
    """The same docids in text tokens.

    Atomic docids become the tokens from `vocab_size` on, so that the model's vocabulary grows by
    N (the paper's `[W_tokens; W_docs]`). Title docids become the tokens that they stand for. Any
    other docid is written as its codes, side by side where each is one digit and else with blanks
    between them, and tokenised like any text.

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
    if table.kind == _ATOMIC:
        tokens = table.tokens.astype(np.int64) - FIRST_CODE + vocab_size
        vocab_size += table.vocab_size - FIRST_CODE
        variable_length = table.variable_length
    elif table.kind == title.Title.kind:
        _check_ends(tokenizer)
        tokens = title.text_tokens(table, tokenizer)[table.tokens]
        variable_length = table.variable_length
    else:
        _check_ends(tokenizer)
        tokens = _tokenised(table, tokenizer)
        variable_length = True  # the tokenizer ends them all
    spelled = dataclasses.replace(
        table,
        tokens=tokens.astype(token_dtype(vocab_size)),
        vocab_size=vocab_size,
        variable_length=variable_length,
        parameters=table.parameters | {_SPELLED_BY: tokenizer.hash, "compact": table.hash},
    )
    spelled.validate()
    return spelled


def is_spelled(table: DocidTable) -> bool:
    """Whether the table's docids are in text tokens."""
    return _SPELLED_BY in table.parameters


def docid_strings(table: DocidTable) -> list[str]:
    """Each document's docid as a text: "307", or "12 250 7" where a code has more digits."""
    separator = "" if table.vocab_size - FIRST_CODE <= 10 else " "
    codes_NxL = table.tokens.astype(np.int64) - FIRST_CODE
    return [separator.join(str(code) for code in row if code >= 0) for row in codes_NxL.tolist()]


def _check_ends(tokenizer: Tokenizer) -> None:
    """Raises where text tokens would not end and pad a docid as tables do."""
    found = (tokenizer.pad_id, tokenizer.end_id)
    if found != (PAD_TOKEN, END_TOKEN):
        raise ValueError(
            f"docids in text tokens need a vocabulary with pad {PAD_TOKEN} and end {END_TOKEN}, as "
            f"T5's; {type(tokenizer).__name__} {tokenizer.hash[:12]} has {found[0]} and "
            f"{found[1]}: expected another VOCABULARY, or DOCID_SPACE = 'compact'"
        )


def _tokenised(table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
    strings = docid_strings(table)
    # A piece holds a character at least; a word boundary may be a piece of its own.
    longest = 2 * max(map(len, strings)) + 2
    tokens_NxL = tokenizer.encode_batch(strings, longest)
    unknown_N = (tokens_NxL == getattr(tokenizer, "unknown_id", -1)).any(axis=1)
    if unknown_N.any():
        raise ValueError(
            f"the vocabulary cannot spell the docid {strings[int(unknown_N.argmax())]!r}; "
            "expected one that has the ten digits"
        )
    return tokens_NxL[:, : int((tokens_NxL != PAD_TOKEN).sum(axis=1).max())]
