"""The tree of semantic docids against scikit-learn, plain faiss and NCI's recipe.

    python -m benchmarks.docid_kmeans --cores 0 --documents 10000 100000

All split each node into 10 until it holds 100 documents. Before anything is timed, the leaf error
of our trees (mean squared distance of a document to the mean of its leaf, mean of a few seeds) must
be close to the best contender's, or the program stops: a faster tree of worse leaves is no gain.
NCI's recipe takes minutes: its one tree is told, not compared, as errors of single trees scatter.
Times are the processor's, of all threads: bind the process to one core.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import made_points, timing
from dsi_jax.docids.kinds.semantic import Semantic

CLUSTERS, LEAF_SIZE = 10, 100
LARGEST_EXCESS = 0.05  # of our leaf error over the best contender's
NCI_RESTARTS = 100

Split = Callable[[np.ndarray, int], np.ndarray]
Leaves = Callable[[np.ndarray, int], list[np.ndarray]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number of documents."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    for count in options.documents:
        timing.emit(
            kind="measurement",
            name="docid_kmeans",
            documents=count,
            dimensions=options.dimensions,
            cores=cores,
            **measure(made_points.made_points(count, options.dimensions), options),
        )
    return 0


def measure(points: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Leaf errors and timings of all contenders on these points.

    Raises:
      SystemExit: if our leaves are worse than the best contender's.
    """
    contenders: dict[str, Leaves] = {"ours": our_leaves, "faiss": faiss_leaves}
    if len(points) <= options.sklearn_up_to:
        contenders["sklearn"] = sklearn_leaves
    if len(points) <= options.nci_up_to:
        contenders["nci"] = nci_leaves
    trees = {name: 1 if name == "nci" else options.trees for name in contenders}
    errors = {
        name: [leaf_error(points, leaves(points, seed)) for seed in range(trees[name])]
        for name, leaves in contenders.items()
    }
    means = {name: float(np.mean(found)) for name, found in errors.items()}
    best = min(mean for name, mean in means.items() if trees[name] == options.trees)
    if means["ours"] > (1 + LARGEST_EXCESS) * best:
        raise SystemExit(f"our leaves are worse than others': {means}")
    calls = {name: functools.partial(leaves, points, 0) for name, leaves in contenders.items()}
    # A hundred times slower: three rounds by itself.
    slow = {name: calls.pop(name) for name in ("nci",) if name in calls}
    # Trees take so long that others' work would fall on any of them: the processor's time.
    measure_calls = functools.partial(timing.measure, warmup=0, clock=time.process_time)
    timings = measure_calls(calls, rounds=options.rounds)  # warm from the errors
    if slow:
        timings |= measure_calls(slow, rounds=timing.FEWEST_ROUNDS)
    figures = timing.line(timings, lambda: _ratios(timings))
    about = {f"{name}_leaf_error": mean for name, mean in means.items()}
    about |= {"ours_leaf_error_deviation": float(np.std(errors["ours"]))}
    return {"trees": options.trees} | about | figures


def our_leaves(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """As the kind semantic splits them."""
    kind = Semantic(CLUSTERS, LEAF_SIZE, embedder=None)
    return [rows for rows, _ in kind.leaves(points, np.random.default_rng(seed))]


def sklearn_leaves(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """By scikit-learn's k-means with its defaults."""
    return _tree(points, seed, functools.partial(_sklearn, n_init=1))


def nci_leaves(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """As NCI builds its identifiers (Wang et al. 2022): float64 and a hundred restarts a node."""
    split = functools.partial(_sklearn, n_init=NCI_RESTARTS)
    return _tree(points.astype(np.float64), seed, split)


def faiss_leaves(points: np.ndarray, seed: int) -> list[np.ndarray]:
    """By `faiss.Kmeans` with its defaults, on all points of a node."""
    import faiss

    def split(part: np.ndarray, seed: int) -> np.ndarray:
        kmeans = faiss.Kmeans(
            part.shape[1],
            CLUSTERS,
            seed=seed,
            max_points_per_centroid=len(part),
            min_points_per_centroid=1,
        )
        kmeans.train(part)
        return kmeans.assign(part)[1]

    return _tree(points, seed, split)


def leaf_error(points: np.ndarray, leaves: Sequence[np.ndarray]) -> float:
    """Mean squared distance of a point to the mean of its leaf."""
    total = sum(float(((points[rows] - points[rows].mean(0)) ** 2).sum()) for rows in leaves)
    return total / len(points)


def _tree(points: np.ndarray, seed: int, split: Split) -> list[np.ndarray]:
    """Rows of each leaf, splitting nodes by `split(points, seed of the node) -> labels`."""
    rng = np.random.default_rng(seed)
    leaves, pending = [], [np.arange(len(points))]
    while pending:
        rows = pending.pop()
        if len(rows) <= LEAF_SIZE:
            leaves.append(rows)
            continue
        labels = split(points[rows], int(rng.integers(1, 1 << 31)))
        pending += [rows[labels == label] for label in np.unique(labels)]
    return leaves


def _sklearn(part: np.ndarray, seed: int, *, n_init: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(CLUSTERS, n_init=n_init, random_state=seed).fit_predict(part)


def _ratios(timings: dict[str, timing.Timing]) -> dict[str, float]:
    ours = timings["ours"].p50
    return {f"{name}_over_ours": t.p50 / ours for name, t in timings.items() if name != "ours"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", nargs="+", type=int, default=[10_000, 100_000])
    add("--dimensions", type=int, default=256)
    add("--rounds", type=int, default=7)
    add("--trees", type=int, default=8, help="seeds whose leaf errors are averaged")
    add("--sklearn_up_to", type=int, default=100_000, help="scikit-learn's, for so many documents")
    add("--nci_up_to", type=int, default=10_000, help="NCI's recipe is run for so many documents")
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
