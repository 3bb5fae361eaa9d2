"""Docids in text tokens, and the indexing strategies that need them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsi_jax.data.batches import indexing_strategies
from dsi_jax.data.batches.indexing_strategies import Strategy
from dsi_jax.docids import spelling, text_space
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import ByteTokenizer, SentencePieceTokenizer, train_sentencepiece

SENTINEL = 500


def keys(count: int) -> list[str]:
    return [f"d{i}" for i in range(count)]


def padded(*tokens: int, length: int = 12) -> np.ndarray:
    return np.array([[*tokens, 1] + [0] * (length - len(tokens) - 1)], np.int32)


def content(row: np.ndarray) -> list[int]:
    """The tokens before the end token, which must be followed by padding alone."""
    end = row.tolist().index(1)
    assert not row[end + 1 :].any()
    return row[:end].tolist()


# ------------------------------------------------------------------ spelling


def test_naive_docids_are_spelled_as_their_digits():
    compact = NaiveString().build(DocumentColumns(keys(120), "corpus"))
    spelled = text_space.spell(compact, ByteTokenizer())
    spelled.validate()
    numbers = np.random.default_rng(42).permutation(120)
    for row, number in enumerate(numbers):
        assert bytes(t - 3 for t in spelled.tokens[row] if t >= 3).decode() == str(number)
    assert spelled.vocab_size == 259 + 100
    assert spelled.corpus_hash == compact.corpus_hash
    assert spelled.parameters["compact"] == compact.hash != spelled.hash


def test_codes_of_several_digits_are_kept_apart():
    codes = np.array([[1, 12], [11, 2], [0, 3]])
    table = DocidTable.from_codes(
        codes, num_codes=13, keys=keys(3), kind="rq", parameters={}, corpus_hash=""
    )
    assert spelling.docid_strings(table) == ["1 12", "11 2", "0 3"]
    assert len({tuple(row) for row in text_space.spell(table, ByteTokenizer()).tokens}) == 3


def test_atomic_docids_are_new_tokens_behind_the_vocabulary():
    compact = Atomic().build(DocumentColumns(keys(7), "corpus"))
    spelled = text_space.spell(compact, ByteTokenizer(), vocab_size=1000)
    assert (spelled.length, spelled.vocab_size) == (1, 1007)
    np.testing.assert_array_equal(
        spelled.tokens[:, 0].astype(int), compact.tokens[:, 0].astype(int) - 2 + 1000
    )


def test_sentinels_have_t5s_ids(shared_data):
    """T5's <extra_id_0> is the last of its ids, whether the model's file has it or not."""
    vocabularies = shared_data / "vocab"
    own = SentencePieceTokenizer.from_file(
        vocabularies / "sentencepiece_cc_all.32000.100extra-sentencepiece.model"
    )
    ids = own.encode_batch(["<extra_id_0> <extra_id_99>"], 4)[0]
    first = text_space.first_sentinel(own)
    assert {first + 99, first} < set(ids.tolist())
    assert text_space.least_vocab_size(own) == own.vocab_size == first + 100
    plain = train_sentencepiece(["a few words of text 0123456789"] * 9, vocab_size=300)
    appended = SentencePieceTokenizer(plain.model, extra_ids=100)
    for tokenizer in (plain, appended):
        assert text_space.first_sentinel(tokenizer) == plain.vocab_size
        assert text_space.least_vocab_size(tokenizer) == plain.vocab_size + 100


def test_a_vocabulary_without_digits_is_refused(shared_data):
    tokenizer = SentencePieceTokenizer.from_file(shared_data / "vocab" / "seqio_test_26.model")
    with pytest.raises(ValueError, match=r"cannot spell the docid '\d+'"):
        text_space.spell(NaiveString().build(DocumentColumns(keys(30), "c")), tokenizer)


def test_a_vocabulary_smaller_than_the_text_is_refused():
    with pytest.raises(ValueError, match=r"of 300 tokens was asked for.*need 359"):
        text_space.spell(
            NaiveString().build(DocumentColumns(keys(30), "c")), ByteTokenizer(), vocab_size=300
        )


# ---------------------------------------------------------------- strategies

DOCUMENT, DOCID = (20, 21, 22, 23, 24, 25), (7, 8)


def example(name: str, is_indexing: int = 1, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    strategy = Strategy(name, seed=3, first_sentinel=SENTINEL)
    inputs, targets = strategy.apply(
        padded(*DOCUMENT),
        padded(*DOCID, length=3),
        np.array([is_indexing]),
        step=step,
        places_B=np.arange(1),
    )
    return inputs[0], targets[0]


@pytest.mark.parametrize("name", indexing_strategies.STRATEGIES)
def test_queries_are_the_same_under_every_strategy(name):
    inputs, targets = example(name, is_indexing=0)
    assert (content(inputs), content(targets)) == (list(DOCUMENT), list(DOCID))


def test_inputs2targets_keeps_document_and_docid():
    inputs, targets = example("inputs2targets")
    assert (content(inputs), content(targets), len(targets)) == (list(DOCUMENT), list(DOCID), 3)


def test_targets2inputs_swaps_them():
    inputs, targets = example("targets2inputs")
    assert (content(inputs), content(targets), len(targets)) == (list(DOCID), list(DOCUMENT), 12)


def test_bidirectional_names_the_direction_and_takes_both():
    forward = (list(DOCUMENT), list(DOCID))
    backward = ([SENTINEL, *DOCID], list(DOCUMENT))
    drawn = [tuple(map(content, example("bidirectional", step=step))) for step in range(200)]
    assert set(map(str, drawn)) == {str(forward), str(backward)}
    assert 60 < sum(pair == forward for pair in drawn) < 140


def restored(inputs: list[int], targets: list[int]) -> list[int]:
    """The text of a corrupted one: each sentinel gives way to what follows it in the target."""
    runs, result = {}, []
    for token in targets:
        if token >= SENTINEL:
            run = runs[token] = []
        else:
            run.append(token)
    for token in inputs:
        result += runs.pop(token) if token >= SENTINEL else [token]
    assert not runs
    return result


@given(length=st.integers(1, 300), docid=st.integers(1, 6), step=st.integers(0, 2**31))
def test_span_corruption_loses_nothing(length, docid, step):
    document = padded(*range(10, 10 + length), length=length + 20)
    docid = padded(*range(400, 400 + docid), length=8)
    strategy = Strategy("span_corruption", seed=1, first_sentinel=SENTINEL)
    inputs, targets = strategy.apply(
        document, docid, np.array([1]), step=step, places_B=np.arange(1)
    )
    inputs, targets = content(inputs[0]), content(targets[0])
    assert restored(inputs, targets) == content(docid[0]) + content(document[0])
    numbers = [SENTINEL + 99 - token for token in inputs if token >= SENTINEL]
    assert numbers == list(range(len(numbers)))


def test_span_corruption_may_hide_the_docid_and_the_document():
    drawn = [content(example("span_corruption", step=step)[0]) for step in range(100)]
    assert any(DOCID[0] not in inputs for inputs in drawn)
    assert any(DOCUMENT[-1] not in inputs for inputs in drawn)


@given(length=st.integers(2, 700), seed=st.integers(0, 2**31))
def test_noise_has_t5s_density_and_span_length(length, seed):
    mask = indexing_strategies.noise_mask(length, np.random.default_rng(seed))
    assert mask.shape == (length,)
    assert mask.sum() == min(max(round(0.15 * length), 1), length - 1)
    runs = int((np.diff(mask.astype(int)) == 1).sum() + mask[0])
    expected = min(max(round(mask.sum() / 3), 1), length - mask.sum(), 98)
    assert runs in (expected, expected + 1)  # a run that the rotation cut in two


@pytest.mark.parametrize("name", indexing_strategies.STRATEGIES)
def test_batches_do_not_depend_on_how_they_are_cut(name):
    """Hosts make their slices alone."""
    rng = np.random.default_rng(0)
    tokens = np.concatenate([padded(*rng.integers(10, 99, 8)) for _ in range(8)])
    docids = np.concatenate([padded(*rng.integers(100, 110, 2), length=4) for _ in range(8)])
    flags = np.array([1, 0, 1, 1, 1, 0, 1, 1])
    strategy = Strategy(name, seed=9, first_sentinel=SENTINEL)
    whole = strategy.apply(tokens, docids, flags, step=5, places_B=np.arange(8))
    for parts in (2, 4):
        size = 8 // parts
        slices = [
            strategy.apply(tokens[i : i + size], docids[i : i + size], flags[i : i + size],
                           step=5, places_B=np.arange(i, i + size))
            for i in range(0, 8, size)
        ]  # fmt: skip
        for one, many in zip(whole, zip(*slices, strict=True), strict=True):
            np.testing.assert_array_equal(one, np.concatenate(many))


def test_docids_longer_than_the_input_are_refused():
    with pytest.raises(ValueError, match="a docid as input of bidirectional has 9 tokens"):
        Strategy("bidirectional").target_length(8, 8)


def test_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match=r"'both'; expected one of \('inputs2targets'"):
        Strategy("both")
