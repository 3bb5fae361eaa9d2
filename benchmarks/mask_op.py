"""The mask of each level alone against STATIC's: from places and log-probabilities to children.

    python -m benchmarks.mask_op --cores 0 --static DIR --documents 1000000

Beams stand at the prefixes of random documents. Before anything is timed, both must allow the same
children with the same log-probabilities. With `--filter` ours is timed with and without a list of
a fifth of the documents, too.
"""

import argparse
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import made_docids, static_peer, timing
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.constraint import Span, TrieConstraint
from dsi_jax.decoding.document_sets import DocumentSets, document_sets
from dsi_jax.docids.table import FIRST_CODE

CALLS = 20  # a round
FILTERED_SHARE = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape, level and number of beams."""
    options = _parser().parse_args(argv)
    cores = timing.pin(options.cores)
    static = static_peer.Static(options.static)
    for shape in options.shapes:
        codes = made_docids.made_codes(options.documents, options.codes, options.length, shape)
        host = trie_lib.build_trie(made_docids.made_table(codes, options.codes))
        trie = jax.device_put(host)
        peer = static.build(codes, options.codes)
        index = jax.device_put((peer.packed_csr, peer.indptr))
        allowed = np.random.default_rng(2).random(len(codes)) < FILTERED_SHARE
        sets = jax.device_put(document_sets(host, allowed[None]))
        for level in range(1, options.length):
            for beams in options.beams:
                rng = np.random.default_rng(level)
                prefixes = codes[rng.choice(len(codes), beams), :level]
                log_probs = jax.nn.log_softmax(
                    jnp.asarray(rng.normal(size=(beams, options.codes)), jnp.float32)
                )
                contenders = {
                    "ours": ours(trie, prefixes, log_probs),
                    "static": theirs(static, peer, index, prefixes, log_probs),
                }
                assert_equal(contenders["ours"](), contenders["static"]())
                if options.filter:
                    contenders["filtered"] = ours(trie, prefixes, log_probs, sets)
                timings = timing.measure(
                    {name: repeated(call) for name, call in contenders.items()},
                    rounds=options.rounds,
                    per_call=CALLS,
                )
                timing.emit(
                    kind="measurement",
                    name="mask_op",
                    documents=options.documents,
                    shape=shape,
                    level=level,
                    beams=beams,
                    children=peer.max_branches[level],
                    width=host.widths[level],
                    in_tails=level >= host.depth,
                    cores=cores,
                    **timing.line(timings, lambda timings=timings: ratios(timings)),
                )
    return 0


def ratios(timings: dict[str, timing.Timing]) -> dict[str, float]:
    """Of the medians, ours below."""
    found = {"static_over_ours": timings["static"].p50 / timings["ours"].p50}
    if "filtered" in timings:
        found["filtered_over_ours"] = timings["filtered"].p50 / timings["ours"].p50
    return found


def ours(
    trie: trie_lib.Trie,
    prefixes: np.ndarray,
    log_probs: jax.Array,
    sets: DocumentSets | None = None,
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """A call that gives tokens and log-probabilities [B M, K], -inf where there is no child."""
    level = prefixes.shape[1]
    state = places(trie, prefixes)
    set_of_query = None if sets is None else jnp.zeros(len(prefixes), jnp.int32)
    constraint = TrieConstraint(trie, sets, set_of_query)
    span = Span(level, level + 1, trie.widths[level])

    # The token space has pad and end before the codes; STATIC's has not.
    padded = jnp.pad(log_probs, ((0, 0), (FIRST_CODE, 0)))[:, None]
    # Arrays alone, as STATIC's: within a search, nothing is taken apart at a level.
    leaves, structure = jax.tree.flatten((constraint, state))

    @jax.jit
    def mask(log_probs: jax.Array, *leaves: jax.Array) -> tuple[jax.Array, jax.Array]:
        constraint, state = jax.tree.unflatten(structure, leaves)
        found = constraint.expand(span, level, state, log_probs)
        in_tails = level >= trie.depth
        tokens = trie_lib.tokens_from(constraint.trie, state.low, span.width, level, in_tails)
        scores = jnp.where(found.allowed, found.logits, -jnp.inf)
        return (tokens - FIRST_CODE)[:, 0], scores[:, 0]

    return lambda: mask(padded, *leaves)


def places(trie: trie_lib.Trie, prefixes: np.ndarray) -> trie_lib.Range:
    """Where the prefixes [B, level] lead to; [B, 1]."""
    state = TrieConstraint(trie).start(len(prefixes))
    for level, tokens in enumerate(prefixes.T + FIRST_CODE):
        state = trie_lib.step_into(
            trie, state, level, jnp.asarray(tokens)[:, None], level >= trie.depth
        )
    return state


def theirs(
    static: static_peer.Static,
    peer: static_peer.StaticIndex,
    index: tuple[jax.Array, ...],
    prefixes: np.ndarray,
    log_probs: jax.Array,
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """The same by STATIC's sparse mask, which its search uses from the third level on."""
    level = prefixes.shape[1]
    states = jnp.asarray([state_of(peer, prefix) for prefix in prefixes], jnp.int32)
    limit, vocab_size = peer.max_branches[level], log_probs.shape[1]

    @jax.jit
    def mask(
        log_probs: jax.Array, states: jax.Array, packed_csr: jax.Array, indptr: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        scores, tokens, _ = static.decoder.generate_and_apply_logprobs_mask(
            log_probs, states, packed_csr, indptr, limit, vocab_size
        )
        return tokens, scores

    return lambda: mask(log_probs, states, *index)


def state_of(peer: static_peer.StaticIndex, prefix: np.ndarray) -> int:
    """STATIC's state after a prefix that exists."""
    state = int(prefix[0]) + 1
    for code in prefix[1:]:
        start, end = peer.indptr[state : state + 2]
        state = peer.packed_csr[start:end][peer.packed_csr[start:end, 0] == code][0, 1]
    return int(state)


def assert_equal(found: tuple[jax.Array, ...], expected: tuple[jax.Array, ...]) -> None:
    """Stops unless both have the same children with the same log-probabilities.

    Raises:
      SystemExit: if they have not.
    """
    for our_tokens, our_scores, tokens, scores in zip(
        *map(np.asarray, (*found, *expected)), strict=True
    ):
        exists, there = np.isfinite(our_scores), np.isfinite(scores)
        same = dict(zip(our_tokens[exists].tolist(), our_scores[exists].tolist(), strict=True))
        if same != dict(zip(tokens[there].tolist(), scores[there].tolist(), strict=True)):
            raise SystemExit("the two masks allow different children")


def repeated(call: Callable[[], object]) -> Callable[[], None]:
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
    add("--beams", nargs="+", type=int, default=[10, 80, 560], help="of all queries together")
    add("--filter", action="store_true", help="time ours with a list of allowed documents, too")
    add("--rounds", type=int, default=11)
    add("--cores", metavar="0-3,8", help="binds the process")
    static_peer.add_option(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
