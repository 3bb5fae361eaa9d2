"""Document forms: what text stands for a document when it is indexed.

Tay et al., "Transformer Memory as a Differentiable Search Index", 2022, section 3.1.2,
https://arxiv.org/abs/2202.06991. The converter keeps the first S tokens of whatever comes.

  * first: title and text as they stand (the paper's direct indexing);
  * set: their terms, each once, in the order of their first appearance, without stop words;
  * inverted: a contiguous chunk from a random place on, another one in each pass.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dsi_jax.data.seqio_tasks import features, preprocessors

FIRST = "first"
SET = "set"
INVERTED = "inverted"
FORMS = (FIRST, SET, INVERTED)


def check(form: str) -> None:
    """Raises if there is no such form.

    Raises:
      ValueError: naming it.
    """
    if form not in FORMS:
        raise ValueError(f"DOCUMENT_FORM is {form!r}; expected one of {FORMS}")


def field(form: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """The field of an indexing task that holds the documents, and its contents.

    Args:
      form: one of `FORMS`.
      texts: title and text of each document.

    Raises:
      ValueError: there is no such form.
    """
    check(form)
    if form == INVERTED:
        return preprocessors.WHOLE, list(texts)
    return features.INPUTS, [term_set(text) for text in texts] if form == SET else list(texts)


def term_set(text: str) -> str:
    """The terms (runs of letters and digits) of a text, each once, without English stop words.

    A text of stop words alone keeps its terms: something must stand for the document.

    Example:
      >>> term_set("The cat and the other cat sat: a Cat!")
      'cat sat'
    """
    # Here, because importing it takes a second.
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    first: dict[str, str] = {}
    for term in re.findall(r"\w+", text):
        first.setdefault(term.casefold(), term)
    kept = [term for folded, term in first.items() if folded not in ENGLISH_STOP_WORDS]
    return " ".join(kept or first.values())
