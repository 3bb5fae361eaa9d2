"""Curves of the runs of a study: figures of each evaluation over training steps."""

import json
from collections.abc import Mapping
from pathlib import Path

# (title, file in inference_eval, metric) of each panel.
_PANELS = {
    "report": (
        ("documents memorised, Hits@1", "*_indexing_train-metrics.jsonl", "hits@1"),
        ("held-out questions, Hits@1", "*_retrieval_dev-metrics.jsonl", "hits@1"),
        ("held-out questions, Hits@10", "*_retrieval_dev-metrics.jsonl", "hits@10"),
    ),
    "forgetting": (
        ("documents memorised, Hits@1", "*_indexing_train-metrics.jsonl", "hits@1"),
        ("questions on documents last in the stream, Hits@10", "*_retrieval_dev-metrics.jsonl",
         "hits@10/unseen"),
    ),
}  # fmt: skip


def curves(study: str, runs: Mapping[str, Path], path: Path) -> str:
    """Draws a study's curves, a line a run.

    Args:
      study: "report" or "forgetting".
      runs: name -> MODEL_DIR.
      path: the PNG to write.

    Returns:
      A line that says where the plot is, or what is missing to draw it.
    """
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed (extra `plots`)"
    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = _PANELS[study]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 3.8), sharey=True, layout="constrained"
    )
    for axis, (title, pattern, metric) in zip(axes, panels, strict=True):
        for name, directory in runs.items():
            for file in (directory / "inference_eval").glob(pattern):
                points = [json.loads(line) for line in file.read_text().splitlines()]
                steps = [point["step"] for point in points]
                values = [100 * point[metric] for point in points]
                axis.plot(steps, values, marker=".", markersize=3, linewidth=1.2, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("training steps")
        axis.set_ylim(-2, 102)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("percent")
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return f"plot: {path}"
