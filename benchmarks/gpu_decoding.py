"""The decoding part of `gpu_check`: searches of random text models on one device.

The measurements are those of the decoding benchmarks for CPUs: what the constraint adds
(`constraint_share`), what the jump saves (`jump`), what a beam more costs (`beam_scaling`). Beside
them stands how near a level of a search comes to the least time in which its bytes can be read.

A search of L levels takes as long as its encoder and L decoding steps. The encoder alone is a
contender of each measurement, so `seconds_a_step` is (search - encoder) / L: it holds all that the
constraint does, and the projection of the encoded queries. `bytes_a_step` is `least_bytes` / L.
With the bandwidth of the device's memory, `floor_seconds` is the one divided by it and
`share_of_floor` is floor_seconds / seconds_a_step.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gpu_setting, made_docids, timing
from benchmarks.gpu_setting import Setting
from benchmarks.made_texts import text_batch
from benchmarks.timing import Timing
from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.decoding.constraint import Constraint, Free, TrieConstraint
from dsi_jax.decoding.trie import Trie, build_trie
from dsi_jax.docids.sorting import lexicographic_order
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.dsi import DSIModel
from dsi_jax.ranking.docid_ranker import DocidRanker, to_host
from dsi_jax.training.state import param_shapes

SCORE_TOLERANCE = 1e-4  # absolute
_ONCE = ("encoder_decoder_attention/key/", "encoder_decoder_attention/value/")

Search = Callable[[Any, Mapping[str, Any]], Any]  # (params, batch) -> what is on the device


def checks(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """All checks by name."""
    searches = {
        f"search_{kind}": functools.partial(check_search, setting, kind)
        for kind in ("atomic", "naive", "random")
    }
    return searches | {"search_jump": functools.partial(check_jump, setting)}


def measurements(setting: Setting) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """All measurements by name."""
    return {
        "search": functools.partial(measure_search, setting),
        "beam_scaling": functools.partial(measure_beam_scaling, setting),
        "jump": functools.partial(measure_jump, setting),
    }


# Checks


def check_search(setting: Setting, kind: str) -> dict[str, Any]:
    """Constrained beam search of a random model: rows and scores are the CPU's."""
    table = gpu_setting.table(kind, setting)
    model = gpu_setting.new_model(setting, setting.models[0], table, "float32")
    texts_BxS = _texts(setting, setting.check_batch)
    params = random_params(model, text_batch(texts_BxS))
    ours, reference = gpu_setting.device(), gpu_setting.reference()
    results = {}
    for device in dict.fromkeys((reference, ours)):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            search = DocidRanker(model, table, beam_size=setting.beam_sizes[0])
            results[device] = to_host(
                search.search(
                    jax.device_put(params, device), jax.device_put(text_batch(texts_BxS), device)
                )
            )
    fields = compare_rankings(results[ours], results[reference])
    own_docids = table.rows_of(results[ours].tokens) == results[ours].rows
    fields["passed"] &= bool(own_docids.all())
    return fields | {
        "documents": table.num_documents,
        "vocab_size": table.vocab_size,
        "docid_length": table.length,
        "device": str(ours),
        "reference": str(reference),
    }


def check_jump(setting: Setting) -> dict[str, Any]:
    """A search that scores known tokens in one pass finds what the search of all levels finds."""
    length, codes = setting.jump_docids[0]
    table = _made_table(setting.documents, length, codes)
    trie = build_trie(table)
    fields = {
        "documents": table.num_documents,
        "vocab_size": table.vocab_size,
        "docid_length": table.length,
        "jump": trie.jump,
    }
    if trie.jump is None:
        return {"passed": False, "reason": "docids part too late for a jump"} | fields
    model = gpu_setting.new_model(setting, setting.models[0], table, "float32")
    params, batch = _on_device(model, _texts(setting, setting.check_batch))
    with jax.default_matmul_precision("highest"):
        found, expected = (
            to_host(search_of(model, TrieConstraint(tree), setting.beam_sizes[0])(params, batch))
            for tree in (trie, _without_jump(trie))
        )
    return compare_rankings(found, expected) | fields


def compare_rankings(found: BeamResult, expected: BeamResult) -> dict[str, Any]:
    """Whether two results are the same ranking, but for documents that score the same.

    Documents closer than rounding may change places, or leave the ranking at its end: where rows
    differ, the scores of both must agree with a neighbour's (or the last one's).

    Args:
      found: of the device, on the host.
      expected: of the reference, on the host.

    Returns:
      `passed`, `largest_score_difference`, `rows_equal` (a share) and `ties` (rows that differ
      between documents of one score).
    """
    same_slots = bool((found.valid == expected.valid).all())
    valid_BxM = found.valid & expected.valid
    difference = np.abs(
        np.where(valid_BxM, found.scores, 0.0) - np.where(valid_BxM, expected.scores, 0.0)
    ).max()
    differ_BxM = found.rows != expected.rows
    scores_BxM = np.where(valid_BxM, expected.scores, np.finfo(np.float32).min)
    tied_BxM = np.zeros_like(differ_BxM)
    near_BxMm1 = scores_BxM[:, :-1] - scores_BxM[:, 1:] <= 2 * SCORE_TOLERANCE
    tied_BxM[:, :-1] |= near_BxMm1
    tied_BxM[:, 1:] |= near_BxMm1
    tied_BxM[:, -1] = True  # whoever stood next is unknown; the scores were compared
    return {
        "passed": same_slots
        and bool(valid_BxM.any())
        and float(difference) <= SCORE_TOLERANCE
        and not (differ_BxM & ~tied_BxM).any(),
        "largest_score_difference": float(difference),
        "rows_equal": float(1 - differ_BxM.mean()),
        "ties": int((differ_BxM & tied_BxM).sum()),
    }


# Measurements


def measure_search(setting: Setting) -> Iterator[dict[str, Any]]:
    """The latency of a batch of queries, and what the constraint adds to it."""
    for kind in ("atomic", "naive"):
        table = gpu_setting.table(kind, setting)
        measured, trie = _Measured(setting, table), build_trie(table)
        for beam_size in setting.beam_sizes:
            searches = {
                "trie": search_of(measured.model, TrieConstraint(trie), beam_size),
                "free": search_of(measured.model, Free(trie), beam_size),
            }
            for batch_size in setting.query_batches:
                timings = measured.time(searches, batch_size)
                fields = measured.line(timings, "trie", batch_size, beam_size, _constraint_share)
                yield {"kind_of_docid": kind} | fields


def measure_beam_scaling(setting: Setting) -> Iterator[dict[str, Any]]:
    """A line for each number of beams, all timed in turns, and one of their slope."""
    table = gpu_setting.table("naive", setting)
    measured, rule = _Measured(setting, table), TrieConstraint(build_trie(table))
    batch_size, beam_sizes = setting.scaled_batch, setting.scaled_beams
    searches = {str(m): search_of(measured.model, rule, m) for m in beam_sizes}
    timings = measured.time(searches, batch_size)
    for beam_size in beam_sizes:
        own = {"trie": timings[str(beam_size)], "encode": timings["encode"]}
        yield {"kind_of_docid": "naive"} | measured.line(own, "trie", batch_size, beam_size)
    if len(beam_sizes) > 1:
        unreliable = any(timing.unreliable for timing in timings.values())
        slope: dict[str, Any] = {}
        if not unreliable:
            medians = [timings[str(beam_size)].p50 for beam_size in beam_sizes]
            slope["seconds_a_beam"] = np.polyfit(beam_sizes, medians, 1)[0]
        about = {"kind_of_docid": "naive", **measured.about, "batch": batch_size}
        yield about | {"beam_sizes": beam_sizes, "unreliable": unreliable} | slope


def measure_jump(setting: Setting) -> Iterator[dict[str, Any]]:
    """Scoring known tokens in one pass, against step by step; the floor is that of the steps."""
    beam_size = setting.beam_sizes[0]
    for length, codes in setting.jump_docids:
        table = _made_table(setting.jump_documents, length, codes)
        measured, trie = _Measured(setting, table), build_trie(table)
        searches = {
            "jump": search_of(measured.model, TrieConstraint(trie), beam_size),
            "steps": search_of(measured.model, TrieConstraint(_without_jump(trie)), beam_size),
        }
        about = {"docid_length": length, "codes": codes, "jump": trie.jump}
        for batch_size in setting.jump_batches:
            timings = measured.time(searches, batch_size)
            yield about | measured.line(timings, "steps", batch_size, beam_size, _speedup)


def _constraint_share(timings: Mapping[str, Timing]) -> dict[str, float]:
    # Negative where the nodes of a trie have fewer children than there are tokens.
    return {"constraint_share": timings["trie"].p50 / timings["free"].p50 - 1}


def _speedup(timings: Mapping[str, Timing]) -> dict[str, float]:
    return {"speedup": timings["steps"].p50 / timings["jump"].p50}


class _Measured:
    """A random model of a table on the device, and queries for it."""

    def __init__(self, setting: Setting, table: DocidTable) -> None:
        self._setting, self._table = setting, table
        self.model = gpu_setting.new_model(setting, setting.models[0], table, setting.decode_dtype)
        most = max(*setting.query_batches, *setting.jump_batches, setting.scaled_batch)
        self._texts_BxS = _texts(setting, most)
        self._params, _ = _on_device(self.model, self._texts_BxS[:1])
        self._encode = jax.jit(
            lambda params, batch: self.model.apply({"params": params}, batch, method="encode")
        )
        self.about = {
            "documents": table.num_documents,
            "model": setting.models[0],
            "dtype": setting.decode_dtype,
        }

    def time(self, searches: Mapping[str, Search], batch_size: int) -> dict[str, Timing]:
        """The searches and, as "encode", the encoder alone, in turns."""
        batch = jax.device_put(text_batch(self._texts_BxS[:batch_size]), gpu_setting.device())

        def call(search: Search) -> None:
            jax.block_until_ready(search(self._params, batch))

        contenders = {**searches, "encode": self._encode}
        calls = {name: functools.partial(call, search) for name, search in contenders.items()}
        return timing.measure(calls, rounds=self._setting.rounds)

    def line(
        self,
        timings: Mapping[str, Timing],
        name: str,
        batch_size: int,
        beam_size: int,
        compare: Callable[[Mapping[str, Timing]], dict[str, float]] = lambda timings: {},
    ) -> dict[str, Any]:
        """The fields of a measurement; rate and floor are those of the search `name`."""

        def figures() -> dict[str, Any]:
            search = timings[name].p50
            step = step_fields(
                search - timings["encode"].p50,
                self._least_bytes(batch_size, beam_size),
                self._table.length,
                self._setting.bandwidth_gbs,
            )
            return {"queries_per_s": batch_size / search, **compare(timings), **step}

        about = {**self.about, "batch": batch_size, "beam_size": beam_size}
        return about | timing.line(timings, figures)

    def _least_bytes(self, batch_size: int, beam_size: int) -> int:
        return least_bytes(
            self.model,
            self._params,
            num_tokens=int((self._texts_BxS[:batch_size] != 0).sum()),
            beams_L=live_beams(self._table, beam_size),
            batch_size=batch_size,
        )


def step_fields(
    seconds: float, num_bytes: int, length: int, bandwidth_gbs: float | None
) -> dict[str, Any]:
    """A decoding step in figures.

    Args:
      seconds: of all L steps.
      num_bytes: that all L steps must read.
      length: L.
      bandwidth_gbs: 1e9 bytes a second; None: unknown, and no floor is told.

    Returns:
      `seconds_a_step`, `bytes_a_step`, `floor_seconds` and `share_of_floor`; None for the share
      where the search took no longer than the encoder, which is noise.
    """
    fields: dict[str, Any] = {
        "seconds_a_step": seconds / length,
        "bytes_a_step": num_bytes / length,
    }
    if bandwidth_gbs is not None:
        floor = num_bytes / (bandwidth_gbs * 1e9)
        fields["floor_seconds"] = floor / length
        fields["share_of_floor"] = floor / seconds if seconds > 0 else None
    return fields


def least_bytes(
    model: DSIModel,
    params: Any,
    *,
    num_tokens: int,
    beams_L: Sequence[int],
    batch_size: int,
) -> int:
    """The least bytes that the decoding of a search must read, step by step, in the model's dtype.

    Counted are, in each of L steps: the decoder's parameters with its head, but for the kernels
    that project the encoded queries, which are counted once; the cross keys and values of the
    queries' real tokens, once a query; the keys and values that each beam has written in the steps
    before. Not counted: what is written, the rows of embeddings that are looked up, activations,
    logits, the trie, the lookup of a beam's earlier keys by its lineage, padding, and the masked
    positions of the cache. So no program that keeps its parameters in memory can read less; what
    stays in a cache on the chip from one step to the next is read faster than memory, and may beat
    the floor.

    Args:
      model: the model.
      params: its parameters, or their shapes.
      num_tokens: real tokens of all queries together.
      beams_L: the beams of a query that enter each step.
      batch_size: B.
    """
    t5 = model.config.t5
    read = ("decoder/", "docid_embedder/") if t5.tie_embeddings else ("decoder/",)
    once = each = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if any(part in name for part in _ONCE):
            once += leaf.size
        elif name.startswith(read):
            each += leaf.size
    position = 2 * t5.num_decoder_layers * t5.num_heads * t5.head_dim  # key and value, all layers
    each += num_tokens * position
    own = batch_size * sum(step * beams for step, beams in enumerate(beams_L)) * position
    return (once + len(beams_L) * each + own) * jnp.dtype(t5.dtype).itemsize


def live_beams(table: DocidTable, beam_size: int) -> list[int]:
    """The beams that enter each level, int [L]: M, or as many prefixes as there are before it."""
    tokens_NxL = table.tokens[lexicographic_order(table.tokens, table.vocab_size)]
    differ_NxL = tokens_NxL[1:] != tokens_NxL[:-1]
    first_N = np.where(differ_NxL.any(axis=1), differ_NxL.argmax(axis=1), table.length)
    return [min(beam_size, 1 + int((first_N < level).sum())) for level in range(table.length)]


# What checks and measurements share


def search_of(model: DSIModel, rule: Constraint, beam_size: int) -> Search:
    """A search on the device, as `DocidRanker` makes it but for any constraint."""
    search = make_search(model, beam_size=beam_size)
    rule = jax.device_put(rule, gpu_setting.device())
    return lambda params, batch: search(params, batch, rule)


def random_params(model: DSIModel, batch: Mapping[str, Any]) -> Any:
    """Parameters drawn on the host, the same for every device, at about the scale of an init."""
    rng = np.random.default_rng(0)
    inputs = np.zeros((1, model.config.docid_length), np.int32)
    shapes = nn.meta.unbox(param_shapes(model, {**batch, "decoder": {"inputs": inputs}}))

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("scale"):
            return np.ones(shape.shape, np.float32)
        scale = 1.0 if name.endswith("embedding") else shape.shape[0] ** -0.5
        if name.endswith("query/kernel"):  # T5 has the attention's factor here
            scale *= model.config.t5.head_dim**-0.5
        return (scale * rng.standard_normal(shape.shape, np.float32)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def _texts(setting: Setting, count: int) -> np.ndarray:
    return gpu_setting.random_texts(np.random.default_rng(1), count, setting)


def _on_device(model: DSIModel, texts_BxS: np.ndarray) -> tuple[Any, dict[str, Any]]:
    """Random parameters, and a batch of the texts."""
    batch = text_batch(texts_BxS)
    return jax.device_put((random_params(model, batch), batch), gpu_setting.device())


@functools.cache
def _made_table(documents: int, length: int, codes: int) -> DocidTable:
    return made_docids.made_table(made_docids.made_codes(documents, codes, length), codes)


def _without_jump(trie: Trie) -> Trie:
    return dataclasses.replace(trie, jump=None)
