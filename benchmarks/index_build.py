"""Building the trie against STATIC's builder: time with the sort, bytes of the index, peak memory.

    python -m benchmarks.index_build --cores 0 --static DIR --documents 1000000

Before anything is timed, both indexes must contain a sample of the docids and none of as many
others.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import made_docids, static_peer, timing
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.docids.table import FIRST_CODE

SAMPLE = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape and number of documents."""
    options = _parser().parse_args(argv)
    about = {"codes": options.codes, "length": options.length, "cores": timing.pin(options.cores)}
    static = None if options.alone else static_peer.Static(options.static)
    for count in options.documents:
        for shape in options.shapes:
            if static is None:
                line = once(count, shape, options)
            else:
                codes = made_docids.made_codes(count, options.codes, options.length, shape)
                line = compare(codes, options, static)
            timing.emit(
                kind="measurement",
                name="index_build",
                documents=count,
                shape=shape,
                **about,
                **line,
            )
    return 0


def compare(
    codes_NxL: np.ndarray, options: argparse.Namespace, static: static_peer.Static
) -> dict[str, Any]:
    """Ours and STATIC's, with equal contents."""
    num_codes = options.codes
    ordered_NxL = static_peer.sort(codes_NxL)
    calls = {
        "ours": lambda: build(codes_NxL, num_codes),
        "static": lambda: static.build(codes_NxL, num_codes),
        "static_sorted": lambda: static.build_sorted(ordered_NxL, num_codes),
    }
    trie, index = calls["ours"](), calls["static"]()
    check_contents(trie, index, codes_NxL, num_codes)
    sizes = {
        "bytes_per_document": index_bytes(trie) / len(codes_NxL),
        "with_rows_bytes_per_document": (index_bytes(trie) + trie.rows.nbytes) / len(codes_NxL),
        "static_bytes_per_document": index.nbytes / len(codes_NxL),
        "depth": trie.depth,
        "widths": trie.widths,
    }
    del trie, index
    peaks = {
        f"{name}_peak_bytes_per_document": peak_bytes(calls[name]) / len(codes_NxL)
        for name in ("ours", "static")
    }
    timings = timing.measure(calls, rounds=options.rounds, warmup=0)  # warm from the check

    def figures() -> dict[str, float]:
        return {
            "static_over_ours": timings["static"].p50 / timings["ours"].p50,
            "static_sorted_over_ours": timings["static_sorted"].p50 / timings["ours"].p50,
        }

    return sizes | peaks | timing.line(timings, figures)


def once(count: int, shape: str, options: argparse.Namespace) -> dict[str, Any]:
    """Ours alone and once, from a mapped file, for tables that take minutes.

    What has been read of the file counts as resident, so the line has its size, too.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/tokens.npy"
        # Another process makes the docids: its memory is not to count.
        maker = multiprocessing.get_context("spawn").Process(
            target=_write_tokens, args=(path, count, options.codes, options.length, shape)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise SystemExit(f"the process that makes the docids ended with {maker.exitcode}")
        tokens = np.load(path, mmap_mode="r")
        start = time.perf_counter()
        trie = trie_lib.build_trie(made_docids.table_of(tokens, options.codes))
        seconds = time.perf_counter() - start
    return {
        "build_s": seconds,
        "bytes_per_document": index_bytes(trie) / count,
        "with_rows_bytes_per_document": (index_bytes(trie) + trie.rows.nbytes) / count,
        "peak_resident_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "mapped_input_gb": tokens.nbytes / 1e9,
    }


def _write_tokens(path: str, count: int, num_codes: int, length: int, shape: str) -> None:
    codes = made_docids.made_codes(count, num_codes, length, shape)
    np.save(path, made_docids.made_table(codes, num_codes).tokens)


def build(
    codes_NxL: np.ndarray, num_codes: int, like: trie_lib.Trie | None = None
) -> trie_lib.Trie:
    """The trie of a table that was never sorted before."""
    return trie_lib.build_trie(made_docids.made_table(codes_NxL, num_codes), like=like)


def index_bytes(trie: trie_lib.Trie) -> int:
    """All but `rows`, which leads from docids to documents: STATIC has nothing like it."""
    return trie.tokens.nbytes + trie.indptr.nbytes + trie.tails.nbytes


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that NumPy holds during a call, its result included."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def check_contents(
    trie: trie_lib.Trie, index: static_peer.StaticIndex, codes_NxL: np.ndarray, num_codes: int
) -> None:
    """Stops unless both hold a sample of the docids, and not the others.

    Raises:
      SystemExit: if they do not.
    """
    rng = np.random.default_rng(1)
    rows = rng.choice(len(codes_NxL), min(SAMPLE, len(codes_NxL)), replace=False)
    strangers = codes_NxL[rows].copy()
    level = rng.integers(strangers.shape[1], size=len(strangers))
    strangers[np.arange(len(strangers)), level] = rng.integers(num_codes, size=len(strangers))
    asked = np.concatenate([codes_NxL[rows], strangers])
    places = np.asarray(trie_lib.lookup(trie, asked + FIRST_CODE))
    found = np.where(places >= 0, trie.rows[np.maximum(places, 0)], -1)
    if not (found[: len(rows)] == rows).all():
        raise SystemExit("the trie does not find the documents of its docids")
    theirs = np.array([_static_holds(index, codes) for codes in asked])
    if not (theirs == (found >= 0)).all():
        raise SystemExit("the trie and STATIC's index hold different docids")


def _static_holds(index: static_peer.StaticIndex, codes_L: np.ndarray) -> bool:
    if not index.dense_mask[tuple(codes_L[:2])]:
        return False
    state = index.dense_states[tuple(codes_L[:2])]
    for code in codes_L[2:]:
        edges = index.packed_csr[index.indptr[state] : index.indptr[state + 1]]
        (place,) = np.nonzero(edges[:, 0] == code)
        if not len(place):
            return False
        state = edges[place[0], 1]
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", nargs="+", type=int, default=[100_000, 1_000_000])
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--rounds", type=int, default=7)
    add("--alone", action="store_true", help="ours alone, once: for a hundred million documents")
    add("--cores", metavar="0-3,8", help="binds the process")
    static_peer.add_option(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
