"""What `train` and `precompile` compile of one configuration."""

import dataclasses

import pytest

import gin
from dsi_jax.cli import gin_utils
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.jobs.precompile.run_shapes import run_shapes
from dsi_jax.prepare.lexical_head import LexicalHead
from dsi_jax.prepare.program import new_mesh
from dsi_jax.prepare.run import set_up


@pytest.fixture
def config(tmp_path):
    """A run of images with augmentation, on as many texts as images."""
    files = ["experiments/demo_image.gin", "models/t5_tiny.gin", "models/clip_tiny.gin"]
    bindings = [f"MODEL_DIR={tmp_path}", "BATCH_SIZE=16", "TRAIN_STEPS=2", "BASELINE=None"]
    gin_utils.parse(gin_utils.GinArguments(files, bindings))
    try:
        reference = gin.query_parameter("dsi_jax.jobs.trainer.train.config")
        return reference.scoped_configurable_fn()
    finally:
        gin.clear_config()


def test_train_and_precompile_lower_the_same_step(config, own_registries):
    run = set_up(config, write=True)
    assert config.encoders.augmentation is not None
    trained = run.program.lower().as_text()

    def precompiled(config) -> str:
        shapes = run_shapes(config, run.assets.table, run.program.mesh)
        return shapes.program.lower().as_text()

    assert precompiled(config) == trained
    encoders = dataclasses.replace(config.encoders, augmentation=None)
    assert precompiled(dataclasses.replace(config, encoders=encoders)) != trained


def test_a_lexical_head_is_not_compiled_without_its_corpus(config):
    table = Atomic().build(DocumentColumns(["a", "b"]))
    config = dataclasses.replace(config, lexical_head=LexicalHead())
    with pytest.raises(ValueError, match="LEXICAL_HEAD is given, and its postings are not known"):
        run_shapes(config, table, new_mesh(config))
