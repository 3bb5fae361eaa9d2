"""Every shipped gin file parses, and what it describes has shapes and shardings."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import gin
from dsi_jax.cli import gin_utils
from dsi_jax.cli.gin_utils import ConfigError, GinArguments
from dsi_jax.decoding import strategies
from dsi_jax.methods.dsi import DSI
from dsi_jax.models import t5_sizes
from dsi_jax.models.encoders.bert import BertConfig
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.prepare import autosize, train_config
from dsi_jax.prepare import model as model_lib
from dsi_jax.prepare.data_config import DataConfig
from dsi_jax.prepare.train_config import Periods
from dsi_jax.training import partitioning
from dsi_jax.training import state as state_lib

GIN = gin_utils.shipped_directory()
FILES = sorted(str(path.relative_to(GIN)) for path in GIN.rglob("*.gin"))
# test_gin_nq.py and test_gin_images.py parse these.
FILES = [f for f in FILES if not f.startswith(("experiments/nq/", "experiments/images/"))]
# What the headers say must be set, for the files that are not whole runs.
GIVEN = {
    "MODEL_DIR": "somewhere",
    "CORPUS": "demo_text",
    "QUERIES": "queries.txt",
    "INFER_OUTPUT_DIR": "elsewhere",
    "INITIAL_CHECKPOINT_PATH": "lender",
    "DOCUMENT_ENCODER": "bert",
    "IMAGES": "pictures",
    "CLIP_CHECKPOINT": "clip",
    "TEXT_CHECKPOINT": "minilm",
    "EMBEDDINGS": "vectors.npy",
    "EMBED_OUTPUT": "vectors.npy",
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
    without_docids = ("runs/train.gin", "runs/finetune.gin", "experiments/report_1k.gin")
    without_docids += ("runs/train_images.gin", "runs/finetune_images.gin")
    if file in (*without_docids, "runs/dual_encoder.gin"):
        companions = ["docids/atomic.gin", "optimizers/adamw.gin"]
    if file.startswith("models/"):
        # A model file takes DROPOUT_RATE from the run that includes it.
        (tmp_path / "run.gin").write_text("DROPOUT_RATE = 0.1\n")
        companions = [str(tmp_path / "run.gin"), "optimizers/adafactor.gin"]
    if file == "runs/corpus.gin":
        companions = ["docids/atomic.gin"]
    files = [file, *companions]
    if file == "optimizers/clip_groups.gin":  # test_groups.py has parameters for them
        files = ["optimizers/adamw.gin", file]
    folder = Path(file).parts[0]
    if folder == "methods":  # which follow a run file
        files = ["runs/train.gin", "optimizers/adafactor.gin", "models/clip_tiny.gin", file]
        if file != "methods/contrastive.gin":
            del files[2]
    if folder == "lexical":  # likewise
        pytest.importorskip("Stemmer")
        files = ["runs/train.gin", "docids/atomic.gin", "optimizers/adafactor.gin", file]
    if folder == "decoding":  # which follow a run file, too
        files = ["runs/eval.gin", file]
    if folder == "embeddings":  # which follow a docid kind
        files = ["docids/rq.gin", file]
    parse(*files, **needed_macros(file if folder == "embeddings" else files[0]))
    if folder == "meshes":
        config = evaluated(gin_utils.query_macro("MESH"))
        devices = 1 if file.endswith("one_device.gin") else 8
        assert math.prod(config.sizes(devices).values()) == devices
    elif folder == "decoding":
        evaluation = evaluated(gin.query_parameter("dsi_jax.jobs.evaluate.evaluate.evaluation"))
        name = {"greedy": "Greedy", "sampling": "Sampling", "as_generate": "BeamSearch"}
        assert type(evaluation.decoding).__name__ == name[Path(file).stem]
        assert evaluation.decoding != strategies.BeamSearch()
    elif folder == "embeddings":
        assert evaluated(gin_utils.query_macro("DOCIDS")).embedder.path == GIVEN["EMBEDDINGS"]
    elif file == "runs/embed.gin":
        embedder = evaluated(gin.query_parameter("dsi_jax.jobs.embed.embed.embedder"))
        assert embedder.describe()["name"] == "tfidf_svd"
    elif folder == "docids":
        assert evaluated(gin_utils.query_macro("DOCIDS")).kind == Path(file).stem
    elif file == "optimizers/clip_groups.gin":
        assert len(evaluated(gin_utils.query_macro("OPTIMIZER")).groups) == 4
    elif folder in ("models", "optimizers"):
        model, optimizer = map(gin_utils.query_macro, ("MODEL", "OPTIMIZER"))
        check_shapes(DSI(), evaluated(model) if model else t5_sizes.t5_tiny(), evaluated(optimizer))
    elif file in ("runs/eval.gin", "runs/infer.gin"):
        command = "evaluate" if "eval" in file else "infer"
        parameter = f"dsi_jax.jobs.{command}.{command}.evaluation"
        assert evaluated(gin.query_parameter(parameter)).beam_size == 100
    elif file == "runs/corpus.gin":
        assert gin.get_configurable(DataConfig)().docids.kind == "atomic"
    else:
        check_run(evaluated(gin.query_parameter("dsi_jax.jobs.trainer.train.config")))


def evaluated(reference):
    return reference.scoped_configurable_fn()


def check_run(config) -> None:
    """What is asked for is possible, and so is the model that it, or the corpus's size, names."""
    train_config.check(config)
    assert config.model.dropout_rate == 0.1
    towers = None
    if config.encoders.image is not None:
        towers = TowersConfig(config.encoders.text, config.encoders.image)
    if config.encoders.text_checkpoint is not None:  # which is not there: a small one
        towers = TowersConfig(BertConfig(30, 8, 16, 1, 2), None)
    t5 = config.model.architecture or autosize.choose(1000).model
    check_shapes(config.method, t5, config.optimizer, towers)


def check_shapes(method, t5, optimizer, towers=None) -> None:
    model = method.new_model(t5, None, towers)
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    text = {"tokens": tokens, "mask": tokens}
    batch = {"text": text, "document": text, "decoder": {"inputs": tokens}}
    if towers is not None and towers.image is not None:
        side = towers.image.image_size
        images = {"pixels": jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8)}
        four = jax.ShapeDtypeStruct((4, 8), jnp.int32)
        batch |= {"image": images, "document": images, "decoder": {"inputs": four}}
    mesh = partitioning.make_mesh(partitioning.MeshConfig())
    state = state_lib.state_shapes(model, optimizer.build(100), batch, mesh)
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("word", ["true", "FALSE", "none", "nOnE"])
def test_misspelt_literal_is_refused(word):
    spelt = word.capitalize()
    with pytest.raises(ConfigError, match=f"SHUFFLE_TRAIN_EXAMPLES is {word}; .*={spelt}$"):
        parse("experiments/demo_text.gin", MODEL_DIR="x", SHUFFLE_TRAIN_EXAMPLES=word)


@pytest.mark.parametrize(
    ("macro", "value", "pattern"),
    [
        ("MODEL_DIR", "123", r"MODEL_DIR is 123 \(int\); expected a text; .*MODEL_DIR=\"'123'\""),
        ("MODEL_DIR", "None", r"MODEL_DIR is None; expected a text"),
        ("MODEL_DIR", "True", r"MODEL_DIR is True \(bool\); expected a text"),
        ("CORPUS", "2024", r"CORPUS is 2024 \(int\); expected a text or None"),
        ("WARMUP_STEPS", "abc", r"WARMUP_STEPS is 'abc' \(str\); expected a whole number"),
        ("DROPOUT_RATE", "abc", r"DROPOUT_RATE is 'abc' \(str\); expected a number"),
        ("RANDOM_SEED", "abc", r"RANDOM_SEED is 'abc'"),
        ("RANDOM_SEED", "True", r"RANDOM_SEED is True \(bool\); expected a whole number"),
        ("TRAIN_STEPS", "1e3", r"TRAIN_STEPS is 1000.0 \(float\); expected a whole number"),
        ("EVAL_PERIOD", "abc", r"EVAL_PERIOD is 'abc'.*whole number or None"),
        ("REMAT", "1", r"REMAT is 1 \(int\); expected True or False or a text"),
        ("TASK_FEATURE_LENGTHS", "32", r"TASK_FEATURE_LENGTHS is 32 \(int\); expected a dict"),
        ("OPTIMIZER", "adamw", r"OPTIMIZER is 'adamw'.*expected an object Optimizer"),
        ("MODEL", "t5_tiny", r"MODEL is 't5_tiny'.*expected an object T5Config or None"),
    ],
)
def test_value_of_another_type_names_the_macro(macro, value, pattern):
    with pytest.raises(ConfigError, match=pattern):
        parse("experiments/demo_text.gin", **{"MODEL_DIR": "x"} | {macro: value})


def test_types_of_a_configuration_made_in_python_are_checked():
    parse("experiments/demo_text.gin", MODEL_DIR="x")
    config = evaluated(gin.query_parameter("dsi_jax.jobs.trainer.train.config"))

    def check_periods(periods: Periods) -> None:
        schedule = dataclasses.replace(config.schedule, periods=periods)
        train_config.check(dataclasses.replace(config, schedule=schedule))

    with pytest.raises(ValueError, match="LOG_PERIOD is 0"):
        check_periods(Periods(log=0))
    with pytest.raises(ValueError, match=r"Periods.keep is 'abc' \(str\); expected a whole number"):
        check_periods(Periods(keep="abc"))
    assert Periods(log=7).resolve(1000) == Periods(log=7, checkpoint=100, evaluate=200)


def test_run_options_replace_those_of_the_model():
    parse("experiments/own_text.gin", MODEL_DIR="x", CORPUS="y", DROPOUT_RATE="0.25")
    config = evaluated(gin.query_parameter("dsi_jax.jobs.trainer.train.config"))
    with pytest.raises(ValueError, match="REMAT is 'all'; expected True, False, 'minimal'"):
        model = dataclasses.replace(config.model, remat="all")
        train_config.check(dataclasses.replace(config, model=model))
    model = dataclasses.replace(config.model, dtype="bfloat16", remat="minimal", scan_layers=True)
    assert model.architecture is None
    t5 = model_lib.with_options(t5_sizes.t5_tiny(), model)
    expected = t5_sizes.t5_tiny(dropout_rate=0.25, dtype="bfloat16", remat="minimal")
    assert t5 == dataclasses.replace(expected, scan_layers=True)


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


def test_includes_follow_the_search_paths_of_this_call_only(tmp_path, monkeypatch):
    for name, value in (("first", 1), ("here", 2)):
        (tmp_path / name / "optimizers").mkdir(parents=True)
        (tmp_path / name / "optimizers" / "adafactor.gin").write_text(f"TRAIN_STEPS = {value}\n")
    (tmp_path / "mine.gin").write_text("include 'optimizers/adafactor.gin'\n")
    mine = [str(tmp_path / "mine.gin")]
    monkeypatch.chdir(tmp_path / "here")
    gin_utils.parse(GinArguments(mine, [], [str(tmp_path / "first")]))
    assert gin.query_parameter("TRAIN_STEPS/macro.value") == 1
    gin_utils.parse(GinArguments(mine))
    assert gin.query_parameter("TRAIN_STEPS/macro.value") == 2
    monkeypatch.chdir(tmp_path)
    gin_utils.parse(GinArguments(mine))
    assert gin_utils.query_macro("LEARNING_RATE") == 1.0


def test_missing_object_names_a_file_that_sets_it():
    with pytest.raises(ConfigError, match=r"OPTIMIZER.*--gin_file=optimizers/adafactor\.gin"):
        parse("runs/train.gin", MODEL_DIR="x")


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
                ["MODEL_DIR=x", "dsi_jax.prepare.train_config.TrainConfig.no_such = 3"],
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
