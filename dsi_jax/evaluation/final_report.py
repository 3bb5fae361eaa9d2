"""The last page of a run: what `report.txt` and `report.json` say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dsi_jax.evaluation import tables
from dsi_jax.evaluation.config import Metrics
from dsi_jax.evaluation.history import mean_and_best
from dsi_jax.storage.model_dir import ModelDir
from dsi_jax.utils import atomic_files

_HEADLINE = "hits@1"


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a run is.

    Attributes:
      step: updates made.
      train_seconds: time that training took.
      method: kind of the method.
      title: name of the method, for a person.
      decodes: whether the method finds documents by decoding docids.
      docid_kind: kind of the docid table.
      num_documents: documents in the index.
      protocol: protocol of a corpus of images; None for other corpora.
    """

    step: int
    train_seconds: float
    method: str
    title: str
    decodes: bool
    docid_kind: str
    num_documents: int
    protocol: str | None = None


@dataclasses.dataclass(frozen=True)
class BaselineResult:
    """Another system, trained or not, to compare the run with.

    Attributes:
      metrics: metrics by target.
      train_seconds: time that its training took.
    """

    metrics: Mapping[str, Metrics]
    train_seconds: float


@dataclasses.dataclass(frozen=True)
class TargetResult:
    """The last evaluation of one target.

    Attributes:
      name: name of the target.
      metrics: the run's own.
      bm25: those of BM25; None where it has no texts or queries.
      num_candidates: documents that may be found; None: all.
      lexical: those of the lexical head alone; None where there is none, or nothing to read.
    """

    name: str
    metrics: Metrics
    bm25: Metrics | None = None
    num_candidates: int | None = None
    lexical: Metrics | None = None


@dataclasses.dataclass(frozen=True)
class TargetHistory:
    """The evaluations of one target while training went on.

    Attributes:
      name: name of the target.
      evaluations: metrics of each evaluation by step; at least one.
      memorizes: whether its queries are the documents themselves.
    """

    name: str
    evaluations: Sequence[Metrics]
    memorizes: bool = False


@dataclasses.dataclass(frozen=True)
class FinalReport:
    """Everything that a run tells at its end, but for example searches.

    Attributes:
      facts: the run.
      results: the reported targets.
      free: metrics of an unconstrained search by target; empty where there was none.
      histories: the targets that were evaluated while training went on.
      baselines: other systems by name.
      last: evaluations in the mean that stands next to the best.
    """

    facts: RunFacts
    results: Sequence[TargetResult]
    free: Mapping[str, Metrics]
    histories: Sequence[TargetHistory]
    baselines: Mapping[str, BaselineResult]
    last: int

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        lines = [self._head()]
        lines += [
            f"{name}: {baseline.train_seconds / 60:.1f} minutes of training"
            for name, baseline in self.baselines.items()
        ]
        for result in self.results:
            lines += self._result_lines(result)
        lines += [
            f"{name}: invalid docids, unconstrained: {100 * metrics['invalid_rate']:.2f}%"
            for name, metrics in self.free.items()
            if "invalid_rate" in metrics
        ]
        # A task that has its own metrics only has no line.
        told = [past for past in self.histories if _HEADLINE in past.evaluations[-1]]
        return lines + [self._history_line(past) for past in told]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON."""
        facts = self.facts
        value: dict[str, Any] = {
            "step": facts.step,
            "train_seconds": facts.train_seconds,
            "method": facts.method,
            "docids": facts.docid_kind,
            "documents": facts.num_documents,
            "protocol": facts.protocol,
            "test": {result.name: result.metrics for result in self.results},
            "free": self.free,
            "beside": {
                name: {"figures": baseline.metrics, "train_seconds": baseline.train_seconds}
                for name, baseline in self.baselines.items()
            },
        }
        for result in self.results:
            if result.bm25 is not None:
                value["bm25"] = result.bm25
            if result.lexical is not None:
                value["lexical_head"] = result.lexical
        value["while_training"] = {past.name: self._history_json(past) for past in self.histories}
        return value

    def _head(self) -> str:
        facts = self.facts
        what = f"docids {facts.docid_kind}" if facts.decodes else facts.title
        if facts.protocol is not None:
            what = f"protocol {facts.protocol}, {what}"
        return (
            f"{facts.num_documents:,} documents, {what}, {facts.step:,} steps, "
            f"{facts.train_seconds / 60:.1f} minutes of training"
        )

    def _result_lines(self, result: TargetResult) -> list[str]:
        """A table of all systems that were measured on the target."""
        lines = []
        if result.num_candidates is not None:
            lines = ["", f"{result.name}: {result.num_candidates:,} of the documents may be found"]
        systems = {self.facts.title: result.metrics}
        for name, baseline in self.baselines.items():
            if result.name in baseline.metrics:
                systems[name] = baseline.metrics[result.name]
        if result.lexical is not None:
            systems["lexical head alone"] = result.lexical
        if result.bm25 is not None:
            systems["BM25"] = result.bm25
        of_images = self.facts.protocol is not None
        columns = tables.IMAGE_COLUMNS if of_images else tables.COLUMNS
        return [*lines, "", *tables.split_lines(result.name, systems, columns)]

    def _history_line(self, past: TargetHistory) -> str:
        if past.memorizes:
            aim = "its docid" if self.facts.decodes else "itself"
            return tables.memorization_line(past.evaluations[-1], aim)
        mean, best = mean_and_best(past.evaluations, _HEADLINE, self.last)
        total = len(past.evaluations)
        return (
            f"{past.name}: Hits@1 {100 * mean:.1f} mean of the last {min(total, self.last)} "
            f"evaluations, {100 * best:.1f} best of {total}"
        )

    def _history_json(self, past: TargetHistory) -> dict[str, Any]:
        value: dict[str, Any] = {"last": past.evaluations[-1]}
        if _HEADLINE in past.evaluations[-1]:
            mean, best = mean_and_best(past.evaluations, _HEADLINE, self.last)
            value |= {f"mean_{_HEADLINE}": mean, f"best_{_HEADLINE}": best}
        return value


def write(files: ModelDir, text: str, summary: Mapping[str, Any]) -> None:
    """Writes the two files, `report.json` last: a run that has one is finished.

    Args:
      files: MODEL_DIR of the run.
      text: the report to be read.
      summary: the report as plain JSON.

    Raises:
      OSError: a file cannot be written; what lay there stays.
    """
    atomic_files.write_text(files.report_text, text + "\n")
    atomic_files.write_json(files.report, summary, indent=2)
