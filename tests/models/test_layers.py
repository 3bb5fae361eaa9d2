"""Which layer may import what: serving and the core stay free of tensorflow, seqio and gin."""

import subprocess
import sys

import pytest

CORE = [
    f"dsi_jax.{name}"
    for name in (
        *("convert.docid_vocabulary", "convert.hf_t5", "convert.t5x"),
        *("decoding.adapter", "decoding.score", "decoding.strategies"),
        *("docids.embedders.image", "docids.embedders.text", "docids.health.report"),
        *("docids.kinds.atomic", "docids.kinds.learned", "docids.kinds.naive"),
        *("docids.kinds.quantized", "docids.kinds.random_control", "docids.kinds.semantic"),
        *("docids.kinds.title", "docids.table", "evaluation.contact_sheet"),
        *("inputs.clip_tokenizer", "inputs.encoder_inputs", "inputs.image_files"),
        *("inputs.pixels", "inputs.tokenizer", "methods.registry"),
        *("models.dsi", "models.encoders.clip_sizes", "models.t5_sizes"),
        *("ranking.dense_ranker", "ranking.docid_ranker", "storage.documents"),
        *("storage.string_columns", "training.assignment", "training.checkpoints"),
        *("training.optimizers", "training.param_groups", "training.partitioning"),
        *("training.state", "training.step"),
    )
]
# Transformers' Flax modules import torch where it is installed.
CLIP = ["dsi_jax.models.encoders.clip", "dsi_jax.convert.hf_clip"]
SERVING = ["dsi_jax.retriever", "dsi_jax.search", "dsi_jax.main"]
BARRED = ("tensorflow", "seqio", "gin", "torch")


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [(CORE, ""), (SERVING, ""), (CLIP, "torch")],
    ids=["core", "serving", "clip"],
)
def test_imports_without_tensorflow_seqio_and_gin(modules, allowed):
    program = (
        f"import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {BARRED!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {allowed}


def test_readers_of_corpora_import_without_tensorflow():
    program = (
        "import sys, dsi_jax.data.readers.load\n"
        "import dsi_jax.data.readers.beir, dsi_jax.data.readers.squad\n"
        "print('tensorflow' in sys.modules, 'seqio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
