"""A corpus of texts and one of images answer the same protocol."""

import numpy as np
import pytest

from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.data.corpora.corpus import Corpus, QuerySet
from dsi_jax.data.corpora.image_corpus import ImageCorpus, ImageQuerySet

ROWS = [np.array([1], np.int32), np.array([0, 2], np.int32)]
QUERIES = {
    "train": QuerySet(["a"], ["one"], ROWS[:1], [np.ones(1, np.float32)]),
    "test": QuerySet(
        ["b", "c"], ["two", "three"], ROWS, [np.ones(len(r), np.float32) for r in ROWS]
    ),
}
TEXTS = Corpus("toy", ["x", "y", "z"], ["X", "", ""], ["", "why", "zed"], QUERIES)
IMAGES = ImageCorpus(
    name="toy",
    protocol="karpathy_test",
    keys=["x", "y", "z"],
    images=[b"1", b"2", b"3"],
    queries=QUERIES,
    image_queries={"test": ImageQuerySet(["v"], [b"4"], ROWS[:1])},
    candidate_rows={"test": np.array([0, 2], np.int32)},
    classes=np.array([0, 1, 1], np.int32),
    skipped={"unreadable images": 1_000},
)

# Member -> what the corpus of texts and that of images answer.
ANSWERS = {
    "modality": ("text", "image"),
    "name": ("toy", "toy"),
    "protocol": (None, "karpathy_test"),
    "keys": (["x", "y", "z"], ["x", "y", "z"]),
    "titles": (["X", "", ""], ["", "", ""]),
    "texts": (["", "why", "zed"], ["", "one", ""]),
    "images": (None, [b"1", b"2", b"3"]),
    "classes": (None, [0, 1, 1]),
    "queries": (QUERIES, QUERIES),
    "image_queries": ({}, IMAGES.image_queries),
    "hash": (
        "666cfbf10e74150daaebbfbf8e3cabff9a1ee7ff89e392d0084b428d69d6f905",
        "323618b25d294ce997dc41f4727e265e2120fa6df335dcafc9535e85be49e598",
    ),
    "has_training_queries": (True, True),
    "__len__": (3, 3),
    "document_texts": (["X", "why", "zed"], ["", "one", ""]),
    "documents_with_training_query": ([False, True, False], [False, True, False]),
    "seen": ([True, False], [True, False]),
    "candidates": (None, [0, 2]),
    "describe": (
        "toy: 3 documents; queries: 1 train, 2 test; 666cfbf10e74",
        "toy: 3 documents, protocol karpathy_test; queries: 1 train, 2 test, 1 images test, "
        "left out: 1,000 unreadable images; 323618b25d29",
    ),
}
ARGUMENTS = {"seen": ["test"], "candidates": ["test"]}


def test_every_member_has_its_answers_below():
    members = {name for name in vars(AnyCorpus) if name == "__len__" or not name.startswith("_")}
    assert members == set(ANSWERS)


@pytest.mark.parametrize("member", ANSWERS)
@pytest.mark.parametrize("corpus", [TEXTS, IMAGES], ids=["texts", "images"])
def test_the_member_answers(corpus: AnyCorpus, member: str):
    answer = getattr(corpus, member)
    if callable(answer):
        answer = answer(*ARGUMENTS.get(member, []))
    if isinstance(answer, np.ndarray):
        answer = answer.tolist()
    assert answer == ANSWERS[member][corpus is IMAGES]


@pytest.mark.parametrize("corpus", [TEXTS, IMAGES], ids=["texts", "images"])
def test_a_corpus_satisfies_the_protocol(corpus: AnyCorpus):
    assert isinstance(corpus, AnyCorpus)
    assert corpus.document_texts([1, 1]) == [corpus.document_texts()[1]] * 2
    assert corpus.candidates("train") is None
