"""The training part of `gpu_check`: a text DSI and an image DSI on one device.

Models, towers, optimizer, learning rate and loss are those that these shipped gin files bind, made
here in Python, because a machine with an accelerator may have neither gin nor tensorflow (a test
compares both):

    runs/train.gin  models/<model>.gin  models/<clip>.gin  optimizers/adafactor.gin
    LEARNING_RATE_FACTORS = 'constant'  LEARNING_RATE = 0.001    # what adafactor.gin names
                                                                 # for finetuning as in T5

The vocabulary is that of a tokenizer as large as `Setting.vocab`. The towers are transformers' Flax
CLIP (4.56 or 4.57; 5 has none): without it the image DSI is a failed line, and the rest goes on.
"""

import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import gpu_setting, timing
from benchmarks.gpu_setting import Setting
from benchmarks.made_texts import text_batch
from dsi_jax.models.dsi import shift_right
from dsi_jax.training import partitioning, program
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.optimizers import Adafactor
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, shardings_of
from dsi_jax.training.step import Metrics, summarize

DSIS = ("text", "image")
OPTIMIZER = Adafactor(Schedule("constant", base_learning_rate=0.001))
Z_LOSS = 0.0001
LARGEST_STEPS = 1000  # of the schedule, which is constant

# Largest differences from the CPU. The first loss and gradient differ by rounding alone; after an
# update the optimizer, which divides gradients by their size, has made rounding of the smallest
# ones into whole steps of their weights.
FIRST_LOSS_TOLERANCE = 1e-5
FIRST_GRADIENT_TOLERANCE = 1e-4
LATER_LOSS_TOLERANCE = 1e-3


class Training:
    """A training run on one device whose batches are a function of the step.

    Args:
      setting: the sizes.
      device: where it runs.
      dsi: one of DSIS.
      model: one of `Setting.models`.
      batch: examples a step.
      dtype: of the matrix products.
      precision: of the matrix products, see `jax.default_matmul_precision`; None: the device's own.
    """

    def __init__(
        self,
        setting: Setting,
        device: jax.Device,
        *,
        dsi: str,
        model: str,
        batch: int,
        dtype: str = "float32",
        precision: str | None = None,
    ) -> None:
        self._setting, self._dsi, self._batch, self._precision = setting, dsi, batch, precision
        self._table = gpu_setting.table("naive", setting)
        self.model = gpu_setting.new_model(
            setting, model, self._table, dtype, towers=dsi == "image"
        )
        self._mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), [device])
        self._program = program.build(
            self.model,
            OPTIMIZER,
            self._mesh,
            jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._host_batch(0)
            ),
            train_steps=LARGEST_STEPS,
            microbatches=1,
            loss=functools.partial(cross_entropy.docid_loss, z_loss=Z_LOSS),
        )
        self.step, self.shapes = self._program.step, self._program.shapes

    def _host_batch(self, index: int) -> dict[str, Any]:
        """The batch of a step: random texts, or texts and images, and docids of the naive table."""
        rng = np.random.default_rng(index)
        num_images = self._batch // 2 if self._dsi == "image" else 0
        rows_B = rng.integers(0, self._table.num_documents, self._batch)
        targets_BxL = self._table.docids(rows_B)
        texts = gpu_setting.random_texts(rng, self._batch - num_images, self._setting)
        streams: dict[str, Any] = text_batch(texts)
        if num_images:
            side = self.model.config.towers.image.image_size
            pixels = rng.integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
            streams["image"] = {"pixels": pixels}
        return streams | {
            "decoder": {
                "inputs": np.asarray(shift_right(targets_BxL)),
                "targets": targets_BxL,
                "weights": (targets_BxL != 0).astype(np.float32),
            },
            "is_indexing": rng.integers(0, 2, self._batch).astype(np.int32),
        }

    def batch(self, index: int) -> dict[str, Any]:
        """The batch of a step, on the device."""
        return partitioning.shard_batch(self._host_batch(index), self._mesh)

    @functools.cached_property
    def start(self) -> TrainState:
        """The state at step 0, as NumPy arrays: a step consumes the state that it is given."""
        return jax.device_get(self._program.init(0))

    def put(self, state: TrainState) -> TrainState:
        """A state from the host, on the device."""
        return jax.device_put(state, shardings_of(self.shapes))

    def train(
        self, state: TrainState, first: int, last: int
    ) -> tuple[TrainState, list[dict[str, float]]]:
        """Steps `first` to `last` - 1, and their metrics."""
        metrics: list[Metrics] = []
        with self._at_precision():
            for index in range(first, last):
                state, values = self.step(state, self.batch(index))
                metrics.append(values)
        return state, [summarize(values) for values in metrics]

    def _at_precision(self) -> contextlib.AbstractContextManager:
        if self._precision is None:
            return contextlib.nullcontext()
        return jax.default_matmul_precision(self._precision)


def checks(setting: Setting) -> dict[str, Callable[[], dict[str, Any]]]:
    """All checks by name; the image DSI is repeated in the last dtype alone, to compile less."""
    repeats = [("text", dtype) for dtype in setting.dtypes] + [("image", setting.dtypes[-1])]
    return {
        **{
            f"repeat_{dsi}_{dtype}": functools.partial(check_repeat, setting, dsi, dtype)
            for dsi, dtype in repeats
        },
        **{f"loss_{dsi}": functools.partial(check_loss, setting, dsi) for dsi in DSIS},
        "checkpoint": functools.partial(check_checkpoint, setting),
    }


def measurements(setting: Setting) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """All measurements by name."""
    return {
        f"train_step_{dsi}": functools.partial(measure_train_step, setting, dsi) for dsi in DSIS
    }


@functools.cache  # the checks share what was compiled
def _checked(
    setting: Setting, device: jax.Device, dsi: str, dtype: str, precision: str | None
) -> Training:
    return Training(
        setting,
        device,
        dsi=dsi,
        model=setting.models[0],
        batch=setting.check_batch,
        dtype=dtype,
        precision=precision,
    )


@functools.cache
def _start(setting: Setting, dsi: str) -> TrainState:
    """One for all runs of a DSI: random numbers, too, are rounded differently elsewhere."""
    return _checked(setting, gpu_setting.device(), dsi, setting.dtypes[0], None).start


def check_repeat(setting: Setting, dsi: str, dtype: str) -> dict[str, Any]:
    """Ten steps, twice from the same state: equal bit for bit."""
    steps = 10
    run = _checked(setting, gpu_setting.device(), dsi, dtype, None)
    start = _start(setting, dsi)
    first, metrics = run.train(run.put(start), 0, steps)
    first = jax.device_get(first)
    second, _ = run.train(run.put(start), 0, steps)
    difference = first_difference(first, jax.device_get(second))
    return {
        "passed": difference is None and bool(np.isfinite(metrics[-1]["loss"])),
        "steps": steps,
        "first_difference": difference,
        "loss": [metrics[0]["loss"], metrics[-1]["loss"]],
    }


def check_loss(setting: Setting, dsi: str) -> dict[str, Any]:
    """Three steps in float32 at the highest precision: the losses are the CPU's.

    The same steps in the other dtypes, at the device's own precision, stand beside them.
    """
    steps = 3
    start = _start(setting, dsi)

    def metrics(device: jax.Device, dtype: str, precision: str | None) -> list[dict[str, float]]:
        run = _checked(setting, device, dsi, dtype, precision)
        return run.train(run.put(start), 0, steps)[1]

    others = [dtype for dtype in setting.dtypes if dtype != "float32"]
    fields = compare_losses(
        metrics(gpu_setting.device(), "float32", "highest"),
        metrics(gpu_setting.reference(), "float32", "highest"),
        {dtype: metrics(gpu_setting.device(), dtype, None) for dtype in others},
    )
    return fields | {
        "device": str(gpu_setting.device()),
        "reference": str(gpu_setting.reference()),
    }


def compare_losses(
    found: Sequence[Mapping[str, float]],
    expected: Sequence[Mapping[str, float]],
    beside: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, Any]:
    """Whether the steps of a device are those of the reference, within rounding.

    Args:
      found: "loss" and "grad_norm" of each step, on the device.
      expected: the same of the reference.
      beside: the same in other dtypes, which must be finite but are not held to a tolerance.

    Returns:
      `passed`, `losses`, `relative_errors`, `grad_norm_relative_error` (of the first step) and, for
      each dtype beside, its losses and their relative differences from the reference's.
    """

    def differences(steps: Sequence[Mapping[str, float]]) -> list[float]:
        pairs = zip(steps, expected, strict=True)
        return [_relative(ours["loss"], theirs["loss"]) for ours, theirs in pairs]

    errors = differences(found)
    gradient = _relative(found[0]["grad_norm"], expected[0]["grad_norm"])
    # Each by itself: max() of what holds nan may be any of the others.
    passed = errors[0] <= FIRST_LOSS_TOLERANCE and gradient <= FIRST_GRADIENT_TOLERANCE
    passed &= all(error <= LATER_LOSS_TOLERANCE for error in errors)
    fields: dict[str, Any] = {
        "losses": [values["loss"] for values in found],
        "relative_errors": errors,
        "grad_norm_relative_error": gradient,
    }
    for dtype, steps in beside.items():
        fields[f"{dtype}_losses"] = [values["loss"] for values in steps]
        fields[f"{dtype}_relative_differences"] = differences(steps)
        passed &= all(math.isfinite(loss) for loss in fields[f"{dtype}_losses"])
    return {"passed": bool(passed)} | fields


def check_checkpoint(setting: Setting) -> dict[str, Any]:
    """A run saved after two steps and read again goes on for two more as if it had not stopped."""
    saved_at, last = 2, 4
    run = _checked(setting, gpu_setting.device(), "text", setting.dtypes[0], None)
    state, _ = run.train(run.put(_start(setting, "text")), 0, saved_at)
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
    difference = first_difference(found, expected)
    return {
        "passed": difference is None and restored.step == saved_at,
        "first_difference": difference,
        "save_returns_s": returned - began,
        "save_and_two_steps_s": saved - began,
        "restore_s": read - saved,
    }


def first_difference(found: Any, expected: Any) -> str | None:
    """The path of the first leaf of two trees whose bits differ; None where all are equal."""
    leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, ours), theirs in zip(leaves, jax.tree.leaves(expected), strict=True):
        if np.asarray(ours).tobytes() != np.asarray(theirs).tobytes():
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def measure_train_step(setting: Setting, dsi: str) -> Iterator[dict[str, Any]]:
    """Training steps a second of each model, in each dtype."""
    for model in setting.models:
        for dtype in setting.dtypes:
            towers = {"clip": setting.clip} if dsi == "image" else {}
            yield {"model": model, **towers, "dtype": dtype} | _train_step(
                setting, dsi, model, dtype
            )


def _train_step(setting: Setting, dsi: str, model: str, dtype: str) -> dict[str, Any]:
    device = gpu_setting.device()
    run = Training(setting, device, dsi=dsi, model=model, batch=setting.batch, dtype=dtype)
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
        "peak_memory_bytes_so_far": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }


def _flops(lowered: jax.stages.Lowered) -> float | None:
    """Of the program as written: a compiled one hides those of library calls."""
    flops = (lowered.cost_analysis() or {}).get("flops", 0.0)
    return flops if flops > 0 else None


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / abs(expected)
