"""Docid tables, the kinds that build them, and the embeddings that kinds need."""

import dataclasses
import json
import mmap
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsi_jax.docids import table as table_module
from dsi_jax.docids import table_files
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.text import EncoderMeanPool, TfidfSvd
from dsi_jax.docids.health.report import health, report
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.learned import RQVAE, IRGen
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.quantized import ProductQuantized, ResidualQuantized
from dsi_jax.docids.kinds.random_control import Random
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.kinds.title import Title
from dsi_jax.docids.numbers import digits, num_digits
from dsi_jax.docids.sorting import lexicographic_order, packed
from dsi_jax.docids.table import DocidTable, token_dtype
from dsi_jax.inputs.tokenizer import SentencePieceTokenizer, train_sentencepiece
from dsi_jax.storage.string_columns import StringColumn, write_columns

SEMANTIC = Semantic(embedder=None)
KINDS = [Atomic(), NaiveString(), NaiveString(zero_pad=True), Random(), SEMANTIC]
KINDS += [Atomic(id_space=500), NaiveString(id_space=500)]


def build(kind, count, seed=0, *, embeddings=None):
    if embeddings is None:
        embeddings = np.random.default_rng(99).normal(size=(count, 4)).astype(np.float32)
    return kind.build(
        DocumentColumns([f"key {i}" for i in range(count)], "corpus", embeddings=embeddings), seed
    )


def test_digits_of_semantic_docids_start_from_the_digits_of_the_text():
    tokenizer = train_sentencepiece(["0 1 2 3 4 5 6 7 8 9"], vocab_size=300)
    table = build(Semantic(clusters=10, leaf_size=4, embedder=None), 60)
    rows = Semantic.text_tokens(table, tokenizer)
    assert rows[:2].tolist() == [0, 1] and len(rows) == table.vocab_size == 12
    digits_of = {code: tokenizer.encode_batch([str(code)], 4)[0] for code in range(10)}
    for code, tokens in digits_of.items():
        assert rows[2 + code] == tokens[tokens > 1][-1]


def make(tokens, vocab_size, variable_length, **changes):
    tokens = np.asarray(tokens).astype(token_dtype(vocab_size))
    arguments = {
        "tokens": tokens,
        "keys": [f"key {i}" for i in range(len(tokens))],
        "vocab_size": vocab_size,
        "kind": "test",
        "parameters": {},
        "corpus_hash": "corpus",
        "variable_length": variable_length,
    }
    return DocidTable(**(arguments | changes))


def codes_of(table, row):
    return tuple(int(token) - 2 for token in table.tokens[row] if token > 1)


# --- every kind ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 300), seed=st.integers(0, 3))
def test_every_kind_gives_each_document_a_docid_of_its_own(kind, count, seed):
    table = build(kind, count, seed)
    table.validate()
    rows = np.arange(count)
    docids = table.docids(rows)
    assert docids.dtype == np.int32 and docids.shape == (count, table.length)
    assert len({tuple(docid) for docid in docids.tolist()}) == count
    np.testing.assert_array_equal(table.rows_of(docids), rows)
    assert table.tokens.dtype == token_dtype(table.vocab_size)
    assert table.variable_length == (len({len(codes_of(table, r)) for r in rows}) > 1)
    assert table.kind == kind.kind and table.corpus_hash == "corpus"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_tables_are_a_function_of_the_seed(kind):
    first, again, other = (build(kind, 300, seed) for seed in (1, 1, 2))
    assert first.hash == again.hash != other.hash
    assert (first.tokens != other.tokens).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_docids_do_not_follow_the_order_of_the_data(kind):
    order = build(kind, 400).order.astype(float)
    # The rank correlation of unrelated orders has a standard deviation of 1 / 20.
    assert abs(np.corrcoef(order, np.arange(400))[0, 1]) < 0.25


def test_atomic():
    table = build(Atomic(), 300)
    assert (table.length, table.vocab_size, table.tokens.dtype) == (1, 302, np.uint16)
    assert sorted(table.tokens[:, 0].tolist()) == list(range(2, 302))
    assert build(Atomic(), 254).tokens.dtype == np.uint8
    assert build(Atomic(), 255).tokens.dtype == np.uint16


@pytest.mark.parametrize("count", [1, 9, 10, 11, 100, 101, 1234])
def test_naive_writes_the_numbers_below_n(count):
    table = build(NaiveString(), count)
    numbers = ["".join(map(str, codes_of(table, row))) for row in range(count)]
    assert sorted(numbers, key=int) == [str(n) for n in range(count)]
    assert table.vocab_size == 12
    padded = build(NaiveString(zero_pad=True), count)
    width = len(str(count - 1))
    assert not padded.variable_length and padded.length == width
    assert ["".join(map(str, codes_of(padded, row))) for row in range(count)] == [
        number.zfill(width) for number in numbers
    ]


@pytest.mark.parametrize("space", [1000, 1001, 320_000])
def test_numbers_are_drawn_from_the_whole_id_space(space):
    def numbers(table):
        return [int("".join(map(str, codes_of(table, row)))) for row in range(1000)]

    naive, atomic = (build(kind(id_space=space), 1000) for kind in (NaiveString, Atomic))
    assert numbers(naive) == [codes_of(atomic, row)[0] for row in range(1000)]
    assert len(set(numbers(naive))) == 1000
    assert min(numbers(naive)) >= 0 and max(numbers(naive)) < space
    assert abs(np.mean(numbers(naive)) / (space - 1) - 0.5) < 0.05  # 5.5 standard deviations
    assert (naive.vocab_size, atomic.vocab_size) == (12, space + 2)
    assert naive.parameters["id_space"] == atomic.parameters["id_space"] == space
    padded = build(NaiveString(id_space=space, zero_pad=True), 1000)
    assert (padded.length, numbers(padded)) == (len(str(space - 1)), numbers(naive))


def test_without_an_id_space_it_is_the_number_of_documents():
    for kind in (NaiveString, Atomic):
        assert build(kind(), 50).hash == build(kind(id_space=50), 50).hash
        assert build(kind(), 50).parameters["id_space"] == 50
        with pytest.raises(ValueError, match="id_space is 49; expected at least the 50 documents"):
            build(kind(id_space=49), 50)


@given(number=st.integers(0, 2**62), base=st.integers(2, 70_000), more=st.integers(0, 3))
def test_digits_write_numbers(number, base, more):
    width = num_digits(number + 1, base)
    assert base ** (width - 1) <= max(number, 1) and number < base**width
    written = digits(np.array([number, 0]), base, width + more)
    assert written.dtype == np.min_scalar_type(base - 1) and not written[1].any()
    value = 0
    for digit in written[0].tolist():
        value = value * base + digit
    assert value == number


@settings(deadline=None, max_examples=60)
@given(data=st.data(), clusters=st.integers(2, 20))
def test_random_codes_have_the_shape_asked_for(data, clusters):
    length = data.draw(st.integers(1, 40))
    count = data.draw(st.integers(1, min(clusters**length, 500)))
    table = build(Random(length, clusters), count)
    table.validate()
    assert (table.length, table.vocab_size) == (length, clusters + 2)
    assert not table.variable_length


def test_random_codes_are_uniform_and_default_to_the_fewest_levels():
    assert [build(Random(), n).length for n in (1, 10, 11, 1000, 1001)] == [1, 1, 2, 3, 4]
    # 100 of 1,000 codes (drawn again on collision) and 300 of 1,000 (a permutation).
    for count in (100, 300):
        tokens = np.concatenate([build(Random(3), count, seed).tokens for seed in range(100)])
        shares = np.stack([np.bincount(tokens[:, level])[2:] for level in range(3)]) / len(tokens)
        assert abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / len(tokens))
    with pytest.raises(ValueError, match=r"2 levels of 10 codes give 100 docids, .* 101 documents"):
        build(Random(2), 101)


def test_kinds_refuse_impossible_parameters():
    for bad in ({"clusters": 1}, {"leaf_size": 0}, {"n_init": 0}, {"max_levels": -1}):
        with pytest.raises(ValueError, match="expected clusters >= 2"):
            Semantic(**bad)
    for kind in (Atomic, NaiveString):
        for bad in (0, -5):
            with pytest.raises(
                ValueError, match=f"id_space is {bad}; expected at least 1, or None"
            ):
                kind(id_space=bad)
    for bad in ({"clusters": 1}, {"length": 0}):
        with pytest.raises(ValueError, match="expected clusters >= 2"):
            Random(**bad)


# --- semantic ------------------------------------------------------------------------------------


def blobs(count, per_blob_scale=0.01):
    """Embeddings in ten well separated groups, and the groups."""
    rng = np.random.default_rng(3)
    groups = rng.integers(10, size=count)
    centers = 10 * np.eye(10, dtype=np.float32)
    return centers[groups] + rng.normal(size=(count, 10)) * per_blob_scale, groups


def test_semantic_prefixes_are_clusters():
    embeddings, groups = blobs(500)
    table = build(Semantic(embedder=None), 500, embeddings=embeddings)
    for group in range(10):
        first = table.tokens[groups == group, 0]
        assert len(set(first.tolist())) == 1
    assert table.level_sizes[0] == 10
    # About 50 documents a group, fewer than 100: one level of clusters and two digits.
    assert {len(codes_of(table, row)) for row in range(500)} == {3}
    assert table.length == 3 and not table.variable_length


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 250),
    clusters=st.integers(2, 12),
    leaf_size=st.integers(1, 60),
    distinct=st.integers(1, 250),
    max_levels=st.integers(0, 4),
)
def test_semantic_leaves_are_numbered_without_gaps(
    count, clusters, leaf_size, distinct, max_levels
):
    """The bounds that follow from the rule, without repeating k-means."""
    points = np.random.default_rng(0).normal(size=(distinct, 3)).astype(np.float32)
    embeddings = points[np.arange(count) % distinct]
    kind = Semantic(clusters, leaf_size, embedder=None, max_levels=max_levels)
    table = build(kind, count, embeddings=embeddings)
    table.validate()
    docids = [codes_of(table, row) for row in range(count)]
    assert all(0 <= code < clusters for docid in docids for code in docid)

    def check(members, level):
        """Members share their first `level` codes; returns whether they are one leaf."""
        widths = {len(docids[row]) - level for row in members}
        if len(widths) == 1:
            (width,) = widths
            place = clusters ** np.arange(width - 1, -1, -1)
            numbers = sorted(int(docids[row][level:] @ place) for row in members)
            fits = width == 1 or clusters ** (width - 1) < len(members)
            if fits and numbers == list(range(len(members))):
                return
        # Not a leaf, so it has been split: it was large enough to be, and not too deep.
        assert len(members) > leaf_size and level < max_levels
        children = {}
        for row in members:
            children.setdefault(docids[row][level], []).append(row)
        assert 1 < len(children) <= clusters
        for child in children.values():
            check(child, level + 1)

    docids = [np.array(docid) for docid in docids]
    check(list(range(count)), 0)


def test_semantic_leaf_sizes_decide_the_digits():
    for count, width in ((1, 1), (10, 1), (11, 2), (100, 2)):
        assert build(SEMANTIC, count).length == width
    # 101 documents are split once, since each of the ten groups is a leaf.
    embeddings, _ = blobs(101)
    table = build(SEMANTIC, 101, embeddings=embeddings)
    lengths = {len(codes_of(table, row)) for row in range(101)}
    assert lengths <= {2, 3}


def test_semantic_divides_equal_documents_at_random():
    table = build(SEMANTIC, 1500, embeddings=np.ones((1500, 8), np.float32))
    assert table.length == 4 and not table.variable_length
    numbers = (table.tokens.astype(int) - 2) @ [1000, 100, 10, 1]
    assert sorted(numbers.tolist()) == list(range(1500))
    assert numbers.tolist() != list(range(1500))
    # Copies of one document beside others: the others are still divided by k-means.
    embeddings, groups = blobs(300)
    embeddings[groups == 4] = embeddings[groups == 4][0]
    table = build(Semantic(leaf_size=10, embedder=None), 300, embeddings=embeddings)
    table.validate()
    assert len(set(table.tokens[groups == 4, 0].tolist())) == 1


def test_semantic_learns_from_some_documents_of_a_mapped_file(tmp_path):
    embeddings, groups = blobs(2000)
    embeddings = embeddings.astype(np.float32)
    kind = Semantic(leaf_size=20, embedder=None, most_a_cluster=30)
    table = build(kind, 2000, embeddings=embeddings)
    table.validate()
    for group in range(10):
        assert len(set(table.tokens[groups == group, 0].tolist())) == 1
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    assert build(kind, 2000, embeddings=mapped).hash == table.hash
    whole = build(Semantic(leaf_size=20, embedder=None), 2000, embeddings=embeddings)
    assert (whole.tokens != table.tokens).any()


def test_semantic_docids_are_bounded_in_length():
    # Each split of such a series peels off its largest values: k-means alone would go very deep.
    embeddings = np.logspace(0, 15, 400)[:, None].astype(np.float32)
    deep = build(Semantic(leaf_size=2, embedder=None), 400, embeddings=embeddings)
    flat = build(Semantic(leaf_size=2, embedder=None, max_levels=3), 400, embeddings=embeddings)
    flat.validate()
    assert flat.length <= 3 + 3 + 1 < deep.length


def test_semantic_refuses_bad_embeddings():
    with pytest.raises(ValueError, match="need embeddings of the documents, found none"):
        SEMANTIC.build(DocumentColumns(["a"], "corpus"))
    for shape in ((3, 4), (2,), (2, 0)):
        with pytest.raises(ValueError, match=r"one vector for each of the 2 documents"):
            build(SEMANTIC, 2, embeddings=np.zeros(shape, np.float32))
    embeddings = np.zeros((5, 2), np.float32)
    embeddings[3, 1] = np.nan
    with pytest.raises(ValueError, match="embedding of row 3 holds a value that is not finite"):
        build(SEMANTIC, 5, embeddings=embeddings)


def test_semantic_tables_name_their_embedder():
    parameters = build(Semantic(embedder=TfidfSvd(dimensions=8)), 5).parameters
    assert parameters["embedder"] == {
        "name": "tfidf_svd",
        "dimensions": 8,
        "max_words": 100_000,
    }
    assert build(SEMANTIC, 5).parameters["embedder"] is None


# --- the table -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(data=st.data(), vocab_size=st.sampled_from([4, 12, 256, 257, 70_000]))
def test_lookup_equals_a_dictionary(data, vocab_size):
    length = data.draw(st.integers(1, 12))  # narrower and wider than 64 bits
    docid = st.lists(st.integers(2, vocab_size - 1), min_size=length, max_size=length)
    docids = data.draw(st.lists(docid, min_size=1, max_size=30, unique_by=tuple))
    table = make(docids, vocab_size, False)
    table.validate()
    rows = {tuple(docid): row for row, docid in enumerate(docids)}
    token = st.integers(-3, vocab_size + 300)
    wanted = data.draw(st.lists(st.lists(token, min_size=length, max_size=length), max_size=20))
    wanted += docids
    found = table.rows_of(wanted)
    assert found.dtype == np.int32
    assert found.tolist() == [rows.get(tuple(docid), -1) for docid in wanted]
    assert table.order.tolist() == sorted(range(len(docids)), key=lambda row: docids[row])


def test_lookups_take_any_shape():
    table = build(NaiveString(), 200)
    rows = np.random.default_rng(0).integers(200, size=(3, 4, 5))
    docids = table.docids(rows)
    assert docids.shape == (3, 4, 5, table.length)
    np.testing.assert_array_equal(table.rows_of(docids), rows)
    assert table.docids(7).shape == (table.length,)
    assert table.rows_of(table.docids(7)) == 7
    assert table.docids(np.zeros((0, 2), int)).shape == (0, 2, table.length)
    assert table.rows_of(np.zeros((0, table.length), int)).shape == (0,)
    # A token that would wrap around in uint8 into one of the docid's own is no match.
    assert table.rows_of(table.docids(7) + 256) == -1
    with pytest.raises(ValueError, match=r"shape \(3,\) .*expected \[..., 4\]"):
        table.rows_of([2, 3, 1])
    for row in (-1, 200):
        with pytest.raises(ValueError, match=f"row {row} is outside the docid table of 200"):
            table.docids([0, row])


@pytest.mark.parametrize(
    ("tokens", "variable", "message"),
    [
        ([[2, 3], [2, 1]], False, r"row 1 \(key 'key 1'\) is \[2, 1\], expected codes only"),
        ([[2, 3], [2, 9]], False, r"row 1 .* is \[2, 9\], expected codes only, below 9"),
        ([[2, 1, 0], [2, 3, 4]], True, r"row 1 .*then the end token 1"),  # no end
        ([[2, 1, 0], [1, 0, 0]], True, "row 1 .*at least one code"),  # empty
        ([[2, 1, 0], [2, 0, 1]], True, "row 1 .*"),  # padding before the end
        ([[2, 1, 0], [2, 1, 3]], True, "row 1 .*"),  # a code after the end
        ([[2, 1, 0], [2, 1, 1]], True, "row 1 .*"),  # two ends
        ([[3, 4], [2, 2], [3, 4]], False, r"rows 0 and 2 \(keys 'key 0' and 'key 2'\) share"),
    ],
)
def test_validation_names_the_first_bad_docid(tokens, variable, message, monkeypatch):
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 1)
    with pytest.raises(ValueError, match=message):
        make(tokens, 9, variable).validate()


def test_construction_checks_the_form():
    with pytest.raises(ValueError, match=r"have the shape \(0, 3\)"):
        make(np.zeros((0, 3)), 12, False)
    with pytest.raises(ValueError, match="are int64, expected uint8 for a vocabulary of 12"):
        dataclasses.replace(make([[2]], 12, False), tokens=np.array([[2]]))
    with pytest.raises(ValueError, match="table of 1 rows has 2 document keys"):
        make([[2]], 12, False, keys=["a", "b"])


def from_codes(codes, lengths=None):
    arguments = {"kind": "", "parameters": {}, "corpus_hash": ""}
    keys = [f"key {i}" for i in range(len(codes))]
    lengths = None if lengths is None else np.array(lengths)
    return DocidTable.from_codes(np.array(codes), lengths, num_codes=4, keys=keys, **arguments)


@pytest.mark.parametrize("unused", [-1, 0, 4, 1000])
def test_codes_beyond_a_docids_length_are_not_used(unused):
    table = from_codes([[3, unused, unused], [0, 1, unused]], [1, 2])
    table.validate()
    assert table.tokens.tolist() == [[5, 1, 0, 0], [2, 3, 1, 0]]


@pytest.mark.parametrize(
    ("codes", "lengths", "message"),
    [
        ([[0], [4]], None, "codes range from 0 to 4, expected 0 to 3"),
        ([[1, 9], [2, -1]], [1, 2], "codes range from -1 to 2, expected 0 to 3"),
        ([[1, 9], [2, 5]], [1, 2], "codes range from 1 to 5, expected 0 to 3"),
        (np.zeros((0, 3), int), None, r"codes have the shape \(0, 3\), expected \[documents"),
        ([0, 1], None, r"codes have the shape \(2,\), expected \[documents"),
        ([[0, 1], [1, 0]], [2], r"lengths of docids have the shape \(1,\), expected \(2,\)"),
        ([[0, 1], [1, 0]], [0, 2], "lengths of docids range from 0 to 2, expected 1 to 2"),
        ([[0, 1], [1, 0]], [1, 3], "lengths of docids range from 1 to 3, expected 1 to 2"),
    ],
)
def test_codes_that_make_no_docids_are_refused(codes, lengths, message):
    with pytest.raises(ValueError, match=message):
        from_codes(codes, lengths)


def test_declared_ties_are_no_error_and_part_of_the_hash(tmp_path):
    tokens = [[2, 3], [4, 2], [2, 3]]
    unique, ties = make(tokens, 12, False), make(tokens, 12, False, tie_seed=0)
    with pytest.raises(ValueError, match=r"rows 0 and 2 .* share the docid"):
        unique.validate()
    ties.validate()
    others = {unique.hash, ties.hash, make(tokens, 12, False, tie_seed=1).hash}
    assert len(others) == 3
    unique.save(tmp_path / "unique")
    assert "tie_seed" not in json.loads((tmp_path / "unique" / "metadata.json").read_text())


def test_level_sizes_count_tokens_but_not_padding(monkeypatch):
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 2)
    table = make([[2, 1, 0], [2, 3, 1], [4, 1, 0], [5, 4, 1]], 8, True)
    assert table.level_sizes == (3, 3, 1)


def test_the_hash_covers_all_content_and_nothing_else(tmp_path, monkeypatch):
    tokens = [[2, 3], [4, 2], [3, 3]]
    table = make(tokens, 12, False)
    changes = [
        {"tokens": np.array([[2, 3], [4, 2], [3, 2]], np.uint8)},
        {"keys": ["key 0", "key 1", "other"]},
        {"keys": ["key 0", "key 1k", "ey 2"]},  # the same bytes, divided otherwise
        {"vocab_size": 13},
        {"kind": "other"},
        {"parameters": {"seed": 1}},
        {"corpus_hash": "other"},
    ]
    hashes = {dataclasses.replace(table, **change).hash for change in changes}
    assert len(hashes | {table.hash}) == len(changes) + 1
    # How the content is stored or read in pieces does not matter.
    table.save(tmp_path / "table")
    monkeypatch.setattr(table_module, "_CHUNK_ROWS", 2)
    loaded = DocidTable.load(tmp_path / "table")
    loaded.verify()
    chunks = pa.chunked_array([table.keys[:1], table.keys[1:]], type=pa.large_string())
    assert dataclasses.replace(table, keys=StringColumn(chunks)).hash == table.hash


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 150))
def test_saved_tables_come_back(tmp_path, kind, count):
    directory = tmp_path / "tables" / str(kind) / str(count)
    table = build(kind, count)
    table.save(directory)
    loaded = DocidTable.load(directory)
    np.testing.assert_array_equal(loaded.tokens, table.tokens)
    assert loaded.tokens.dtype == table.tokens.dtype
    assert list(loaded.keys) == table.keys
    for name in ("kind", "parameters", "vocab_size", "corpus_hash", "variable_length", "hash",
                 "level_sizes"):  # fmt: skip
        assert getattr(loaded, name) == getattr(table, name), name
    loaded.verify()
    np.testing.assert_array_equal(loaded.rows_of(loaded.docids(range(count))), range(count))
    table.save(directory)  # again: nothing to do
    assert [file.name for file in directory.parent.iterdir() if file.name[0] == "."] == []


def test_loading_maps_the_files_and_reads_nothing(tmp_path, monkeypatch):
    build(NaiveString(), 100_000).save(tmp_path / "table")

    def fail(*_):
        raise AssertionError("the table was read")

    monkeypatch.setattr(table_files, "string_arrays", fail)
    monkeypatch.setattr(DocidTable, "_chunks", fail)
    allocated = pa.total_allocated_bytes()
    table = DocidTable.load(tmp_path / "table")
    assert (table.num_documents, len(table.hash), len(table.level_sizes)) == (100_000, 64, 6)
    assert pa.total_allocated_bytes() - allocated < 10_000
    base = table.tokens
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    assert type(table.docids(5)) is np.ndarray
    assert table.keys[99_999] == "key 99999"


def test_saving_never_destroys_something_else(tmp_path):
    first, second = build(NaiveString(), 20, 1), build(NaiveString(), 20, 2)
    directory = tmp_path / "table"
    directory.mkdir()
    first.save(directory)  # an empty directory may be filled
    with pytest.raises(FileExistsError, match=f"already holds table {first.hash}"):
        second.save(directory)
    assert DocidTable.load(directory).hash == first.hash
    second.save(directory, overwrite=True)
    assert DocidTable.load(directory).hash == second.hash
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="files that are no docid table"):
        first.save(tmp_path / "other", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "table"]


def test_a_failed_save_leaves_nothing(tmp_path):
    table = make([[2], [3]], 4, False, keys=["a", 5])
    with pytest.raises(ValueError, match="key of row 1 is 5"):
        table.save(tmp_path / "table")
    assert list(tmp_path.iterdir()) == []


def damage_metadata(**changes):
    def damage(directory: Path):
        path = directory / "metadata.json"
        metadata = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))

    return damage


def cut(name, size):
    def damage(directory: Path):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:size])

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, r"no docid table in .*metadata\.json is missing"),
        (lambda d: (d / "tokens.npy").unlink(), FileNotFoundError, r"tokens\.npy does not exist"),
        (lambda d: (d / "keys.arrow").unlink(), FileNotFoundError, r"keys\.arrow does not exist"),
        (cut("metadata.json", 40), ValueError, r"metadata\.json is not valid JSON"),
        (cut("tokens.npy", 0), ValueError, r"tokens\.npy is not a complete \.npy file"),
        (cut("tokens.npy", 20), ValueError, r"tokens\.npy is not a complete \.npy file"),
        (cut("tokens.npy", -1), ValueError, r"tokens\.npy is not a complete \.npy file"),
        (cut("keys.arrow", -1), ValueError, r"keys\.arrow is not a complete Arrow IPC file"),
        (damage_metadata(format="other"), ValueError, "does not describe a docid table"),
        (damage_metadata(format_version=9), ValueError, "format version 9, expected 1"),
        (damage_metadata(hash=None, kind=None), ValueError, r"lacks \['kind', 'hash'\]"),
        (damage_metadata(shape=[50, 9]), ValueError, r"its metadata says .*\[50, 9\]"),
        (damage_metadata(dtype="uint16"), ValueError, "its metadata says .*uint16"),
        (damage_metadata(vocab_size=300), ValueError, "are uint8, expected uint16"),
        (
            lambda d: np.save(d / "tokens.npy", np.zeros((50, 3), object)),
            ValueError,
            r"tokens\.npy is not a complete \.npy file",
        ),
        (
            lambda d: write_columns(d / "keys.arrow", {"key": ["a"]}),
            ValueError,
            r"keys\.arrow holds 1 keys for 50 docids",
        ),
    ],
)
def test_damaged_tables_are_refused_by_name(tmp_path, damage, error, message):
    directory = tmp_path / "table"
    build(NaiveString(), 50).save(directory)
    damage(directory)
    with pytest.raises(error, match=message):
        DocidTable.load(directory)


@pytest.mark.parametrize("name", ["tokens.npy", "keys.arrow"])
def test_verify_finds_changed_content(tmp_path, name):
    build(NaiveString(), 50).save(tmp_path / "table")
    path = tmp_path / "table" / name
    content = bytearray(path.read_bytes())
    position = len(content) - 1 if name == "tokens.npy" else content.index(b"key 17")
    content[position] ^= 1
    path.write_bytes(content)
    table = DocidTable.load(tmp_path / "table")
    with pytest.raises(ValueError, match=f"content has the hash .*, not {table.hash}"):
        table.verify()


def test_packing_keeps_the_order():
    rng = np.random.default_rng(0)
    for dtype, length in ((np.uint8, 8), (np.uint8, 9), (np.uint16, 4), (np.uint32, 3)):
        tokens = rng.integers(0, 3, (200, length)).astype(dtype) * np.iinfo(dtype).max // 2
        order = np.argsort(packed(tokens), kind="stable").tolist()
        assert order == sorted(range(200), key=lambda row: tokens[row].tolist())


@pytest.mark.parametrize(
    ("vocab_size", "length"),
    [
        (12, 1),  # one key of 4 bits
        (12, 16),  # one key, all 64 bits
        (12, 17),  # two keys
        (2**16, 4),
        (2**16 + 1, 4),
        (2**31, 3),
    ],
)
def test_order_equals_a_stable_sort_by_columns(vocab_size, length):
    rng = np.random.default_rng(0)
    few = rng.integers(0, vocab_size, 3)  # long common prefixes
    tokens = rng.choice(few, (500, length)).astype(np.uint32)
    tokens[::2, -1] = rng.integers(0, vocab_size, 250)
    order = lexicographic_order(tokens, vocab_size)
    np.testing.assert_array_equal(order, np.lexsort(tokens.T[::-1]))


# --- the report ----------------------------------------------------------------------------------


def test_health_by_hand():
    #   2 - end;  2 - 3 - end;  2 - 4 - end;  3 - 3 - end
    table = make([[2, 3, 1], [2, 1, 0], [3, 3, 1], [2, 4, 1]], 8, True)
    first, second, third = health(table)
    assert (first.documents, first.tokens, first.nodes, first.branching) == (4, 2, 2, 2.0)
    assert first.entropy == pytest.approx(0.811278, abs=1e-6)  # of 1/4 and 3/4
    assert (second.documents, second.tokens, second.nodes, second.branching) == (4, 3, 4, 2.0)
    assert second.entropy == pytest.approx(1.5)
    assert (third.documents, third.tokens, third.nodes, third.branching) == (3, 1, 3, 1.0)
    assert third.entropy == 0


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_last_level_holds_every_document(kind):
    table = build(kind, 333)
    levels = health(table)
    assert [level.tokens for level in levels] == list(table.level_sizes)
    docids = [codes_of(table, row) + (("end",) if table.variable_length else ())
              for row in range(333)]  # fmt: skip
    for number, level in enumerate(levels, start=1):
        assert level.nodes == len({docid[:number] for docid in docids if len(docid) >= number})


def test_report_reads_well():
    text = report(make([[2, 3, 1], [2, 1, 0], [3, 3, 1]], 8, True))
    assert "test docids" in text and "3 documents, length 3, vocabulary 8" in text
    assert "documents by number of codes: 1: 1, 2: 2" in text
    assert "length 1, vocabulary 1,502" in report(build(Atomic(), 1500))


# --- embeddings ----------------------------------------------------------------------------------

TOPICS = ("bees pollinate flowers honey hive", "rockets orbit launch fuel moon",
          "bread flour yeast oven dough")  # fmt: skip


def topical_texts(count):
    rng = np.random.default_rng(0)
    topics = rng.integers(3, size=count)
    words = [TOPICS[topic].split() for topic in topics]
    return [" ".join(rng.choice(w, 12)) for w in words], topics


def test_tfidf_svd_brings_topics_together():
    texts, topics = topical_texts(60)
    vectors = TfidfSvd(dimensions=3).embed(texts)
    assert vectors.shape == (60, 3) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    similar = vectors @ vectors.T > 0.9
    np.testing.assert_array_equal(similar, topics[:, None] == topics[None])
    np.testing.assert_array_equal(vectors, TfidfSvd(dimensions=3).embed(texts))


def test_tfidf_svd_of_small_vocabularies():
    assert TfidfSvd().embed(["red green", "blue", "red"]).shape == (3, 3)
    one = TfidfSvd().embed(["hello", "the and of", "hello hello"])  # the middle: stop words
    np.testing.assert_array_equal(one, [[1], [0], [1]])
    np.testing.assert_allclose(TfidfSvd().embed(["one document only"]), [[1]], rtol=1e-6)
    assert np.isfinite(TfidfSvd().embed(["same words"] * 20)).all()
    with pytest.raises(ValueError, match="TF-IDF of 2 documents failed: empty vocabulary"):
        TfidfSvd().embed(["the", "of"])


SENTENCES = ["ab ba", "a", "abc cab " * 9, "", "c ab", "ba " * 30, "bc", "cc ca bc"]


@pytest.fixture(scope="module")
def bert_directory(tmp_path_factory):
    """A random BERT as PyTorch users publish it: names of PyTorch, safetensors, no pooler."""
    pytest.importorskip("transformers")
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save_file
    from transformers import BertConfig, BertTokenizerFast, FlaxBertModel

    directory = tmp_path_factory.mktemp("bert")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "##a", "##b", "##c"]
    (directory / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizerFast(vocab_file=str(directory / "vocab.txt")).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    config.save_pretrained(directory)
    params = flatten_dict(FlaxBertModel(config, seed=3).params, sep=".")
    tensors = {}
    for name, value in params.items():
        # Far from the initial values, for which a lost bias or scale would not be seen.
        value = np.asarray(value) + np.random.default_rng(len(tensors)).normal(size=value.shape) / 9
        stem, _, leaf = name.rpartition(".")
        value = np.ascontiguousarray(value.T if leaf == "kernel" else value, np.float32)
        if stem != "pooler.dense":
            tensors[f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_mean_pool_of_bert_equals_one_text_at_a_time(bert_directory):
    from transformers import AutoTokenizer, FlaxAutoModel

    vectors = EncoderMeanPool(str(bert_directory), max_length=24, batch_size=3).embed(SENTENCES)
    assert vectors.shape == (8, 16) and vectors.dtype == np.float32
    tokenizer = AutoTokenizer.from_pretrained(bert_directory)
    model = FlaxAutoModel.from_pretrained(bert_directory)
    for i in (0, 2, 3):
        one = tokenizer([SENTENCES[i]], truncation=True, max_length=24, return_tensors="np")
        (states,) = np.asarray(model(**one).last_hidden_state)  # no padding
        np.testing.assert_allclose(vectors[i], states.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert EncoderMeanPool(str(bert_directory)).describe() == {
        "name": "encoder_mean_pool",
        "model": bert_directory.name,
        "max_length": 128,
        "prefix": "",
    }


def test_mean_pool_puts_the_prefix_before_each_text(bert_directory):
    plain = EncoderMeanPool(str(bert_directory), max_length=24)
    prefixed = EncoderMeanPool(str(bert_directory), max_length=24, prefix="cab ")
    texts = ["cab " + text for text in SENTENCES]
    np.testing.assert_allclose(prefixed.embed(SENTENCES), plain.embed(texts), rtol=1e-5, atol=1e-6)


def test_an_encoder_is_read_and_compiled_once(bert_directory, tmp_path, compiled):
    copy = shutil.copytree(bert_directory, tmp_path / "copy")
    embedder = EncoderMeanPool(str(copy), max_length=24, batch_size=3)
    vectors = embedder.embed(SENTENCES)
    shutil.rmtree(copy)
    compiled.clear()
    np.testing.assert_array_equal(embedder.embed(SENTENCES), vectors)
    assert not compiled
    jax.jit(lambda x: x + 1)(np.zeros(7))
    assert compiled
    assert embedder == EncoderMeanPool(str(copy), max_length=24, batch_size=3)


def test_encoders_that_do_not_fit_are_refused(bert_directory, tmp_path):
    from safetensors.numpy import load_file, save_file

    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        EncoderMeanPool(str(tmp_path)).embed(["a"])
    with pytest.raises(ValueError, match=r"max_length is 128, .* reads at most 64 tokens"):
        EncoderMeanPool(str(bert_directory)).embed(["a"])
    with pytest.raises(ValueError, match="no documents to embed"):
        EncoderMeanPool(str(bert_directory)).embed([])
    copy = shutil.copytree(bert_directory, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    lost = tensors.pop("encoder.layer.0.output.dense.bias")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \['encoder/layer/0/output/dense/bias'\]"):
        EncoderMeanPool(str(copy), max_length=24).embed(["a"])
    tensors["encoder.layer.0.output.dense.bias"] = lost
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(
        ValueError, match="model of type 'gpt2', expected t5, mt5 or one of albert, bert"
    ):
        EncoderMeanPool(str(copy), max_length=24).embed(["a"])
    tensors["embeddings.word_embeddings.weight"] = np.zeros((5, 16), np.float32)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 5}))
    with pytest.raises(ValueError, match=r"tokenizer in .* has 11 ids, its model only 5"):
        EncoderMeanPool(str(copy), max_length=24).embed(["a"])


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_mean_pool_of_t5_equals_pytorch(tmp_path, feed_forward):
    torch = pytest.importorskip("torch", reason="torch is not installed (extra: parity)")
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = train_sentencepiece(SENTENCES, vocab_size=300)
    (tmp_path / "spiece.model").write_bytes(tokenizer.model)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=tokenizer.vocab_size,
        d_model=16,
        d_kv=8,
        num_heads=2,
        d_ff=32,
        num_layers=2,
        feed_forward_proj=feed_forward,
        tie_word_embeddings=feed_forward == "relu",
    )
    model = T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    vectors = EncoderMeanPool(str(tmp_path), max_length=20, batch_size=3).embed(SENTENCES)
    ours = SentencePieceTokenizer.from_file(tmp_path / "spiece.model")
    for text, vector in zip(SENTENCES, vectors, strict=True):
        (ids,) = ours.encode_batch([text], 20)
        with torch.no_grad():
            states = model.encoder(torch.tensor(ids[None][:, ids != 0])).last_hidden_state
        np.testing.assert_allclose(vector, states[0].mean(axis=0), rtol=1e-4, atol=1e-5)


# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("atomic", Atomic()),
        ("naive", NaiveString()),
        ("semantic", Semantic()),
        ("random", Random()),
        ("pq", ProductQuantized()),
        ("rq", ResidualQuantized()),
        ("rqvae", RQVAE()),
        ("irgen", IRGen()),
        ("title", Title()),
    ],
)
def test_gin_files_choose_the_kind(name, kind):
    gin = pytest.importorskip("gin")
    path = Path(__file__).parents[2] / "gin" / "docids" / f"{name}.gin"
    gin.clear_config()
    try:
        gin.parse_config_file(str(path))
        assert gin.query_parameter("%DOCIDS").scoped_configurable_fn() == kind
    finally:
        gin.clear_config()
