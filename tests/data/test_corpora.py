"""Corpora: BEIR directories, SQuAD files, demo_text, and every kind of bad input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.corpora import registry
from dsi_jax.data.corpora.splits import CHUNK_WORDS, MAX_HELD_OUT
from dsi_jax.data.readers import load

DOCUMENTS = [
    {"_id": "d0", "title": "Ada", "text": "wrote the first program"},
    {"_id": "d1", "title": "", "text": "a river in the north"},
    {"_id": "d2", "title": "Only a title", "text": ""},
]
QUERIES = [
    {"_id": "q0", "text": "who programmed first"},
    {"_id": "q1", "text": "northern river"},
    {"_id": "q2", "text": "never judged"},
]
TRAIN = "query-id\tcorpus-id\tscore\nq0\td0\t1\n"
TEST = "q1\td2\t1\nq1\td1\t2.5\nq1\td0\t0\n"


def write_beir(
    directory: Path,
    documents: list | None = None,
    queries: list | None = None,
    qrels: dict[str, str] | None = None,
) -> Path:
    """A BEIR directory; an argument left None takes the module's data."""
    for name, records in (
        ("corpus.jsonl", DOCUMENTS if documents is None else documents),
        ("queries.jsonl", QUERIES if queries is None else queries),
    ):
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        (directory / name).write_text("".join(f"{line}\n" for line in lines))
    (directory / "qrels").mkdir()
    for split, text in ({"train": TRAIN, "test": TEST} if qrels is None else qrels).items():
        (directory / "qrels" / f"{split}.tsv").write_text(text)
    return directory


def test_beir_directory_is_read_in_order(tmp_path):
    corpus = load.load_corpus(str(write_beir(tmp_path)))
    assert corpus.keys == ["d0", "d1", "d2"]
    assert corpus.document_texts() == [
        "Ada wrote the first program",
        "a river in the north",
        "Only a title",
    ]
    assert list(corpus.queries) == ["train", "test"]
    test = corpus.queries["test"]
    assert (test.ids, test.texts) == (["q1"], ["northern river"])
    # Graded, several, best first; the score 0 is no relevance.
    np.testing.assert_array_equal(test.relevant[0], [1, 2])
    np.testing.assert_array_equal(test.relevance[0], np.array([2.5, 1.0], np.float32))
    np.testing.assert_array_equal(corpus.documents_with_training_query(), [True, False, False])
    assert corpus.seen("test").tolist() == [False]
    assert corpus.seen("train").tolist() == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": [DOCUMENTS[0], '{"_id": "d1", ']}, r"corpus\.jsonl:2: malformed JSON"),
        ({"documents": [DOCUMENTS[0], "[1]"]}, r"corpus\.jsonl:2: expected a JSON object"),
        ({"documents": [{"title": "", "text": "x"}]}, r"corpus\.jsonl:1: missing field '_id'"),
        ({"documents": [{"_id": "d0", "title": "x"}]}, r"corpus\.jsonl:1: missing field 'text'"),
        ({"documents": [{"_id": "d0", "text": 3}]}, r"corpus\.jsonl:1: field 'text' is int"),
        ({"documents": [DOCUMENTS[0], DOCUMENTS[0]]}, r"corpus\.jsonl:2: id 'd0' .* line 1"),
        (
            {"documents": [DOCUMENTS[0], {"_id": "d9", "title": " ", "text": ""}]},
            r"corpus\.jsonl:2: document 'd9' has neither title nor text",
        ),
        ({"documents": []}, r"corpus\.jsonl is empty"),
        ({"queries": [QUERIES[0], QUERIES[0]]}, r"queries\.jsonl:2: id 'q0' .* line 1"),
        ({"queries": [{"_id": "q0", "text": " "}]}, r"queries\.jsonl:1: query 'q0' has no text"),
        ({"qrels": {"test": "q0\td0\n"}}, r"test\.tsv:1: expected 3 columns .* found 2"),
        ({"qrels": {"test": "q0\t0\td0\t1\n"}}, r"test\.tsv:1: expected 3 columns .* found 4"),
        ({"qrels": {"test": "q0\td0\t1\nq0\td7\t1\n"}}, r"test\.tsv:2: unknown document 'd7'"),
        ({"qrels": {"test": "q0\td0\t1\nq7\td0\t1\n"}}, r"test\.tsv:2: unknown query 'q7'"),
        ({"qrels": {"test": "q0\td0\t1\nq0\td1\tyes\n"}}, r"test\.tsv:2: .* found 'yes'"),
        ({"qrels": {"test": "q0\td0\tyes\n"}}, r"test\.tsv:1: .* found 'yes'"),
        ({"qrels": {"test": "q0\td0\tnan\n"}}, r"test\.tsv:1: .* found 'nan'"),
        ({"qrels": {"test": "q0\td0\t1\nq0\td0\t2\n"}}, r"test\.tsv:2: .* 2\.0 here and 1\.0"),
        ({"qrels": {"test": "q0\td0\t0\n"}}, r"test\.tsv has no pair with a score above zero"),
        ({"qrels": {"testing": "q0\td0\t1\n"}}, r"'testing' is no split"),
        (
            {"qrels": {"dev": "q0\td0\t1\n", "validation": "q0\td0\t1\n"}},
            r"validation\.tsv: another file already holds the split 'dev'",
        ),
    ],
)
def test_bad_beir_input_names_file_and_line(tmp_path, changes, message):
    directory = write_beir(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load.load_corpus(str(directory))


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_missing_beir_file_is_named(tmp_path, missing):
    (write_beir(tmp_path) / missing).unlink()
    with pytest.raises(ValueError, match=f"missing file .*{missing}"):
        load.load_corpus(str(tmp_path))


def test_text_that_is_not_utf8_names_its_line(tmp_path):
    write_beir(tmp_path)
    with (tmp_path / "corpus.jsonl").open("ab") as file:
        file.write(b'{"_id": "d3", "text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"corpus\.jsonl:4: not UTF-8"):
        load.load_corpus(str(tmp_path))


def test_unknown_corpus_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no corpus 'demo_txt'.*demo_text"):
        load.load_corpus("demo_txt")


def many_documents(count: int) -> list[dict]:
    return [
        {"_id": f"d{i}", "text": " ".join(f"w{i}x{j}" for j in range(40))} for i in range(count)
    ]


def test_without_queries_a_sample_of_chunks_is_evaluated(tmp_path):
    write_beir(tmp_path, documents=many_documents(1_100), queries=[], qrels={})
    corpus = load.load_corpus(str(tmp_path), seed=3)
    assert list(corpus.queries) == ["test"]
    assert not corpus.has_training_queries
    chunks = corpus.queries["test"]
    assert len(chunks) == MAX_HELD_OUT == 1_000
    assert len(set(chunks.ids)) == 1_000
    shortest, longest = CHUNK_WORDS
    for text, rows in zip(chunks.texts, chunks.relevant, strict=True):
        assert f" {text} " in f" {corpus.texts[rows[0]]} "
        assert shortest <= len(text.split()) <= longest
    assert corpus.seen("test").all()
    assert load.load_corpus(str(tmp_path), seed=3).queries["test"].texts == chunks.texts
    assert load.load_corpus(str(tmp_path), seed=4).queries["test"].texts != chunks.texts


def test_training_queries_alone_lose_a_tenth(tmp_path):
    queries = [{"_id": f"q{i}", "text": f"question {i}"} for i in range(100)]
    qrels = "".join(f"q{i}\td{i}\t1\n" for i in range(100))
    write_beir(tmp_path, many_documents(100), queries, {"train": qrels})
    corpus = load.load_corpus(str(tmp_path), seed=1)
    train, test = corpus.queries["train"], corpus.queries["test"]
    assert (len(train), len(test)) == (90, 10)
    assert not set(train.ids) & set(test.ids)
    assert not corpus.seen("test").any()
    assert load.load_corpus(str(tmp_path), seed=2).queries["test"].ids != test.ids


def test_test_queries_alone_are_kept_and_chunks_trained_on(tmp_path):
    corpus = load.load_corpus(str(write_beir(tmp_path, qrels={"test": TEST})))
    assert list(corpus.queries) == ["test"]
    assert corpus.queries["test"].ids == ["q1"]
    assert not corpus.has_training_queries


def make_corpus(**changes) -> corpus_lib.Corpus:
    values = {"name": "c", "keys": ["a", "b"], "titles": ["", ""], "texts": ["x", "y"]}
    return corpus_lib.Corpus(**(values | {"queries": {}} | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": [], "titles": [], "texts": []}, "is empty"),
        ({"keys": ["a", "a"]}, r"document 1 \(key 'a'\): the key is already that of document 0"),
        ({"texts": ["x", " "]}, r"document 1 \(key 'b'\): expected a title or a text"),
        ({"titles": [""]}, "2 keys, 1 titles and 2 texts"),
        ({"classes": [0]}, "1 classes for 2 documents"),
        ({"queries": {"exam": corpus_lib.QuerySet([], [], [], [])}}, "has a split 'exam'"),
        (
            {"queries": {"test": corpus_lib.make_query_set({"q": "t"}, {"q": {2: 1.0}})}},
            "query 'q': row outside the 2 documents",
        ),
        (
            {"queries": {"test": corpus_lib.make_query_set({"q": ""}, {"q": {0: 1.0}})}},
            "query 'q': the text is empty",
        ),
    ],
)
def test_registered_corpora_are_checked_too(changes, message):
    with pytest.raises(ValueError, match=message):
        make_corpus(**changes)


def test_hash_is_of_documents_in_their_order():
    reference = make_corpus().hash
    queries = {"test": corpus_lib.make_query_set({"q": "t"}, {"q": {0: 1.0}})}
    assert make_corpus(queries=queries, name="other").hash == reference
    assert make_corpus(keys=["b", "a"], texts=["y", "x"]).hash != reference
    # The same characters in other fields.
    assert make_corpus(titles=["x", ""], texts=["", "y"]).hash != reference


def test_own_corpora_are_loaded_by_name():
    name = "corpora_test_own"
    fn = lambda seed: make_corpus(texts=[f"seed {seed} " * 9, "y"])  # noqa: E731
    registry.register_corpus(name, fn)
    registry.register_corpus(name, fn)
    assert load.load_corpus(name, seed=5).texts[0].startswith("seed 5")
    with pytest.raises(ValueError, match="already registered"):
        registry.register_corpus(name, lambda seed: make_corpus())


def write_squad(file: Path, paragraphs: list) -> Path:
    file.write_text(json.dumps({"data": [{"title": "An_Article", "paragraphs": paragraphs}]}))
    return file


def questions(prefix: str, count: int) -> list[dict]:
    return [{"id": f"{prefix}{i}", "question": f"what is {prefix}{i}?"} for i in range(count)]


def test_squad_paragraphs_are_unique_documents(tmp_path):
    paragraphs = [
        {"context": "first paragraph", "qas": questions("a", 30)},
        {"context": "second paragraph", "qas": questions("b", 40)},
        {"context": "first paragraph", "qas": questions("c", 30)},
    ]
    file = str(write_squad(tmp_path / "s.json", paragraphs))
    corpus = load.load_corpus(file, seed=1)
    assert corpus.texts == ["first paragraph", "second paragraph"]
    assert corpus.titles == ["An Article"] * 2
    assert {split: len(q) for split, q in corpus.queries.items()} == {
        "train": 80,
        "dev": 10,
        "test": 10,
    }
    for queries in corpus.queries.values():
        for query_id, rows in zip(queries.ids, queries.relevant, strict=True):
            assert rows.tolist() == [1 if query_id.startswith("b") else 0]
    every = [i for queries in corpus.queries.values() for i in queries.ids]
    assert len(set(every)) == 100
    again, other = load.load_corpus(file, seed=1), load.load_corpus(file, seed=2)
    assert again.queries["test"].ids == corpus.queries["test"].ids
    assert other.queries["test"].ids != corpus.queries["test"].ids
    assert other.keys == corpus.keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "expected SQuAD JSON"),
        ('{"data": [{}]}', r"data\[0\]: expected a field 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": []}]}]}', "the paragraph is empty"),
        (
            '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "q", "question": "a"}, '
            '{"id": "q", "question": "b"}]}]}]}',
            r"qas\[1\]: the question id 'q' is repeated",
        ),
        ('{"data": []}', "is empty"),
    ],
)
def test_bad_squad_input_says_where(tmp_path, content, message):
    file = tmp_path / "s.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load.load_corpus(str(file))


def test_demo_text_holds_out_queries_of_seen_and_unseen_documents():
    corpus = load.load_corpus("demo_text")
    assert 2_000 < len(corpus) < 3_000
    train = set(corpus.queries["train"].texts)
    for split in ("dev", "test"):
        queries = corpus.queries[split]
        assert 300 < len(queries) < 700
        assert 0.3 < corpus.seen(split).mean() < 0.7
        assert not train & set(queries.texts)
    assert max(len(rows) for rows in corpus.queries["train"].relevant) > 1
    row = corpus.keys.index("shutil.copytree")
    assert corpus.texts[row].startswith("If exception(s) occur")
    own = {
        text
        for queries in corpus.queries.values()
        for text, rows in zip(queries.texts, queries.relevant, strict=True)
        if row in rows
    }
    assert "shutil copytree" in own
    assert any("directory tree" in text for text in own)


def test_demo_text_is_the_same_in_every_process_and_needs_no_tensorflow():
    program = (
        "import hashlib, sys; from dsi_jax.data.readers import load;"
        "c = load.load_corpus('demo_text'); d = hashlib.sha256();"
        "[c.queries[s].update_hash(d) for s in sorted(c.queries)];"
        "print(c.hash, d.hexdigest(), 'tensorflow' in sys.modules, 'seqio' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().split()[2:] == ["False", "False"]


def test_real_corpora(shared_data):
    nq = load.load_corpus(str(shared_data / "nq_mini"))
    assert len(nq) == 8_056
    assert {split: len(q) for split, q in nq.queries.items()} == {
        "train": 7_336,
        "dev": 917,
        "test": 917,
    }
    assert nq.seen("test").sum() == 150  # as its PROVENANCE.md says
    xquad = load.load_corpus(str(shared_data / "xquad_en" / "xquad.en.json"))
    assert len(xquad) == 240
    assert sum(map(len, xquad.queries.values())) == 1_190
