"""Exact dense search against faiss and NumPy, and how fast documents are embedded.

    python -m benchmarks.dense_search --cores 0-1
    python -m benchmarks.dense_search --documents 1000000 --queries 1 --model t5_base

The documents are random vectors of length 1, held once by each contender. All three give the same
rows with the same scores before anything is timed, or the program stops; documents whose scores
differ by less than rounding may change places.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

import faiss
import flax.linen as nn
import jax
import numpy as np

from benchmarks import timing
from dsi_jax.models import t5_sizes
from dsi_jax.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from dsi_jax.ranking import top_k
from dsi_jax.ranking.document_embedder import DocumentEmbedder
from dsi_jax.training import partitioning

TOLERANCE = 1e-5  # of scores, cosines in float32

Search = Callable[[], tuple[np.ndarray, np.ndarray]]  # (rows, scores), both [Q, k]


def ours(queries_QxE: np.ndarray, documents_NxE: np.ndarray, k: int, chunk_size: int) -> Search:
    """The search of a dual encoder, documents and queries on the first device."""
    mesh = partitioning.one_device_mesh()
    queries, documents = jax.device_put((queries_QxE, documents_NxE[None]))
    rank = functools.partial(top_k.exact_top_k, k=k, mesh=mesh, chunk_size=chunk_size)

    def search() -> tuple[np.ndarray, np.ndarray]:
        found = rank(queries, documents, len(documents_NxE))
        return np.asarray(found.rows), np.asarray(found.scores)

    return search


def by_numpy(queries_QxE: np.ndarray, documents_NxE: np.ndarray, k: int) -> Search:
    """All products at once, then a partial sort."""

    def search() -> tuple[np.ndarray, np.ndarray]:
        scores_QxN = queries_QxE @ documents_NxE.T
        rows_QxK = np.argpartition(-scores_QxN, k - 1, axis=1)[:, :k]
        scores_QxK = np.take_along_axis(scores_QxN, rows_QxK, axis=1)
        order_QxK = np.argsort(-scores_QxK, axis=1)
        best = (np.take_along_axis(array, order_QxK, axis=1) for array in (rows_QxK, scores_QxK))
        return tuple(best)

    return search


def by_faiss(queries_QxE: np.ndarray, documents_NxE: np.ndarray, k: int, threads: int) -> Search:
    """faiss's flat index of inner products, on the CPU."""
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(documents_NxE.shape[1])
    index.add(documents_NxE)

    def search() -> tuple[np.ndarray, np.ndarray]:
        scores_QxK, rows_QxK = index.search(queries_QxE, k)
        return rows_QxK, scores_QxK

    return search


def assert_same(name: str, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> int:
    """Stops unless both rankings are one, but for near ties.

    Returns:
      The number of places where near ties have another order.
    """
    (rows, scores), (their_rows, their_scores) = found, expected
    if not np.allclose(scores, their_scores, atol=TOLERANCE, rtol=0):
        raise SystemExit(f"{name} has other scores than faiss")
    swapped = rows != their_rows
    close = np.abs(np.diff(their_scores, axis=1)) < TOLERANCE
    beside = np.pad(close, [(0, 0), (1, 0)]) | np.pad(close, [(0, 0), (0, 1)])
    beside[:, -1] = True  # its neighbour may lie just beyond k
    if (swapped & ~beside).any():
        raise SystemExit(f"{name} has other rows than faiss where scores differ")
    return int(swapped.sum())


def compare_search(args: argparse.Namespace, cores: int) -> dict[str, Any]:
    """The line of the search."""
    rng = np.random.default_rng(0)
    documents_NxE = _unit_vectors(rng, args.documents, args.width)
    queries_QxE = _unit_vectors(rng, args.queries, args.width)
    searches = {
        "jax": ours(queries_QxE, documents_NxE, args.k, args.chunk_size),
        "numpy": by_numpy(queries_QxE, documents_NxE, args.k),
        "faiss": by_faiss(queries_QxE, documents_NxE, args.k, cores),
    }
    found = {name: search() for name, search in searches.items()}
    swapped = {
        f"{name}_swapped": assert_same(name, found[name], found["faiss"])
        for name in ("jax", "numpy")
    }
    timings = timing.measure(searches, rounds=args.rounds)

    def figures() -> dict[str, Any]:
        return {
            **{f"{name}_queries_per_s": args.queries / timings[name].p50 for name in searches},
            "jax_over_faiss": timings["faiss"].p50 / timings["jax"].p50,
            "jax_over_numpy": timings["numpy"].p50 / timings["jax"].p50,
        }

    names = ("documents", "width", "queries", "k", "chunk_size")
    sizes_ = {name: getattr(args, name) for name in names}
    return sizes_ | swapped | timing.line(timings, figures)


class _RandomInputs:
    """Token ids of so many documents, none of them padded."""

    def __init__(self, count: int, length: int, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        self._tokens_NxS = rng.integers(3, vocab_size, (count, length)).astype(np.int32)

    def __len__(self) -> int:
        return len(self._tokens_NxS)

    def __call__(self, rows_B: np.ndarray) -> dict[str, np.ndarray]:
        tokens_BxS = self._tokens_NxS[rows_B]
        return {"tokens": tokens_BxS, "mask": tokens_BxS != 0}


def measure_embedding(args: argparse.Namespace) -> dict[str, Any]:
    """The line of the embedding of documents."""
    t5 = getattr(t5_sizes, args.model)(dtype=args.dtype)
    model = DualEncoderModel(DualEncoderConfig(t5))
    inputs = _RandomInputs(args.embed, args.length, t5.vocab_size)
    text = inputs(np.arange(1))
    init = jax.jit(functools.partial(model.init, deterministic=True))
    params = init(jax.random.key(0), {"text": text, "document": text})["params"]
    params = nn.meta.unbox(params)
    mesh = partitioning.one_device_mesh()
    embedder = DocumentEmbedder(model, inputs, mesh=mesh, batch_size=args.batch)

    def embed() -> None:
        *_, embeddings_PxNxE = embedder.batches(params)
        jax.block_until_ready(embeddings_PxNxE)

    timings = timing.measure({"": embed}, rounds=args.rounds, warmup=1, per_call=args.embed)
    return {
        "model": args.model,
        "dtype": args.dtype,
        "length": args.length,
        "batch": args.batch,
        **timing.line(timings, lambda: {"documents_per_s": 1 / timings[""].p50}),
    }


def _unit_vectors(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    vectors = rng.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=64, help="in a batch")
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--chunk_size", type=int, default=top_k.CHUNK_SIZE)
    parser.add_argument("--model", default="t5_shallow", help="a name in dsi_jax.models.t5_sizes")
    parser.add_argument("--dtype", default="float32", help="of the model's matrix products")
    parser.add_argument("--length", type=int, default=64, help="tokens of a document")
    parser.add_argument("--embed", type=int, default=1024, help="documents embedded in a round")
    parser.add_argument("--batch", type=int, default=128, help="documents embedded at a time")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cores", help="bind to these, e.g. 0-3,8")
    args = parser.parse_args()
    cores = timing.pin(args.cores)
    about = {
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "versions": {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "faiss": faiss.__version__,
        },
    }
    timing.emit(kind="measurement", name="dense_search", **about, **compare_search(args, cores))
    timing.emit(kind="measurement", name="dense_embedding", **about, **measure_embedding(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
