"""Runs that start from borrowed weights: a T5 of Hugging Face or T5X, a checkpoint of ours."""

import dataclasses
import random
import string

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util

from dsi_jax import train
from dsi_jax.convert import docid_vocabulary, hf_t5
from dsi_jax.data.readers import load
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.inputs import tokenizer as tokenizer_lib
from dsi_jax.models import layer_stacking
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import checkpoints
from tests.fixtures import t5x_checkpoint
from tests.fixtures.small_corpus import write_corpus

T5 = T5Config(
    vocab_size=512,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("lent") / "corpus_of_lenders")


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    """A random T5 v1.0 in Hugging Face's format, with a SentencePiece model beside it."""
    directory = tmp_path_factory.mktemp("lender")
    model = DSIModel(DSIConfig(T5, T5.vocab_size, docid_length=2, docid_space="text"))
    tokens = np.ones((1, 2), np.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens}, "decoder": {"inputs": tokens}}
    params = model.init(jax.random.key(1), batch, deterministic=True)["params"]
    hf_t5.save_t5(directory, T5, jax.tree.map(np.asarray, nn.meta.unbox(params)))
    texts = load.load_corpus(str(corpus)).document_texts()
    tokenizer = tokenizer_lib.train_sentencepiece([*texts, "0 1 2 3 4 5 6 7 8 9"], vocab_size=400)
    (directory / "spiece.model").write_bytes(tokenizer.model)
    return directory


def arguments(corpus, model_dir, *more):
    return [
        "--gin_file=runs/finetune.gin",
        "--gin_file=docids/naive.gin",
        f"--gin.CORPUS={corpus}",
        f"--gin.MODEL_DIR={model_dir}",
        "--gin.BATCH_SIZE=8",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 8}",
        "--gin.train_config.TrainConfig.evaluation=None",
        *more,
    ]


def test_finetuning_starts_from_the_lenders_weights(corpus, pretrained, tmp_path):
    # One step at a rate of zero: what is saved is what was borrowed.
    options = [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1"]
    options.append("--gin.LEARNING_RATE=0.0")
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 0
    saved = checkpoints.load_params(tmp_path / "model" / "checkpoint_1")
    t5, lent = hf_t5.load_t5(pretrained)
    assert t5 == T5
    for part in ("encoder", "token_embedder"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            saved[part],
            lent[part],
        )
    tokenizer = tokenizer_lib.SentencePieceTokenizer.from_file(pretrained / "spiece.model")
    table = NaiveString().build(DocumentColumns([f"d{i}" for i in range(60)]))
    rows = NaiveString.text_tokens(table, tokenizer).tolist()
    assert rows[:2] == [0, 1]
    assert len(set(rows)) == 12  # every digit has a row of its own
    np.testing.assert_allclose(
        saved["docid_embedder"]["embedding"],
        np.asarray(lent["token_embedder"]["embedding"])[rows],
        rtol=1e-5,
        atol=1e-6,
    )


def test_text_space_borrows_every_token_and_adds_its_own(corpus, pretrained, tmp_path):
    options = [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1"]
    options += ["--gin.LEARNING_RATE=0.0", "--gin.DOCID_SPACE=text", "--gin_file=docids/atomic.gin"]
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 0
    saved = checkpoints.load_params(tmp_path / "model" / "checkpoint_1")
    _, lent = hf_t5.load_t5(pretrained)
    tokens = np.asarray(saved["token_embedder"]["embedding"])
    assert tokens.shape == (T5.vocab_size + 60, 16)
    np.testing.assert_allclose(
        tokens[: T5.vocab_size], lent["token_embedder"]["embedding"], rtol=1e-5, atol=1e-6
    )
    assert np.ptp(tokens[T5.vocab_size :]) > 1


def test_checkpoint_lends_all_but_the_docids_of_another_table(corpus, pretrained, tmp_path):
    options = [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1"]
    assert train.main(arguments(corpus, tmp_path / "first", *options)) == 0
    # Once begun, a run has no need of its lender's weights.
    options = ["--gin.INITIAL_CHECKPOINT_PATH=nowhere", f"--gin.VOCABULARY={pretrained}"]
    options.append("--gin.TRAIN_STEPS=2")
    assert train.main(arguments(corpus, tmp_path / "first", *options)) == 0
    options = [
        f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 'first'}",
        "--gin_file=docids/atomic.gin",
        "--gin.TRAIN_STEPS=1",
        "--gin.LEARNING_RATE=0.0",
    ]
    assert train.main(arguments(corpus, tmp_path / "second", *options)) == 0
    first = checkpoints.load_params(tmp_path / "first" / "checkpoint_2")
    second = checkpoints.load_params(tmp_path / "second" / "checkpoint_1")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        first["encoder"],
        second["encoder"],
    )
    assert second["docid_embedder"]["embedding"].shape == (62, 16)


def test_layers_are_stacked_and_unstacked_as_the_run_asks(corpus, pretrained, tmp_path):
    def run(name, origin, scan_layers):
        options = [f"--gin.INITIAL_CHECKPOINT_PATH={origin}", "--gin.TRAIN_STEPS=1"]
        options += [f"--gin.SCAN_LAYERS={scan_layers}", "--gin.LEARNING_RATE=0.0"]
        assert train.main(arguments(corpus, tmp_path / name, *options)) == 0
        return checkpoints.load_params(tmp_path / name / "checkpoint_1")

    scanned = run("scanned", pretrained, True)
    assert scanned["encoder"]["encoder"]["mlp"]["wo"]["kernel"].shape == (32, 1, 16)
    apart = run("apart", tmp_path / "scanned", False)
    again = run("again", tmp_path / "apart", True)

    def assert_close(found, expected):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
        )

    assert_close(apart, layer_stacking.unstack_layers(scanned))
    assert_close(again, scanned)
    assert_close(apart["encoder"], hf_t5.load_t5(pretrained)[1]["encoder"])


@pytest.mark.parametrize("scan", [False, True], ids=["one_by_one", "scanned"])
def test_finetuning_starts_from_a_checkpoint_of_t5x(corpus, pretrained, tmp_path, scan):
    # v1.1 of t5x/examples/t5, or what scalable_t5 writes: stacked, with a position bias a layer.
    config = dataclasses.replace(
        T5,
        mlp_activations=("gelu", "linear"),
        tie_embeddings=False,
        relpos_per_layer=scan,
        num_decoder_layers=2,
    )
    rng = np.random.default_rng(0)
    flat = {
        path: rng.standard_normal(shape).astype(np.float32)
        for path, shape in docid_vocabulary.parameter_shapes(config).items()
    }
    target = t5x_checkpoint.scalable_target(flat, T5.num_heads, scan=True) if scan else flat
    t5x_checkpoint.write_checkpoint(tmp_path / "t5x" / "checkpoint_9", target, chunk=300)
    options = [
        f"--gin.INITIAL_CHECKPOINT_PATH={tmp_path / 't5x'}",
        f"--gin.VOCABULARY={pretrained / 'spiece.model'}",
        "--gin.TRAIN_STEPS=1",
        "--gin.LEARNING_RATE=0.0",
    ]
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 0
    saved = checkpoints.load_params(tmp_path / "model" / "checkpoint_1")
    metadata = checkpoints.load_metadata(tmp_path / "model" / "checkpoint_1")
    found = T5Config.from_json(metadata["model"]["t5"])
    assert found == dataclasses.replace(config, scan_layers=scan)
    saved = traverse_util.flatten_dict(layer_stacking.unstack_layers(saved), sep="/")
    for path, value in flat.items():
        if path != "decoder/logits_dense/kernel":
            np.testing.assert_allclose(saved[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    tokenizer = tokenizer_lib.SentencePieceTokenizer.from_file(pretrained / "spiece.model")
    table = NaiveString().build(DocumentColumns([f"d{i}" for i in range(60)]))
    rows = NaiveString.text_tokens(table, tokenizer)
    np.testing.assert_allclose(
        saved["decoder/logits_dense/kernel"],
        flat["decoder/logits_dense/kernel"][:, rows],
        rtol=1e-5,
        atol=1e-6,
    )


def test_t5x_lender_needs_a_vocabulary(corpus, tmp_path, capsys):
    target = {
        path: np.ones(shape, "f4") for path, shape in docid_vocabulary.parameter_shapes(T5).items()
    }
    directory = t5x_checkpoint.write_checkpoint(tmp_path / "checkpoint_9", target, chunk=300)
    options = [f"--gin.INITIAL_CHECKPOINT_PATH={directory}", "--gin.TRAIN_STEPS=1"]
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 2
    assert "VOCABULARY" in capsys.readouterr().err
    (directory / "checkpoint").write_bytes(b"damaged")
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 2
    assert "no index of a T5X checkpoint, or damaged" in capsys.readouterr().err


def test_vocabulary_too_large_for_the_lender_is_an_error(corpus, pretrained, tmp_path, capsys):
    options = [f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1"]
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(4000)]
    big = tokenizer_lib.train_sentencepiece([*words, *words], vocab_size=900)
    assert big.vocab_size > T5.vocab_size
    (tmp_path / "big.model").write_bytes(big.model)
    options.append(f"--gin.VOCABULARY={tmp_path / 'big.model'}")
    assert train.main(arguments(corpus, tmp_path / "model", *options)) == 2
    assert f"{big.vocab_size} tokens; the embedding of" in capsys.readouterr().err


def dual_arguments(corpus, model_dir, pretrained, *more):
    options = [option for option in arguments(corpus, model_dir) if "docids/" not in option]
    options = [*options, f"--gin.INITIAL_CHECKPOINT_PATH={pretrained}", "--gin.TRAIN_STEPS=1"]
    return [*options, "--gin.LEARNING_RATE=0.0", *more]


def assert_equal_encoders(saved, lent):
    for part in ("encoder", "token_embedder"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            saved[part],
            lent[part],
        )


def test_dual_encoder_borrows_the_encoder(corpus, pretrained, tmp_path):
    as_dual = "--gin_file=methods/dual_encoder.gin"
    # The mixture of this corpus is registered with the rates of an index in this process.
    options = [as_dual, "--gin.INDEXING_RATIO=None", "--gin.EMBEDDING_DIM=4"]
    two = [*options, "--gin.SHARED=False"]
    assert train.main(dual_arguments(corpus, tmp_path / "first", pretrained, *two)) == 0
    first = checkpoints.load_params(tmp_path / "first" / "checkpoint_1")
    _, lent = hf_t5.load_t5(pretrained)
    assert_equal_encoders(first, lent)
    assert_equal_encoders(first["document"], lent)
    assert not np.allclose(first["projection"]["kernel"], first["document"]["projection"]["kernel"])
    # From a dual encoder of ours to another all is borrowed, to a DSI the encoder.
    ours = tmp_path / "first"
    assert train.main(dual_arguments(corpus, tmp_path / "second", ours, *two)) == 0
    second = checkpoints.load_params(tmp_path / "second" / "checkpoint_1")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, second)
    as_dsi = "--gin_file=docids/naive.gin"
    assert train.main(dual_arguments(corpus, tmp_path / "third", ours, as_dsi)) == 0
    third = checkpoints.load_params(tmp_path / "third" / "checkpoint_1")
    assert_equal_encoders(third, lent)
    # And back, to one tower.
    dsi = tmp_path / "third"
    assert train.main(dual_arguments(corpus, tmp_path / "fourth", dsi, *options)) == 0
    assert_equal_encoders(checkpoints.load_params(tmp_path / "fourth" / "checkpoint_1"), lent)
