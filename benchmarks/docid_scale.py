"""Docids of millions of documents from a mapped file of embeddings: seconds and memory.

    python -m benchmarks.docid_scale --cores 0 --documents 1000000 10000000

Each table is built in a process of its own, once, from a file that another process has made, and
the trie of it, too. `..._peak_mib` is the most anonymous memory held beyond what the process held
before; what it has read of the mapped file is not in it, since the system may take that back at
any time. Linux alone tells the two apart.
"""

import argparse
import concurrent.futures
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.quantized import ResidualQuantized
from dsi_jax.docids.semantic import Semantic

KINDS = {"semantic": Semantic, "rq": ResidualQuantized}
_BLOCK = 1 << 18  # documents made at a time
_LOOK_S = 0.02  # between two looks at the memory: blocks live longer
STATUS = Path("/proc/self/status")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number of documents and kind."""
    options = _parser().parse_args(argv)
    if not STATUS.exists():
        raise SystemExit(f"{STATUS} does not exist: anonymous memory is told by Linux alone")
    cores = timing.pin(options.cores)
    for count in options.documents:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = str(Path(folder) / "vectors.npy")
            in_a_process(make_points, path, count, options.dimensions)
            for kind in options.kinds:
                timing.emit(
                    kind="measurement",
                    name="docid_scale",
                    kind_of_docid=kind,
                    documents=count,
                    dimensions=options.dimensions,
                    cores=cores,
                    **in_a_process(measure, path, kind),
                    load=timing.load(),
                )
    return 0


def in_a_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a new process, whose memory is its own."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()


def make_points(path: str, count: int, dimension: int) -> None:
    """Writes points around random centres, one centre for 50 points; float32 [N, D]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(1, count // 50), dimension)).astype(np.float32)
    points = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    for start in range(0, count, _BLOCK):
        block = points[start : start + _BLOCK]
        block[:] = 0.7 * rng.standard_normal(block.shape, np.float32)
        block += centres[rng.integers(len(centres), size=len(block))]
    points.flush()


def measure(path: str, kind: str) -> dict[str, Any]:
    """Seconds and peak memory of the table and of its trie.

    Raises:
      ValueError: if two documents have one docid.
    """
    points = np.load(path, mmap_mode="r")
    builder = KINDS[kind](embedder=None)
    keys = range(len(points))  # not what is measured, and tables do not look at them
    with PeakMemory() as table_peak:
        start = time.perf_counter()
        table = builder.build(keys, "made up", points)
        table_s = time.perf_counter() - start
    with PeakMemory() as trie_peak:
        start = time.perf_counter()
        trie = trie_lib.build_trie(table)
        trie_s = time.perf_counter() - start
    table.validate()
    collided = table.parameters.get("collided")
    return {
        "table_s": table_s,
        "table_peak_mib": table_peak.mib,
        "trie_s": trie_s,
        "trie_peak_mib": trie_peak.mib,
        "mapped_mib": points.nbytes / 2**20,
        "length": table.length,
        "trie_bytes_per_document": (
            trie.tokens.nbytes + trie.indptr.nbytes + trie.tails.nbytes + trie.rows.nbytes
        )
        / len(points),
    } | ({} if collided is None else {"collided": collided})


class PeakMemory:
    """The most anonymous memory of this process within the block, beyond that at its begin.

    Attributes:
      mib: in MiB, once the block has ended.
    """

    mib: float

    def __enter__(self) -> "PeakMemory":
        self._most = self._before = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._most = max(self._most, anonymous_bytes())
        self.mib = (self._most - self._before) / 2**20

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._most = max(self._most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", STATUS.read_text()).group(1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", nargs="+", type=int, default=[1_000_000])
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    add("--dimensions", type=int, default=64)
    add("--folder", help="where the file is made for the time; default: the system's")
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
