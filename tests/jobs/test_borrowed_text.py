"""A run with a pretrained encoder of texts: trained, searched, frozen, and refused."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from dsi_jax import train
from dsi_jax.convert import encoder_formats
from dsi_jax.retriever import Retriever
from dsi_jax.training import checkpoints
from tests.fixtures.small_bert import write_bert
from tests.fixtures.small_corpus import write_corpus

pytest.importorskip("torch")

STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a small corpus and a BERT whose vocabulary is of its documents."""
    base = tmp_path_factory.mktemp("borrowed")
    corpus = write_corpus(base / "corpus_of_borrowed", num_documents=24)
    lines = (corpus / "corpus.jsonl").read_text().splitlines()
    write_bert(base / "bert", (json.loads(line)["text"] for line in lines))
    return base


def arguments(base, model_dir, *more):
    return [
        "--gin_file=experiments/borrowed_text.gin",
        "--gin_file=models/t5_tiny.gin",
        f"--gin.CORPUS={base / 'corpus_of_borrowed'}",
        f"--gin.MODEL_DIR={model_dir}",
        f"--gin.TEXT_CHECKPOINT={base / 'bert'}",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
        f"--gin.TRAIN_STEPS={STEPS}",
        "--gin.BATCH_SIZE=8",
        "--gin.BEAM_SIZE=4",
        *more,
    ]


def test_a_frozen_encoder_stays_as_it_was_lent_and_the_index_is_searched(base, tmp_path):
    assert train.main(arguments(base, tmp_path, "--gin.FREEZE_TEXT_ENCODER=True")) == 0
    found = encoder_formats.format_in(base / "bert")
    lent = found.load_params(base / "bert", found.load_configs(base / "bert"))
    trained = flatten_dict(checkpoints.load_params(tmp_path / f"checkpoint_{STEPS}"), sep="/")
    assert {f"text_tower/{path}" for path in lent} <= set(trained)
    for path, value in lent.items():
        np.testing.assert_array_equal(trained[f"text_tower/{path}"], value)
    retriever = Retriever.load(tmp_path)
    hits = retriever.search("cedar maple number3", k=4)
    assert len(hits) == 4 and all(np.isfinite(hit.score) for hit in hits)
    assert retriever.metadata["model"]["towers"]["text"]["kind"] == "bert"


def test_the_vocabulary_must_be_that_of_the_encoder(base, tmp_path, capsys):
    assert train.main(arguments(base, tmp_path, "--gin.VOCABULARY=bytes")) == 2
    error = capsys.readouterr().err
    assert "TEXT_CHECKPOINT" in error and "expected VOCABULARY = %TEXT_CHECKPOINT" in error
    assert not list(tmp_path.iterdir())


def test_texts_longer_than_the_positions_are_refused(base, tmp_path, capsys):
    assert train.main(arguments(base, tmp_path, "--gin.TASK_FEATURE_LENGTHS={'inputs': 40}")) == 2
    assert "keeps 40 tokens; the tower of texts reads 32" in capsys.readouterr().err


def test_a_checkpoint_without_the_encoder_is_refused(base, tmp_path, capsys):
    more = [f"--gin.IMAGE_CHECKPOINT={base / 'bert'}"]
    assert train.main(arguments(base, tmp_path, *more)) == 2
    assert "IMAGE_CHECKPOINT" in (error := capsys.readouterr().err)
    assert "has no encoder of images; expected one that has" in error
