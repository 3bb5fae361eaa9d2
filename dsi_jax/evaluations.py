"""What a training run evaluates, when, and what it tells at the end.

While training goes on: held-out queries (`dev`, or `test` where a corpus has no dev queries) and
the memorisation of documents. At the end: the test queries beside BM25, the rate of invalid docids
of an unconstrained search, the mean over the last evaluations beside the best, example searches.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import seqio

from dsi_jax import report
from dsi_jax.data import bm25
from dsi_jax.evaluator import (
    Evaluation,
    Evaluator,
    Figures,
    Predictor,
    Target,
    history,
    mean_and_best,
)
from dsi_jax.models.dsi import DSIModel
from dsi_jax.prepare import Prepared
from dsi_jax.retriever import Retriever

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5
_HEADLINE = "hits@1"


class Evaluations:
    """The evaluations of one run; with `evaluation` None it does nothing.

    Args:
      evaluation: how to evaluate.
      directory: MODEL_DIR.
      model: the model.
      prepared: corpus, tokenizer, docid table and tasks.
      feature_lengths: tokens kept of each feature.
      write: whether this host writes files and prints.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        *,
        directory: Path,
        model: DSIModel,
        prepared: Prepared,
        feature_lengths: Mapping[str, int],
        write: bool,
    ) -> None:
        self._evaluation = evaluation
        self._directory, self._model, self._prepared = directory, model, prepared
        self._lengths, self._write = feature_lengths, write
        self._cache: dict[Any, Any] = {}

    def run(self, params: Any, step: int) -> dict[str, Figures]:
        """Ranks documents for the held-out queries and logs a line a target."""
        if self._evaluation is None:
            return {}
        figures = self._evaluate(self._targets_while_training(), self._evaluation, params, step)
        for name, values in figures.items():
            logger.info("  %s  %s", name, _line(values))
        return figures

    def finish(self, params: Any, step: int, *, train_seconds: float) -> None:
        """The last evaluation: everything that stands in `report.txt` and `report.json`."""
        if self._evaluation is None:
            return
        self.run(params, step)
        tested = [t for t in self._all_targets() if t.split == "test"]
        unlimited = dataclasses.replace(self._evaluation, num_queries=None)
        figures = self._evaluate(tested, unlimited, params, step)
        free = {}
        if self._evaluation.unconstrained:
            freely = dataclasses.replace(
                unlimited, constraint="free", beam_size=min(10, self._evaluation.beam_size)
            )
            free = self._evaluate(tested, freely, params, step)
        if not self._write:
            return
        lines, summary = self._summary(figures, free, step, train_seconds)
        searches = self._example_searches(params)
        text = "\n".join([*lines, "", "example searches:", report.examples(searches)])
        (self._directory / "report.txt").write_text(text + "\n")
        (self._directory / "report.json").write_text(json.dumps(summary, indent=2) + "\n")
        logger.info("\n%s", text)

    # ---- what is evaluated

    def _all_targets(self) -> list[Target]:
        """Every split of the mixture's tasks that is not trained on and has metrics."""
        tasks = seqio.get_subtasks(seqio.get_mixture_or_task(self._prepared.mixture_or_task_name))
        return [
            Target(task.name, split)
            for task in tasks
            if task.metric_fns
            for split in sorted(task.splits)
            if split != "train"
        ]

    def _targets_while_training(self) -> list[Target]:
        targets = self._all_targets()
        held_out = [t for t in targets if t.split in ("dev", "validation")] or targets
        limit = self._evaluation.num_queries
        chosen = [dataclasses.replace(t, num_examples=limit) for t in held_out]
        if self._prepared.tasks is not None:
            documents = self._evaluation.num_documents
            chosen.append(Target(self._prepared.tasks.indexing, "train", documents))
        return chosen

    def _evaluate(
        self, targets: list[Target], evaluation: Evaluation, params: Any, step: int
    ) -> dict[str, Figures]:
        if not targets:
            return {}
        constrained = evaluation.constraint == self._evaluation.constraint
        output = self._directory / ("inference_eval" if constrained else "inference_eval_free")
        key = (tuple(targets), evaluation.constraint)
        if key not in self._cache:
            self._cache[key] = Evaluator(
                targets,
                keys=self._prepared.table.keys,
                feature_lengths=self._lengths,
                output_dir=output if self._write else None,
            )
        return self._cache[key].evaluate(self._predictor(evaluation), params, step)

    def _predictor(self, evaluation: Evaluation) -> Predictor:
        key = (evaluation.constraint, evaluation.beam_size, evaluation.batch_size)
        if key not in self._cache:
            self._cache[key] = Predictor(
                model=self._model,
                table=self._prepared.table,
                tokenizer=self._prepared.tokenizer,
                feature_lengths=self._lengths,
                beam_size=evaluation.beam_size,
                constraint=evaluation.constraint,
                batch_size=evaluation.batch_size,
            )
        return self._cache[key]

    # ---- what is told

    def _summary(
        self, figures: dict[str, Figures], free: dict[str, Figures], step: int, seconds: float
    ) -> tuple[list[str], dict[str, Any]]:
        table, corpus = self._prepared.table, self._prepared.corpus
        lines = [
            f"{table.num_documents:,} documents, docids {table.kind}, {step:,} steps, "
            f"{seconds / 60:.1f} minutes of training"
        ]
        summary: dict[str, Any] = {
            "step": step,
            "train_seconds": seconds,
            "docids": table.kind,
            "documents": table.num_documents,
            "test": figures,
            "free": free,
        }
        for name, values in figures.items():
            systems: dict[str, Figures] = {"DSI": values}
            if corpus is not None:
                systems["BM25"] = summary["bm25"] = bm25.BM25(corpus).evaluate("test")
            lines += ["", f"{name} (percent)", report.retrieval_table(systems)]
        for values in free.values():
            if "invalid_rate" in values:
                lines.append(f"invalid docids, unconstrained: {100 * values['invalid_rate']:.1f}%")
        summary["while_training"] = {}
        for target in self._targets_while_training():
            past = history(self._directory / "inference_eval", target.name)
            if not past:
                continue
            mean, best = mean_and_best(past, _HEADLINE, self._evaluation.last)
            summary["while_training"][target.name] = {
                "last": past[-1],
                f"mean_{_HEADLINE}": mean,
                f"best_{_HEADLINE}": best,
            }
            if self._prepared.tasks and target.task == self._prepared.tasks.indexing:
                lines.append(report.memorisation_line(past[-1]))
            else:
                count = min(len(past), self._evaluation.last)
                lines.append(
                    f"{target.name}: Hits@1 {100 * mean:.1f} mean of the last {count} "
                    f"evaluations, {100 * best:.1f} best of {len(past)}"
                )
        return lines, summary

    def _example_searches(self, params: Any) -> dict[str, Any]:
        corpus = self._prepared.corpus
        if corpus is None or "test" not in corpus.queries:
            return {}
        queries = corpus.queries["test"].texts
        chosen = queries[:: max(1, len(queries) // NUM_EXAMPLES)][:NUM_EXAMPLES]
        retriever = Retriever(
            model=self._model,
            params=params,
            tokenizer=self._prepared.tokenizer,
            table=self._prepared.table,
            documents=self._prepared.documents,
            input_length=self._lengths["inputs"],
        )
        return dict(zip(chosen, retriever.search_batch(chosen, k=3), strict=True))


def _line(figures: Figures) -> str:
    names = ("hits@1", "hits@10", "hits@1/seen", "hits@1/unseen", "mrr@10")
    return "  ".join(f"{name} {100 * figures[name]:.1f}" for name in names if name in figures)
