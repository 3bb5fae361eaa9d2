"""Checks and measures the core on an accelerator; prints one JSON line each.

    python -m benchmarks.gpu_check                 # everything, at full size
    python -m benchmarks.gpu_check --small         # about a minute on a CPU

It needs jax, flax, optax, orbax, numpy and pyarrow: neither tensorflow nor seqio, gin, transformers
or a network. Run it from the root of a checkout. The exit status is 0 if every check passed.

Checks run first, in a process whose XLA_FLAGS have --xla_gpu_deterministic_ops=true: without that
flag a GPU adds up the gradients of embeddings in any order, and two runs differ in their last bits
(a training that must resume bit for bit needs the flag as well). Measurements run in a second
process, without it, because it costs speed. Leave JAX_PLATFORMS unset on an accelerator: the CPU
backend is what results are compared with.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks import timing
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.docids.atomic import Atomic
from dsi_jax.docids.naive import NaiveString
from dsi_jax.docids.random_control import Random
from dsi_jax.docids.table import DocidTable
from dsi_jax.models import sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.searcher import Searcher, text_batch, to_host
from dsi_jax.training import partitioning
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.optimizers import AdamW
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, init_state, param_shapes, shardings_of, state_shapes
from dsi_jax.training.step import Metrics, make_train_step, summarize

PARTS = ("checks", "measurements")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
LARGEST_STEPS = 1000  # of the schedule, which is constant

# Largest differences from the CPU. The first loss and gradient differ by rounding alone; after an
# update Adam has turned rounding of the smallest gradients into whole steps of their weights.
FIRST_LOSS_TOLERANCE = 1e-5
FIRST_GRADIENT_TOLERANCE = 1e-4
LATER_LOSS_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes of all checks and measurements.

    Attributes:
      models: names in `dsi_jax.models.sizes`; the checks and the search use the first.
      dtypes: of the matrix products, each trained and repeated.
      layers: of encoder and decoder each; None for the model's own.
      vocab: text tokens.
      batch: examples of a measured training step.
      check_batch: examples of a checked one, and queries of a checked search.
      source: tokens of a text.
      documents: of the naive and random tables.
      atomic_documents: of the atomic table.
      query_batches: B of the measured searches.
      beam_sizes: M of the measured searches; the checked search has the first.
      rounds: timed rounds.
      steps_a_round: training steps dispatched before the device is waited for, as a run does.
      peak_tflops: of the device, by dtype; shares of it are printed where it is known.
    """

    models: tuple[str, ...] = ("t5_small",)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    layers: int | None = None
    vocab: int = sizes.VOCAB_SIZE
    batch: int = 256
    check_batch: int = 16
    source: int = 64
    documents: int = 100_000
    atomic_documents: int = 10_000
    query_batches: tuple[int, ...] = (1, 8, 64)
    beam_sizes: tuple[int, ...] = (10, 100)
    rounds: int = 30
    steps_a_round: int = 5
    peak_tflops: tuple[tuple[str, float], ...] = ()


SMALL = Setting(
    models=("t5_tiny",),
    vocab=1024,
    batch=16,
    check_batch=4,
    source=16,
    documents=2_000,
    atomic_documents=500,
    query_batches=(1, 4),
    beam_sizes=(5,),
    rounds=10,
    steps_a_round=2,
)


# Training


class Training:
    """A training run on one device whose batches are a function of the step."""

    def __init__(
        self,
        setting: Setting,
        device: jax.Device,
        *,
        model: str,
        batch: int,
        dtype: str = "float32",
        precision: str | None = None,
    ) -> None:
        self._setting, self._batch, self._precision = setting, batch, precision
        self._table = _table("naive", setting)
        self.model = _model(setting, model, self._table, dtype)
        choice = AdamW(Schedule("constant", 1e-4))
        self.optimizer = choice.build(LARGEST_STEPS)
        self.mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), [device])
        self.shapes = state_shapes(self.model, self.optimizer, self.host_batch(0), self.mesh)
        self.step = make_train_step(
            self.model,
            self.optimizer,
            shardings_of(self.shapes),
            mesh=self.mesh,
            learning_rate=choice.learning_rate.build(LARGEST_STEPS),
        )

    def host_batch(self, index: int) -> dict[str, Any]:
        """The batch of a step: random texts of unlike lengths, and docids of the naive table."""
        rng = np.random.default_rng(index)
        rows_B = rng.integers(0, self._table.num_documents, self._batch)
        targets_BxL = self._table.docids(rows_B)
        return text_batch(_random_texts(rng, self._batch, self._setting)) | {
            "decoder": {
                "inputs": np.asarray(shift_right(targets_BxL)),
                "targets": targets_BxL,
                "weights": (targets_BxL != 0).astype(np.float32),
            },
            "is_indexing": rng.integers(0, 2, self._batch).astype(np.int32),
        }

    def batch(self, index: int) -> dict[str, Any]:
        """The batch of a step, on the device."""
        return partitioning.shard_batch(self.host_batch(index), self.mesh)

    @functools.cached_property
    def start(self) -> TrainState:
        """The state at step 0, as NumPy arrays: a step consumes the state that it is given."""
        state = init_state(self.model, self.optimizer, self.host_batch(0), 0, self.mesh)
        return jax.device_get(state)

    def put(self, state: TrainState) -> TrainState:
        """A state from the host, on the device."""
        return jax.device_put(state, shardings_of(self.shapes))

    def train(
        self, state: TrainState, first: int, last: int
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """Steps `first` to `last` - 1, and their metrics."""
        metrics: list[Metrics] = []
        with self.precision():
            for index in range(first, last):
                state, values = self.step(state, self.batch(index))
                metrics.append(values)
        return state, [summarize(values) for values in metrics]

    def precision(self) -> contextlib.AbstractContextManager:
        """Within it, matrix products are as precise as this run asks."""
        if self._precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self._precision)


@functools.cache  # the checks share what was compiled
def _checked_training(
    setting: Setting, device: jax.Device, dtype: str, precision: str | None
) -> Training:
    return Training(
        setting,
        device,
        model=setting.models[0],
        batch=setting.check_batch,
        dtype=dtype,
        precision=precision,
    )


def check_repeat(setting: Setting, dtype: str) -> dict[str, Any]:
    """Ten steps, twice from the same state: equal bit for bit."""
    steps = 10
    run = _checked_training(setting, _device(), dtype, None)
    start = run.start
    first, metrics = run.train(run.put(start), 0, steps)
    first = jax.device_get(first)
    second, _ = run.train(run.put(start), 0, steps)
    difference = _first_difference(first, jax.device_get(second))
    return {
        "passed": difference is None and bool(np.isfinite(metrics[-1]["loss"])),
        "steps": steps,
        "first_difference": difference,
        "loss": [metrics[0]["loss"], metrics[-1]["loss"]],
    }


def check_loss(setting: Setting) -> dict[str, Any]:
    """Three steps in float32 at the highest precision: the losses are the CPU's."""
    steps = 3
    runs = [
        _checked_training(setting, device, "float32", "highest")
        for device in (_reference(), _device())
    ]
    # One start for both: random numbers, too, are rounded differently elsewhere.
    start = _checked_training(setting, _device(), setting.dtypes[0], None).start
    expected, found = (run.train(run.put(start), 0, steps)[1] for run in runs)
    errors = [
        _relative(ours["loss"], theirs["loss"])
        for ours, theirs in zip(found, expected, strict=True)
    ]
    gradient = _relative(found[0]["grad_norm"], expected[0]["grad_norm"])
    return {
        "passed": errors[0] <= FIRST_LOSS_TOLERANCE
        and gradient <= FIRST_GRADIENT_TOLERANCE
        and max(errors) <= LATER_LOSS_TOLERANCE,
        "device": str(_device()),
        "reference": str(_reference()),
        "losses": [values["loss"] for values in found],
        "relative_errors": errors,
        "grad_norm_relative_error": gradient,
    }


def check_checkpoint(setting: Setting) -> dict[str, Any]:
    """A run saved after two steps and read again goes on for two more as if it had not stopped."""
    saved_at, last = 2, 4
    run = _checked_training(setting, _device(), setting.dtypes[0], None)
    state, _ = run.train(run.put(run.start), 0, saved_at)
    with tempfile.TemporaryDirectory() as directory:
        saver = Checkpointer(directory)
        began = time.perf_counter()
        saver.save(saved_at, state, data=b"position", metadata={"model": setting.models[0]})
        returned = time.perf_counter()
        # The save is still running: the steps below must not change what it writes.
        expected = jax.device_get(run.train(state, saved_at, last)[0])
        saver.close()
        saved = time.perf_counter()
        reader = Checkpointer(directory)
        restored = reader.restore_latest(run.shapes)
        read = time.perf_counter()
        reader.close()
    found = jax.device_get(run.train(restored.state, saved_at, last)[0])
    difference = _first_difference(found, expected)
    return {
        "passed": difference is None and restored.step == saved_at,
        "first_difference": difference,
        "save_returns_s": returned - began,
        "save_and_two_steps_s": saved - began,
        "restore_s": read - saved,
    }


def measure_train_step(setting: Setting) -> Iterator[dict[str, Any]]:
    """Training steps a second of each model, in each dtype."""
    for model in setting.models:
        for dtype in setting.dtypes:
            yield {"model": model, "dtype": dtype} | _train_step(setting, model, dtype)


def _train_step(setting: Setting, model: str, dtype: str) -> dict[str, Any]:
    run = Training(setting, _device(), model=model, batch=setting.batch, dtype=dtype)
    batch = run.batch(0)
    state = run.put(run.start)
    flops = _flops(run.step.lower(run.shapes, batch))

    def steps() -> None:
        nonlocal state
        for _ in range(setting.steps_a_round):
            state, metrics = run.step(state, batch)
        jax.block_until_ready(metrics)

    began = time.perf_counter()
    steps()
    first_call = time.perf_counter() - began
    timings = timing.measure(
        {"": steps}, rounds=setting.rounds, warmup=1, per_call=setting.steps_a_round
    )
    peak = dict(setting.peak_tflops).get(dtype)

    def figures() -> dict[str, Any]:
        step = timings[""].p50
        values: dict[str, Any] = {"examples_per_s": setting.batch / step}
        if flops:
            values["tflops_per_s"] = flops / step / 1e12
            if peak:
                values["share_of_peak"] = flops / step / 1e12 / peak
        return values

    return {
        "batch": setting.batch,
        "source_length": setting.source,
        "docid_length": run.model.config.docid_length,
        "matmul_precision": "default",
        "flops_per_step": flops,
        "peak_tflops": peak,
        "first_call_s": first_call,
        **timing.line(timings, figures),
        "peak_memory_bytes_so_far": _memory().get("peak_bytes_in_use"),
    }


# Search


def check_search(setting: Setting, kind: str) -> dict[str, Any]:
    """Constrained beam search of a random model: rows and scores are the CPU's."""
    table = _table(kind, setting)
    model = _model(setting, setting.models[0], table)
    texts_BxS = _random_texts(np.random.default_rng(1), setting.check_batch, setting)
    params = _random_params(model, text_batch(texts_BxS))
    results = {}
    for device in dict.fromkeys((_reference(), _device())):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            search = Searcher(model, table, beam_size=setting.beam_sizes[0])
            results[device] = to_host(
                search.search(
                    jax.device_put(params, device), jax.device_put(text_batch(texts_BxS), device)
                )
            )
    fields = compare_rankings(results[_device()], results[_reference()])
    own_docids = table.rows_of(results[_device()].tokens) == results[_device()].rows
    fields["passed"] &= bool(own_docids.all())
    return fields | {
        "documents": table.num_documents,
        "vocab_size": table.vocab_size,
        "docid_length": table.length,
        "device": str(_device()),
        "reference": str(_reference()),
    }


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


def measure_search(setting: Setting) -> Iterator[dict[str, Any]]:
    """The latency of a batch of queries, and what the constraint adds to it."""
    for kind in ("atomic", "naive"):
        table = _table(kind, setting)
        model = _model(setting, setting.models[0], table)
        texts_BxS = _random_texts(np.random.default_rng(1), max(setting.query_batches), setting)
        params = jax.device_put(_random_params(model, text_batch(texts_BxS)), _device())
        for beam_size in setting.beam_sizes:
            searchers = {
                constraint: Searcher(model, table, beam_size=beam_size, constraint=constraint)
                for constraint in ("trie", "free")
            }
            for batch in setting.query_batches:
                yield {
                    "kind_of_docid": kind,
                    "documents": table.num_documents,
                    "model": setting.models[0],
                    "batch": batch,
                    "beam_size": beam_size,
                } | _search(searchers, params, texts_BxS[:batch], setting.rounds)


def _search(
    searchers: Mapping[str, Searcher], params: Any, texts_BxS: np.ndarray, rounds: int
) -> dict[str, Any]:
    batch = jax.device_put(text_batch(texts_BxS), _device())

    def call(searcher: Searcher) -> None:
        jax.block_until_ready(searcher.search(params, batch))

    began = time.perf_counter()
    call(searchers["trie"])
    first_call = time.perf_counter() - began
    timings = timing.measure(
        {name: functools.partial(call, searcher) for name, searcher in searchers.items()},
        rounds=rounds,
    )

    def figures() -> dict[str, Any]:
        trie, free = timings["trie"].p50, timings["free"].p50
        # Negative where the children of a trie's nodes are fewer than the vocabulary.
        return {"queries_per_s": len(texts_BxS) / trie, "constraint_share": 1 - free / trie}

    return {"first_call_s": first_call, **timing.line(timings, figures)}


def measure_memory(setting: Setting) -> Iterator[dict[str, Any]]:
    """The most memory that this part of the program has held on the device."""
    del setting
    memory = _memory()
    yield {
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "limit_bytes": memory.get("bytes_limit"),
        "note": None if memory else "this backend keeps no statistics",
    }


# What checks and measurements share


def _device() -> jax.Device:
    return jax.devices()[0]


def _reference() -> jax.Device:
    return jax.devices("cpu")[0]


def _memory() -> dict[str, int]:
    return _device().memory_stats() or {}


@functools.cache
def _table(kind: str, setting: Setting) -> DocidTable:
    count = setting.atomic_documents if kind == "atomic" else setting.documents
    builder = {"atomic": Atomic(), "naive": NaiveString(), "random": Random(clusters=32)}[kind]
    return builder.build([f"document {row}" for row in range(count)], corpus_hash="")


def _model(setting: Setting, name: str, table: DocidTable, dtype: str = "float32") -> DSIModel:
    config = getattr(sizes, name)(vocab_size=setting.vocab, dtype=dtype)
    if setting.layers is not None:
        config = dataclasses.replace(
            config, num_encoder_layers=setting.layers, num_decoder_layers=setting.layers
        )
    return DSIModel(DSIConfig(config, table.vocab_size, table.length))


def _random_texts(rng: np.random.Generator, count: int, setting: Setting) -> np.ndarray:
    """Token ids int32 [count, S], texts of unlike lengths, each with at least one token."""
    tokens_BxS = rng.integers(2, setting.vocab, (count, setting.source), dtype=np.int32)
    lengths_B = rng.integers(1, setting.source + 1, count)
    return tokens_BxS * (np.arange(setting.source) < lengths_B[:, None])


def _random_params(model: DSIModel, batch: Mapping[str, Any]) -> Any:
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


def _flops(lowered: jax.stages.Lowered) -> float | None:
    """Of the program as written: a compiled one hides those of library calls."""
    flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
    return flops if flops > 0 else None


def _first_difference(found: Any, expected: Any) -> str | None:
    """The path of the first leaf whose bits differ."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, ours), theirs in zip(leaves, jax.tree.leaves(expected), strict=True):
        if np.asarray(ours).tobytes() != np.asarray(theirs).tobytes():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)


# The program


def _checks(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    repeats = {
        f"repeat_{dtype}": functools.partial(check_repeat, setting, dtype)
        for dtype in setting.dtypes
    }
    searches = {
        f"search_{kind}": functools.partial(check_search, setting, kind)
        for kind in ("atomic", "naive", "random")
    }
    return {
        **repeats,
        "loss": functools.partial(check_loss, setting),
        "checkpoint": functools.partial(check_checkpoint, setting),
        **searches,
    }


def _measurements(setting: Setting) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    return {
        "train_step": functools.partial(measure_train_step, setting),
        "search": functools.partial(measure_search, setting),
        "memory": functools.partial(measure_memory, setting),
    }


def run_part(part: str, setting: Setting, only: Sequence[str]) -> int:
    """Runs the checks or the measurements; what fails is a line, and the rest goes on.

    Args:
      part: one of PARTS.
      setting: the sizes.
      only: names to run; all if empty.

    Returns:
      The exit status: 1 if anything failed.
    """
    timing.emit(kind="about", part=part, **_about())
    failed = False
    chosen = _checks(setting) if part == "checks" else _measurements(setting)
    for name, run in chosen.items():
        if only and name not in only:
            continue
        began = time.perf_counter()
        try:
            if part == "checks":
                fields = run()
                failed |= not fields["passed"]
                timing.emit(kind="check", name=name, **fields, seconds=time.perf_counter() - began)
            else:
                for fields in run():
                    timing.emit(kind="measurement", name=name, **fields)
        except Exception as error:
            failed = True
            message = f"{type(error).__name__}: {error}"[:500]
            timing.emit(kind=part.removesuffix("s"), name=name, passed=False, error=message)
    return int(failed)


def _about() -> dict[str, Any]:
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "backend": jax.default_backend(),
        "device": _device().device_kind,
        "devices": len(jax.devices()),
        "cores": timing.pin(None),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "backend_version": _device().client.platform_version,
    }


def run_all(parts: Sequence[str], arguments: Sequence[str]) -> int:
    """Runs each part in a process of its own, passes its lines on, and sums up.

    Args:
      parts: of PARTS.
      arguments: of the command line, handed to each.

    Returns:
      The exit status: 1 if anything failed.
    """
    passed, failed, unreliable, measured = 0, [], 0, 0
    for part in parts:
        environment = dict(os.environ)
        if part == "checks":
            flags = environment.get("XLA_FLAGS", "")
            environment["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
        command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments, "--part", part]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            for text in process.stdout:
                print(text, end="", flush=True)
                if not text.startswith("{"):
                    continue
                fields = json.loads(text)
                if fields.get("passed") is False:
                    failed.append(fields["name"])
                elif fields["kind"] == "check":
                    passed += 1
                elif fields["kind"] == "measurement":
                    measured += 1
                    unreliable += bool(fields.get("unreliable"))
        if process.returncode not in (0, 1):
            failed.append(f"{part}: exit status {process.returncode}")
    timing.emit(
        kind="summary",
        checks_passed=passed,
        failed=failed,
        measurements=measured,
        measurements_unreliable=unreliable,
    )
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*_checks(Setting()), *_measurements(Setting())]
    parser.add_argument("--small", action="store_true", help="sizes for a minute on a CPU")
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument("--only", nargs="+", choices=names, default=[], metavar="NAME")
    parser.add_argument("--cores", help="bind to these, e.g. 0-3,8")
    parser.add_argument(
        "--peak_tflops", nargs="+", metavar="DTYPE=TFLOPS", help="e.g. bfloat16=989 float32=67"
    )
    parser.add_argument("--models", nargs="+", help="names in dsi_jax.models.sizes")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    for name in ("query_batches", "beam_sizes"):
        parser.add_argument(f"--{name}", nargs="+", type=int)
    for name in (
        "layers",
        "vocab",
        "batch",
        "check_batch",
        "source",
        "documents",
        "atomic_documents",
    ):
        parser.add_argument(f"--{name}", type=int)
    for name in ("rounds", "steps_a_round"):
        parser.add_argument(f"--{name}", type=int)
    return parser


def _setting(args: argparse.Namespace) -> Setting:
    given = {
        field.name: value
        for field in dataclasses.fields(Setting)
        if (value := getattr(args, field.name)) is not None
    }
    if args.peak_tflops:
        pairs = (text.split("=") for text in args.peak_tflops)
        given["peak_tflops"] = tuple((dtype, float(value)) for dtype, value in pairs)
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
    }
    return dataclasses.replace(SMALL if args.small else Setting(), **given)


def main() -> int:
    """The command."""
    arguments = sys.argv[1:]
    args = _parser().parse_args(arguments)
    setting = _setting(args)
    if args.part == "all":
        names = {"checks": _checks(setting), "measurements": _measurements(setting)}
        parts = [part for part in PARTS if not args.only or names[part].keys() & set(args.only)]
        return run_all(parts, arguments)
    timing.pin(args.cores)
    return run_part(args.part, setting, args.only)


if __name__ == "__main__":
    sys.exit(main())
