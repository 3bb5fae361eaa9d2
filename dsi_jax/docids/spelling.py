"""Docids and text tokens: how codes are written in them, and what a tokenizer must have for it."""

from typing import NamedTuple

import numpy as np

from dsi_jax.docids.table import END_TOKEN, FIRST_CODE, PAD_TOKEN, DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer


class Spelled(NamedTuple):
    """Docids in text tokens.

    Attributes:
      tokens: integers [N, L], ended and padded as a table's.
      vocab_size: V, the whole vocabulary of the model.
      variable_length: as of `DocidTable`.
    """

    tokens: np.ndarray
    vocab_size: int
    variable_length: bool


def docid_strings(table: DocidTable) -> list[str]:
    """Writes each docid as a text: "307", or "12 250 7" where a code has more digits."""
    separator = "" if table.vocab_size - FIRST_CODE <= 10 else " "
    codes_NxL = table.tokens.astype(np.int64) - FIRST_CODE
    return [separator.join(str(code) for code in row if code >= 0) for row in codes_NxL.tolist()]


def as_text(table: DocidTable, tokenizer: Tokenizer) -> np.ndarray:
    """Tokenizes each docid's text, ended and padded; integers [N, L].

    Raises:
      ValueError: the vocabulary lacks a digit.
    """
    strings = docid_strings(table)
    # A piece holds a character at least; a word boundary may be a piece of its own.
    longest = 2 * max(map(len, strings)) + 2
    tokens_NxL = tokenizer.encode_batch(strings, longest)
    unknown_N = _unknown(tokens_NxL, tokenizer)
    if unknown_N.any():
        raise _no_digits(f"docid {strings[int(unknown_N.argmax())]!r}")
    return tokens_NxL[:, : int((tokens_NxL != PAD_TOKEN).sum(axis=1).max())]


def digit_tokens(tokenizer: Tokenizer, num_codes: int) -> np.ndarray:
    """Finds the text token of each code that is a digit and one token; int64 [K], else -1."""
    tokens_K = np.full(num_codes, -1, np.int64)
    codes = [str(code) for code in range(min(num_codes, 10))]
    for code, tokens in enumerate(tokenizer.encode_batch(codes, 4)):
        spelled = tokens[tokens > END_TOKEN]
        # SentencePiece spells a digit as one piece, or as the word boundary and the digit.
        if len(spelled) in (1, 2):
            tokens_K[code] = spelled[-1]
    return tokens_K


def check_ends(tokenizer: Tokenizer) -> None:
    """Checks that text tokens end and pad a docid as tables do.

    Raises:
      ValueError: naming the tokenizer and its ends.
    """
    found = (tokenizer.pad_id, tokenizer.end_id)
    if found != (PAD_TOKEN, END_TOKEN):
        raise ValueError(
            f"docids in text tokens need a vocabulary with pad {PAD_TOKEN} and end {END_TOKEN}, as "
            f"T5's; {type(tokenizer).__name__} {tokenizer.hash[:12]} has {found[0]} and "
            f"{found[1]}: expected another VOCABULARY, or DOCID_SPACE = 'compact'"
        )


def check_digits(tokenizer: Tokenizer) -> None:
    """Checks that a vocabulary can write every number.

    Raises:
      ValueError: naming the first digit that it lacks.
    """
    unknown_10 = _unknown(tokenizer.encode_batch([str(digit) for digit in range(10)], 4), tokenizer)
    if unknown_10.any():
        raise _no_digits(f"digit '{unknown_10.argmax()}'")


def _unknown(tokens_NxL: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Whether a text has a token that stands for what the vocabulary lacks; bool [N]."""
    return (tokens_NxL == getattr(tokenizer, "unknown_id", -1)).any(axis=1)


def _no_digits(what: str) -> ValueError:
    return ValueError(
        f"the vocabulary cannot spell the {what}; expected one that has the ten digits, or "
        "DOCID_SPACE = 'compact'"
    )
