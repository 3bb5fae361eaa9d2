"""Lays out metrics of several systems as tables, and searches as texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dsi_jax.evaluation.config import Metrics
from dsi_jax.ranking.hits import Hit, as_text

GROUPS = (("all", ""), ("seen", "/seen"), ("unseen", "/unseen"))
COLUMNS = ("hits@1", "hits@10", "mrr@10", "ndcg@10")
IMAGE_COLUMNS = ("hits@1", "hits@5", "hits@10", "mrr@10")  # of this literature
CLASS_COLUMNS = ("p@1", "p@10", "map@10", "map@100")
_OF_RETRIEVAL = re.compile(r"((hits|mrr|ndcg|p|map)@\d+|queries|invalid_rate)(/\w+)?")


def split_lines(
    name: str, systems: Mapping[str, Metrics], columns: Sequence[str] = COLUMNS
) -> list[str]:
    """What was measured on a split: retrieval, where the task has its metrics, then all else.

    Args:
      name: what the split is called.
      systems: name -> the task's metrics.
      columns: of the table of retrieval.
    """
    lines = [name]
    if any("queries" in metrics for metrics in systems.values()):
        lines = [f"{name} (percent)", retrieval_table(systems, columns)]
        if text := class_table(systems):
            lines += ["", text]
    for system, metrics in systems.items():
        own = other_metrics(metrics)
        lines += [f"{system} {metric}: {value:.4g}" for metric, value in own.items()]
    return lines


def other_metrics(metrics: Metrics) -> Metrics:
    """Returns the metrics that are not of `data.seqio_tasks.metrics`: a task's own."""
    if "queries" not in metrics:
        return metrics
    return {name: v for name, v in metrics.items() if not _OF_RETRIEVAL.fullmatch(name)}


def retrieval_table(systems: Mapping[str, Metrics], columns: Sequence[str] = COLUMNS) -> str:
    """Tabulates metrics of several systems on one split: all queries, seen and unseen ones.

    Args:
      systems: name -> metrics, as `data.seqio_tasks.metrics.retrieval_metrics` gives them.
      columns: of the table.

    Returns:
      A table, one line a group and system.
    """
    return _metrics_table(systems, columns)


def class_table(systems: Mapping[str, Metrics]) -> str:
    """Precision of several systems whose queries have many relevant documents.

    Args:
      systems: name -> metrics, as `retrieval_metrics` and `class_metrics` give them.

    Returns:
      A table, one line a group and system, of those of CLASS_COLUMNS that were measured; empty if
      none was.
    """
    measured = {name for metrics in systems.values() for name in metrics}
    columns = [name for name in CLASS_COLUMNS if name in measured]
    return _metrics_table(systems, columns) if columns else ""


def _metrics_table(systems: Mapping[str, Metrics], columns: Sequence[str]) -> str:
    """A line a group of queries and system, metrics in percent."""
    rows = [("queries", "system", *columns, "number")]
    for group, suffix in GROUPS:
        for name, metrics in systems.items():
            count = int(metrics.get(f"queries{suffix}", 0))
            if count:
                values = [_percent(metrics, f"{column}{suffix}") for column in columns]
                rows.append((group, name, *values, f"{count:,}"))
    return table(rows)


def memorization_line(metrics: Metrics, aim: str = "its docid") -> str:
    """Hits@1 and @10 of documents that are asked back with their own text."""
    return (
        f"memorised (document -> {aim}): Hits@1 {_percent(metrics, 'hits@1')}, "
        f"Hits@10 {_percent(metrics, 'hits@10')} of {int(metrics['queries']):,} documents"
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of texts, the first two flush left, under a ruled head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def examples(searches: Mapping[str, Sequence[Hit]]) -> str:
    """Queries with the documents that were found for them."""
    return "\n".join(as_text(query, hits) for query, hits in searches.items())


def _percent(metrics: Metrics, name: str) -> str:
    return f"{100 * metrics[name]:.1f}" if name in metrics else "-"
