"""An index that an older version trained is searched with the same rows and scores.

`fixtures/older_index.tar.gz` holds the checkpoint, docid table and documents of a run of 300 steps
on 24 documents (`small_corpus`), trained at commit 5697385; `older_index.json` what that commit
found for twelve of their queries.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dsi_jax.retriever import Retriever

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """(the index, what the version that trained it found)"""
    directory = tmp_path_factory.mktemp("older")
    with tarfile.open(FIXTURES / "older_index.tar.gz") as archive:
        archive.extractall(directory, filter="data")
    return Retriever.load(directory), json.loads((FIXTURES / "older_index.json").read_text())


def test_table_and_step_are_those_of_the_older_version(older):
    retriever, expected = older
    assert retriever.collection.table.hash == expected["table_hash"]
    assert retriever.collection.table.kind == expected["kind"] == "semantic"
    assert retriever.step == 300


def test_searches_give_the_same_rows_and_scores(older):
    retriever, expected = older
    found = retriever.search_batch(expected["queries"], k=5)
    for hits, before in zip(found, expected["hits"], strict=True):
        assert [(hit.key, hit.row) for hit in hits] == [(hit["key"], hit["row"]) for hit in before]
        np.testing.assert_allclose(
            [hit.score for hit in hits], [hit["score"] for hit in before], rtol=0, atol=2e-5
        )
