"""Titles of one letter share their first code."""

import pytest
from initials import Initials

from dsi_jax.docids.document_columns import DocumentColumns

KEYS, TITLES = ["k0", "k1", "k2", "k3"], ["bees", "ants", "Butterflies", "aphids"]


def build(kind, seed=0):
    table = kind.build(DocumentColumns(KEYS, "corpus", titles=TITLES), seed)
    table.validate()  # docids are unique and well formed
    return table


def test_titles_of_one_letter_share_their_first_code():
    table = build(Initials())
    first_N = table.docids(range(4))[:, 0].tolist()
    assert first_N == [3, 2, 3, 2]  # codes start at 2, and a comes before b
    assert (table.kind, list(table.keys), table.corpus_hash) == ("initials", KEYS, "corpus")


def test_equal_seeds_give_equal_tables():
    assert build(Initials(), seed=1).hash == build(Initials(), seed=1).hash


def test_too_many_titles_of_one_letter_are_refused():
    with pytest.raises(ValueError, match=r"2 titles begin with '[ab]'; expected at most 1"):
        build(Initials(most=1))
