"""The health of a docid table as a picture (matplotlib, of the extra `plots`)."""

import importlib.util
import os
from typing import Any

import numpy as np

from dsi_jax.docids.health.oracle_recall import OracleRecall
from dsi_jax.docids.health.report import LevelHealth, health
from dsi_jax.docids.table import PAD_TOKEN, DocidTable
from dsi_jax.utils import atomic_files

_MOST_CURVES = 8  # levels whose use of tokens is drawn
_INK, _FAINT, _ACCENT, _SECOND = "#222222", "#bbbbbb", "#1f5fa8", "#d9822b"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_report(
    table: DocidTable, path: str | os.PathLike, oracle: OracleRecall | None = None
) -> None:
    """Draws a table's health: use of tokens, tokens a level, nodes of the trie, oracle recall.

    Args:
      table: the docids.
      path: the PNG file to write; it appears only once it is complete.
      oracle: their oracle recall, where there are embeddings to measure it with.

    Raises:
      ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    levels = health(table)
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(
        f"{table.kind} docids: {table.num_documents:,} documents, length {table.length}, "
        f"vocabulary {table.vocab_size:,}",
        x=0.01,
        ha="left",
        fontsize=13,
        color=_INK,
    )
    (use, tokens), (nodes, recall) = figure.subplots(2, 2)
    _plot_use(use, table)
    _plot_tokens(tokens, levels)
    _plot_nodes(nodes, levels, table.num_documents)
    _plot_recall(recall, oracle)
    for axes in (use, tokens, nodes, recall):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set(color=_INK, fontsize=10.5)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _plot_use(axes: Any, table: DocidTable) -> None:
    """The documents of each token, most used first: level lines are balanced levels."""
    from matplotlib import colormaps

    shown = min(table.length, _MOST_CURVES)
    colors = colormaps["viridis"](np.linspace(0, 0.85, shown))
    for level in range(shown):
        tokens_N = np.asarray(table.tokens[:, level])
        counts = np.bincount(tokens_N[tokens_N != PAD_TOKEN])
        counts = np.sort(counts[counts > 0])[::-1]
        marker = "o" if len(counts) == 1 else None  # a line of one point would not be seen
        ranks = np.arange(1, len(counts) + 1)
        axes.plot(ranks, counts, marker=marker, color=colors[level], label=f"level {level + 1}")
    axes.set(yscale="log", xlabel="token, most used first", ylabel="documents")
    axes.set_xscale("log" if table.vocab_size > 2000 else "linear")
    axes.set_title("Documents of each token", loc="left")
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _plot_tokens(axes: Any, levels: tuple[LevelHealth, ...]) -> None:
    """Tokens that occur, and as how many equally used ones they count."""
    numbers = np.arange(1, len(levels) + 1)
    used = [level.tokens for level in levels]
    effective = [level.perplexity for level in levels]
    axes.bar(numbers, used, 0.8, color=_FAINT, label="that occur")
    axes.bar(numbers, effective, 0.5, color=_ACCENT, label="perplexity")
    if len(levels) <= 10:
        for number, count, value in zip(numbers, used, effective, strict=True):
            _note(axes, f"{count:,}\n{value:,.0f}", (number, count), ha="center")
    axes.margins(y=0.18)
    axes.set(xlabel="level", ylabel="tokens")
    _whole_levels(axes, len(levels))
    axes.set_title("Tokens of each level", loc="left")
    axes.legend(frameon=False, fontsize=8)


def _plot_nodes(axes: Any, levels: tuple[LevelHealth, ...], num_documents: int) -> None:
    """How fast the trie divides the documents."""
    numbers = np.arange(len(levels) + 1)
    axes.plot(numbers, [1, *(level.nodes for level in levels)], "o-", color=_ACCENT, ms=4)
    axes.axhline(num_documents, color=_FAINT, ls="--", lw=1)
    _note(axes, f"{num_documents:,} documents", (0, num_documents))
    axes.set(yscale="log", xlabel="level", ylabel="nodes")
    axes.margins(y=0.12)
    _whole_levels(axes, len(levels), first=0)
    axes.set_title("Nodes of the trie (distinct prefixes)", loc="left")


def _plot_recall(axes: Any, oracle: OracleRecall | None) -> None:
    if oracle is None:
        axes.set_axis_off()
        words = "no embeddings:\noracle recall was not measured"
        axes.text(0.5, 0.5, words, ha="center", va="center", color=_INK, transform=axes.transAxes)
        return
    numbers = np.arange(1, len(oracle.by_depth) + 1)
    axes.plot(numbers, oracle.by_depth, "o-", color=_ACCENT, ms=4, label="by prefix")
    axes.axhline(oracle.by_codes, color=_SECOND, lw=1.5, label="by codes, as sums of vectors")
    axes.axhline(oracle.chance, color=_FAINT, ls="--", lw=1, label="chance")
    for value, color in ((oracle.by_prefix, _ACCENT), (oracle.by_codes, _SECOND)):
        _note(axes, f"{value:.3f}", (numbers[-1], value), ha="right", color=color)
    axes.set(xlabel="level", ylabel=f"recall@{oracle.k}")
    axes.set_ylim(0, min(1.05, max(0.1, 1.35 * max(*oracle.by_depth, oracle.by_codes))))
    _whole_levels(axes, len(numbers))
    axes.set_title(f"Oracle recall of {oracle.documents:,} documents", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _note(
    axes: Any, text: str, place: tuple[float, float], *, ha: str = "left", color: str = _INK
) -> None:
    """A few words just above a place of the data."""
    axes.annotate(
        text, place, (0, 3), textcoords="offset points", ha=ha, va="bottom", fontsize=8, color=color
    )


def _whole_levels(axes: Any, count: int, *, first: int = 1) -> None:
    axes.set_xlim(first - 0.6, count + 0.6)
    axes.set_xticks(np.arange(first, count + 1, max(1, count // 10)))
