"""Bad input to the train command: one clear line, exit status 2, and nothing lost."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from dsi_jax import build_docids, search, train
from tests.fixtures.small_corpus import write_corpus
from tests.jobs.test_train_command import arguments


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / f"corpus_{tmp_path.name}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    base = tmp_path_factory.mktemp("bad")
    corpus = write_corpus(base / "corpus_of_bad_input")
    options = ["--gin.TRAIN_STEPS=2", "--gin.train_config.TrainConfig.evaluation=None"]
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
        ("--gin.TRAIN_STEPS=many", r"TRAIN_STEPS is 'many' \(str\); expected a whole number"),
        ("--gin.BATCH_SIZE=0", r"BATCH_SIZE is 0"),
        ("--gin.BATCH_SIZE=1.5", r"BATCH_SIZE is 1.5 \(float\)"),
        ("--gin.MICROBATCHES=3", r"16 .*3 microbatches"),
        ("--gin.TASK_FEATURE_LENGTHS=32", r"TASK_FEATURE_LENGTHS is 32.*a dict"),
        ("--gin.TASK_FEATURE_LENGTHS={'text': 32}", r"TASK_FEATURE_LENGTHS is .*inputs"),
        ("--gin.WARMUP_STEPS=abc", r"WARMUP_STEPS is 'abc' \(str\); expected a whole number"),
        ("--gin.WARMUP_STEPS=-1", r"warmup_steps is -1"),
        ("--gin.LABEL_SMOOTHING=1.5", r"LABEL_SMOOTHING is 1.5; expected a number in \[0, 1\)"),
        ("--gin.DROPOUT_RATE=1", r"(DROPOUT_RATE|dropout_rate) is 1"),
        ("--gin.DTYPE=float16", r"DTYPE is 'float16'; expected .*bfloat16"),
        ("--gin.RANDOM_SEED=-1", r"RANDOM_SEED is -1"),
        ("--gin.EVAL_PERIOD=0", r"EVAL_PERIOD is 0"),
        ("--gin.LOG_PERIOD=0", r"LOG_PERIOD is 0"),
        ("--gin.CHECKPOINT_PERIOD=0", r"CHECKPOINT_PERIOD is 0"),
        ("--gin.CHECKPOINTS_KEPT=0", r"CHECKPOINTS_KEPT is 0"),
        ("--gin.EVAL_STEPS=0", r"EVAL_STEPS is 0"),
        ("--gin.MODEL_DIR=", r"MODEL_DIR is empty"),
        ("--gin.MODEL_DIR=gs://bucket/m", r"MODEL_DIR is 'gs://bucket/m'.*not supported yet"),
        (
            "--process_count=2",
            r"--process_count is given and --coordinator_address and",
        ),
        ("--gin.CONSTRAINT=tree", r"constraint is 'tree'.*trie"),
        ("--gin.BEAM_SIZE=0", r"beam_size is 0"),
        ("--gin.DOCUMENT_FORM=last", r"DOCUMENT_FORM is 'last'.*first"),
        ("--gin.INDEXING_STRATEGY=both", r"INDEXING_STRATEGY is 'both'.*bidirectional"),
        ("--gin.DOCID_SPACE=words", r"DOCID_SPACE is 'words'.*compact"),
        ("--gin.SHUFFLE_BUFFER_SIZE=0", r"SHUFFLE_BUFFER_SIZE is 0"),
        ("--gin.INDEXING_RATIO=-1", r"indexing_ratio is -1"),
        ("--gin.INDEXING_RATIO=often", r"INDEXING_RATIO is 'often'"),
        ("--gin.VOCABULARY=nowhere.model", r"VOCABULARY 'nowhere.model'"),
        ("--gin.INITIAL_CHECKPOINT_PATH=nowhere", r"INITIAL_CHECKPOINT_PATH nowhere"),
        ("--gin.partitioning.MeshConfig.model=3", r"model=3"),
        ("--gin.MIXTURE_OR_TASK_NAME=nobody", r"MIXTURE_OR_TASK_NAME is 'nobody'"),
    ],
)
def test_bad_option_is_named_before_anything_is_written(corpus, tmp_path, capsys, option, pattern):
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m", option))
    assert [path.name for path in tmp_path.rglob("*") if "corpus" not in str(path)] == []


def test_bad_option_of_the_docids_command(corpus, tmp_path, capsys):
    for option, pattern in (
        ("--gin.MODEL_DIR=gs://bucket/m", r"MODEL_DIR is 'gs://bucket/m'"),
        ("--gin.VOCABULARY_SIZE=0", r"VOCABULARY_SIZE is 0"),
    ):
        assert build_docids.main(arguments(corpus, tmp_path / "m", option)) == 2
        assert re.search(pattern, capsys.readouterr().err)
    assert not (tmp_path / "m").exists()


def test_full_disk_is_found_before_anything_is_written(corpus, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pattern = r"B free; the checkpoints of this run need .* MiB"
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_missing_extra_is_named(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)
    pattern = r"needs seqio: pip install 'dsi-jax\[train\]'"
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m"))


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


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("--gin.VOCABULARY_SIZE=300", r"tokenizer\.json.*vocabulary_size 400; .*asks for 300"),
        ("--gin.RANDOM_SEED=7", r"docids was built with seed 42; this run asks for 7.*remove"),
    ],
)
def test_files_of_another_configuration(trained, capsys, option, pattern):
    corpus, model_dir = trained
    refuses(capsys, pattern, *arguments(corpus, model_dir, option))


def test_docid_table_built_otherwise(trained, tmp_path, capsys):
    corpus, _ = trained
    naive = "--gin_file=docids/naive.gin"
    assert build_docids.main(arguments(corpus, tmp_path / "m", naive)) == 0
    padded = "--gin_bindings=naive.NaiveString.zero_pad = True"
    pattern = r"built with zero_pad False; this run asks for True: remove the directory"
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m", naive, padded))


def test_vocabulary_file_that_lacks_a_key(trained, tmp_path, capsys):
    corpus, model_dir = trained
    (tmp_path / "m").mkdir()
    stored = json.loads((model_dir / "tokenizer.json").read_text())
    del stored["corpus_hash"]
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(stored))
    pattern = r"m/tokenizer\.json.*lacks 'corpus_hash'"
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m"))


def test_vocabulary_of_another_checkpoint(trained, capsys):
    corpus, model_dir = trained
    options = ["--gin.VOCABULARY=bytes", "--gin.TRAIN_STEPS=4"]
    refuses(
        capsys,
        r"checkpoint_2.*(tokenizer_hash|vocab_size)",
        *arguments(corpus, model_dir, *options),
    )


def test_vocabulary_that_pretrained_weights_cannot_read(trained, tmp_path, capsys):
    corpus, model_dir = trained
    options = ["--gin.VOCABULARY=bytes", f"--gin.INITIAL_CHECKPOINT_PATH={model_dir}"]
    pattern = r"the vocabulary of this run is [0-9a-f]{16}; that of INITIAL_CHECKPOINT_PATH"
    refuses(capsys, pattern, *arguments(corpus, tmp_path / "m", *options))
    assert not (tmp_path / "m").exists()


def test_corrupt_checkpoint_is_passed_over_and_named(trained, tmp_path, capsys, caplog):
    corpus, model_dir = trained
    copy = tmp_path / "model"
    shutil.copytree(model_dir, copy)
    options = ["--gin.TRAIN_STEPS=4", "--gin.train_config.TrainConfig.evaluation=None"]
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
    away = model_dir / "docids_away"  # where the run had it, it would be found
    (model_dir / "docids").rename(away)
    try:
        assert search.main([str(copy), "query"]) == 2
    finally:
        away.rename(model_dir / "docids")
    pattern = r"trained with the docid table [0-9a-f]{16}; .*docids has 0{16}"
    assert re.search(pattern, capsys.readouterr().err)


def test_errors_without_a_gin_file(capsys):
    assert train.main([]) == 2
    assert "no gin file given" in capsys.readouterr().err


class _Index:
    """In the place of a Retriever: finds nothing, and notes what was asked."""

    def __init__(self):
        self.asked = []

    def search_batch(self, queries, k, *, allow, deny):
        assert allow is deny is None
        self.asked.append(list(queries))
        return [[] for _ in queries]


def test_search_answers_each_line_of_standard_input_as_it_comes(capsys, monkeypatch):
    index = _Index()
    monkeypatch.setattr(search.Retriever, "load", lambda *args, **kwargs: index)
    answered = []

    def lines():
        for query in ("a\n", "\n", "b\n"):
            answered.append(capsys.readouterr().out.count("? "))
            yield query

    monkeypatch.setattr(sys, "stdin", lines())
    assert search.main(["somewhere"]) == 0
    assert index.asked == [["a"], ["b"]]
    assert answered == [0, 1, 0]
    assert search.main(["somewhere", "a", "b"]) == 0
    assert index.asked[2:] == [["a", "b"]]


def test_search_ends_quietly_when_nobody_reads_on(capsys, monkeypatch):
    monkeypatch.setattr(search.Retriever, "load", lambda *args, **kwargs: _Index())
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert search.main(["somewhere", "query"]) == 0
    assert capsys.readouterr().err == ""


def test_search_shows_the_traceback_where_asked(tmp_path, capsys):
    assert search.main([str(tmp_path), "query", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err
