"""Subsets of corpora: `DIR#1000`."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from dsi_jax.data.corpora import corpus, registry, subsets
from dsi_jax.data.readers import load


def make_corpus() -> corpus.Corpus:
    """Documents d0..d39, of which d30..d39 have no query; d1 shares its training query with d0."""
    texts = {f"q{i}": f"question {i}" for i in range(30)}
    pairs = {split: {} for split in corpus.SPLITS}
    for i in range(30):
        split = corpus.SPLITS[i % 3]
        pairs[split][f"q{i}"] = {i: 1.0}
    pairs["train"]["q0"] = {0: 1.0, 1: 2.0}
    return corpus.Corpus(
        name="whole",
        keys=[f"d{i}" for i in range(40)],
        titles=[f"Title {i}" for i in range(40)],
        texts=[f"text {i}" for i in range(40)],
        queries={split: corpus.make_query_set(texts, pairs[split]) for split in corpus.SPLITS},
        classes=[i % 7 for i in range(40)],
    )


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("DIR#1000", ("DIR", 1000)),
        ("a#b/c#7", ("a#b/c", 7)),
        ("DIR", None),
        ("DIR#", None),
        ("#7", None),
        ("DIR#-7", None),
        ("DIR#7k", None),
    ],
)
def test_spec(spec, part):
    assert subsets.split_spec(spec) == part


def test_documents_keep_their_order_and_bring_their_queries():
    whole = make_corpus()
    part = subsets.subset(whole, 12)
    assert (part.name, len(part)) == ("whole#12", 12)
    expected = sorted(
        sorted(range(30), key=lambda i: hashlib.sha256(f"d{i}".encode()).hexdigest())[:12]
    )
    assert part.keys == [f"d{i}" for i in expected]
    assert part.texts == [f"text {i}" for i in expected]
    assert part.titles == [f"Title {i}" for i in expected]
    assert part.classes == [i % 7 for i in expected]
    for split, queries in whole.queries.items():
        # The pairs (query, document key, grade) of the whole, restricted by brute force.
        pairs = {
            (query_id, text, whole.keys[row], grade)
            for query_id, text, rows, grades in columns(queries)
            for row, grade in zip(rows, grades, strict=True)
            if row in expected
        }
        found = {
            (query_id, text, part.keys[row], grade)
            for query_id, text, rows, grades in columns(part.queries[split])
            for row, grade in zip(rows, grades, strict=True)
        }
        assert found == pairs


def columns(queries: corpus.QuerySet):
    return zip(queries.ids, queries.texts, queries.relevant, queries.relevance, strict=True)


def test_smaller_is_part_of_larger_whatever_the_order():
    whole = make_corpus()
    sizes = [set(subsets.subset(whole, count).keys) for count in (1, 5, 20, 30)]
    assert all(a < b for a, b in itertools.pairwise(sizes))
    reverse = np.arange(40)[::-1]
    turned = corpus.Corpus(
        "whole",
        [whole.keys[i] for i in reverse],
        [whole.titles[i] for i in reverse],
        [whole.texts[i] for i in reverse],
        {
            split: dataclasses.replace(q, relevant=[39 - rows for rows in q.relevant])
            for split, q in whole.queries.items()
        },
    )
    assert subsets.subset(turned, 20).keys == subsets.subset(whole, 20).keys[::-1]


def test_too_many_or_none_is_an_error_that_says_how_many_there_are():
    for count in (0, 31):
        with pytest.raises(ValueError, match=f"'whole#{count}': expected 1 to 30, .* with queries"):
            subsets.subset(make_corpus(), count)


def test_a_corpus_without_queries_gives_any_documents():
    bare = dataclasses.replace(make_corpus(), queries={})
    assert len(subsets.subset(bare, 40)) == 40
    with pytest.raises(ValueError, match="expected 1 to 40, the number of documents in"):
        subsets.subset(bare, 41)


def test_a_split_that_is_left_without_queries_is_dropped_with_a_warning(caplog):
    whole = make_corpus()
    first = subsets.subset(whole, 1).keys[0]
    own = corpus.SPLITS[int(first[1:]) % 3]
    part = subsets.subset(whole, 1)
    assert own in part.queries and len(part.queries) < 3
    assert "no queries left in" in caplog.text


def test_a_registered_corpus_and_a_directory_have_subsets(tmp_path):
    registry.register_corpus("subsets_test_whole", _load_whole)
    part = load.load_corpus("subsets_test_whole#12")
    assert part.hash == subsets.subset(make_corpus(), 12).hash
    directory = tmp_path / "odd#3"
    directory.mkdir()
    lines = "".join(f'{{"_id": "d{i}", "text": "word {i}"}}\n' for i in range(9))
    (directory / "corpus.jsonl").write_text(lines)
    assert len(load.load_corpus(str(directory))) == 9  # a directory of that name comes first
    part = load.load_corpus(f"{directory}#4")
    assert (part.name, len(part)) == ("odd#3#4", 4)
    assert len(part.queries["test"]) == 4  # chunks of the subset's own documents


def _load_whole(seed: int) -> corpus.Corpus:
    return make_corpus()


def test_unknown_corpus_of_a_subset_is_named():
    with pytest.raises(ValueError, match="no corpus 'nowhere': expected"):
        load.load_corpus("nowhere#10")


def test_a_thousand_documents_of_nq_mini(shared_data):
    part = load.load_corpus(f"{shared_data / 'nq_mini'}#1000")
    assert (part.name, len(part)) == ("nq_mini#1000", 1000)
    assert all(len(part.queries[split]) > 50 for split in corpus.SPLITS)
    assert 0 < part.seen("test").sum() < len(part.queries["test"])
