"""Evaluation through seqio.Evaluator: our tasks, and a task of another project."""

import functools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from dsi_jax.data.batches import collate, converters
from dsi_jax.data.corpora import corpus as corpus_lib
from dsi_jax.data.seqio_tasks import features, metrics, preprocessors
from dsi_jax.data.seqio_tasks import text as text_tasks
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.tokenizer import ByteTokenizer

LENGTHS = {"inputs": 32}
NUM_DOCUMENTS = 12


pytestmark = pytest.mark.usefixtures("own_registries")


def make_corpus() -> corpus_lib.Corpus:
    """Training queries for the first half; test query i is of document i, the last also of 0."""
    keys = [f"k{i}" for i in range(NUM_DOCUMENTS)]
    train = {f"a{i}": {i: 1.0} for i in range(NUM_DOCUMENTS // 2)}
    test = {f"b{i}": {i: 2.0} for i in range(NUM_DOCUMENTS)}
    test[f"b{NUM_DOCUMENTS - 1}"][0] = 1.0
    queries = {
        "train": corpus_lib.make_query_set({i: f"train {i}" for i in train}, train),
        "test": corpus_lib.make_query_set({i: f"find {i[1:]}" for i in test}, test),
    }
    texts = [f"find {i}" for i in range(NUM_DOCUMENTS)]
    return corpus_lib.Corpus("small", keys, [""] * NUM_DOCUMENTS, texts, queries)


class NumberSearch:
    """Stands for a model: ranks the document whose number is in the text first.

    Odd numbers are found second only. Reads the text as the model does, as tokens, and
    answers in another order than it was asked.
    """

    def __init__(self, corpus: corpus_lib.Corpus):
        self.table = NaiveString().build(DocumentColumns(corpus.keys, corpus.hash))
        self.batches: list[collate.Batch] = []

    def __call__(self, dataset: tf.data.Dataset):
        answers = []
        for indices, examples in tfds.as_numpy(dataset.batch(5)):
            batch = collate.Collator(self.table, Inputs(ByteTokenizer(), LENGTHS)).batch(
                {"text": examples}
            )
            self.batches.append(batch)
            for index, tokens in zip(indices, batch["text"]["tokens"], strict=True):
                text = bytes(t - 3 for t in tokens if t >= 3).decode()
                number = int("".join(c for c in text if c.isdigit()))
                rows = [number, -1, (number + 1) % NUM_DOCUMENTS]
                if number % 2:
                    rows[:2] = rows[1::-1]
                answers.append((int(index), rows))
        order = np.random.default_rng(0).permutation(len(answers))
        shuffled = [answers[i] for i in order]
        scores = [[-0.1, -0.2 - index, -np.inf] for index, _ in shuffled]
        return shuffled, {"scores": scores}


def make_evaluator(name: str, split: str, **kwargs) -> seqio.Evaluator:
    return seqio.Evaluator(
        name,
        feature_converter=converters.DSIFeatureConverter(kwargs.pop("tokenized", False)),
        eval_split=split,
        **kwargs,
    )


def evaluate(evaluator: seqio.Evaluator, search: NumberSearch, step: int = 0) -> dict:
    future, _ = evaluator.evaluate(
        compute_metrics=True,
        step=step,
        predict_with_aux_fn=search,
        predict_fn=lambda dataset: search(dataset)[0],
    )
    return future.result()


def test_retrieval_task_is_scored_for_seen_and_unseen(tmp_path):
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus)
    evaluator = make_evaluator(
        tasks.retrieval, "test", logger_cls=[seqio.JSONLogger], log_dir=str(tmp_path)
    )
    for step in (10, 20):  # the second reads cached targets
        result = evaluate(evaluator, NumberSearch(corpus), step)[tasks.retrieval]
        assert result["queries"] == NUM_DOCUMENTS
        # Documents 0 to 5 had a training query, and query 11 has document 0 too.
        assert (result["queries/seen"], result["queries/unseen"]) == (7, 5)
        assert result["hits@1"] == 0.5
        assert result["hits@1/seen"] == pytest.approx(3 / 7)
        assert result["hits@1/unseen"] == pytest.approx(3 / 5)
        assert result["mrr@10"] == pytest.approx(0.75)
        assert result["invalid_rate"] == pytest.approx(0.5)
    lines = (tmp_path / f"{tasks.retrieval}-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    inferences = [
        json.loads(line)
        for line in (tmp_path / f"{tasks.retrieval}-000020.jsonl").read_text().splitlines()
    ]
    assert [i["input"]["query_id"] for i in inferences] == [[i] for i in corpus.queries["test"].ids]
    assert inferences[11]["target"]["rows"] == [11, 0]
    assert [i["aux_scores"][1] for i in inferences] == pytest.approx(
        [-0.2 - i for i in range(NUM_DOCUMENTS)]
    )


def test_mixture_is_evaluated_task_by_task():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus)
    search = NumberSearch(corpus)
    result = evaluate(make_evaluator(tasks.mixture, "train"), search)
    # Memorisation: documents as inputs.
    assert result[tasks.indexing]["hits@1"] == 0.5
    assert result[tasks.indexing]["queries"] == NUM_DOCUMENTS
    assert result[tasks.retrieval]["queries"] == NUM_DOCUMENTS // 2
    # The split "test" exists for retrieval alone.
    assert list(evaluate(make_evaluator(tasks.mixture, "test"), search)) == [tasks.retrieval]


def test_evaluator_gives_batches_of_the_model():
    corpus = make_corpus()
    tasks = text_tasks.register_corpus_tasks(corpus)
    search = NumberSearch(corpus)
    evaluate(make_evaluator(tasks.retrieval, "test"), search)
    rows = np.concatenate([batch["row"] for batch in search.batches])
    np.testing.assert_array_equal(rows, np.arange(NUM_DOCUMENTS))
    docids = np.concatenate([batch["decoder"]["targets"] for batch in search.batches])
    np.testing.assert_array_equal(search.table.rows_of(docids), rows)


# What another project writes: its data, its metric, one registration.


def questions(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"question": ["find 4", "find 7"], "doc": [4, 7]})


def reciprocal_rank(targets, predictions):
    ranks = [list(p).index(t[0]) + 1 for t, p in zip(targets, predictions, strict=True)]
    return {"my_mrr": float(np.mean(1 / np.array(ranks)))}


def mean_top_score(targets, predictions, aux_values):
    return {"my_top_score": float(np.mean([scores[0] for scores in aux_values["scores"]]))}


def add_foreign_task(**kwargs):
    seqio.TaskRegistry.add(
        "foreign_questions",
        source=seqio.FunctionDataSource(questions, splits=["test"]),
        preprocessors=[functools.partial(preprocessors.examples, inputs="question", row="doc")],
        output_features=features.output_features(),
        metric_fns=[reciprocal_rank, mean_top_score, metrics.retrieval_metrics],
        **kwargs,
    )


def test_foreign_task_with_its_own_metrics():
    add_foreign_task()
    evaluator = make_evaluator("foreign_questions", "test")
    result = evaluate(evaluator, NumberSearch(make_corpus()))["foreign_questions"]
    assert result["my_mrr"] == pytest.approx(0.75)
    assert result["my_top_score"] == pytest.approx(-0.1)
    assert result["hits@1"] == 0.5
    assert "queries/seen" not in result


def test_foreign_postprocessing_is_theirs():
    calls = []

    def keep_first(rows, example, is_target):
        calls.append((example["doc_name"].decode(), is_target))
        return rows

    seqio.TaskRegistry.add(
        "foreign_post",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: questions(split, shuffle_files).map(
                lambda e: e | {"doc_name": "n"}
            ),
            splits=["test"],
        ),
        preprocessors=[functools.partial(preprocessors.examples, inputs="question", row="doc")],
        output_features=features.output_features(),
        postprocess_fn=keep_first,
        metric_fns=[reciprocal_rank],
    )
    result = evaluate(make_evaluator("foreign_post", "test"), NumberSearch(make_corpus()))
    assert result["foreign_post"]["my_mrr"] == pytest.approx(0.75)
    assert sorted(calls) == [("n", False)] * 2 + [("n", True)] * 2


def test_foreign_token_ids_are_evaluated():
    seqio.TaskRegistry.add(
        "foreign_ids",
        source=seqio.FunctionDataSource(questions, splits=["test"]),
        preprocessors=[
            seqio.map_over_dataset(
                lambda e: {
                    "inputs": e["question"],
                    "targets": e["doc"][None],
                    "is_indexing": tf.zeros([1], tf.int32),
                }
            ),
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos,
        ],
        output_features=features.output_features(seqio.ByteVocabulary()),
        metric_fns=[metrics.retrieval_metrics],
    )
    evaluator = make_evaluator("foreign_ids", "test", tokenized=True, sequence_length=LENGTHS)
    assert evaluator.model_feature_shapes["inputs"] == (LENGTHS["inputs"],)
    result = evaluate(evaluator, NumberSearch(make_corpus()))
    assert result["foreign_ids"]["hits@1"] == 0.5
