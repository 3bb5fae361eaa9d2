"""The documents of a corpus on disk."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsi_jax.storage import string_columns
from dsi_jax.storage.documents import Document, Documents, write_documents
from dsi_jax.storage.string_columns import StringColumn, open_columns, write_columns

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), max_size=20))
def test_documents_come_back_as_they_were(tmp_path, rows):
    path = tmp_path / "documents.arrow"
    write_documents(path, *([row[i] for row in rows] for i in range(3)))
    documents = Documents.open(path)
    assert len(documents) == len(rows)
    assert list(documents) == [Document(*row) for row in rows]
    assert documents[1:3] == [Document(*row) for row in rows[1:3]]
    assert list(documents.keys) == [row[0] for row in rows]


def test_batches_are_joined_and_indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(string_columns, "_ROWS_PER_BATCH", 7)
    keys = [f"k{i}" for i in range(50)]
    write_documents(tmp_path / "d", iter(keys), ("" for _ in keys), (key * 2 for key in keys))
    documents = Documents.open(tmp_path / "d")
    assert len(documents.keys.arrays) == 8
    assert [documents.keys[i] for i in range(50)] == keys
    assert documents[np.int64(49)] == documents[-1] == Document("k49", "", "k49k49")
    assert documents.keys[5:9] == keys[5:9]
    with pytest.raises(IndexError, match="row 50 is outside the 50 documents"):
        documents[50]


def test_opening_maps_the_file_and_reads_nothing(tmp_path):
    write_columns(tmp_path / "c", {"key": (f"document {i}" for i in range(200_000))})
    before = pa.total_allocated_bytes()
    (keys,) = open_columns(tmp_path / "c", ["key"])
    assert keys[199_999] == "document 199999"
    assert pa.total_allocated_bytes() - before < 100_000


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 3], r"text of row 1 is 3 \(int\), expected a string"),
        (["a", None], "text of row 1 is None"),
        (["a", "\ud800"], "text of row 1 holds a lone surrogate"),
        (["a"], r"'text' ends after 1 rows, \['key', 'title'\] do not"),
        (["a", "b", "c"], r"ends after 2 rows, \['text'\] do not"),
    ],
)
def test_bad_input_is_named_and_leaves_the_old_file(tmp_path, texts, message):
    path = tmp_path / "documents.arrow"
    write_documents(path, ["old"], [""], [""])
    with pytest.raises(ValueError, match=message):
        write_documents(path, ["a", "b"], ["", ""], texts)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert Documents.open(path)[0].key == "old"


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.arrow does not exist"):
        Documents.open(tmp_path / "nowhere.arrow")
    path = tmp_path / "documents.arrow"
    write_documents(path, ["a"] * 1000, ["b"] * 1000, ["c"] * 1000)
    whole = path.read_bytes()
    for content in (b"", b"no arrow", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"documents\.arrow is not a complete Arrow IPC file"):
            Documents.open(path)
    write_columns(path, {"name": ["a"]})
    with pytest.raises(ValueError, match=r"holds the columns \(name: large_string\), expected"):
        Documents.open(path)


def test_a_column_is_written_again_without_its_strings_being_rebuilt(tmp_path):
    column = StringColumn(pa.chunked_array([["a", "b"], ["c"]], type=pa.large_string()))
    assert [array.to_pylist() for array in string_columns.string_arrays("key", column)] == [
        ["a", "b"],
        ["c"],
    ]
    write_columns(tmp_path / "c", {"key": column})
    assert list(open_columns(tmp_path / "c", ["key"])[0]) == ["a", "b", "c"]
