"""A whole search of L levels without a model to speak of, against STATIC's.

    python -m benchmarks.constrained_search --cores 0 --static DIR --documents 1000000

The model is a table of logits a token: what is left is the search. `model` is that table's part, L
times; ratios are made of what exceeds it. STATIC runs with tokens_per_beam = M, which makes it
exact. Before anything is timed, both must find the same docids.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import index_build, made_docids, static_peer, timing
from dsi_jax.decoding.beam import DecodeFns, beam_search
from dsi_jax.decoding.constraint import TrieConstraint
from dsi_jax.docids.table import FIRST_CODE

CALLS = 5  # a round
Search = Callable[[], jax.Array]  # codes [B, M, L]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape and pair of batch size and number of beams."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    static = static_peer.Static(options.static)
    table = np.random.default_rng(3).normal(size=(options.codes, options.codes))
    table = jnp.asarray(table, jnp.float32)
    for shape in options.shapes:
        codes = made_docids.made_codes(options.documents, options.codes, options.length, shape)
        trie = jax.device_put(index_build.build(codes, options.codes))
        index = static.build(codes, options.codes)
        for batch, beams in (map(int, pair.split("x")) for pair in options.sizes):
            size = (batch, beams, options.length)
            searches = {
                "ours": ours(TrieConstraint(trie), table, *size),
                "static": theirs(static, index, table, *size),
            }
            assert_same(searches["ours"](), searches["static"]())
            searches["model"] = model_alone(table, *size)
            calls = {name: repeated(search) for name, search in searches.items()}
            timings = timing.measure(calls, rounds=options.rounds, per_call=CALLS)
            timing.emit(
                kind="measurement",
                name="constrained_search",
                documents=options.documents,
                shape=shape,
                batch=batch,
                beams=beams,
                length=options.length,
                codes=options.codes,
                cores=cores,
                **timing.line(timings, lambda timings=timings: figures(timings)),
            )
    return 0


def figures(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """Ours as a share of STATIC's time, with the model and without."""
    ours_, static, model = (timings[name].p50 for name in ("ours", "static", "model"))
    found = {"ours_over_static": ours_ / static}
    if static > model:
        found["ours_over_static_without_model"] = (ours_ - model) / (static - model)
    return found


def ours(
    constraint: TrieConstraint, table_KxK: jax.Array, batch: int, beams: int, length: int
) -> Search:
    """Our search. The first code stands for the beginning, as STATIC's start token does."""
    # Pad and end, which STATIC's tokens have not, are never likely.
    table_KxV = jnp.pad(table_KxK, ((0, 0), (FIRST_CODE, 0)), constant_values=-1e9)

    @jax.jit
    def search(constraint: TrieConstraint, table_KxV: jax.Array) -> jax.Array:
        def step(cache: tuple, tokens: jax.Array, *_: Any) -> tuple[jax.Array, tuple]:
            return table_KxV[jnp.maximum(tokens - FIRST_CODE, 0)], cache

        decode = DecodeFns(lambda *_: (), step)
        mask = jnp.ones((batch, 1), bool)
        found = beam_search(decode, None, mask, constraint=constraint, beam_size=beams)
        return found.tokens - FIRST_CODE

    del length
    return lambda: search(constraint, table_KxV)


def theirs(
    static: static_peer.Static,
    index: static_peer.StaticIndex,
    table_KxK: jax.Array,
    batch: int,
    beams: int,
    length: int,
) -> Search:
    """STATIC's search, exact."""

    def model(tokens: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return table_KxK[tokens], key

    arrays = jax.device_put(
        (index.packed_csr, index.indptr, index.start_mask, index.dense_mask, index.dense_states)
    )
    sizes = (batch, beams, beams, 0, length, table_KxK.shape[1], index.max_branches)
    return lambda: static.decoder.sparse_transition_jax(
        model, jax.random.key(0), *sizes, *arrays, d_dense=2
    )


def model_alone(table_KxK: jax.Array, batch: int, beams: int, length: int) -> Search:
    """The table's rows and their softmax for as many beams, L times."""

    @jax.jit
    def run(table_KxK: jax.Array, tokens: jax.Array) -> jax.Array:
        def step(_: int, tokens: jax.Array) -> jax.Array:
            total = jax.nn.logsumexp(table_KxK[tokens], axis=-1)
            return (tokens + (total > 0)) % len(table_KxK)

        return jax.lax.fori_loop(0, length, step, tokens)

    tokens = jnp.zeros((batch, beams), jnp.int32)
    return lambda: run(table_KxK, tokens)


def assert_same(found: jax.Array, expected: jax.Array) -> None:
    """Stops unless both have the same docids, but for one in a hundred: scores may tie.

    Raises:
      SystemExit: if they have not.
    """
    for own, theirs_ in zip(np.asarray(found), np.asarray(expected), strict=True):
        shared = set(map(tuple, own.tolist())) & set(map(tuple, theirs_.tolist()))
        if len(shared) < 0.99 * len(own):
            raise SystemExit(f"of {len(own)} docids STATIC finds {len(shared)}")


def repeated(call: Search) -> Callable[[], None]:
    """CALLS calls, waited for one by one."""

    def run() -> None:
        for _ in range(CALLS):
            jax.block_until_ready(call())

    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--documents", type=int, default=1_000_000)
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--sizes", nargs="+", default=["1x10", "8x10", "2x70"], help="batch x beams")
    add("--rounds", type=int, default=11)
    add("--cores", metavar="0-3,8", help="binds the process")
    static_peer.add_option(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
