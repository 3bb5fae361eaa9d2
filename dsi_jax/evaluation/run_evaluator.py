"""Decides what a training run evaluates, when, and what it tells at the end.

While training goes on: validation queries (`dev`, or `test` where a corpus has no dev queries) and
the memorization of documents. At the end: the test queries (or the validation ones, where a task
has no test split) with BM25 and other baselines, the rate of invalid docids of an unconstrained
search, the mean over the last evaluations and the best, example searches.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import seqio
from jax.sharding import Mesh

from dsi_jax.data.batches import converters
from dsi_jax.data.run_assets import RunAssets
from dsi_jax.data.seqio_tasks import features
from dsi_jax.evaluation import (
    bm25,
    contact_sheet,
    final_report,
    image_samples,
    lexical,
    tables,
)
from dsi_jax.evaluation.config import VALIDATION_SPLITS, Evaluation, Metrics, Target
from dsi_jax.evaluation.evaluator import Evaluator, candidates, has_texts
from dsi_jax.evaluation.final_report import (
    BaselineResult,
    FinalReport,
    RunFacts,
    TargetHistory,
    TargetResult,
)
from dsi_jax.evaluation.history import history
from dsi_jax.evaluation.predictor import Predictor
from dsi_jax.methods.base import Collection, Method, RankingOptions
from dsi_jax.ranking.hits import Hit
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.training import partitioning

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5
NUM_EXAMPLE_HITS = 3
FREE_BEAM_SIZE = 10  # the invalid rate needs no more


class RunEvaluator:
    """The evaluations of one run; with `evaluation` None it does nothing.

    Args:
      evaluation: how to evaluate.
      directory: MODEL_DIR.
      method: how the model ranks.
      model: the model.
      assets: corpus, tokenizer, docid table and tasks.
      collection: the documents to rank.
      write: whether this host writes files and prints.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        *,
        directory: Path,
        method: Method,
        model: nn.Module,
        assets: RunAssets,
        collection: Collection,
        write: bool,
    ) -> None:
        self._evaluation = evaluation
        self._ranking = None if evaluation is None else evaluation.ranking(method)
        self._files, self._assets, self._write = ModelDir(directory), assets, write
        self._method, self._model, self._collection = method, model, collection
        self._mesh: Mesh | None = None
        self._rules = partitioning.LOGICAL_AXIS_RULES
        self._should_stop: Callable[[], bool] = lambda: False
        self._cache: dict[Any, Any] = {}

    def on(
        self, mesh: Mesh, rules: partitioning.LogicalRules, should_stop: Callable[[], bool]
    ) -> RunEvaluator:
        """The same evaluations for parameters that lie on a mesh.

        Args:
          mesh: the mesh; all its processes call `run` and `finish` together.
          rules: logical axis rules, fitted to the model.
          should_stop: asked between two batches; all processes get one answer.
        """
        placed = copy.copy(self)
        placed._mesh, placed._rules, placed._should_stop = mesh, rules, should_stop
        placed._cache = {}
        return placed

    def run(self, params: Any, step: int) -> dict[str, Metrics]:
        """Ranks documents for the validation queries and logs a line a target.

        Raises:
          evaluator.Interrupted: it was asked to stop.
        """
        return self._log(self._targets_while_training(), params, step)

    def reported(self, params: Any) -> dict[str, Metrics]:
        """Returns the metrics of what is reported at the end, by target.

        Raises:
          evaluator.Interrupted: it was asked to stop.
        """
        return self._evaluate(self._reported_targets(), self._ranking, params, 0)

    def finish(
        self,
        params: Any,
        step: int,
        *,
        train_seconds: float,
        baselines: Mapping[str, BaselineResult] | None = None,
    ) -> None:
        """The last evaluation: everything that stands in `report.txt` and `report.json`.

        Of images there is also a contact sheet, `contact_sheet.png`.

        Args:
          params: the parameters.
          step: their step.
          train_seconds: how long they were trained.
          baselines: other systems, by name.

        Raises:
          evaluator.Interrupted: it was asked to stop.
        """
        if self._evaluation is None:
            return
        reported = self._reported_targets()
        names = {target.name for target in reported}
        # What is about to be reported whole is not sampled first, into the same files.
        others = [t for t in self._targets_while_training() if t.name not in names]
        self._log(others, params, step)
        metrics = self._evaluate(reported, self._ranking, params, step)
        free = self._rank_freely(reported, metrics, params, step)
        searches = self._example_searches(reported, params)
        corpus = self._assets.corpus
        sheet = []
        if corpus is not None:
            sheet = image_samples.sheet_rows(corpus, functools.partial(self._rank, params))
        if not self._write:
            return
        report = self._report(reported, metrics, free, step, train_seconds, baselines or {})
        lines = report.lines()
        if sheet:
            contact_sheet.write(self._files.contact_sheet, sheet)
            lines += ["", f"contact sheet: {self._files.contact_sheet}"]
        text = "\n".join([*lines, "", "example searches:", tables.examples(searches)])
        final_report.write(self._files, text, report.to_json())
        logger.info("\n%s", text)

    # ---- what is evaluated

    def _all_targets(self) -> list[Target]:
        """Every split of the mixture's tasks that is not trained on and has metrics."""
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(self._assets.mixture_or_task_name))
        return [
            Target(task.name, split)
            for task in tasks
            if task.metric_fns
            for split in sorted(task.splits)
            if split != "train"
        ]

    def _reported_targets(self) -> list[Target]:
        """Each task's test split; all its splits where it has no test."""
        targets = self._all_targets()
        tested = {t.task for t in targets if t.split == "test"}
        return [t for t in targets if t.split == "test" or t.task not in tested]

    def _targets_while_training(self) -> list[Target]:
        targets = self._all_targets()
        validation = [t for t in targets if t.split in VALIDATION_SPLITS] or targets
        limit = self._evaluation.num_queries
        chosen = [dataclasses.replace(t, num_examples=limit) for t in validation]
        if self._assets.tasks is not None:
            documents = self._evaluation.num_documents
            chosen.append(Target(self._assets.tasks.indexing, "train", documents))
        return chosen

    def _log(self, targets: list[Target], params: Any, step: int) -> dict[str, Metrics]:
        if self._evaluation is None:
            return {}
        metrics = self._evaluate(targets, self._ranking, params, step)
        if self._write:
            for name, values in metrics.items():
                logger.info("  %s  %s", name, _line(values))
        return metrics

    def _rank_freely(
        self, targets: list[Target], metrics: dict[str, Metrics], params: Any, step: int
    ) -> dict[str, Metrics]:
        """Returns metrics of an unconstrained search, for the rate of invalid docids."""
        if not self._ranking.constrained:
            return metrics
        freely = self._ranking.unconstrained(FREE_BEAM_SIZE)
        if freely is None or not self._evaluation.unconstrained:
            return {}
        return self._evaluate(targets, freely, params, step)

    def _evaluate(
        self, targets: list[Target], ranking: RankingOptions, params: Any, step: int
    ) -> dict[str, Metrics]:
        asked = ranking == self._ranking
        output = self._files.inference_eval if asked else self._files.inference_eval_free
        metrics = {}
        for target in targets:
            key = (target, ranking)
            if key not in self._cache:
                self._cache[key] = Evaluator(
                    [target],
                    keys=self._assets.table.keys,
                    feature_lengths=self._collection.lengths,
                    output_dir=output if self._write else None,
                )
            predictor = self._predictor(ranking, self._candidates(target))
            metrics |= self._cache[key].evaluate(predictor, params, step, self._should_stop)
        return metrics

    def _candidates(self, target: Target) -> np.ndarray | None:
        return candidates(self._assets.corpus, self._assets.tasks, target)

    def _rank(
        self, params: Any, split: str, examples: Sequence[Mapping[str, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks what may be found in a split of a corpus of images, see `Predictor.rank`."""
        predictor = self._predictor(self._ranking, self._assets.corpus.candidates(split))
        return predictor.rank(params, examples, self._should_stop)

    def _predictor(self, ranking: RankingOptions, rows: np.ndarray | None) -> Predictor:
        key = (ranking, None if rows is None else rows.tobytes())
        if key not in self._cache:
            ranker = self._method.new_ranker(
                self._model,
                self._collection,
                ranking,
                mesh=self._mesh,
                rules=self._rules,
                rows=rows,
            )
            self._cache[key] = Predictor(
                ranker,
                inputs=self._collection.inputs,
                batch_size=self._evaluation.batch_size,
                mesh=self._mesh,
            )
        return self._cache[key]

    # ---- what is told

    def _report(
        self,
        reported: list[Target],
        metrics: dict[str, Metrics],
        free: dict[str, Metrics],
        step: int,
        train_seconds: float,
        baselines: Mapping[str, BaselineResult],
    ) -> FinalReport:
        corpus = self._assets.corpus
        facts = RunFacts(
            step=step,
            train_seconds=train_seconds,
            method=self._method.kind,
            title=self._method.title,
            decodes=self._method.decodes,
            docid_kind=self._assets.table.kind,
            num_documents=self._assets.table.num_documents,
            protocol=None if corpus is None else corpus.protocol,
        )
        return FinalReport(
            facts=facts,
            results=[self._result(target, metrics[target.name]) for target in reported],
            free=free,
            histories=self._histories(step),
            baselines=baselines,
            last=self._evaluation.last,
        )

    def _result(self, target: Target, metrics: Metrics) -> TargetResult:
        """The target's metrics, with those of BM25 and of the lexical head where they can rank."""
        rows, by_words, by_head = self._candidates(target), None, None
        corpus, index = self._assets.corpus, self._assets.lexical
        if self._has_queries(target):
            by_words = bm25.BM25(corpus, rows).evaluate(target.split)
            if index is not None:
                by_head = lexical.LexicalSearch(index, corpus, rows).evaluate(target.split)
        number = None if rows is None else len(rows)
        return TargetResult(target.name, metrics, by_words, number, by_head)

    def _histories(self, step: int) -> list[TargetHistory]:
        """The evaluations up to a step of what is evaluated while training goes on."""
        tasks = self._assets.tasks
        found = []
        for target in self._targets_while_training():
            past = history(self._files.inference_eval, target.name, step)
            if past:
                memorizes = tasks is not None and target.task == tasks.indexing
                found.append(TargetHistory(target.name, past, memorizes))
        return found

    def _has_queries(self, target: Target) -> bool:
        """Whether the target is a split of the corpus's own queries, and BM25 has texts to rank."""
        corpus, tasks = self._assets.corpus, self._assets.tasks
        if corpus is None or tasks is None or target.task != tasks.retrieval:
            return False
        return target.split in corpus.queries and has_texts(corpus, self._candidates(target))

    def _example_searches(self, reported: list[Target], params: Any) -> dict[str, Sequence[Hit]]:
        """A few of the reported queries and their documents; all processes take part."""
        queries = _texts(reported[-1]) if reported else []
        chosen = queries[:: max(1, len(queries) // NUM_EXAMPLES)][:NUM_EXAMPLES]
        if not chosen:
            return {}
        examples = [{features.INPUTS: np.array([text], object)} for text in chosen]
        predictor = self._predictor(self._evaluation, self._candidates(reported[-1]))
        rows, scores = predictor.rank(params, examples, self._should_stop)
        return {
            text.decode("utf-8", "replace"): [
                self._hit(int(row), float(score))
                for row, score in zip(rows[i], scores[i], strict=True)
                if row >= 0
            ][:NUM_EXAMPLE_HITS]
            for i, text in enumerate(chosen)
        }

    def _hit(self, row: int, score: float) -> Hit:
        corpus = self._assets.corpus
        if corpus is None:
            return Hit(self._assets.table.keys[row], row, score)
        return Hit(corpus.keys[row], row, score, corpus.titles[row], corpus.texts[row])


def _texts(target: Target) -> list[bytes]:
    """The queries of a split in words; none where its task holds token ids."""
    task = seqio.TaskRegistry.get(target.task)
    if converters.is_tokenized(task):
        return []
    cached = task.requires_caching
    dataset = task.get_dataset(split=target.split, shuffle=False, use_cached=cached)
    inputs = (example[features.INPUTS] for example in dataset.as_numpy_iterator())
    return [texts[0] for texts in inputs if len(texts)]


def _line(metrics: Metrics) -> str:
    names = ("hits@1", "hits@10", "hits@1/seen", "hits@1/unseen", "mrr@10")
    parts = [f"{name} {100 * metrics[name]:.1f}" for name in names if name in metrics]
    parts += [f"{name} {value:.4g}" for name, value in tables.other_metrics(metrics).items()]
    return "  ".join(parts)
