"""The names inside MODEL_DIR."""

import ast
from pathlib import Path

import pytest

from dsi_jax.storage import model_dir
from dsi_jax.storage.model_dir import ModelDir, checkpoint_name, model_directory, step_of

PACKAGE = Path(model_dir.__file__).parents[1]
OWN_WORDS = {"docids", "train", "eval", "baseline", "precompile", "embeddings"}  # also other things
NAMES = {
    *("config.gin", "model-info.txt", "tokenizer.json", "documents.arrow", "docids_text"),
    *("lexical_index.npz", "docids_report.png", "report.txt", "report.json", "contact_sheet.png"),
    *("training_eval", "inference_eval", "inference_eval_free", "zero_shot"),
}
OTHER_LAYOUTS = {  # formats of other programs, or of other directories, that share a name
    "convert/t5x_files.py": {"checkpoint_*", "checkpoint_"},
    "inputs/clip_tokenizer.py": {"tokenizer.json"},
    "inputs/hf_tokenizer.py": {"tokenizer.json"},
    "data/readers/corpus_store.py": {"documents.arrow"},
}


def test_the_layout_keeps_the_names_of_runs_before():
    files = ModelDir(Path("/runs/a"))
    found = {
        str(value.path if isinstance(value, ModelDir) else value)
        for name in vars(ModelDir)
        if isinstance(vars(ModelDir)[name], property)
        for value in [getattr(files, name)]
    }
    assert found == {f"/runs/a/{name}" for name in NAMES | OWN_WORDS}
    assert files.checkpoint(12) == Path("/runs/a/checkpoint_12")
    assert files.baseline.report == Path("/runs/a/baseline/report.json")


@pytest.mark.parametrize("name", ["checkpoint_", "checkpoint_x", "checkpoint_3.aside", "a_3", "3"])
def test_what_is_no_checkpoint_has_no_step(name):
    assert step_of(name) is None


def test_a_step_comes_back_from_its_name():
    assert [step_of(checkpoint_name(step)) for step in (0, 7, 100_000)] == [0, 7, 100_000]


def test_checkpoints_are_listed_by_step_the_newest_first(tmp_path):
    for name in ("checkpoint_9", "checkpoint_10", "checkpoint_2", "checkpoint_10.aside", "train"):
        (tmp_path / name).mkdir()
    names = [path.name for path in ModelDir(tmp_path).checkpoints()]
    assert names == ["checkpoint_10", "checkpoint_9", "checkpoint_2"]
    assert ModelDir(tmp_path / "absent").checkpoints() == []


def test_tables_are_looked_for_where_a_person_says_first():
    files = ModelDir(Path("/runs/a"))
    own = [files.docids, files.text_docids]
    assert files.docid_tables() == own
    assert files.docid_tables("/given", "/old/docids") == [
        Path("/given"),
        *own,
        Path("/old/docids"),
    ]


def test_model_dir_is_an_absolute_local_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert model_directory("runs") == tmp_path / "runs"
    assert model_directory("~/runs") == Path("/home/me/runs")
    with pytest.raises(ValueError, match="MODEL_DIR is empty"):
        model_directory("")
    with pytest.raises(ValueError, match="gs://bucket"):
        model_directory("gs://bucket/run")


def spelled(path: Path) -> set[str]:
    """The names inside MODEL_DIR that a module spells as a literal."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant):
            found |= {node.value} & (NAMES | {"checkpoint_", "checkpoint_*"})
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found |= {getattr(node.right, "value", None)} & OWN_WORDS
    return found


def test_no_other_module_spells_these_names():
    found = {path.relative_to(PACKAGE).as_posix(): spelled(path) for path in PACKAGE.rglob("*.py")}
    assert found.pop("storage/model_dir.py") >= NAMES
    # A format's own "train" directory of images is no run's.
    assert found.pop("data/readers/image_folders.py") <= {"train"}
    assert {path: names for path, names in found.items() if names} == OTHER_LAYOUTS
