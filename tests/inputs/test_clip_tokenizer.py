"""CLIP's byte-pair encoding against transformers' tokenizers."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dsi_jax.inputs import clip_tokenizer
from dsi_jax.inputs.clip_tokenizer import END, START, ClipTokenizer
from dsi_jax.inputs.tokenizer_registry import from_spec

TEXTS = [
    "",
    "   blanks   at\tboth\nends  ",
    "A Dog's tail; it's 1234 cm!!! (they'll SAY)",
    "naïve café x\u0301y \u0130stanbul Straße",
    "日本語のテキスト и русский текст 🙂",
    "one word " * 100,
    "unbroken" * 60,
    "a <b>tag</b> &amp; http://example.org/?q=1",
]


@pytest.fixture(scope="module")
def merges_file(shared_data):
    return shared_data / "vocab" / "bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="module")
def tokenizer(merges_file):
    return ClipTokenizer.from_file(merges_file)


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    """The same tokenizer in the files of Hugging Face."""
    from transformers import CLIPTokenizerFast

    path = tmp_path_factory.mktemp("clip")
    (path / "vocab.json").write_text(json.dumps(tokenizer._vocab), "utf-8")
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *tokenizer._merges, ""]), "utf-8")
    CLIPTokenizerFast(str(path / "vocab.json"), str(path / "merges.txt")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def captions(shared_data):
    file = shared_data / "coco_mini" / "captions_coco_subset.json"
    return [row["caption"] for row in json.loads(file.read_text("utf-8"))["annotations"]]


@pytest.fixture(scope="module")
def fast(directory):
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(directory)


def rows(tokenizer, texts, length: int) -> list[list[int]]:
    """What a tokenizer of transformers gives."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="np"
    )["input_ids"].tolist()


@pytest.mark.parametrize("length", [77, 8, 2])
def test_equals_transformers(tokenizer, fast, captions, length: int) -> None:
    texts = captions + TEXTS
    found = tokenizer.encode_batch(texts, length)
    assert found.dtype == np.int32
    assert found.tolist() == rows(fast, texts, length)
    in_bytes = tokenizer.encode_batch([text.encode() for text in texts], length)
    np.testing.assert_array_equal(found, in_bytes)


def test_equals_the_slow_tokenizer_on_real_captions(tokenizer, directory, captions) -> None:
    from transformers import CLIPTokenizer

    slow = CLIPTokenizer.from_pretrained(directory)
    assert tokenizer.encode_batch(captions, 77).tolist() == rows(slow, captions, 77)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_equals_transformers(tokenizer, fast, text: str) -> None:
    assume("<|" not in text)  # may spell out a special token
    assert tokenizer.encode_batch([text], 20).tolist() == rows(fast, [text], 20)


def test_published_ids(tokenizer) -> None:
    """Those of `CLIPTokenizer` of openai/clip-vit-base-patch32."""
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)
    found = tokenizer.encode_batch(["a photo of a cat"], 9)[0]
    assert found.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407, 49407]


def test_shapes_of_rows(tokenizer) -> None:
    start, end = tokenizer.start_id, tokenizer.end_id
    assert tokenizer.encode_batch(["a cat"], 1).tolist() == [[end]]
    assert tokenizer.encode_batch(["a cat"], 2).tolist() == [[start, end]]
    assert tokenizer.encode_batch([""], 4).tolist() == [[start, end, end, end]]
    assert tokenizer.encode_batch([], 4).shape == (0, 4)
    with pytest.raises(ValueError, match="length 0, expected at least 1"):
        tokenizer.encode_batch(["a cat"], 0)


def test_the_mask_ends_with_the_first_end(tokenizer) -> None:
    tokens = tokenizer.encode_batch(["a cat", "", "a photo of a cat"], 5)
    tokens[0, 1] = 0  # a token like any other
    expected = [[True] * 4 + [False], [True] * 2 + [False] * 3, [True] * 5]
    assert tokenizer.mask(tokens).tolist() == expected


def test_special_tokens_in_a_text_are_text(tokenizer) -> None:
    found = tokenizer.encode_batch([f"a {END} cat {START}", b"broken \xff utf-8", "\ud800"], 30)
    ends = (found == tokenizer.end_id).argmax(axis=1)
    for row, stop in zip(found, ends, strict=True):
        assert (row[stop:] == tokenizer.end_id).all()
        assert (row[1:stop] < tokenizer.start_id).all()
    assert ends[0] > 5


def test_a_spec_rebuilds_the_tokenizer(tokenizer, captions) -> None:
    spec = json.loads(json.dumps(tokenizer.spec()))
    again = from_spec(spec)
    assert (again.hash, again.vocab_size) == (tokenizer.hash, tokenizer.vocab_size)
    np.testing.assert_array_equal(
        again.encode_batch(captions[:50], 20), tokenizer.encode_batch(captions[:50], 20)
    )
    with pytest.raises(ValueError, match=r"sha256 .*, expected 00"):
        from_spec(spec | {"sha256": "00"})


def test_every_format_of_file_gives_the_same(tokenizer, merges_file, directory, tmp_path) -> None:
    assert (directory / "tokenizer.json").is_file()
    unpacked = tmp_path / "bpe_simple_vocab_16e6.txt"
    unpacked.write_bytes(gzip.decompress(merges_file.read_bytes()))
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (pair / name).write_bytes((directory / name).read_bytes())
    for path in (unpacked, directory, pair):
        assert ClipTokenizer.from_file(path).hash == tokenizer.hash


# A vocabulary of five letters, as a test or a demo may have.
SMALL = ["a", "b", "c</w>", "a</w>", "b</w>", "ab", "abc</w>", START, END]
MERGES = ["a b", "ab c</w>"]


def test_small_vocabularies() -> None:
    small = ClipTokenizer({token: i for i, token in enumerate(SMALL)}, MERGES)
    assert small.encode_batch(["abc ab a"], 8).tolist() == [[7, 6, 0, 4, 3, 8, 8, 8]]
    # What the vocabulary cannot spell is left out, rather than ending the text early.
    assert small.encode_batch(["zebra a"], 6).tolist() == [[7, 1, 3, 3, 8, 8]]


def test_vocabularies_that_are_none_of_clip() -> None:
    vocab = {token: i for i, token in enumerate(SMALL)}
    with pytest.raises(ValueError, match=r"no '<\|endoftext\|>'"):
        ClipTokenizer({token: i for token, i in vocab.items() if token != END}, [])
    with pytest.raises(ValueError, match="ids of 9 tokens are not 0 to 8"):
        ClipTokenizer(vocab | {"a": 8}, [])
    with pytest.raises(ValueError, match="no token for the merge 'b a'"):
        ClipTokenizer(vocab, ["b a"])


def test_files_that_are_none_of_clip(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json"):
        ClipTokenizer.from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        ClipTokenizer.from_file(tmp_path / "absent.txt")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.raises(ValueError, match=r"holds no tokenizer of a CLIP: tokenizer\.json is no"):
        ClipTokenizer.from_file(tmp_path)
    (tmp_path / "merges.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="holds no tokenizer of a CLIP"):
        ClipTokenizer.from_file(tmp_path / "merges.txt.gz")
    assert clip_tokenizer._NUM_MERGES == 48_894
