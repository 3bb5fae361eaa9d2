"""Runs on tasks that another project has registered: with its corpus, and without one."""

import functools
import json
import re

import numpy as np
import pytest
import seqio

from dsi_jax import search, train
from dsi_jax.data.corpora import corpus, registry
from dsi_jax.data.seqio_tasks import features, metrics, preprocessors, sources
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.docids.builder import DocidBuilder
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.table import DocidTable
from dsi_jax.prepare.assets import prepare
from dsi_jax.prepare.data_config import DataConfig, check_data_config

COUNT = 12
KEYS = [f"key{i}" for i in range(COUNT)]
TEXTS = [f"number{i} of twelve" for i in range(COUNT)]
CORPUS = corpus.Corpus("twelve", KEYS, [""] * COUNT, TEXTS, {})


@pytest.fixture(autouse=True)
def twelve(own_registries):
    """The corpus by its name."""
    registry.register_corpus("twelve", lambda seed: CORPUS)


def parity(targets, predictions):
    """A metric of another project, which knows nothing of Hits@k."""
    pairs = zip(targets, predictions, strict=True)
    return {"parity": float(np.mean([ranked[0] % 2 == target[0] % 2 for target, ranked in pairs]))}


def add_task(name="numbers", **kwargs) -> seqio.Task:
    columns = {"text": TEXTS, "row": list(range(COUNT))}
    return seqio.TaskRegistry.add(
        name,
        source=sources.InMemorySource({"train": columns, "validation": columns}, name),
        preprocessors=[functools.partial(preprocessors.examples, inputs="text")],
        output_features=features.output_features(),
        shuffle_buffer_size=None,
        **kwargs,
    )


def test_another_projects_mixture_leaves_the_corpus_as_it_is(tmp_path):
    tasks = text_tasks.register_corpus_tasks(CORPUS, indexing_ratio=5.0)
    add_task()
    seqio.MixtureRegistry.add("both", [(tasks.indexing, 1.0), ("numbers", 1.0)])
    # Ratios are those of the corpus's own mixture, which this run does not use.
    chosen = {"indexing_ratio": 2.0, "chunk_ratio": 4.0, "seed": 7}
    mine = DataConfig("twelve", NaiveString(), mixture_or_task_name="both", **chosen)
    assets = prepare(mine, tmp_path / "mine")
    assert assets.corpus is CORPUS
    assert assets.mixture_or_task_name == "both"
    with pytest.raises(ValueError, match="'twelve_indexing' is already registered with other"):
        prepare(DataConfig("twelve", NaiveString(), **chosen), tmp_path / "own")


def test_corpus_without_queries_gets_some_where_no_other_project_brings_them(tmp_path):
    data = DataConfig("twelve", NaiveString(), mixture_or_task_name="twelve_retrieval")
    for _ in range(2):  # the second time its task is registered
        assets = prepare(data, tmp_path)
        assert set(assets.corpus.queries) == {"test"}


def test_task_that_nobody_registered_is_named_with_a_remedy(tmp_path):
    add_task()
    unknown = DataConfig("twelve", NaiveString(), mixture_or_task_name="nubers")
    with pytest.raises(ValueError, match=r"'nubers'.* mean 'numbers'\?; .*import my_project"):
        prepare(unknown, tmp_path)


class Careless(DocidBuilder):
    """Builds docid tables with one thing wrong, or of a column that the corpus lacks."""

    kind = "careless"

    def __init__(self, column="keys", **wrong):
        self._column = column
        self._wrong = wrong

    def build(self, documents, seed=42):
        getattr(documents, self._column)
        right = {"keys": documents.keys, "kind": "careless", "corpus_hash": documents.corpus_hash}
        codes = np.arange(len({**right, **self._wrong}["keys"]))[:, None]
        return DocidTable.from_codes(
            codes, num_codes=COUNT, parameters={}, **{**right, **self._wrong}
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corpus_hash": ""}, r"Careless built has corpus_hash ''; expected '[0-9a-f]{64}'"),
        ({"kind": "other"}, "Careless built has kind 'other'; expected 'careless'"),
        ({"keys": KEYS[:-1]}, "Careless built has documents 11; expected 12"),
        ({"keys": KEYS[::-1]}, "Careless changed the order or the names of the keys"),
        (
            {"column": "classes"},
            "careless docids need classes of the documents; the corpus 'twelve' has none",
        ),
    ],
)
def test_builder_that_breaks_its_promises_is_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        prepare(DataConfig("twelve", Careless(**wrong)), tmp_path)
    assert not (tmp_path / "docids").exists()


@pytest.mark.parametrize(
    ("docids", "found"), [("naive", r"'naive' \(str\)"), (NaiveString, r"<class .*NaiveString'>")]
)
def test_docids_that_are_no_builder_are_refused(docids, found):
    with pytest.raises(ValueError, match=rf"docids is {found}.*; expected .*DocidBuilder"):
        check_data_config(DataConfig("twelve", docids))


@pytest.fixture
def options(tmp_path) -> list[str]:
    NaiveString().build(DocumentColumns(KEYS, CORPUS.hash)).save(tmp_path / "table")
    return [
        "--gin_file=runs/train.gin",
        "--gin_file=models/t5_tiny.gin",
        "--gin_file=optimizers/adafactor.gin",
        "--gin.CORPUS=None",
        "--gin.MIXTURE_OR_TASK_NAME=numbers",
        f"--gin.DOCID_TABLE={tmp_path / 'table'}",
        f"--gin.MODEL_DIR={tmp_path / 'model'}",
        "--gin.VOCABULARY=bytes",
        "--gin.TASK_FEATURE_LENGTHS={'inputs': 16}",
        "--gin.TRAIN_STEPS=2",
        "--gin.BATCH_SIZE=8",
        "--gin.BEAM_SIZE=4",
    ]


def test_without_a_corpus_a_task_with_its_own_metric_alone_is_reported(options, tmp_path, capsys):
    add_task(metric_fns=[parity])
    assert train.main(options) == 0
    report = json.loads((tmp_path / "model/report.json").read_text())
    assert set(report["test"]["numbers_validation"]) == {"parity"}
    text = (tmp_path / "model/report.txt").read_text()
    assert re.search(r"^numbers_validation\nDSI parity: [01]", text, re.M)
    assert "(percent)" not in text
    assert text.count("\n? number") == 5
    assert search.main([str(tmp_path / "model"), "number3", "-k", "1"]) == 0
    assert re.search(r"1\. +-\d+\.\d+  key\d", capsys.readouterr().out)


def test_without_a_corpus_what_is_missing_is_named(options, capsys):
    add_task()
    assert train.main([*options, "--gin.VOCABULARY=None"]) == 2
    assert "CORPUS is None, so VOCABULARY must be given" in capsys.readouterr().err


def test_scalars_of_examples_are_read_as_vectors_of_one():
    example = {"relevant": np.int32(3), "seen": np.int32(0)}
    target = metrics.postprocess(np.array([3], np.int32), example, is_target=True)
    assert (target.rows.tolist(), target.grades.tolist(), target.seen) == ([3], [1.0], False)
