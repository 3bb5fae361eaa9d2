"""Bad input to the train command: one clear line, exit status 2, and nothing lost."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dsi_jax import search, train
from tests.small_corpus import write_corpus
from tests.test_train_command import arguments


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / f"corpus_{tmp_path.name}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("bad")
    corpus = write_corpus(base / "corpus_of_bad_input")
    options = ["--gin.TRAIN_STEPS=2", "--gin.run.TrainConfig.evaluation=None"]
    assert train.main(arguments(corpus, base / "model", *options)) == 0
    return corpus, base / "model"


def refuses(capsys, pattern: str, *argv: str) -> None:
    """Runs the train command and expects one line of error that matches."""
    capsys.readouterr()
    assert train.main(list(argv)) == 2
    lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("dsi-jax: error: ")]
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines[0]
    assert "0x" not in lines[0]


def edit(file: Path, line: int, text: str | None) -> None:
    """Replaces a line (from 1) of a file, or removes it."""
    lines = file.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    file.write_text("".join(f"{s}\n" for s in lines))


def test_missing_corpus(tmp_path, capsys):
    refuses(capsys, r"no corpus.*nowhere", *arguments(tmp_path / "nowhere", tmp_path / "m"))
    assert not (tmp_path / "m" / "config.gin").exists()


@pytest.mark.parametrize(
    ("file", "line", "text", "pattern"),
    [
        ("corpus.jsonl", 3, '{"_id": "d2", "text": ', r"corpus\.jsonl:3"),
        ("corpus.jsonl", 3, '{"_id": "d1", "text": "again"}', r"corpus\.jsonl:3.*d1"),
        ("corpus.jsonl", 3, '{"_id": "d2", "title": "", "text": " "}', r"corpus\.jsonl:3"),
        ("corpus.jsonl", 3, '{"_id": "d2", "text": 7}', r"corpus\.jsonl:3.*text"),
        ("queries.jsonl", 2, '{"_id": "q0_1"}', r"queries\.jsonl:2.*text"),
        ("qrels/train.tsv", 4, "q2_0\tnowhere\t1", r"train\.tsv:4.*nowhere"),
        ("qrels/train.tsv", 4, "nobody\td2\t1", r"train\.tsv:4.*nobody"),
        ("qrels/train.tsv", 4, "q2_0 d2", r"train\.tsv:4"),
    ],
)
def test_malformed_corpus_names_file_and_line(corpus, tmp_path, capsys, file, line, text, pattern):
    edit(corpus / file, line, text)
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m"))
    assert not (tmp_path / "m" / "docids").exists()


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("--gin.TRAIN_STEP=3", r"unknown macro TRAIN_STEP .*TRAIN_STEPS"),
        ("--gin.TRAIN_STEPS=many", r"TRAIN_STEPS is 'many' \(str\); expected a positive"),
        ("--gin.BATCH_SIZE=0", r"BATCH_SIZE is 0"),
        ("--gin.BATCH_SIZE=1.5", r"BATCH_SIZE is 1.5 \(float\)"),
        ("--gin.MICROBATCHES=3", r"16 .*3 microbatches"),
        ("--gin.TASK_FEATURE_LENGTHS=32", r"TASK_FEATURE_LENGTHS is 32.*inputs"),
        ("--gin.CONSTRAINT=tree", r"constraint is 'tree'.*trie"),
        ("--gin.BEAM_SIZE=0", r"beam_size is 0"),
        ("--gin.DOCUMENT_FORM=last", r"document_form is 'last'.*first"),
        ("--gin.INDEXING_RATIO=-1", r"indexing_ratio is -1"),
        ("--gin.INDEXING_RATIO=often", r"indexing_ratio is 'often'"),
        ("--gin.VOCABULARY=nowhere.model", r"VOCABULARY 'nowhere.model'"),
        ("--gin.INITIAL_CHECKPOINT_PATH=nowhere", r"INITIAL_CHECKPOINT_PATH nowhere"),
        ("--gin.partitioning.MeshConfig.model=3", r"model=3"),
        ("--gin.MIXTURE_OR_TASK_NAME=nobody", r"nobody"),
    ],
)
def test_bad_option_is_named_before_anything_is_written(corpus, tmp_path, capsys, option, pattern):
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m", option))
    assert not (tmp_path / "m" / "config.gin").exists()
    assert not list((tmp_path / "m").glob("checkpoint_*"))


def test_model_dir_that_cannot_be_written(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refuses(capsys, r"MODEL_DIR .*file/m", *arguments(corpus, tmp_path / "file" / "m"))


def test_docid_table_of_another_corpus(trained, tmp_path, capsys):
    _, model_dir = trained
    other = write_corpus(tmp_path / "another_corpus", seed=1)
    pattern = r"docid table .*docids belongs to the corpus [0-9a-f]{16}; CORPUS .* is [0-9a-f]{16}"
    option = f"--gin.DOCID_TABLE={model_dir / 'docids'}"
    refuses(capsys, pattern, *arguments(other, tmp_path / "m", option))


def test_docid_table_of_another_kind(trained, capsys):
    corpus, model_dir = trained
    options = ["--gin_file=docids/naive.gin", "--gin.TRAIN_STEPS=4"]
    refuses(
        capsys, r"kind 'atomic'; DOCIDS asks for 'naive'", *arguments(corpus, model_dir, *options)
    )


def test_vocabulary_of_another_checkpoint(trained, capsys):
    corpus, model_dir = trained
    options = ["--gin.VOCABULARY=bytes", "--gin.TRAIN_STEPS=4"]
    refuses(
        capsys,
        r"checkpoint_2.*(tokenizer_hash|vocab_size)",
        *arguments(corpus, model_dir, *options),
    )


def test_corrupt_checkpoint_is_passed_over_and_named(trained, tmp_path, capsys, caplog):
    corpus, model_dir = trained
    copy = tmp_path / "model"
    shutil.copytree(model_dir, copy)
    options = ["--gin.TRAIN_STEPS=4", "--gin.run.TrainConfig.evaluation=None"]
    damage(copy / "checkpoint_2")
    caplog.set_level("INFO", "dsi_jax")
    with pytest.warns(UserWarning, match="checkpoint_2"):
        assert train.main(arguments(corpus, copy, *options)) == 0
    assert "resumed from step 1" in caplog.text
    for checkpoint in copy.glob("checkpoint_?"):
        damage(checkpoint)
    left = sorted(copy.rglob("*"))
    with pytest.warns(UserWarning, match="checkpoint_4"):
        refuses(capsys, r"no whole checkpoint.*checkpoint_4", *arguments(corpus, copy, *options))
    assert sorted(copy.rglob("*")) == left
    with pytest.warns(UserWarning, match="checkpoint_4"):
        assert search.main([str(copy), "number3"]) == 2
    assert "checkpoint_4" in capsys.readouterr().err


def damage(checkpoint: Path) -> None:
    """Cuts every file of the parameters in half."""
    for file in (checkpoint / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_search_names_what_is_missing(tmp_path, capsys):
    assert search.main([str(tmp_path / "nowhere"), "query"]) == 2
    assert re.search(r"dsi-jax: error: .*nowhere has no whole checkpoint", capsys.readouterr().err)


def test_search_refuses_a_table_that_was_changed(trained, tmp_path, capsys):
    _, model_dir = trained
    copy = tmp_path / "model"
    shutil.copytree(model_dir, copy)
    metadata = copy / "docids" / "metadata.json"
    changed = json.loads(metadata.read_text()) | {"hash": "0" * 64}
    metadata.write_text(json.dumps(changed))
    assert search.main([str(copy), "query"]) == 2
    assert re.search(r"has hash 0{16}; .*trained with [0-9a-f]{16}", capsys.readouterr().err)


def test_errors_without_a_gin_file(capsys):
    assert train.main([]) == 2
    assert "no gin file given" in capsys.readouterr().err
