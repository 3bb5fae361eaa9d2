"""Corpora of Natural Questions from hand-made records, and through TFDS data built offline."""

import dataclasses
import hashlib
import importlib
import json
import random
import shutil
import string
import weakref
from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dsi_jax import build_docids
from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.corpora import registry
from dsi_jax.data.readers import corpus_store, tfds_data
from dsi_jax.data.readers import load as load_lib
from dsi_jax.data.readers.natural_questions import build, load, records, specs
from dsi_jax.data.readers.natural_questions.specs import NQSpec, Published
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.docids.table import DocidTable
from tests.fixtures.nq_records import FILLER, as_read, page, published, record

# More characters than are kept, so that pages differ where it is asked for and nowhere else.
ANTS = page("Ants", "Ants are insects .")
TAIL = ANTS.replace("categories", "other categories")
# 3,000 characters of two bytes each: the 4,000th byte and the 4,000th character lie apart.
ACCENTS = "é" * 3_000
TRAIN = [
    record("0", "what are ants", ANTS, "Ants"),
    record("1", "same page twice", ANTS, "Ants"),
    record("2", "same first 4,000 characters", TAIL, "Ants"),
    record("3", "same title other text", page("Ants", "Ants have six legs ."), "Ants"),
    record("4", "SAME PAGE IN CAPITALS", ANTS.replace("Ants", "ANTS"), "ANTS"),
    record("5", "title with an accent", page("Ánts", "Ánts !"), "Ánts"),
    record("6", "one end", f"<P> {ACCENTS} one </P>", "Accents"),
    record("7", "another end", f"<P> {ACCENTS} two </P>", "Accents"),
    record("8", "no title", "<P> a page without a name </P>"),
    record("9", "no title either", "<P> another page without a name </P>"),
    record("10", "no answer", page("Bees", "Bees dance ."), "Bees", answered=False),
    record("11", "what are ants", page("Wasps", "Wasps sting ."), "Wasps"),
    record("12", "no text", "<H1> </H1> <P> </P>", "Only a title"),
]
VALIDATION = [
    record("100", "who are ants", ANTS, "Ants"),
    record("101", "what is unseen", page("Beetles", "Beetles shine ."), "Beetles"),
    record("102", "field before heading", page("Moths : a", "Moths fly ."), "Moths"),
]
SPLITS = {"train": TRAIN, "validation": VALIDATION}
BY_TEXT = NQSpec("nq_test_text", 13, 3, sampled=False, unique_by="text")
BY_TITLE = dataclasses.replace(BY_TEXT, name="nq_test_title", unique_by="title")
# Pages that are one document.
TEXT_GROUPS = [{0, 1, 2, 4, 100}, *({r} for r in (3, *range(5, 13), 101, 102))]
TITLE_GROUPS = [{*range(6), 100}, {6, 7}, *({r} for r in (*range(8, 13), 101, 102))]


def columns(splits=SPLITS) -> records.Records:
    read = [records.read(as_read(r), split) for split, part in splits.items() for r in part]
    return records.Records(*([getattr(r, name) for r in read] for name in records.COLUMNS))


def groups(corpus: corpus_lib.Corpus) -> list[set[int]]:
    """The records of each document, by the queries that point to it."""
    found = {}
    for queries in corpus.queries.values():
        for query_id, rows in zip(queries.ids, queries.relevant, strict=True):
            found.setdefault(int(rows[0]), set()).add(int(query_id))
    assert sorted(found) == list(range(len(corpus)))
    return list(found.values())


def document_of(corpus: corpus_lib.Corpus, query_id: str) -> int:
    for queries in corpus.queries.values():
        if query_id in queries.ids:
            return int(queries.relevant[queries.ids.index(query_id)][0])
    raise AssertionError(query_id)


# --- a record ------------------------------------------------------------------------------------


def test_a_record_keeps_words_and_drops_tags():
    read = records.read(as_read(TRAIN[0]), "train")
    start = "ants - wikipedia ants jump to : navigation box ants are insects . w0 w1 "
    assert read.text.startswith(start) and len(read.text) == 4_000
    assert read.article.startswith("ants are insects . w0 w1 ") and len(read.article) == 4_000
    assert (read.id, read.split, read.title) == ("0", "train", "ants")
    assert read.question == "what are ants"


def test_a_short_article_ends_before_the_last_list_but_one():
    def article(html):
        return records.read(as_read(record("0", "q", html)), "train").article

    assert article(page("Ants", "Ants dig .", filler="more")) == "ants dig . more seen"
    assert article("<H1> A </H1> box <P> b </P> c <Ul> d </Ul> e") == "b c d"
    assert article("<H1> A </H1> box <P> b </P> c") == "b c"
    assert article("<H1> A </H1> no paragraph") == "no paragraph"
    assert article("neither heading nor paragraph") == "neither heading nor paragraph"
    assert article("<Ul> a </Ul> <Ul> b </Ul> <P> c </P> d") == "c"  # nothing after the first </P>


def test_the_title_is_the_heading_in_training_and_the_field_in_validation():
    both = as_read(record("0", "q", "<H1> From Heading </H1> x", "From field"))
    assert records.read(both, "train").title == "from heading"
    assert records.read(both, "validation").title == "from field"
    no_heading = as_read(record("0", "q", "x", "From field"))
    assert records.read(no_heading, "train").title == "from field"
    no_field = as_read(record("0", "q", "<H1> From Heading </H1> x"))
    assert records.read(no_field, "validation").title == "from heading"
    assert records.read(as_read(record("0", "q", "x")), "train").title == ""


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=3), max_size=4))
def test_the_cut_is_tensorflows_in_utf8_characters(words):
    words = [word.encode() for word in words] * 700
    whole = b" ".join(words).decode().lower()
    expected = tf.strings.substr(whole, 0, 4_000, unit="UTF8_CHAR").numpy().decode()
    assert records.text_of(words) == expected


def test_the_cut_splits_no_character():
    for before in range(3_997, 4_001):
        kept = records.text_of([b"a" * before, "日本語".encode()])
        assert kept == ("a" * before + " 日本語")[:4_000]
    assert records.text_of(["É".encode() * 4_001]) == "é" * 4_000
    assert records.text_of(["İ".encode() * 4_000]) == "i̇" * 2_000  # two characters in lower case


def test_text_that_is_not_utf8_names_the_record():
    bad = as_read(record("77", "q", "x")) | {"question": {"text": b"\xff"}}
    with pytest.raises(ValueError, match=r"record b'77': .*invalid start byte"):
        records.read(bad, "train")


# --- a corpus ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "expected"), [(BY_TEXT, TEXT_GROUPS), (BY_TITLE, TITLE_GROUPS)])
def test_which_pages_are_one_document(spec, expected):
    corpus = build.build(spec, columns())
    assert len(corpus) == len(expected)
    assert sorted(map(sorted, groups(corpus))) == sorted(map(sorted, expected))
    # All of both splits are indexed, and every pair is a query: answered or not, repeated or not.
    assert {split: sorted(q.ids) for split, q in corpus.queries.items()} == {
        "train": sorted(r["id"] for r in TRAIN),
        "dev": sorted(r["id"] for r in VALIDATION),
    }
    assert corpus.queries["train"].texts.count("what are ants") == 2
    assert "same page in capitals" in corpus.queries["train"].texts
    seen = dict(zip(corpus.queries["dev"].ids, corpus.seen("dev"), strict=True))
    assert seen == {"100": True, "101": False, "102": False}


def test_documents_by_text():
    corpus = build.build(BY_TEXT, columns())
    ants = document_of(corpus, "0")
    assert corpus.texts[ants].startswith("ants - wikipedia ants jump to : navigation box ants are")
    assert corpus.titles[ants] == ""  # it stands in the text already
    assert [len(text) for text in corpus.texts].count(4_000) == 7
    assert corpus.texts[document_of(corpus, "6")].endswith("é one")
    assert corpus.texts[document_of(corpus, "12")] == "only a title"
    assert corpus.document_texts() == [text.strip() for text in corpus.texts]


def test_documents_by_title():
    corpus = build.build(BY_TITLE, columns())
    rows = {key: row for row, key in enumerate(corpus.keys)}
    assert {"ants", "accents", "bees", "wasps", "only a title", "beetles", "moths"} < set(rows)
    # Of one title the first page stands for all, in the order of the ids' hashes.
    first = min(range(6), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    expected = records.read(as_read(TRAIN[first]), "train")
    assert corpus.titles[rows["ants"]] == expected.title
    assert corpus.texts[rows["ants"]] == expected.article
    assert corpus.texts[rows["beetles"]].startswith("beetles shine . w0")
    untitled = document_of(corpus, "8")
    assert corpus.titles[untitled] == ""
    assert corpus.texts[untitled] == "a page without a name"


def many(count: int, split: str = "train") -> dict[str, list]:
    return {
        split: [record(f"{i}", f"question {i}", f"<P> page {i % 40} </P>") for i in range(count)]
    }


def sample(train: int, validation: int) -> NQSpec:
    return NQSpec("sample", train, validation, sampled=True, unique_by="text")


def test_samples_follow_no_order_and_smaller_lie_in_larger():
    splits = many(60)
    splits["validation"] = [record("v", "not of the sample", "<P> v </P>")]
    small, large = (build.build(sample(*sizes), columns(splits)) for sizes in ((8, 2), (16, 4)))
    assert {split: len(q) for split, q in small.queries.items()} == {"train": 8, "dev": 2}
    ids = {c: {i for q in c.queries.values() for i in q.ids} for c in (small, large)}
    assert len(ids[small]) == 10 and ids[small] < ids[large] and "v" not in ids[large]
    assert set(small.queries["train"].ids) < set(large.queries["train"].ids)
    random.Random(0).shuffle(splits["train"])
    again = build.build(sample(8, 2), columns(splits))
    assert corpus_store.content_hash(again) == corpus_store.content_hash(small)


def test_missing_pairs_are_an_error():
    with pytest.raises(ValueError, match=r"'sample' is a sample of 61 .*; the data has 60"):
        build.build(sample(60, 1), columns(many(60)))
    short = {"train": TRAIN[:-1], "validation": VALIDATION}
    with pytest.raises(ValueError, match=r"needs 13 training and 3 .*; the data has 12 and 3"):
        build.build(BY_TEXT, columns(short))


def test_bad_records_are_an_error():
    with pytest.raises(ValueError, match="16 records have 15 ids"):
        build.build(BY_TEXT, columns({"train": [*TRAIN[:-1], TRAIN[0]], "validation": VALIDATION}))
    nothing = {"train": [*TRAIN[:-1], record("13", "q", "<P> </P>")], "validation": VALIDATION}
    with pytest.raises(ValueError, match="record '13': neither title nor text"):
        build.build(BY_TEXT, columns(nothing))
    mute = {"train": [*TRAIN[:-1], record("13", " ", "<P> a </P>")], "validation": VALIDATION}
    with pytest.raises(ValueError, match="query '13': the text is empty"):
        build.build(BY_TEXT, columns(mute))


def test_titles_are_compared_as_bert_splits_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    pieces += [*string.punctuation, "\N{EN DASH}"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    bert = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    titles = [
        "Ants",
        "ants",
        " ANTS ",
        "Ánts",
        "A. B",
        "A.B",
        "A . B",
        "AB",
        "Moths : a",
        "Moths: A",
    ]
    titles += [
        "Moths (a)",
        "Moths",
        "Moth's",
        "Moth 's",
        "naïve\N{EN DASH}bayes",
        "naive \N{EN DASH} bayes",
        "naive-bayes",
    ]
    theirs = [bert.decode(bert.convert_tokens_to_ids(bert.tokenize(t))) for t in titles]
    ours = [build.normalized_title(t) for t in titles]
    for i in range(len(titles)):
        for j in range(i):
            assert (ours[i] == ours[j]) == (theirs[i] == theirs[j]), (titles[i], titles[j])
    assert ours[-3] == "naive \N{EN DASH} bayes"


# --- published counts ----------------------------------------------------------------------------


def test_counts_of_the_papers():
    assert {
        s.name: (s.train, s.validation, s.published and s.published.documents)
        for s in specs.SPECS.values()
    } == {
        "nq1k": (800, 200, None),
        "nq10k": (8_000, 2_000, 10_000),
        "nq100k": (80_000, 20_000, 86_000),
        "nq320k": (307_373, 7_830, 228_000),
        "nq320k_title": (307_373, 7_830, 109_739),
    }
    assert [s.sampled for s in specs.SPECS.values()] == [True, True, True, False, False]


def test_rounded_counts_have_a_tolerance_and_exact_ones_have_none():
    corpus = build.build(BY_TITLE, columns())
    assert len(corpus) == 9

    def lines(**counts):
        spec = dataclasses.replace(BY_TITLE, published=Published("A paper", **counts))
        return specs.discrepancies(spec, corpus)

    assert lines(documents=9, unseen_documents=2, unseen_queries=2) == []
    assert lines(documents=10, rounded_to=2) == []
    assert lines(documents=10) == ["corpus 'nq_test_title' has 9 documents; A paper has 10"]
    assert lines(documents=12, rounded_to=4) == [
        "corpus 'nq_test_title' has 9 documents; A paper has 12 (rounded to 4)"
    ]
    assert lines(documents=9, unseen_documents=3, unseen_queries=1) == [
        "corpus 'nq_test_title' has 2 unseen documents; A paper has 3",
        "corpus 'nq_test_title' has 2 unseen queries; A paper has 1",
    ]


# --- on disk -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_directory(tmp_path_factory) -> Path:
    """TFDS `natural_questions` with our records, written by a builder with the real features."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered
    from tensorflow_datasets.datasets.natural_questions import natural_questions_dataset_builder

    real = natural_questions_dataset_builder.Builder
    with registered.skip_registration():

        class NaturalQuestions(tfds.core.GeneratorBasedBuilder):
            __module__ = "natural_questions"  # TFDS looks for files beside a module of a package
            VERSION = real.VERSION
            BUILDER_CONFIGS = tuple(c for c in real.BUILDER_CONFIGS if c.name == "default")

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=self.builder_config.features)

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in SPLITS}

            def _generate_examples(self, split):
                for generated in SPLITS[split]:
                    yield generated["id"], generated

    directory = tmp_path_factory.mktemp("tfds")
    NaturalQuestions(data_dir=directory, file_format="tfrecord").download_and_prepare()
    return directory


def test_our_records_are_what_tfds_makes_of_the_published_files():
    from tensorflow_datasets.datasets.natural_questions import natural_questions_dataset_builder

    for generated in [*TRAIN, *VALIDATION]:
        name, parsed = natural_questions_dataset_builder.Builder._parse_example_default(
            published(generated)
        )
        parsed["document"]["html"] = parsed["document"]["html"].decode()
        assert (name, parsed) == (generated["id"], generated)


@pytest.fixture
def data_dir(tfds_directory, tmp_path, monkeypatch) -> Path:
    """A data directory of its own, with the TFDS data, as `--tfds_data_dir` names it."""
    shutil.copytree(tfds_directory / "natural_questions", tmp_path / "natural_questions")
    monkeypatch.setattr("seqio.utils._TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
    monkeypatch.delenv(tfds_data.CACHE_VARIABLE, raising=False)
    return tmp_path


@pytest.mark.parametrize("spec", [BY_TEXT, BY_TITLE], ids=lambda spec: spec.unique_by)
def test_through_tfds_it_is_the_same_corpus(data_dir, spec):
    corpus = load.load(spec)
    expected = build.build(spec, columns())
    assert corpus_store.content_hash(corpus) == corpus_store.content_hash(expected)
    assert corpus.name == spec.name
    manifest = json.loads(
        (data_dir / "dsi_jax/natural_questions" / spec.name / "manifest.json").read_text()
    )
    assert manifest["documents"] == len(expected)
    assert manifest["queries"] == {"train": 13, "dev": 3}
    assert manifest["sha256"] == corpus_store.content_hash(expected)
    assert not list(data_dir.glob("dsi_jax/natural_questions/.*"))  # no remains


def test_the_second_corpus_needs_no_tfds_and_the_second_start_no_records(data_dir):
    first = load.load(BY_TEXT)
    shutil.rmtree(data_dir / "natural_questions")
    by_title = load.load(BY_TITLE)
    (data_dir / "dsi_jax/natural_questions/records.arrow").unlink()
    assert load.load(BY_TEXT).hash == first.hash
    assert load.load(BY_TITLE, seed=7).hash == by_title.hash  # for every seed the same


@pytest.fixture
def registered() -> str:
    """The name of a registered corpus of our records."""
    registry.register_corpus("nq_test_registered", _load_registered)
    return "nq_test_registered"


def _load_registered(seed: int) -> corpus_lib.Corpus:
    return load.load(dataclasses.replace(BY_TEXT, name="nq_test_registered"), seed)


def test_a_registered_corpus_is_loaded_by_name(data_dir, registered):
    corpus = load_lib.load_corpus(registered)
    assert len(corpus) == 12
    assert list(corpus.queries) == ["train", "dev"]
    assert len(load_lib.load_corpus(f"{registered}#5")) == 5


def test_a_command_builds_a_corpus_from_the_directory_of_the_flag(
    data_dir, registered, tmp_path, monkeypatch
):
    monkeypatch.setattr("seqio.utils._TFDS_DATA_DIR_OVERRIDE", None)  # put back after the test
    command = [
        "--gin_file=experiments/demo_text.gin",
        "--gin_file=experiments/nq/naive.gin",
        f"--gin.CORPUS={registered}",
        "--gin.VOCABULARY=bytes",
        f"--gin.MODEL_DIR={tmp_path / 'm'}",
        f"--tfds_data_dir={data_dir}",
    ]
    assert build_docids.main(command) == 0
    table = DocidTable.load(tmp_path / "m" / "docids")
    assert (table.num_documents, table.parameters["id_space"]) == (12, 320_000)
    assert list(table.keys) == list(load_lib.load_corpus(registered).keys)


def test_importing_the_tasks_reads_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    importlib.import_module("dsi_jax.tasks.nq")
    names = {f"{corpus}_{part}" for corpus in specs.SPECS for part in ("indexing", "retrieval")}
    assert names <= set(seqio.TaskRegistry.names())
    mixture = seqio.MixtureRegistry.get("nq10k_dsi")
    assert {t.name: mixture.get_rate(t) for t in mixture.tasks} == {
        "nq10k_indexing": 32,
        "nq10k_retrieval": 1,
    }
    task = seqio.TaskRegistry.get("nq10k_retrieval")
    assert list(task.splits) == ["train", "dev"]
    with pytest.raises(FileNotFoundError, match="tfds build natural_questions"):
        task.num_input_examples("dev")


def test_lazy_tasks_are_those_of_the_corpus(data_dir, registered):
    calls = []

    def load_once() -> corpus_lib.Corpus:
        calls.append(1)
        return load_lib.load_corpus(registered)

    name = "nq_test_lazy"
    text_tasks.register_lazily(name, load_once, ("train", "dev"), indexing_ratio=4)
    assert calls == []
    task = seqio.TaskRegistry.get("nq_test_lazy_retrieval")
    assert [task.num_input_examples(split) for split in ("train", "dev")] == [13, 3]
    examples = list(task.get_dataset(split="dev", shuffle=False).as_numpy_iterator())
    found = {e["query_id"][0].decode(): e["inputs"][0].decode() for e in examples}
    assert found == {r["id"]: r["question"]["text"] for r in VALIDATION}
    shuffled = task.get_dataset(split="train", shuffle=True, seed=3, try_in_mem_cache=False)
    assert len({e["inputs"][0] for e in shuffled.as_numpy_iterator()}) == 12  # one is repeated
    # The same content is registered already, so that this changes nothing.
    corpus = load_lib.load_corpus(registered)
    tasks = text_tasks.register_corpus_tasks(corpus, name, indexing_ratio=4)
    assert seqio.TaskRegistry.get(tasks.retrieval) is task
    assert calls == [1]


@pytest.mark.parametrize("name", [*specs.SPECS])
def test_without_data_one_error_says_where_it_looked_and_what_to_run(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    command = ["--gin_file=experiments/demo_text.gin", f"--gin.CORPUS={name}"]
    assert build_docids.main([*command, f"--gin.MODEL_DIR={tmp_path / 'm'}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert f"{tmp_path}/nowhere/natural_questions/default/*/dataset_info.json" in lines[0]
    assert f"tfds build natural_questions --config=default --data_dir={tmp_path}/now" in lines[0]
    assert "--tfds_data_dir" in lines[0]
    assert not list(tmp_path.iterdir())


def test_the_data_must_be_whole(data_dir):
    with pytest.raises(
        ValueError, match=r"needs 307,373 .* has 13 and 3 \(.*arrow was read; remove"
    ):
        load.load(specs.SPECS["nq320k"])
    with pytest.raises(ValueError, match=r"is a sample of 10,000 .*; the data has 13"):
        load.load(specs.SPECS["nq10k"])
    assert sorted(p.name for p in (data_dir / "dsi_jax/natural_questions").iterdir()) == [
        "records.arrow"
    ]


def test_what_was_built_is_verified(data_dir):
    load.load(BY_TEXT)
    directory = data_dir / "dsi_jax/natural_questions" / BY_TEXT.name
    other = dataclasses.replace(BY_TEXT, unique_by="title")
    with pytest.raises(ValueError, match=r"was built as .*'text'.*; expected .*'title'.*remove"):
        load.load(other)
    with pytest.raises(ValueError, match=r"nq_test_text has the SHA-256 \w+; expected 0f"):
        load.load(dataclasses.replace(BY_TEXT, sha256="0f"))
    changed = (directory / "documents.arrow").read_bytes().replace(b"bees dance", b"bees DANCE")
    (directory / "documents.arrow").write_bytes(changed)
    with pytest.raises(ValueError, match=r"has the SHA-256 \w+; its manifest says \w+: remove"):
        load.load(BY_TEXT)
    shutil.rmtree(directory)
    with pytest.raises(ValueError, match=r"the data gives it the SHA-256 \w+; expected 0f"):
        load.load(dataclasses.replace(BY_TEXT, sha256="0f"))
    assert not directory.exists()
    known = corpus_store.content_hash(load.load(BY_TEXT))
    assert len(load.load(dataclasses.replace(BY_TEXT, sha256=known))) == 12


def test_other_counts_than_the_published_ones_are_warned_of_at_every_load(data_dir, caplog):
    spec = dataclasses.replace(BY_TEXT, published=Published("A paper", 13))
    for _ in range(2):
        caplog.clear()
        load.load(spec)
        assert "corpus 'nq_test_text' has 12 documents; A paper has 13" in caplog.text


def test_the_newest_version_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("0.0.2", "0.10.0", "0.9.1"):
        (tmp_path / "x" / "c" / version).mkdir(parents=True)
        (tmp_path / "x" / "c" / version / "dataset_info.json").write_text("{}")
    assert tfds_data.find("x", "c") == str(tmp_path / "x/c/0.10.0")


def test_the_cache_may_be_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("seqio.utils._TFDS_DATA_DIR_OVERRIDE", "gs://bucket/tfds")
    with pytest.raises(ValueError, match="kept in gs://bucket/tfds: set DSI_JAX_CACHE_DIR"):
        tfds_data.cache_dir()
    monkeypatch.setenv(tfds_data.CACHE_VARIABLE, str(tmp_path))
    assert tfds_data.cache_dir() == tmp_path


class _Example(dict):
    """A raw example whose life can be watched."""


def test_raw_records_are_never_held(data_dir, monkeypatch):
    alive, most = 0, 0

    def died():
        nonlocal alive
        alive -= 1

    def examples(directory, split, features):
        nonlocal alive, most
        for i in range(300):
            example = _Example(
                as_read(record(f"{split}{i}", f"question {i}", f"<P> page {i} </P>"))
            )
            weakref.finalize(example, died)
            alive += 1
            most = max(most, alive)
            yield example
            del example

    monkeypatch.setattr(tfds_data, "examples", examples)
    monkeypatch.setattr(load, "_ROWS_PER_BATCH", 16)
    spec = NQSpec("nq_test_stream", 300, 300, sampled=False, unique_by="text")
    corpus = load.load(spec)
    assert most <= 2
    assert len(corpus) == 300
    np.testing.assert_array_equal(
        np.sort(np.concatenate(corpus.queries["train"].relevant)), np.arange(300)
    )


# --- the store -----------------------------------------------------------------------------------


def graded_corpus() -> corpus_lib.Corpus:
    queries = {"a": "one", "b": "two"}
    return corpus_lib.Corpus(
        "graded",
        ["x", "y", "z"],
        ["", "Y", ""],
        ["text", "", "日本語"],
        {
            "train": corpus_lib.make_query_set(queries, {"a": {0: 1.0, 2: 2.5}}),
            "test": corpus_lib.make_query_set(queries, {"b": {1: 0.1}}),
        },
    )


def test_any_corpus_is_stored_as_it_is(tmp_path):
    corpus = graded_corpus()
    corpus_store.save(corpus, tmp_path / "c", {"made": "by hand"})
    again, manifest = corpus_store.load(tmp_path / "c")
    assert again.hash == corpus.hash
    assert (
        corpus_store.content_hash(again) == corpus_store.content_hash(corpus) == manifest["sha256"]
    )
    assert list(again.document_texts()) == corpus.document_texts()
    np.testing.assert_array_equal(again.queries["train"].relevant[0], [2, 0])
    np.testing.assert_array_equal(again.queries["train"].relevance[0], [2.5, 1.0])
    assert again.queries["test"].relevance[0] == np.float32(0.1)
    assert (manifest["origin"], again.name) == ({"made": "by hand"}, "graded")
    other = dataclasses.replace(corpus, queries={"test": corpus.queries["test"]})
    assert corpus_store.content_hash(other) != corpus_store.content_hash(corpus)


def test_what_another_process_has_put_there_stays(tmp_path):
    corpus_store.save(graded_corpus(), tmp_path / "c", {"by": "the first"})
    corpus_store.save(graded_corpus(), tmp_path / "c", {"by": "the second"})
    assert corpus_store.load(tmp_path / "c")[1]["origin"] == {"by": "the first"}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "other file").touch()
    with pytest.raises(OSError):
        corpus_store.save(graded_corpus(), tmp_path / "d", {})


def test_what_is_no_stored_corpus_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no complete 'dsi_jax corpus': manifest\.json"
    ):
        corpus_store.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        corpus_store.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "x"}')
    with pytest.raises(ValueError, match=r"says .*'x'.*; expected .*'dsi_jax corpus'"):
        corpus_store.load(tmp_path)
    corpus_store.save(graded_corpus(), tmp_path / "c", {})
    (tmp_path / "c" / "queries.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"queries\.arrow does not exist"):
        corpus_store.load(tmp_path / "c")


assert len(FILLER) > 2 * records.CHARACTERS  # what the hand-made pages rely on
