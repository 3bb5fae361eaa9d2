"""The experiments on Natural Questions and of the report: what they configure, what they aim at."""

import re

import pytest

import gin
from dsi_jax.cli import gin_utils
from dsi_jax.data.readers.natural_questions import specs
from dsi_jax.models import t5_sizes
from dsi_jax.prepare import train_config
from dsi_jax.prepare.train_config import TrainConfig
from dsi_jax.training import optimizers
from dsi_jax.training.partitioning import MeshConfig
from tests.cli.test_gin import GIN, clean, evaluated, needed_macros, parse

_ = clean  # the fixture that leaves no configuration behind

# Tay et al. 2022, table 2: Hits@1 and Hits@10 on NQ10K, NQ100K and NQ320K.
PUBLISHED = """
atomic   base   13.0 38.4  23.8 58.6  20.7 40.9
atomic   large  31.3 59.4  17.1 52.3  11.6 37.6
atomic   xl     40.1 76.9  19.0 55.3  28.1 61.9
atomic   xxl    39.4 77.0  25.3 67.9  24.0 55.1
naive    base   28.1 48.0  18.7 44.6   6.7 21.0
naive    large  34.7 60.5  21.2 50.7  13.3 33.6
naive    xl     44.7 66.4  24.0 55.1  16.7 58.1
naive    xxl    46.7 77.9  27.5 62.4  23.8 55.9
semantic base   33.9 57.3  19.0 44.9  27.4 56.6
semantic large  37.5 65.1  20.4 50.2  35.6 62.6
semantic xl     41.9 67.1  22.4 52.2  39.1 66.8
semantic xxl    48.5 72.1  26.9 59.5  40.4 70.3
"""
DUAL_ENCODERS = """
base  16.2 48.6 18.7 55.2 20.5 58.3
large 18.8 55.7 22.3 60.5 22.4 63.3
xl    20.8 59.6 23.3 63.2 23.9 65.8
xxl   22.1 61.6 24.1 64.5 24.3 67.3
"""
# Table 6, Hits@1 on NQ320K, peak, trough, mean; table 5, documents memorised.
FORGETTING = """
atomic   20.7/2.6/11.7 11.6/2.5/7.0 28.1/2.7/15.4 24.0/4.5/14.2
naive    6.7/1.5/4.1 13.3/2.6/8.0 16.7/1.2/8.9 23.8/1.3/12.6
semantic 27.4/12.0/19.7 35.6/10.2/22.9 39.1/10.6/24.9 40.4/12.2/26.3
"""
MEMORISED = """
atomic   85.4 84.9 88.4 92.7
naive    76.3 92.1 92.2 91.9
semantic 87.6 91.5 92.6 92.0
"""
# The mesh that fits each size; base and large fit one device.
MESHES = {"xl": ("fsdp", MeshConfig(1, -1)), "xxl": ("mixed", MeshConfig(1, -1, 2))}
SIZES = ("base", "large", "xl", "xxl")
CORPORA = ("nq10k", "nq100k", "nq320k")
EXPERIMENTS = [
    (corpus, size, kind, *map(float, figures[2 * i : 2 * i + 2]))
    for kind, size, *figures in (line.split() for line in PUBLISHED.strip().splitlines())
    for i, corpus in enumerate(CORPORA)
]
TITLE = ["nq320k_title_atomic", "nq320k_title_naive", "nq320k_title_semantic"]
REFERENCE = "nq320k_title_reference_random"
SHARED = ["common", "title", "reference", "atomic", "naive", "semantic"]


def test_every_file_is_one_of_these():
    names = [f"{corpus}_{size}_{kind}" for corpus, size, kind, *_ in EXPERIMENTS]
    assert len(names) == 36
    files = {path.stem for path in (GIN / "experiments" / "nq").glob("*.gin")}
    assert files == {*names, *TITLE, REFERENCE, *SHARED, "dual_encoder"}


def header(file: str) -> str:
    """The comment at the head of a file, as one line."""
    text = (GIN / file).read_text()
    return " ".join(line.lstrip("# ") for line in text.split("\ninclude ")[0].splitlines())


def configured(file: str) -> TrainConfig:
    parse(file, **needed_macros(file))
    config = evaluated(gin.query_parameter("dsi_jax.jobs.trainer.train.config"))
    train_config.check(config)
    return config


def test_dual_encoder_of_the_paper():
    file = "experiments/nq/dual_encoder.gin"
    config = configured(file)
    assert config.method.kind == "dual_encoder"
    assert config.schedule.train_steps == 10_000
    assert config.data.vocabulary == config.initialization.checkpoint == "lender"
    for size, *figures in (line.split() for line in DUAL_ENCODERS.strip().splitlines()):
        first, second, third = zip(figures[::2], figures[1::2], strict=True)
        line = "   ".join(" / ".join(pair) for pair in (first, second, third))
        assert re.search(rf"{size} +{line}", header(file))


@pytest.mark.parametrize(("corpus", "size", "kind", "hits_1", "hits_10"), EXPERIMENTS)
def test_experiment_of_the_paper(corpus, size, kind, hits_1, hits_10):
    file = f"experiments/nq/{corpus}_{size}_{kind}.gin"
    config = configured(file)
    assert config.data.corpus == corpus
    assert config.model.architecture == getattr(t5_sizes, f"t5_1_1_{size}")()
    assert config.data.docids.kind == kind
    assert getattr(config.data.docids, "id_space", 320_000) == 320_000
    assert (config.schedule.batch_size, config.schedule.train_steps) == (128, 1_000_000)
    assert config.task_feature_lengths == {"inputs": 32}
    assert (config.data.indexing_ratio, config.data.chunk_ratio) == (32, 0)
    assert config.data.docid_space == "text"
    assert config.evaluation.constraint == "free" and config.evaluation.beam_size >= 10
    assert isinstance(config.optimizer, optimizers.Adafactor)
    schedule = config.optimizer.learning_rate.build(config.schedule.train_steps)
    assert schedule(10_000) == schedule(1_000_000) == pytest.approx(1e-3)
    text = header(file)
    assert f"Hits@1 {hits_1}, Hits@10 {hits_10}" in text and "table 2" in text
    assert f"{corpus.upper()}, T5 {size}, {kind}" in text
    assert ("DOCUMENT_ENCODER" in text) == (kind == "semantic")
    mesh_file, mesh = MESHES.get(size, (None, MeshConfig()))
    assert config.mesh == mesh
    assert config.model.scan_layers == (True if mesh_file else None)
    assert mesh_file is None or f"meshes/{mesh_file}.gin splits the state" in text
    if corpus == "nq320k":
        column = 1 + SIZES.index(size)
        peak, trough, mean = cell(FORGETTING, kind, column).split("/")
        assert float(peak) == hits_1
        assert f"Hits@1 {peak} at its peaks, {trough} in its troughs, {mean} on average" in text
        assert f"{cell(MEMORISED, kind, column)}% of the validation documents memorised" in text


def cell(table: str, kind: str, column: int) -> str:
    (row,) = (line.split() for line in table.strip().splitlines() if line.startswith(kind))
    return row[column]


def test_semantic_docids_are_the_papers():
    docids = configured("experiments/nq/nq10k_base_semantic.gin").data.docids
    assert (docids.clusters, docids.leaf_size) == (10, 100)
    assert (
        docids.embedder.directory
        == needed_macros("experiments/nq/semantic.gin")["DOCUMENT_ENCODER"]
    )


@pytest.mark.parametrize("name", TITLE)
def test_dsi_on_documents_unique_by_title(name):
    config = configured(f"experiments/nq/{name}.gin")
    assert config.data.corpus == "nq320k_title"
    assert name.endswith(config.data.docids.kind)
    assert (config.evaluation.constraint, config.evaluation.beam_size) == ("trie", 100)


def test_single_gpu_reference():
    config = configured(f"experiments/nq/{REFERENCE}.gin")
    assert config.data.corpus == "nq320k_title"
    assert config.data.indexing_ratio == 0  # queries alone
    assert config.data.docids.length == 16 and config.data.docids.clusters == 512
    assert (config.schedule.train_steps, config.schedule.batch_size) == (64_000, 256)
    assert config.model.architecture == t5_sizes.t5_1_1_base()
    method = config.method
    assert (method.label_smoothing, method.z_loss, config.model.dropout_rate) == (0.1, 0, 0.1)
    optimizer = config.optimizer
    assert (optimizer.b2, optimizer.weight_decay, optimizer.max_grad_norm) == (0.95, 0.01, 1.0)
    schedule = optimizer.learning_rate.build(64_000)
    assert [schedule(t) for t in (0, 32_000, 64_000)] == pytest.approx([3e-3, 1.5e-3, 0], abs=1e-7)


@pytest.mark.parametrize("kind", ["atomic", "naive", "semantic"])
def test_run_of_the_report(kind):
    config = configured(f"experiments/report_1k_{kind}.gin")
    assert (config.data.corpus, config.data.docids.kind) == ("nq1k", kind)
    spec = specs.SPECS["nq1k"]
    documents = spec.train + spec.validation
    indexed_a_step = config.schedule.batch_size * config.data.indexing_ratio / (1 + 32)
    epochs = config.schedule.train_steps * indexed_a_step / documents
    assert epochs == pytest.approx(1_000, abs=0.2)
    hundred_n = re.search(r"TRAIN_STEPS=(\d+)", (GIN / "experiments/report_1k.gin").read_text())
    assert int(hundred_n[1]) == 100 * documents


def test_every_corpus_is_registered():
    assert set(CORPORA) < set(specs.SPECS)
    macros = needed_macros("experiments/nq/common.gin")
    assert "CORPUS" not in macros and "INITIAL_CHECKPOINT_PATH" in macros
    assert gin_utils.query_macro("CORPUS") is None  # nothing is left of what was parsed
