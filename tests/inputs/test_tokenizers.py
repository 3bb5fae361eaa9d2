"""Tokenizers against seqio's vocabularies, and the training of one."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax.inputs import tokenizer as tokenizer_lib
from dsi_jax.inputs.tokenizer import (
    ByteTokenizer,
    SentencePieceTokenizer,
    train_sentencepiece,
)
from dsi_jax.inputs.tokenizer_registry import from_spec

LENGTHS = (1, 2, 7, 64)
TEXTS = [
    "Where was the treaty of Ghent signed?",
    "",
    "   blanks   at\tboth\nends  ",
    "naïve café \ufb01ne \u2167 \uff11\uff12 x\u0301y",  # all to be normalised
    "日本語のテキスト и русский текст",
    "fill <extra_id_0> the gap <extra_id_1> ",
    "unbroken" * 500,
    "many words follow one another " * 300,
    "ends in a long word " + "z" * 3000,
]
# T5's own vocabulary with its sentinels in the file, and seqio's, to which they are added.
MODELS = {"sentencepiece_cc_all.32000.100extra-sentencepiece.model": 0, "seqio_test_26.model": 100}


@pytest.fixture(scope="module")
def seqio():
    return pytest.importorskip("seqio", reason="seqio is not installed (extra: train)")


@pytest.fixture(scope="module", params=MODELS)
def pair(request, shared_data, seqio):
    """One of our tokenizers and seqio's vocabulary of the same file."""
    path = shared_data / "vocab" / request.param
    extra_ids = MODELS[request.param]
    ours = SentencePieceTokenizer.from_file(path, extra_ids)
    return ours, seqio.SentencePieceVocabulary(str(path), extra_ids)


def expected_row(ids, length):
    """What seqio's trim, append_eos and padding give."""
    row = [*ids[: length - 1], 1]
    return row + [0] * (length - len(row))


@pytest.mark.parametrize("length", LENGTHS)
def test_sentencepiece_equals_seqio(pair, length):
    ours, vocabulary = pair
    assert ours.vocab_size == vocabulary.vocab_size
    rows = ours.encode_batch(TEXTS, length)
    assert rows.dtype == np.int32
    assert rows.tolist() == [expected_row(vocabulary.encode(text), length) for text in TEXTS]
    in_bytes = ours.encode_batch([text.encode() for text in TEXTS], length)
    np.testing.assert_array_equal(rows, in_bytes)


def test_sentencepiece_equals_seqio_inside_tf_data(pair):
    ours, vocabulary = pair
    texts = [text.encode() for text in TEXTS] + [b"caf\xc3\xa9 \xff\xfe is not utf-8"]
    wanted = [expected_row(vocabulary.encode_tf(text).numpy().tolist(), 64) for text in texts]
    assert ours.encode_batch(texts, 64).tolist() == wanted


@settings(deadline=None, max_examples=200)
@given(
    words=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), max_size=8),
    repeat=st.integers(1, 30),
    separator=st.sampled_from([" ", "  ", "a b", "\n", "\u0301 "]),
    length=st.integers(1, 20),
)
def test_cutting_long_texts_changes_nothing(pair, words, repeat, separator, length):
    ours, vocabulary = pair
    text = separator.join(words * repeat)
    assert ours.encode_batch([text], length).tolist() == [
        expected_row(vocabulary.encode(text), length)
    ]


def test_only_the_beginning_of_a_long_text_is_tokenised(pair, monkeypatch):
    ours, _ = pair
    seen = []
    encode = ours._processor.encode
    monkeypatch.setattr(
        ours._processor, "encode", lambda texts, **kw: seen.extend(texts) or encode(texts, **kw)
    )
    ours.encode_batch(["a few words " * 10_000], 32)
    assert 0 < sum(map(len, seen)) <= 16 * 32


def test_vocabularies_whose_pieces_span_words_are_never_cut():
    assert not any(map(tokenizer_lib._spans_words, ["▁word", "wo", "▁", "▁▁▁", "", "<0x20>"]))
    assert all(map(tokenizer_lib._spans_words, ["of▁the", "word▁", "a b", "▁New▁York"]))
    text = b"one two three"
    assert tokenizer_lib._beginning(text, 9) == b"one two"
    assert tokenizer_lib._beginning(b"one, two", 6) == b"one, two"  # no safe place
    assert tokenizer_lib._beginning(text, 13) == text


@pytest.mark.parametrize("length", LENGTHS)
def test_bytes_equal_seqio(seqio, length):
    vocabulary = seqio.ByteVocabulary()
    ours = ByteTokenizer()
    assert ours.vocab_size == vocabulary.vocab_size
    assert ours.encode_batch(TEXTS, length).tolist() == [
        expected_row(vocabulary.encode(text), length) for text in TEXTS
    ]


def test_the_mask_of_a_text_ends_with_its_end(trained):
    for tokenizer in (ByteTokenizer(), trained):
        tokens = tokenizer.encode_batch(["one two three", "", "a"], 40)
        mask = tokenizer.mask(tokens)
        lengths = (tokens == tokenizer.end_id).argmax(axis=1) + 1
        np.testing.assert_array_equal(mask, np.arange(40) < lengths[:, None])


def test_foreign_models_are_refused(shared_data):
    path = shared_data / "vocab" / "sentencepiece_test_1000.model"
    with pytest.raises(ValueError, match=r"test_1000.*pad_id -1 and eos_id 2, expected 0 and 1"):
        SentencePieceTokenizer.from_file(path)
    with pytest.raises(ValueError, match="no SentencePiece model"):
        SentencePieceTokenizer(b"nonsense")
    with pytest.raises(FileNotFoundError):
        SentencePieceTokenizer.from_file("nowhere.model")
    path = shared_data / "vocab" / "sentencepiece_cc_all.32000.100extra-sentencepiece.model"
    with pytest.raises(ValueError, match=r"100 extra ids.*already defined"):
        SentencePieceTokenizer.from_file(path, extra_ids=100)
    with pytest.raises(ValueError, match="extra_ids is -1"):
        SentencePieceTokenizer.from_file(path, extra_ids=-1)


@pytest.fixture(scope="module")
def corpus():
    return [f"Document {i}: the {w} naïve fox.\nIt was seen {i * 7} times." for i in range(300)
            for w in ("quick", "brown")]  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus):
    return train_sentencepiece(corpus, vocab_size=400)


def test_training_gives_t5_ids_and_knows_every_character(trained, corpus):
    assert trained.vocab_size <= 400
    unseen = "日本語 € never seen"
    rows = trained.encode_batch([corpus[0], unseen], 64)
    assert not (rows == 2).any()  # 2 is unknown
    assert trained._processor.decode([int(i) for i in rows[1] if i > 1]) == unseen
    assert (rows[:, 0] > 2).all()


def test_training_is_a_function_of_its_arguments(trained, corpus):
    assert train_sentencepiece(corpus, 400).hash == trained.hash
    few = [train_sentencepiece(corpus, 350, seed, max_sentences=20) for seed in (1, 1, 2)]
    assert few[0].model == few[1].model
    assert few[0].model != few[2].model


def test_training_lowers_a_size_that_the_corpus_does_not_support():
    assert 259 < train_sentencepiece(["a small corpus"] * 3, 10_000).vocab_size < 400


def test_the_sample_is_uniform_over_lines():
    texts = ["0\n1\n2\n3", "4\n\n5\n6", " 7 \n8\n9\n"]
    counts = np.zeros(10)
    for seed in range(2000):
        for line in tokenizer_lib._sample_lines(texts, 3, seed):
            counts[int(line)] += 1
    assert abs(counts / 2000 - 0.3).max() < 0.05  # five standard deviations


def test_training_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="all texts are empty"):
        train_sentencepiece(["", " \n "], 400)
    with pytest.raises(ValueError, match=r"vocabulary of 50 pieces.*smaller than required_chars"):
        train_sentencepiece(["some text"], 50)


def test_specs_are_json_and_rebuild_the_tokenizer(trained):
    for tokenizer in (trained, SentencePieceTokenizer(trained.model, extra_ids=3), ByteTokenizer()):
        again = from_spec(json.loads(json.dumps(tokenizer.spec())))
        assert (again.hash, again.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
        np.testing.assert_array_equal(
            again.encode_batch(TEXTS, 32), tokenizer.encode_batch(TEXTS, 32)
        )
    hashes = {trained.hash, SentencePieceTokenizer(trained.model, 3).hash, ByteTokenizer().hash}
    assert len(hashes) == 3


def test_bad_specs_and_lengths_are_refused(trained):
    with pytest.raises(ValueError, match="unknown type of tokenizer 'words'"):
        from_spec({"type": "words"})
    with pytest.raises(ValueError, match=r"has sha256 .*, expected 00"):
        from_spec(trained.spec() | {"sha256": "00"})
    for tokenizer in (trained, ByteTokenizer()):
        with pytest.raises(ValueError, match="length 0, expected at least 1"):
            tokenizer.encode_batch(["text"], 0)
        assert tokenizer.encode_batch([], 4).shape == (0, 4)
        assert (tokenizer.encode_batch(["lone \ud800 surrogate"], 40) > 1).sum() > 10
