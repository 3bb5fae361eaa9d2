"""The `docids` command: tables of kinds that need something of the corpus, report and picture."""

import dataclasses
import json

import numpy as np
import pytest

from dsi_jax import build_docids
from dsi_jax.data.corpora import registry
from dsi_jax.data.readers import load
from dsi_jax.docids.health import plots
from dsi_jax.docids.kinds import learned
from dsi_jax.docids.table import DocidTable
from dsi_jax.prepare import docid_table
from tests.fixtures.small_corpus import write_corpus
from tests.jobs.test_train_command import arguments


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("docids") / "corpus_of_docids_command")


def run(corpus, model_dir, *options) -> int:
    return build_docids.main(arguments(corpus, model_dir, *options))


def test_report_has_oracle_recall_and_a_picture(corpus, tmp_path, caplog):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plots)")
    caplog.set_level("INFO", "dsi_jax")
    options = ["--gin_file=docids/rq.gin", "--gin.quantized.ResidualQuantized.codes=8"]
    assert run(corpus, tmp_path / "m", *options) == 0
    assert "rule: extra_level" in caplog.text
    assert "oracle recall@10 of 60 documents" in caplog.text
    assert (tmp_path / "m" / "docids_report.png").stat().st_size > 10_000
    table = DocidTable.load(tmp_path / "m" / "docids")
    assert table.kind == "rq" and table.parameters["codes"] == 8
    # The same again: the table that lies there is reported on, with the same figures.
    first = caplog.text.split("oracle recall")[1].splitlines()[0]
    caplog.clear()
    assert run(corpus, tmp_path / "m", *options) == 0
    assert first in caplog.text
    assert DocidTable.load(tmp_path / "m" / "docids").hash == table.hash


def test_without_plots_or_embeddings_the_report_says_so(corpus, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    caplog.set_level("INFO", "dsi_jax")
    assert run(corpus, tmp_path / "m", "--gin_file=docids/title.gin") == 0
    assert "no plot: matplotlib is not installed (pip install 'dsi-jax[plots]')" in caplog.text
    assert not (tmp_path / "m" / "docids_report.png").exists()
    assert "title docids" in caplog.text and "oracle" not in caplog.text
    table = DocidTable.load(tmp_path / "m" / "docids")
    spec = json.loads((tmp_path / "m" / "tokenizer.json").read_text())["tokenizer"]
    assert max(table.parameters["pieces"]) < 400 and spec["type"] == "sentencepiece"


def test_classes_come_from_the_corpus(corpus, tmp_path, capsys):
    options = [
        "--gin_file=docids/irgen.gin",
        "--gin_bindings=learned.IRGen.supervision = 'classes'",
        "--gin_bindings=learned.IRGen.epochs = 1",
        "--gin_bindings=learned.IRGen.codes = 8",
    ]
    assert run(corpus, tmp_path / "m", *options) == 2
    assert "irgen docids need classes of the documents; the corpus" in capsys.readouterr().err

    def with_classes(seed):
        found = load.load_corpus(str(corpus), seed)
        return dataclasses.replace(
            found, name="with_classes", classes=[row % 3 for row in range(len(found))]
        )

    registry.register_corpus("with_classes", with_classes)
    assert run("with_classes", tmp_path / "n", *options) == 0
    assert DocidTable.load(tmp_path / "n" / "docids").parameters["supervision"] == "classes"


@pytest.mark.parametrize(
    ("kind", "bindings", "message"),
    [
        (
            "rq",
            ("codes = 3", "levels = 2", "collisions = 'nearest'"),
            "2 levels of 3 codes give 9 docids, the corpus has 60 documents",
        ),
        ("irgen", (), "irgen docids by neighbours are for at most 50 documents, found 60"),
    ],
)
def test_too_many_documents_are_refused_before_they_are_embedded(
    kind, bindings, message, corpus, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(learned, "MOST_BY_NEIGHBOURS", 50)
    monkeypatch.setattr(docid_table, "embed_documents", None)
    options = [f"--gin_bindings=quantized.ResidualQuantized.{binding}" for binding in bindings]
    assert run(corpus, tmp_path / "m", f"--gin_file=docids/{kind}.gin", *options) == 2
    assert message in capsys.readouterr().err


def test_embeddings_are_kept_and_not_made_again(corpus, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "dsi_jax")
    monkeypatch.setattr(plots, "available", lambda: False)
    options = ["--gin_file=docids/rq.gin", "--gin.quantized.ResidualQuantized.codes=8"]

    def recall(*more) -> str:
        caplog.clear()
        assert run(corpus, tmp_path / "m", *options, *more) == 0
        return caplog.text.split("oracle recall@")[1].splitlines()[0]

    first = recall()
    table = DocidTable.load(tmp_path / "m" / "docids")
    (file,) = (tmp_path / "m" / "docids" / "embeddings").iterdir()
    content = file.read_bytes()
    assert (
        f"kept the embeddings of the documents: {file}, {len(content) / 1024:.3g} KiB"
        in caplog.text
    )
    with monkeypatch.context() as patched:
        patched.setattr(docid_table, "embed_documents", None)
        assert recall() == first
    # An older table has none; a dry run writes none.
    file.unlink()
    assert recall("--dry_run") == first and not file.exists()
    said = f"holds no embeddings of docid table {table.hash[:12]}: embedding 60 documents again"
    assert said in caplog.text
    assert recall() == first and file.read_bytes() == content
    # Those of another embedder, and half of a file, are not taken for its own.
    other = file.rename(file.with_name("other.npy"))
    assert recall() == first and "of another embedder or seed, none of docid table" in caplog.text
    assert file.read_bytes() == content and not other.exists()
    file.write_bytes(content[: len(content) // 2])
    assert recall() == first and file.read_bytes() == content
    DocidTable.load(tmp_path / "m" / "docids").verify()


def test_vectors_of_a_file_are_not_copied(corpus, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "dsi_jax")
    monkeypatch.setattr(plots, "available", lambda: False)
    vectors = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    options = ["--gin_file=docids/rq.gin", "--gin_file=embeddings/precomputed.gin"]
    options += [f"--gin.EMBEDDINGS={tmp_path / 'vectors.npy'}"]
    for _ in range(2):
        assert run(corpus, tmp_path / "m", *options) == 0
    assert caplog.text.count("oracle recall@10 of 60 documents") == 2
    assert not (tmp_path / "m" / "docids" / "embeddings").exists()


def test_a_kind_that_clusters_needs_an_embedder(corpus, tmp_path, capsys):
    options = [
        "--gin_file=docids/rq.gin",
        "--gin_bindings=quantized.ResidualQuantized.embedder = None",
    ]
    assert run(corpus, tmp_path / "m", *options) == 2
    assert "rq docids need embeddings of the documents, and their embedder is None" in (
        capsys.readouterr().err
    )


def test_docids_that_text_cannot_spell_are_refused_before_they_are_built(
    corpus, tmp_path, capsys, monkeypatch, shared_data
):
    monkeypatch.setattr(docid_table, "embed_documents", None)
    options = [
        "--gin_file=docids/semantic.gin",
        "--gin.DOCID_SPACE=text",
        f"--gin.VOCABULARY={shared_data / 'vocab' / 'seqio_test_26.model'}",
    ]
    assert run(corpus, tmp_path / "m", *options) == 2
    message = "the vocabulary cannot spell the digit '0'; expected one that has the ten digits"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m" / "docids").exists()
