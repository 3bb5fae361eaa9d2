"""Stems of words, the same when weights are fitted, in training and in search."""

import json
import random
import string

import numpy as np
import pytest

from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary, check_language
from dsi_jax.inputs.tokenizer import ByteTokenizer

TEXTS = ["The bee, the BEE and 7 ants.", "", "Éric's naïve ants_nest"]


def test_ids_follow_the_first_appearance_and_stay_distinct():
    vocabulary = LexicalVocabulary.of_documents(TEXTS, None)
    expected = ["the", "bee", "and", "7", "ants", "éric", "s", "naïve", "ants_nest"]
    assert vocabulary.stems == expected
    assert vocabulary.size == 10
    assert vocabulary.ids("ants! bees? The ants") == [5, 1, 5]
    words = vocabulary.encode_batch(["ants the ants bee and 7", "nothing known", ""], 3)
    assert words.dtype == np.int32
    assert words.tolist() == [[5, 1, 2], [0, 0, 0], [0, 0, 0]]


def test_bytes_are_read_as_their_text():
    vocabulary = LexicalVocabulary.of_documents(TEXTS, None)
    for text in TEXTS:
        assert vocabulary.ids(text.encode()) == vocabulary.ids(text)
    assert vocabulary.ids(b"\xff ants") == [5]


def test_spec_is_plain_json_and_rebuilds_the_vocabulary():
    vocabulary = LexicalVocabulary.of_documents(TEXTS, None)
    again = LexicalVocabulary.from_spec(json.loads(json.dumps(vocabulary.spec())))
    assert (again.stems, again.language, again.hash) == (vocabulary.stems, None, vocabulary.hash)
    assert LexicalVocabulary(vocabulary.stems[::-1], None).hash != vocabulary.hash
    with pytest.raises(ValueError, match="a stem twice"):
        LexicalVocabulary(["a", "b", "a"], None)


def test_words_are_stemmed():
    pytest.importorskip("Stemmer")
    vocabulary = LexicalVocabulary.of_documents(["Running runs run; ponies"], "english")
    assert vocabulary.stems == ["run", "poni"]
    assert vocabulary.encode_batch(["pony ran RUN"], 4).tolist() == [[2, 1, 0, 0]]
    with pytest.raises(ValueError, match=r"'klingon'; expected None or one of .*english"):
        check_language("klingon")


def test_inputs_give_the_words_beside_the_tokens():
    rng = random.Random(0)
    texts = ["".join(rng.choices(string.ascii_lowercase[:3] + " ", k=12)) for _ in range(20)]
    vocabulary = LexicalVocabulary.of_documents(texts, None)
    inputs = Inputs(ByteTokenizer(), {"inputs": 5}, lexical_vocabulary=vocabulary)
    stream = inputs.texts(texts)
    plain = Inputs(ByteTokenizer(), {"inputs": 5}).texts(texts)
    assert stream.keys() == {"tokens", "mask", "words"}
    assert plain.keys() == {"tokens", "mask"}
    np.testing.assert_array_equal(stream["tokens"], plain["tokens"])
    np.testing.assert_array_equal(stream["words"], vocabulary.encode_batch(texts, 5))
    for name, shape in inputs.shapes({"text": 20})["text"].items():
        assert (shape.shape, shape.dtype) == (stream[name].shape, stream[name].dtype)
    with pytest.raises(ValueError, match="the task holds token ids"):
        inputs.texts(np.ones((2, 5), np.int32))
