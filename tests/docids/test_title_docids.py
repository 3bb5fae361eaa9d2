"""Title docids: spelled by the text's tokens, told apart by numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.docids import text_space
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.title import Title
from dsi_jax.inputs.clip_tokenizer import END, START, ClipTokenizer
from dsi_jax.inputs.tokenizer import ByteTokenizer, train_sentencepiece

BYTES = ByteTokenizer()


def build(titles, kind=None, texts=None, tokenizer=BYTES):
    kind = kind or Title()
    keys = [f"key {i}" for i in range(len(titles))]
    texts = ["no words"] * len(titles) if texts is None else texts
    return kind.build(
        DocumentColumns(keys, "corpus", titles=titles, texts=texts, tokenizer=tokenizer)
    )


def spelled(table):
    """Each docid as the text that its bytes make."""
    tokens = np.array([0, 1, *table.parameters["pieces"]])[table.tokens]
    return [bytes((row[row >= 3] - 3).tolist()).decode() for row in tokens]


def test_titles_are_spelled_as_the_tokenizer_spells_them():
    table = build(["bees", "ants", "bee"])
    table.validate()
    assert table.variable_length and table.length == 5
    assert spelled(table) == ["bees", "ants", "bee"]
    # Only the tokens that occur: a, b, e, n, s, t.
    assert table.vocab_size == 2 + 6
    assert table.parameters["pieces"] == [ord(letter) + 3 for letter in "abenst"]
    tokenizer = train_sentencepiece(["honey bees dance", "ants work", "bees"], vocab_size=280)
    table = build(["Bees dance", "ants"], tokenizer=tokenizer)
    tokens = Title.text_tokens(table, tokenizer)
    expected = tokenizer.encode_batch(["Bees dance", "ants"], table.length)
    np.testing.assert_array_equal(tokens[table.tokens], expected)


def test_equal_titles_get_numbers_that_nobody_has():
    table = build(["bee", "ant", "bee", "bee(3)", "bee", "bee", "ant"])
    assert spelled(table) == ["bee", "ant", "bee(2)", "bee(3)", "bee(4)", "bee(5)", "ant(2)"]
    assert table.parameters["collided"] == 4
    # A title that must be cut to make room, and one that is equal only because it was cut.
    table = build(["abcdefgh", "abcdefxy", "abc(2)", "abcdef"], Title(max_tokens=6))
    assert spelled(table) == ["abcdef", "abc(3)", "abc(2)", "abc(4)"]


def test_documents_without_title_are_spelled_by_their_first_words():
    table = build(["", " ", "bee"], texts=["a b c d e f g h i j", "ant", "x"])
    assert spelled(table) == ["a b c d e f g h", "ant", "bee"]


@settings(deadline=None, max_examples=60)
@given(
    titles=st.lists(st.text("ab(2)", min_size=1, max_size=5), min_size=1, max_size=30),
    max_tokens=st.integers(5, 8),
)
def test_docids_are_unique_and_prefixes_of_titles(titles, max_tokens):
    table = build(titles, Title(max_tokens))
    table.validate()
    np.testing.assert_array_equal(table.rows_of(table.docids(range(len(titles)))),
                                  range(len(titles)))  # fmt: skip
    seen = set()
    for title, docid in zip(titles, spelled(table), strict=True):
        if title not in seen:
            assert docid == title
        else:
            stem, _, number = docid.rpartition("(")
            assert title.startswith(stem) and int(number.rstrip(")")) >= 2
        seen.add(title)
    assert table.parameters["collided"] == len(titles) - len(set(titles))
    assert table.hash == build(titles, Title(max_tokens)).hash


def test_titles_in_text_space_are_their_own_tokens():
    tokenizer = train_sentencepiece(["honey bees dance", "ants work", "bees"], vocab_size=280)
    titles = ["bees dance", "ants", "bees"]
    table = build(titles, tokenizer=tokenizer)
    in_text = text_space.spell(table, tokenizer)
    np.testing.assert_array_equal(in_text.tokens, tokenizer.encode_batch(titles, table.length))
    with pytest.raises(ValueError, match=r"were spelled by the tokenizer .*; this one is"):
        text_space.spell(table, BYTES)


def test_vocabularies_without_the_ends_of_t5_are_refused_before_a_table_is_built(clip):
    Title().check_text_space(BYTES)
    with pytest.raises(ValueError, match=r"pad 0 and end 1, .* ClipTokenizer .* has 13 and 13"):
        Title().check_text_space(clip)


@pytest.mark.parametrize("titles", [["bees"], ["bees fly", "bees dance", "ants work"]])
def test_titles_of_one_length_have_no_end_in_text_space(titles):
    table = build(titles, Title(max_tokens=8))
    assert not table.variable_length
    in_text = text_space.spell(table, BYTES)
    assert not in_text.variable_length and in_text.length == table.length
    assert [bytes((row - 3).tolist()).decode() for row in in_text.tokens] == [
        title[:8] for title in titles
    ]


@pytest.fixture
def clip():
    """CLIP's order of ids, small: 0 and 1 are words, start and end come last."""
    words = ["a</w>", "b</w>", "c</w>", "(</w>", "2</w>", ")</w>"]
    letters = [word.removesuffix("</w>") for word in words]
    tokens = [*words, *letters, START, END]
    return ClipTokenizer({token: i for i, token in enumerate(tokens)}, [])


def test_titles_in_tokens_of_clip(clip):
    """Its ids 0 and 1 are text, and neither start nor end are."""
    titles = ["a b c", "b", "c a b b", "b"]
    table = build(titles, Title(max_tokens=4), tokenizer=clip)
    assert table.parameters["pieces"] == [0, 1, 2, 3, 4, 5]
    ends = [1] + [0] * 4
    expected = [[2, 3, 4], [3], [4, 2, 3, 3], [3, 5, 6, 7]]
    assert table.tokens.tolist() == [[*docid, *ends][:5] for docid in expected]
    table.validate()
    # The longest title keeps its last word: the start takes no room.
    assert build(["a b c a"], Title(max_tokens=4), tokenizer=clip).length == 4


def test_text_space_needs_the_ends_of_t5(clip):
    naive = NaiveString().build(DocumentColumns(["a", "b"], "corpus"))
    for table in (build(["a b", "b"], tokenizer=clip), naive):
        with pytest.raises(ValueError, match=r"pad 0 and end 1, .* ClipTokenizer .* has 13 and 13"):
            text_space.spell(table, clip)


def test_what_cannot_be_spelled_is_named():
    with pytest.raises(ValueError, match=r"document 1 \(key 'key 1'\) has no token"):
        build(["bee", ""], texts=["", ""])
    with pytest.raises(ValueError, match="max_tokens is 3: no room for the number 2"):
        build(["bee", "bee"], Title(max_tokens=3))
    with pytest.raises(ValueError, match="max_tokens is 0; expected at least 1"):
        Title(max_tokens=0)
