"""Every shipped gin file parses, and what it describes has shapes and shardings."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import gin
from dsi_jax import gin_utils
from dsi_jax.gin_utils import ConfigError, GinArguments
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.training import partitioning
from dsi_jax.training import state as state_lib

GIN = gin_utils.shipped_directory()
FILES = sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))
# What the headers say must be set, for the files that are not whole runs.
GIVEN = {
    "MODEL_DIR": "somewhere",
    "CORPUS": "demo_text",
    "QUERIES": "queries.txt",
    "INFER_OUTPUT_DIR": "elsewhere",
    "INITIAL_CHECKPOINT_PATH": "lender",
}


def parse(*files: str, **macros: str) -> None:
    gin_utils.parse(GinArguments(files, [f"{name}={value}" for name, value in macros.items()]))


def needed_macros(file: str) -> dict[str, str]:
    """The macros of GIVEN that must be set, by the file itself or by what it includes."""
    text = (GIN / file).read_text()
    required = re.findall(r"^(\w+) = %gin.REQUIRED", text, re.MULTILINE)
    found = {name: GIVEN[name] for name in required if name in GIVEN}
    for line in text.splitlines():
        if line.startswith("include "):
            found |= needed_macros(line.split("'")[1])
    return found


@pytest.mark.parametrize("file", FILES)
def test_shipped_file_parses_and_evaluates(file, tmp_path):
    companions = []
    macros = needed_macros(file)
    if file in ("runs/train.gin", "runs/finetune.gin"):
        companions = ["docids/atomic.gin", "optimizers/adamw.gin"]
    if file.startswith("models/"):
        # A model file takes DROPOUT_RATE from the run that includes it.
        (tmp_path / "run.gin").write_text("DROPOUT_RATE = 0.1\n")
        companions = [str(tmp_path / "run.gin")]
    if file == "runs/corpus.gin":
        companions = ["docids/atomic.gin"]
    parse(file, *companions, **macros)
    if model := gin_utils.query_macro("MODEL"):
        optimizer = gin_utils.query_macro("OPTIMIZER")
        check_shapes(evaluated(model), evaluated(optimizer) if optimizer else None)
    if file.startswith("meshes/"):
        config = evaluated(gin_utils.query_macro("MESH"))
        assert partitioning.make_mesh(config).size == jax.device_count()
    if file.startswith("docids/"):
        assert evaluated(gin_utils.query_macro("DOCIDS")).kind == Path(file).stem


def evaluated(reference):
    return reference.scoped_configurable_fn()


def check_shapes(t5, optimizer) -> None:
    model = DSIModel(DSIConfig(t5, docid_vocab_size=12, docid_length=6))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    batch = {
        "text": {"tokens": tokens, "mask": tokens},
        "decoder": {"inputs": jax.ShapeDtypeStruct((2, 6), jnp.int32)},
    }
    mesh = partitioning.make_mesh(partitioning.MeshConfig())
    if optimizer is None:
        shapes = state_lib.param_shapes(model, batch)
        partitioning.param_shardings(shapes, mesh, partitioning.LOGICAL_AXIS_RULES)
        return
    state = state_lib.state_shapes(model, optimizer.build(100), batch, mesh)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(state))


def test_optimizers_evaluate_with_a_model():
    parse("optimizers/adafactor.gin")
    optimizer = evaluated(gin_utils.query_macro("OPTIMIZER"))
    parse("models/t5_tiny.gin", "experiments/demo_text.gin", MODEL_DIR="x")
    check_shapes(evaluated(gin_utils.query_macro("MODEL")), optimizer)


def test_path_needs_no_quotes_and_literals_stay_literals():
    parse("experiments/demo_text.gin", MODEL_DIR="/some/dir", TRAIN_STEPS="7")
    assert gin.query_parameter("MODEL_DIR/macro.value") == "/some/dir"
    assert gin.query_parameter("TRAIN_STEPS/macro.value") == 7


def test_later_file_and_command_line_win(tmp_path):
    (tmp_path / "mine.gin").write_text("TRAIN_STEPS = 5\nBATCH_SIZE = 16\n")
    parse("experiments/demo_text.gin", str(tmp_path / "mine.gin"), MODEL_DIR="x", BATCH_SIZE="8")
    assert gin.query_parameter("TRAIN_STEPS/macro.value") == 5
    assert gin.query_parameter("BATCH_SIZE/macro.value") == 8


def test_search_paths_come_first(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "demo_text.gin").write_text("MODEL_DIR = 'mine'\n")
    # The file stands alone, so its macro would be unknown if ours did not name it too.
    gin_utils.parse(GinArguments(["experiments/demo_text.gin"], [], [str(tmp_path)]))
    assert gin.query_parameter("MODEL_DIR/macro.value") == "mine"


def test_unknown_macro_on_the_command_line_is_named_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"TRAIN_STEP on the command line.*mean TRAIN_STEPS"):
        parse("experiments/demo_text.gin", MODEL_DIR="x", TRAIN_STEP="7")


def test_unknown_macro_in_a_file_is_named(tmp_path):
    (tmp_path / "mine.gin").write_text("BATCH_SZIE = 16\n")
    with pytest.raises(ConfigError, match=r"BATCH_SZIE in a gin file.*mean BATCH_SIZE"):
        parse("experiments/demo_text.gin", str(tmp_path / "mine.gin"), MODEL_DIR="x")


def test_missing_required_macro_is_named():
    with pytest.raises(ConfigError, match=r"must be given.*MODEL_DIR.*--gin\.MODEL_DIR="):
        parse("experiments/demo_text.gin")


def test_missing_file_names_the_places_searched(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.gin.*" + str(tmp_path)):
        gin_utils.parse(GinArguments(["nowhere.gin"], [], [str(tmp_path)]))


def test_unknown_parameter_is_an_error():
    with pytest.raises(ConfigError, match="no_such"):
        gin_utils.parse(
            GinArguments(
                ["experiments/demo_text.gin"],
                ["MODEL_DIR=x", "dsi_jax.run.TrainConfig.no_such = 3"],
            )
        )


def test_files_resolve_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse("experiments/own_text.gin", MODEL_DIR="x", CORPUS="y")
    config = gin_utils.config_text()
    assert "TRAIN_STEPS = None" in config


def test_saved_configuration_parses_to_the_same(tmp_path):
    parse("experiments/demo_text.gin", MODEL_DIR="x")
    text = gin_utils.config_text()
    (tmp_path / "config.gin").write_text(text)
    parse(str(tmp_path / "config.gin"))
    assert gin_utils.config_text() == text


@pytest.fixture(autouse=True)
def clean():
    yield
    gin.clear_config()
