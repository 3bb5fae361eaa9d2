"""Docids of millions of documents from a mapped file of embeddings: seconds and memory.

    python -m benchmarks.docid_scale --cores 0 --documents 1000000 10000000

Each table is built in a process of its own, once, from a file that another process has made, and
the trie of it, too. `..._peak_mib` is the most anonymous memory held beyond what the process held
before; what it has read of the mapped file is not in it, since the system may take that back at
any time. Linux alone tells the two apart.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import re
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import index_build, made_points, timing
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.quantized import ResidualQuantized
from dsi_jax.docids.kinds.semantic import Semantic

KINDS = {
    "semantic": Semantic,
    "rq": ResidualQuantized,
    "rq_nearest": functools.partial(ResidualQuantized, collisions="nearest"),
}
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
    """Writes a file of points."""
    points = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimension))
    made_points.fill(points)
    points.flush()


def measure(path: str, kind: str) -> dict[str, Any]:
    """Seconds and peak memory of the table and of its trie.

    Raises:
      ValueError: if two documents have one docid.
    """
    points = np.load(path, mmap_mode="r")
    builder = KINDS[kind](embedder=None)
    keys = range(len(points))  # not what is measured, and tables do not look at them
    with Cost() as table_cost:
        table = builder.build(DocumentColumns(keys, "synthetic", embeddings=points))
    with Cost() as trie_cost:
        trie = trie_lib.build_trie(table)
    table.validate()
    collided = table.parameters.get("collided")
    return {
        **table_cost.fields("table_"),
        **trie_cost.fields("trie_"),
        "mapped_mib": points.nbytes / 2**20,
        "length": table.length,
        "trie_bytes_per_document": (index_build.index_bytes(trie) + trie.rows.nbytes) / len(points),
    } | ({} if collided is None else {"collided": collided})


class Cost:
    """What a block takes of time and, beyond what the process held before it, of memory.

    Attributes:
      seconds: until its end.
      cpu_seconds: the processor's, of all threads: less where others had it meanwhile.
      peak_mib: the most anonymous memory.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float

    def __enter__(self) -> "Cost":
        self._most = self._before = anonymous_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]
        self._ended.set()
        self._thread.join()
        self._most = max(self._most, anonymous_bytes())
        self.peak_mib = (self._most - self._before) / 2**20

    def fields(self, prefix: str) -> dict[str, float]:
        """The figures as fields of a line, their names after `prefix`."""
        figures = {"s": self.seconds, "cpu_s": self.cpu_seconds, "peak_mib": self.peak_mib}
        return {f"{prefix}{name}": figure for name, figure in figures.items()}

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
