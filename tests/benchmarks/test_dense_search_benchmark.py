"""The benchmark of exact search: its lines, and that unequal rankings stop it."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("faiss", reason="the peer is not installed: pip install 'dsi-jax[dev]'")

from benchmarks import dense_search

TINIEST = (
    "--documents 300 --width 8 --queries 4 --k 10 --chunk_size 64 "
    "--model t5_tiny --length 8 --embed 6 --batch 3 --rounds 3"
)


def test_both_measurements_are_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dense_search", *TINIEST.split()])
    assert dense_search.main() == 0
    search, embedding = map(json.loads, capsys.readouterr().out.splitlines())
    assert (search["name"], embedding["name"]) == ("dense_search", "dense_embedding")
    assert ("jax_over_faiss" in search) is not search["unreliable"]
    assert ("documents_per_s" in embedding) is not embedding["unreliable"]


ROWS = np.array([[4, 2, 7]])
SCORES = np.array([[0.5, 0.25, 0.2499999]], np.float32)


@pytest.mark.parametrize(
    ("rows", "scores", "swapped"),
    [([4, 2, 7], [0.5, 0.25, 0.25], 0), ([4, 7, 2], [0.5, 0.25, 0.25], 2)],
)
def test_near_ties_may_change_places(rows, scores, swapped):
    found = (np.array([rows]), np.array([scores], np.float32))
    assert dense_search.assert_same("mine", found, (ROWS, SCORES)) == swapped


@pytest.mark.parametrize(
    ("rows", "scores", "message"),
    [
        ([2, 4, 7], [0.5, 0.25, 0.25], "mine has other rows than faiss where scores differ"),
        ([4, 2, 7], [0.5, 0.25, 0.24], "mine has other scores than faiss"),
    ],
)
def test_other_rankings_stop_the_benchmark(rows, scores, message):
    found = (np.array([rows]), np.array([scores], np.float32))
    with pytest.raises(SystemExit, match=message):
        dense_search.assert_same("mine", found, (ROWS, SCORES))
