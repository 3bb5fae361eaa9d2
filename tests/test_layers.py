"""Which layer may import what: serving and the core stay free of tensorflow, seqio and gin."""

import subprocess
import sys

import pytest

CORE = [
    f"dsi_jax.{name}"
    for name in (
        *("documents", "tokenizers", "columns", "searcher"),
        *("clip_bpe", "images", "pixels", "models.clip_sizes"),
        *("docids.table", "docids.atomic", "docids.naive", "docids.semantic"),
        *("docids.random_control", "docids.embeddings", "docids.report"),
        *("docids.image_embeddings", "contact_sheet", "training.groups"),
        *("models.dsi", "models.sizes", "convert.huggingface"),
        *("decoding.adapter", "decoding.score"),
        *("training.step", "training.state", "training.checkpoints", "training.optimizers"),
        *("training.assignment", "training.partitioning"),
    )
]
# Transformers' Flax modules import torch where it is installed.
CLIP = ["dsi_jax.models.towers", "dsi_jax.convert.clip"]
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
        "import sys, dsi_jax.data.corpora, dsi_jax.data.beir, dsi_jax.data.squad\n"
        "print('tensorflow' in sys.modules, 'seqio' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
