"""Image search as a user runs it: train, search, eval, resuming; pretrained towers; bad input."""

import json
import re
import shutil
import signal

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from dsi_jax import build_docids, search, train
from dsi_jax import eval as eval_command
from dsi_jax.convert import hf_t5
from dsi_jax.convert.hf_clip import load_clip
from dsi_jax.convert.position_embeddings import resize_positions
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.table import DocidTable
from dsi_jax.evaluation.predictor import Predictor
from dsi_jax.inputs import image_files
from dsi_jax.methods.trained_embedders import TrainedTowers
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.encoders.clip import ClipVisionTransformer
from dsi_jax.models.encoders.clip_config import ClipVisionConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.retriever import Retriever
from dsi_jax.training import checkpoints
from tests.fixtures.small_images import NUM_IMAGES, write_clip_tokenizer, write_pictures

T5 = T5Config(
    vocab_size=32,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
TINY = """
from __gin__ import dynamic_registration

from dsi_jax.models.encoders import clip_config
from dsi_jax.models import t5

MODEL = @t5.T5Config()
TEXT_ENCODER = @clip_config.ClipTextConfig()
IMAGE_ENCODER = @clip_config.ClipVisionConfig()
t5.T5Config:
  vocab_size = 8
  emb_dim = 16
  num_heads = 2
  head_dim = 8
  mlp_dim = 16
  num_encoder_layers = 1
  num_decoder_layers = 1
clip_config.ClipTextConfig:
  hidden_size = 16
  intermediate_size = 16
  num_hidden_layers = 1
  num_attention_heads = 2
  vocab_size = 8
clip_config.ClipVisionConfig:
  hidden_size = 16
  intermediate_size = 16
  num_hidden_layers = 1
  num_attention_heads = 2
  image_size = 16
  patch_size = 8
"""
STEPS = 6
UNEVALUATED = "--gin.train_config.TrainConfig.evaluation=None"


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """What one run compiles, in a hurry, serves the next one."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in options}
    jax.config.update("jax_disable_most_optimizations", True)
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("image_command")
    (directory / "tiny.gin").write_text(TINY)
    write_pictures(directory / "pictures")
    return directory


def arguments(base, model_dir, *more, file="experiments/own_images.gin") -> list[str]:
    return [
        f"--gin_file={file}",
        *(["--gin_file=" + str(base / "tiny.gin")] if file.startswith("experiments") else []),
        f"--gin.IMAGES={base / 'pictures'}",
        f"--gin.CAPTIONS={base / 'pictures.csv'}",
        f"--gin.MODEL_DIR={model_dir}",
        f"--gin.TRAIN_STEPS={STEPS}",
        "--gin.CHECKPOINT_PERIOD=3",
        f"--gin.EVAL_PERIOD={STEPS}",
        "--gin.EVAL_STEPS=1",
        "--gin.BATCH_SIZE=8",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
        "--gin.WARMUP_STEPS=2",
        "--gin.BEAM_SIZE=10",
        "--gin.config.Evaluation.batch_size=8",
        *more,
    ]


def own(base, model_dir, *more) -> list[str]:
    return arguments(base, model_dir, "--gin.VOCABULARY=bytes", *more)


@pytest.fixture(scope="module")
def trained(base):
    """MODEL_DIR of a run with its dense baseline."""
    assert train.main(own(base, base / "model")) == 0
    return base / "model"


def flat_params(model_dir, step: int = STEPS) -> dict[str, np.ndarray]:
    params = checkpoints.load_params(model_dir / f"checkpoint_{step}")
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def test_report_holds_both_tasks_and_the_dense_baseline(trained):
    report = json.loads((trained / "report.json").read_text())
    targets = {"pictures_retrieval_test", "pictures_images_test"}
    assert report["test"].keys() == targets == report["free"].keys()
    assert report["beside"].keys() == {"dense"}
    dense = report["beside"]["dense"]
    assert dense["train_seconds"] > 0 and dense["figures"].keys() == targets
    for figures in (report["test"], dense["figures"]):
        for target in targets:
            assert figures[target]["queries"] == NUM_IMAGES
            assert 0 <= figures[target]["hits@1"] <= figures[target]["hits@10"] <= 1
    text = (trained / "report.txt").read_text()
    for word in (*targets, "DSI", "dense", "BM25", "contact sheet", "example searches"):
        assert word in text, word
    with Image.open(trained / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 100
    assert (trained / "baseline" / f"checkpoint_{STEPS}" / "metadata").exists()


def evaluate(base, model_dir, output) -> int:
    return eval_command.main(
        [
            "--gin_file=runs/eval.gin",
            f"--gin.MODEL_DIR={model_dir}",
            "--gin.CORPUS=None",
            f"--gin.IMAGES={base / 'pictures'}",
            f"--gin.CAPTIONS={base / 'pictures.csv'}",
            "--gin.BEAM_SIZE=10",
            f"--gin.EVAL_OUTPUT_DIR={output}",
        ]
    )


@pytest.mark.parametrize("directory", ["", "baseline"])
def test_search_by_words_and_by_images(base, trained, directory, tmp_path, capsys):
    if directory == "baseline":  # its embeddings of the images are made by an evaluation
        message = "the images are to be embedded, and a MODEL_DIR does not hold them; expected the"
        refuses(capsys, message, [str(trained / directory), "a red disc"], search.main)
        assert evaluate(base, trained / directory, tmp_path) == 0
        capsys.readouterr()
    picture = base / "pictures" / "red_disc.png"
    options = ["--image", str(picture), "--json", "-k", "3"]
    assert search.main([str(trained / directory), *options, "a red disc"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["query"] for answer in answers] == [str(picture), "a red disc"]
    for answer in answers:
        keys = [hit["key"] for hit in answer["hits"]]
        assert len(set(keys)) == 3 and all((base / "pictures" / key).exists() for key in keys)
    assert search.main([str(trained / directory), "--image", str(base / "tiny.gin")]) == 2
    assert re.search(r"tiny\.gin cannot be decoded", capsys.readouterr().err)


def test_eval_repeats_the_figures_of_training(base, trained, tmp_path):
    assert evaluate(base, trained, tmp_path) == 0
    report = json.loads((trained / "report.json").read_text())
    for target, expected in report["test"].items():
        lines = (tmp_path / f"{target}-metrics.jsonl").read_text().splitlines()
        found = json.loads(lines[-1])
        assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_resumed_run_ends_with_the_same_bits(base, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / f"checkpoint_{STEPS}")
    assert train.main(own(base, tmp_path / "model", UNEVALUATED)) == 0
    found = flat_params(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, found, flat_params(trained))
    before = flat_params(trained, 3)
    assert any((before[path] != value).any() for path, value in found.items())


# Pretrained towers


@pytest.fixture(scope="module")
def clip(base):
    """A CLIP that transformers' PyTorch class saved, with a tokenizer; its widths all differ."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity` (torch)")
    from transformers import CLIPConfig, CLIPModel

    directory = base / "clip"
    directory.mkdir()
    vocab_size = write_clip_tokenizer(directory)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "hidden_size": 24,
        "intermediate_size": 16,
        "vocab_size": vocab_size,
        "max_position_embeddings": 20,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
    }
    vision = {"hidden_size": 32, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = CLIPConfig(text | layers, vision | layers, projection_dim=20)
    CLIPModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text_lender(base):
    """A random T5 in Hugging Face's format."""
    model = DSIModel(DSIConfig(T5, T5.vocab_size, docid_length=2, docid_space="text"))
    tokens = np.ones((1, 2), np.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens}, "decoder": {"inputs": tokens}}
    params = jax.jit(lambda: model.init(jax.random.key(1), batch, deterministic=True))()["params"]
    directory = base / "t5"
    hf_t5.save_t5(directory, T5, jax.tree.map(np.asarray, nn.meta.unbox(params)))
    return directory


def finetune(base, model_dir, *more) -> list[str]:
    return arguments(
        base,
        model_dir,
        "--gin_file=optimizers/adafactor.gin",
        "--gin_file=docids/atomic.gin",
        "--gin.LEARNING_RATE=0.0",
        "--gin.TRAIN_STEPS=1",
        "--gin.EVAL_PERIOD=1",
        "--gin.config.Evaluation.unconstrained=False",
        *more,
        file="runs/finetune_images.gin",
    )


@pytest.mark.slow
def test_towers_of_a_clip_and_the_decoder_of_a_t5(base, clip, text_lender, tmp_path, monkeypatch):
    """At a rate of zero what is saved is what was borrowed."""
    options = [f"--gin.CLIP_CHECKPOINT={clip}", f"--gin.INITIAL_CHECKPOINT_PATH={text_lender}"]
    command = finetune(base, tmp_path, *options, "--gin.IMAGE_SIZE=16")
    rank = Predictor.rank

    def rank_when_told_to_end(*args):
        signal.raise_signal(signal.SIGTERM)
        return rank(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "rank", rank_when_told_to_end)
        assert train.main(command) == 143
    assert (tmp_path / "baseline" / "zero_shot").exists()  # whose ranking was the first
    assert not (tmp_path / "baseline" / "checkpoint_0").exists()
    assert train.main(command) == 0
    found = flat_params(tmp_path, 1)
    lent = traverse_util.flatten_dict(load_clip(clip)[1], sep="/")
    positions = "vision_model/embeddings/position_embedding/embedding"
    lent[positions] = resize_positions(lent[positions], 2)
    for path, value in lent.items():
        part = path.partition("_")[0]
        tower = {"text": "text_tower", "vision": "image_tower"}.get(part)
        if tower is not None and not path.startswith("text_projection"):
            np.testing.assert_allclose(found[f"{tower}/{path}"], value, atol=1e-7, err_msg=path)
    _, t5 = hf_t5.load_t5(text_lender)
    decoder = traverse_util.flatten_dict(t5["decoder"], sep="/")
    borrowed = [path for path in decoder if path != "logits_dense/kernel"]
    assert len(borrowed) > 5
    for path in borrowed:
        np.testing.assert_allclose(found[f"decoder/{path}"], decoder[path], atol=1e-7, err_msg=path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["beside"].keys() == {"dense, zero-shot", "dense"}
    # At a rate of zero the trained baseline is the pretrained one.
    zero_shot, dense = (report["beside"][name]["figures"] for name in report["beside"])
    assert zero_shot == dense and zero_shot.keys() == report["test"].keys()
    assert "dense, zero-shot" in (tmp_path / "report.txt").read_text()
    embedding = flat_params(tmp_path / "baseline", 1)
    for path in ("text_projection/kernel", "visual_projection/kernel", "logit_scale"):
        np.testing.assert_allclose(embedding[f"clip/{path}"], lent[path], atol=1e-7)


def test_towers_of_an_own_baseline(base, trained, tmp_path):
    options = [f"--gin.CLIP_CHECKPOINT={trained / 'baseline'}", UNEVALUATED]
    assert train.main(finetune(base, tmp_path, *options)) == 0
    found, lent = flat_params(tmp_path, 1), flat_params(trained / "baseline")
    checked = 0
    for path, value in lent.items():
        for part, tower in (("text_model", "text_tower"), ("vision_model", "image_tower")):
            if path.startswith(f"clip/{part}/"):
                place = path.replace("clip", tower, 1)
                np.testing.assert_allclose(found[place], value, atol=1e-7, err_msg=path)
                checked += 1
    assert checked > 30


# Docids over the embeddings of contrastive towers

TOWERS = """
from __gin__ import dynamic_registration

from dsi_jax.docids.kinds import semantic
from dsi_jax.methods import trained_embedders

semantic.Semantic.embedder = @trained_embedders.TrainedTowers()
semantic.Semantic.clusters = 3
semantic.Semantic.leaf_size = 2
trained_embedders.TrainedTowers.directory = '{directory}'
"""


def docids_of_towers(base, directory, model_dir, *more) -> list[str]:
    file = base / f"towers_of_{directory.name}.gin"
    file.write_text(TOWERS.format(directory=directory))
    files = ["--gin_file=docids/semantic.gin", f"--gin_file={file}"]
    return own(base, model_dir, *files, "--gin.BASELINE=None", *more)


def embedded_by_hand(directory, sources) -> np.ndarray:
    """The pooled state of each image, projected and normalised, by the modules of the towers."""
    metadata = checkpoints.load_metadata(directory)
    config = ClipVisionConfig.from_json(metadata["model"]["image"])
    params = checkpoints.load_params(directory)["clip"]
    pixels = np.stack([image_files.read(source, config.image_size) for source in sources])
    pixels = (pixels / 255 - np.array(config.image_mean)) / np.array(config.image_std)
    pooled = ClipVisionTransformer(config).apply({"params": params["vision_model"]}, pixels)[1]
    embedded = np.asarray(pooled) @ params["visual_projection"]["kernel"]
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_embeddings_are_those_of_the_vision_tower(base, trained, batch_size):
    directory = trained / "baseline"
    pictures = sorted((base / "pictures").iterdir())
    found = TrainedTowers(str(directory), batch_size).embed_images(pictures)
    assert found.dtype == np.float32 and len(found) == NUM_IMAGES
    expected = embedded_by_hand(directory / f"checkpoint_{STEPS}", pictures)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 1e-3  # which the image decides


def test_docids_command_over_the_towers_of_a_run(base, trained, tmp_path, capsys, caplog):
    directory = trained / "baseline"
    caplog.set_level("INFO", "dsi_jax")
    assert build_docids.main(docids_of_towers(base, directory, tmp_path / "m")) == 0
    assert "was trained on the corpus" not in caplog.text
    table = DocidTable.load(tmp_path / "m" / "docids")
    checkpoint = directory / f"checkpoint_{STEPS}"
    corpus = {"corpus": "pictures", "corpus_hash": table.corpus_hash}
    assert table.parameters["embedder"] == corpus | {
        "name": "contrastive",
        "model": "baseline",
        "checkpoint": checkpoint.name,
        "fingerprint": checkpoints.fingerprint(checkpoint),
    }
    embeddings = embedded_by_hand(checkpoint, [base / "pictures" / key for key in table.keys])
    builder = Semantic(clusters=3, leaf_size=2, embedder=None)
    expected = builder.build(
        DocumentColumns(table.keys, table.corpus_hash, embeddings=embeddings), seed=42
    )
    np.testing.assert_array_equal(table.tokens, expected.tokens)
    # Other pictures are as good; the log says that they are others.
    pictures, _ = write_pictures(tmp_path / "fewer")
    (pictures / "red_disc.png").unlink()
    other = [f"--gin.IMAGES={pictures}", "--gin.CAPTIONS=None"]
    assert build_docids.main(docids_of_towers(base, directory, tmp_path / "n", *other)) == 0
    assert "was trained on the corpus 'pictures'; the documents are those of 'fewer'" in caplog.text
    # A table of other weights is not taken for this one's.
    earlier = docids_of_towers(base, directory / "checkpoint_3", tmp_path / "m")
    refuses(capsys, "was built with embedder .*checkpoint_6", earlier, build_docids.main)


def test_towers_that_cannot_embed_are_named(base, trained, tmp_path, capsys):
    for directory, pattern in (
        (
            tmp_path / "none",
            r"TrainedTowers\.directory .*none does not exist; expected the MODEL_DIR",
        ),
        (base / "pictures", "pictures has no whole checkpoint"),
        (trained, f"checkpoint_{STEPS} holds a dsi; expected a contrastive"),
    ):
        arguments = docids_of_towers(base, directory, tmp_path / "m")
        refuses(capsys, pattern, arguments, build_docids.main)
        assert not (tmp_path / "m" / "docids").exists()
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        TrainedTowers("anywhere", batch_size=0)
    with pytest.raises(ValueError, match="no documents to embed"):
        TrainedTowers(str(trained / "baseline")).embed_images([])


# Bad input


def refuses(capsys, pattern: str, argv: list[str], command=train.main) -> None:
    """Runs a command and expects one line of error that matches."""
    capsys.readouterr()
    assert command(argv) == 2
    lines = [s for s in capsys.readouterr().err.splitlines() if s.startswith("dsi-jax: error: ")]
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--gin.IMAGES=/nowhere"], "no image corpus '/nowhere', .*expected a directory of images"),
        (["--gin.CAPTIONS=/none.csv"], r"/none\.csv does not exist"),
        (
            ["--gin.IMAGE_ENCODER=None"],
            "tasks have images, and the model has no encoder of images",
        ),
        (
            ["--gin.IMAGES=None", "--gin.CORPUS=demo_text"],
            r"CAPTIONS is '.*pictures\.csv', and documents are texts; expected None",
        ),
        (
            ["--gin.INDEXING_STRATEGY=bidirectional"],
            "INDEXING_STRATEGY is 'bidirectional', and documents are images; expected 'inputs2tar",
        ),
        (["--gin.PROTOCOL=mine"], r"protocol is 'mine'; expected one of \('heldout_caption'"),
        (["--gin.ENCODER_MEMORY=cls"], r"ENCODER_MEMORY is 'cls'; expected one of \('pooled'"),
        (
            ["--gin.TASK_FEATURE_LENGTHS={'inputs': 100}"],
            "TASK_FEATURE_LENGTHS keeps 100 tokens; the tower of texts reads 77",
        ),
        (["--gin.CLIP_CHECKPOINT=/no/clip"], "/no/clip is (no|neither a) directory"),
    ],
)
def test_what_a_run_cannot_use_is_named(base, tmp_path, capsys, options, pattern):
    refuses(capsys, pattern, own(base, tmp_path / "m", "--dry_run", *options))
    assert not (tmp_path / "m").exists()


def test_unreadable_image_is_an_error_or_counted(base, tmp_path, capsys, caplog):
    pictures, captions = write_pictures(tmp_path / "one_empty")
    (pictures / "red_disc.png").write_bytes(b"")
    options = [f"--gin.IMAGES={pictures}", f"--gin.CAPTIONS={captions}", "--dry_run"]
    refuses(capsys, r"red_disc\.png is empty", own(base, tmp_path / "m", *options))
    caplog.set_level("INFO", "dsi_jax")
    options.append("--gin.SKIP_UNREADABLE=True")
    assert train.main(own(base, tmp_path / "m", *options)) == 0
    assert re.search(rf"{NUM_IMAGES - 1} documents.*left out: .*1 unreadable images", caplog.text)


def test_vocabulary_is_that_of_the_clip(base, clip, tmp_path, capsys):
    options = [f"--gin.CLIP_CHECKPOINT={clip}", "--gin.VOCABULARY=bytes", "--dry_run"]
    refuses(
        capsys,
        r"vocabulary of this run is 259, that of CLIP_CHECKPOINT .*clip is 514: expected",
        finetune(base, tmp_path / "m", *options),
    )


def test_images_alone_are_not_searched_by_words(base, tmp_path, capsys):
    """Images which the device resizes: search, too, keeps to that."""
    pictures, _ = write_pictures(tmp_path / "wordless")
    options = [f"--gin.IMAGES={pictures}", "--gin.CAPTIONS=None", "--gin.TRAIN_STEPS=1"]
    small = own(base, tmp_path / "m", *options, "--gin.IMAGE_CANVAS=31", "--dry_run")
    refuses(capsys, "IMAGE_CANVAS is 31; expected at least twice the 16 pixels of an image", small)
    options.append("--gin.IMAGE_CANVAS=40")
    assert train.main(own(base, tmp_path / "m", *options, UNEVALUATED)) == 0
    inputs = Retriever.load(tmp_path / "m").collection.inputs
    assert inputs.shapes({"image": 1})["image"]["pixels"].shape == (1, 40, 40, 3)
    assert search.main([str(tmp_path / "m"), "--image", str(pictures / "red_disc.png")]) == 0
    message = "the index was not trained with texts and cannot read them"
    refuses(capsys, message, [str(tmp_path / "m"), "a red disc"], search.main)
