"""What the constraint takes of a decode step on a TPU, ours beside STATIC's, by libtpu's compiler.

The TPU need not be here.

    pip install 'dsi-jax[tpu]'
    python -m benchmarks.tpu_constraint --static DIR --topology v5p:2x2x1

A line a level, of one device: `step` is the decoder's step of all beams up to the logits; `free`,
`trie` and `static` are all that a search does with these before the next step, without a
constraint, with our trie and with STATIC's tables: from logits and places to the best beams, their
tokens and their places. `share` is what a constraint adds, (constraint - free) of (step +
constraint); negative where fewer candidates compete than the vocabulary has tokens. Before anything
is compiled, both searches must pick the same beams on this machine's CPU. Nothing was measured:
bytes, FLOPs and times are the compiler's estimates.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import SingleDeviceSharding

from benchmarks import made_docids, mask_op, static_peer, timing
from benchmarks.made_texts import text_batch
from dsi_jax.decoding import trie as trie_lib
from dsi_jax.decoding.constraint import Constraint, Free, Span, TrieConstraint
from dsi_jax.decoding.decode_loop import Beams, Level, best_candidates
from dsi_jax.docids.table import FIRST_CODE
from dsi_jax.jobs.precompile import report, topologies
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel


class Setting(NamedTuple):
    """B queries of M beams each, of docids of L codes below V; a query has S tokens."""

    queries: int
    beams: int
    length: int
    codes: int
    source: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each shape and level."""
    options = _parser().parse_args(argv)
    static = static_peer.Static(options.static)
    topology = topologies.parse(options.topology)
    compiler = Compiler(SingleDeviceSharding(topologies.devices(topology)[0]))
    setting = Setting(options.queries, options.beams, options.length, options.codes, options.source)
    step = compiler.compile(*decoder_step(options.model, setting))
    for shape in options.shapes:
        codes = made_docids.made_codes(options.documents, options.codes, options.length, shape)
        trie = trie_lib.build_trie(made_docids.made_table(codes, options.codes))
        peer = static.build(codes, options.codes)
        for level in range(1, options.length):
            programs = {
                "free": ours(Free(trie), level, setting),
                "trie": ours(TrieConstraint(trie), level, setting),
                "static": theirs(static, peer, level, setting),
            }
            check(programs["trie"], programs["static"], peer, codes, level, setting)
            found = {name: compiler.compile(*program) for name, program in programs.items()}
            timing.emit(
                kind="estimate",
                name="tpu_constraint",
                topology=topology.name,
                model=options.model,
                documents=options.documents,
                shape=shape,
                **setting._asdict(),
                level=level,
                children=peer.max_branches[level],
                width=trie.widths[level],
                in_tails=level >= trie.depth,
                **fields(step, found),
            )
    return 0


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the compiler says of a program on one device.

    Attributes:
      flops: floating-point operations.
      bytes: read and written.
      seconds: None where the compiler has no model of the chip.
    """

    flops: float
    bytes: float
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class Compiler:
    """Compiles for one device that is not here."""

    sharding: SingleDeviceSharding

    def compile(self, function: Callable[..., Any], *arguments: Any) -> Cost:
        """The cost of a function of arguments that are arrays, or what has their shapes.

        Raises:
          RuntimeError: it does not fit the device.
        """
        shapes = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.sharding), arguments
        )
        found = report.compile_and_report("", jax.jit(function).lower(*shapes))
        if found.problem:
            raise RuntimeError(found.problem)
        return Cost(found.flops or 0.0, found.bytes_accessed or 0.0, found.estimate_seconds)


def fields(step: Cost, found: Mapping[str, Cost]) -> dict[str, Any]:
    """Of a line: each program's cost, and of the constraints their share."""
    line = {}
    for name, cost in {"step": step, **found}.items():
        line |= {f"{name}_{n}": value for n, value in dataclasses.asdict(cost).items()}
    for name in ("trie", "static"):
        for what in ("bytes", "seconds"):
            own, free, rest = (getattr(cost, what) for cost in (found[name], found["free"], step))
            known = None not in (own, free, rest)
            line[f"{name}_share_of_{what}"] = (own - free) / (rest + own) if known else None
    return line


def decoder_step(name: str, setting: Setting) -> tuple[Any, ...]:
    """The decoder's step from the beams' last tokens to logits [B, M, V], and its arguments."""
    t5 = getattr(t5_sizes, name)(dropout_rate=0.0, dtype="bfloat16")
    config = DSIConfig(t5, setting.codes + FIRST_CODE, setting.length)
    model = DSIModel(config)
    queries, beams = setting.queries, setting.beams
    batch = text_batch(np.zeros((queries, setting.source), np.int32))
    targets = {"decoder": {"inputs": np.zeros((queries, setting.length), np.int32)}}
    init = functools.partial(model.init, deterministic=True)
    variables = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), batch | targets))

    def empty_cache(variables: Any) -> Any:
        memory, mask = model.apply(variables, batch, method="encode")
        more = {"num_beams": beams, "length": setting.length, "method": "init_cache"}
        return model.apply(variables, memory, mask, **more)

    def step(variables: Any, cache: Any, tokens: jax.Array, position: jax.Array) -> Any:
        own = jnp.arange(beams, dtype=jnp.int32)[:, None]
        lineage = jnp.broadcast_to(own, (queries, beams, setting.length))
        return model.apply(variables, cache, tokens, position, lineage, method="decode_step")

    cache = jax.eval_shape(empty_cache, variables)
    tokens = jax.ShapeDtypeStruct((queries, beams), jnp.int32)
    return step, variables, cache, tokens, jax.ShapeDtypeStruct((), jnp.int32)


def ours(constraint: Constraint, level: int, setting: Setting) -> tuple[Any, ...]:
    """From the logits of a level to its best beams as our search finds them, and the arguments."""
    (span,) = (span for span in constraint.spans if span.start <= level < span.stop)
    span = Span(level, level + 1, span.width)

    def transition(constraint: Constraint, beams: Beams, logits_BxMxV: jax.Array) -> Beams:
        candidates = constraint.expand(span, level, beams.state, logits_BxMxV)
        normalizer = jax.nn.logsumexp(logits_BxMxV, axis=-1, keepdims=True)
        log_probs = jnp.where(candidates.forced, 0.0, candidates.logits - normalizer)
        scores = beams.scores[..., None] + log_probs
        return best_candidates(
            Level(span, level, beams, candidates, scores, constraint), setting.beams
        )

    size = (setting.queries, setting.beams)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(size, leaf.dtype),
        jax.eval_shape(lambda constraint: constraint.start(setting.queries), constraint),
    )
    beams = Beams(
        scores=jax.ShapeDtypeStruct(size, jnp.float32),
        live=jax.ShapeDtypeStruct(size, jnp.bool_),
        last=jax.ShapeDtypeStruct(size, jnp.int32),
        tokens=jax.ShapeDtypeStruct((*size, setting.length), jnp.int32),
        state=state,
        lineage=jax.ShapeDtypeStruct((*size, setting.length), jnp.int32),
    )
    logits = jax.ShapeDtypeStruct((*size, setting.codes + FIRST_CODE), jnp.float32)
    return transition, constraint, beams, logits


def theirs(
    static: static_peer.Static, peer: static_peer.StaticIndex, level: int, setting: Setting
) -> tuple[Any, ...]:
    """The same as STATIC's search finds them: by its dense tables at level 1, else by its CSR.

    Tokens per beam are as many as beams, which makes it exact.
    """
    queries, beams = size = (setting.queries, setting.beams)
    num_children = min(beams, setting.codes) if level == 1 else peer.max_branches[level]

    def children(log_probs: jax.Array, states: jax.Array, index: Any) -> tuple[jax.Array, ...]:
        if level > 1:
            return static.decoder.generate_and_apply_logprobs_mask(
                log_probs, states, *index, num_children, setting.codes
            )
        mask, next_states = index
        before = states - 1
        best, tokens = lax.top_k(jnp.where(mask[before], log_probs, -jnp.inf), num_children)
        return best, tokens, next_states[before[:, None], tokens]

    def transition(
        index: Any, scores: jax.Array, buffer: jax.Array, states: jax.Array, logits: jax.Array
    ) -> tuple[jax.Array, ...]:
        log_probs = jax.nn.log_softmax(logits).reshape(queries * beams, -1)
        found = children(log_probs, states.reshape(-1), index)
        log_probs, tokens, states = (part.reshape(queries, -1) for part in found)
        scores = (scores[..., None] + log_probs.reshape(*size, -1)).reshape(queries, -1)
        scores, index_BxM = lax.top_k(scores, beams)
        tokens, states = (jnp.take_along_axis(x, index_BxM, axis=1) for x in (tokens, states))
        parents = index_BxM // num_children
        buffer = static.decoder._gather_beams(buffer, parents)
        return scores, buffer.at[:, :, level].set(tokens), states, tokens, parents

    dense, sparse = (peer.dense_mask, peer.dense_states), (peer.packed_csr, peer.indptr)
    return (
        transition,
        dense if level == 1 else sparse,
        jax.ShapeDtypeStruct(size, jnp.float32),
        jax.ShapeDtypeStruct((*size, setting.length), jnp.int32),
        jax.ShapeDtypeStruct(size, jnp.int32),
        jax.ShapeDtypeStruct((*size, setting.codes), jnp.float32),
    )


def check(
    trie_program: tuple[Any, ...],
    static_program: tuple[Any, ...],
    peer: static_peer.StaticIndex,
    codes: np.ndarray,
    level: int,
    setting: Setting,
) -> None:
    """Stops unless both pick the same beams after random prefixes of documents.

    Raises:
      SystemExit: if they do not.
    """
    size = (setting.queries, setting.beams)
    rng = np.random.default_rng(level)
    prefixes = codes[rng.choice(len(codes), setting.queries * setting.beams), :level]
    logits = jnp.asarray(rng.normal(size=(*size, setting.codes)), jnp.float32)
    # The token space has pad and end before the codes; STATIC's has not.
    padded = jnp.pad(logits, ((0, 0), (0, 0), (FIRST_CODE, 0)), constant_values=-1e9)

    transition, constraint, *_ = trie_program
    places = jax.tree.map(
        lambda leaf: leaf.reshape(size), mask_op.places(constraint.trie, prefixes)
    )
    zeros = jnp.zeros(size, jnp.int32)
    buffer = jnp.zeros((*size, setting.length), jnp.int32)
    scores = jnp.zeros(size, jnp.float32)
    # Each its own ancestor at all levels, so that afterwards its lineage is its parent.
    lineage = jnp.broadcast_to(jnp.arange(size[1], dtype=jnp.int32)[:, None], buffer.shape)
    beams = Beams(scores, jnp.ones(size, bool), zeros, buffer, places, lineage)
    found = jax.jit(transition)(constraint, beams, padded)

    transition, index, *_ = static_program
    states = np.reshape([mask_op.state_of(peer, prefix) for prefix in prefixes], size)
    expected, _, _, tokens, parents = jax.jit(transition)(index, scores, buffer, states, logits)

    live = np.isfinite(expected)
    same = (found.last - FIRST_CODE == tokens) & (found.lineage[:, :, 0] == parents)
    if not (found.live == live).all() or not same[live].all():
        raise SystemExit(f"the two searches pick different beams at level {level}")
    np.testing.assert_allclose(found.scores[live], expected[live], rtol=1e-5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--topology", default="v5p:2x2x1", help="of which one device is taken")
    add("--model", default="t5_1_1_base", help="a name in dsi_jax.models.t5_sizes")
    add("--documents", type=int, default=1_000_000)
    add("--shapes", nargs="+", default=list(made_docids.SHAPES), choices=made_docids.SHAPES)
    add("--codes", type=int, default=2048, help="of a level")
    add("--length", type=int, default=8)
    add("--queries", type=int, default=16)
    add("--beams", type=int, default=20, help="of a query")
    add("--source", type=int, default=32, help="tokens of a query")
    static_peer.add_option(parser)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
