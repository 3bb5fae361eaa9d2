"""Checkpoints: bit-exact resumption, kills, damage, and what an error says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.training import checkpoints, partitioning
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.optimizers import Adafactor, AdamW
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, init_state, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step

B, L, V, D = 4, 2, 6, 130
ADAFACTOR = Adafactor(Schedule("constant * linear_warmup", 0.1, 4), max_grad_norm=1.0)
METADATA = {"table_hash": "abc", "model": {"emb_dim": D}}


class Toy(nn.Module):
    """A model with the DSI model's call and a matrix that Adafactor factors."""

    width: int = D

    @nn.compact
    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        x_BxD = nn.Embed(V, self.width, name="embedder")(batch["tokens"])
        x_BxD = nn.Dense(self.width, name="hidden")(x_BxD)
        x_BxD = nn.Dropout(0.3)(x_BxD, deterministic)
        return nn.Dense(L * V, name="head")(x_BxD).reshape(-1, L, V)


def make_batch(index: int) -> dict:
    rng = np.random.default_rng(index)
    return {
        "tokens": rng.integers(0, V, B).astype(np.int32),
        "decoder": {
            "targets": rng.integers(0, V, (B, L)).astype(np.int32),
            "weights": np.ones((B, L), np.float32),
        },
        "is_indexing": np.ones(B, np.int32),
    }


class Run:
    """A training run whose batches are a function of the step."""

    def __init__(self, optimizer=ADAFACTOR, model=None) -> None:
        self.model = model or Toy()
        self.optimizer = optimizer.build(20)
        self.mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
        self.shapes = state_shapes(self.model, self.optimizer, make_batch(0), self.mesh)
        self.step = make_train_step(
            self.model,
            self.optimizer,
            shardings_of(self.shapes),
            mesh=self.mesh,
            learning_rate=optimizer.learning_rate.build(20),
        )

    def init(self) -> TrainState:
        return init_state(self.model, self.optimizer, make_batch(0), 0, self.mesh)

    def train(self, state: TrainState, start: int, stop: int) -> TrainState:
        for index in range(start, stop):
            state, _ = self.step(state, make_batch(index))
        return state


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def save(checkpointer: Checkpointer, step: int, state: TrainState, **options) -> None:
    checkpointer.save(step, state, data=f"position {step}".encode(), metadata=METADATA, **options)


def saved(directory: Path, run: Run, steps, **options) -> TrainState:
    """Trains and saves at these steps; the state of the last."""
    checkpointer = Checkpointer(directory, **options)
    state, at = run.init(), 0
    for step in steps:
        state, at = run.train(state, at, step), step
        save(checkpointer, step, state)
    checkpointer.close()
    return state


def assert_same(ours, theirs) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "optimizer",
    [
        ADAFACTOR,
        AdamW(Schedule("constant * cosine_decay", 0.01)),
    ],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_a_resumed_run_is_bit_exact(tmp_path, optimizer):
    run = Run(optimizer)
    whole = run.train(run.init(), 0, 6)
    saved(tmp_path, run, [3])
    restored = Checkpointer(tmp_path).restore_latest(run.shapes, expected={"table_hash": "abc"})
    assert (restored.step, restored.data, restored.metadata) == (3, b"position 3", METADATA)
    assert jax.tree.structure(restored.state) == jax.tree.structure(whole)
    assert_same(run.train(restored.state, 3, 6), whole)


def test_saving_overlaps_with_training_that_donates_the_state(tmp_path, run):
    checkpointer = Checkpointer(tmp_path, keep=20)
    state = run.init()
    copies = {}
    for step in range(6):
        copies[step] = jax.tree.map(lambda x: np.array(x, copy=True), state)
        save(checkpointer, step, state)
        state, _ = run.step(state, make_batch(step))
    checkpointer.close()
    for step, copy in copies.items():
        assert_same(Checkpointer(tmp_path).restore(step, run.shapes).state, copy)


def test_no_checkpoint_is_a_fresh_start(tmp_path, run):
    assert Checkpointer(tmp_path / "absent").restore_latest(run.shapes) is None
    assert not (tmp_path / "absent").exists()


def test_keeps_the_latest(tmp_path, run):
    checkpointer = Checkpointer(tmp_path, keep=2)
    state = run.init()
    for step in range(1, 6):
        save(checkpointer, step, state)
    checkpointer.wait()
    assert checkpointer.steps() == [4, 5]
    again = Checkpointer(tmp_path, keep=1)
    restored = again.restore_latest(run.shapes)
    save(again, 6, restored.state)
    again.close()
    assert again.steps() == [6]
    with pytest.raises(ValueError, match="keep is 0"):
        Checkpointer(tmp_path, keep=0)


def test_saving_a_step_twice_writes_it_once(tmp_path, run):
    state = saved(tmp_path, run, [2])
    checkpointer = Checkpointer(tmp_path)
    stamp = (tmp_path / "checkpoint_2" / "files.json").stat().st_mtime_ns
    restored = checkpointer.restore_latest(run.shapes)
    save(checkpointer, 2, restored.state)
    checkpointer.close()
    assert (tmp_path / "checkpoint_2" / "files.json").stat().st_mtime_ns == stamp
    assert_same(Checkpointer(tmp_path).restore(2, run.shapes).state, state)


# Damage


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(directory: Path) -> None:
    path = largest(directory / "params")
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(directory: Path) -> None:
    path = largest(directory / "opt_state")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def remove_a_file(directory: Path) -> None:
    largest(directory / "params").unlink()


def remove_the_list(directory: Path) -> None:
    (directory / "files.json").unlink()


def garble_the_list(directory: Path) -> None:
    (directory / "files.json").write_text("{")


def garble_metadata(directory: Path) -> None:
    (directory / "metadata" / "metadata").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, r"params/.* has \d+ bytes, expected \d+"),
        (flip_a_bit, r"opt_state/.* has checksum \d+, expected \d+"),
        (remove_a_file, r"params/.* is missing"),
        (remove_the_list, r"files\.json is missing"),
        (garble_the_list, r"files\.json cannot be read"),
        (garble_metadata, r"metadata/metadata has 2 bytes"),
    ],
)
def test_damaged_checkpoints_are_passed_over_and_set_aside(tmp_path, run, damage, reason):
    saved(tmp_path, run, [2])
    shutil.copytree(tmp_path / "checkpoint_2", tmp_path / "checkpoint_4")
    damage(tmp_path / "checkpoint_4")
    checkpointer = Checkpointer(tmp_path, keep=1)
    with pytest.warns(UserWarning, match=f"checkpoint_4: {reason}"):
        restored = checkpointer.restore_latest(run.shapes)
    assert restored.step == 2
    # The damaged one must not count as the latest when old ones are deleted.
    with pytest.warns(UserWarning, match=r"checkpoint_4 set aside as checkpoint_4\.aside"):
        save(checkpointer, 3, restored.state)
    checkpointer.close()
    assert checkpointer.steps() == [3]


def test_only_damaged_checkpoints_are_an_error(tmp_path, run):
    saved(tmp_path, run, [2])
    truncate(tmp_path / "checkpoint_2")
    with (
        pytest.warns(UserWarning, match="checkpoint_2"),
        pytest.raises(ValueError, match=r"no whole checkpoint.*checkpoint_2: params/"),
    ):
        Checkpointer(tmp_path).restore_latest(run.shapes)
    with pytest.raises(ValueError, match="is not whole"):
        Checkpointer(tmp_path).restore(2, run.shapes)


def test_leftovers_of_killed_processes_are_removed_by_the_next_save(tmp_path, run):
    (tmp_path / "checkpoint_9.orbax-checkpoint-tmp-1" / "params").mkdir(parents=True)
    (tmp_path / "checkpoint_1.deleting" / "params").mkdir(parents=True)
    (tmp_path / "train").mkdir()
    assert Checkpointer(tmp_path).restore_latest(run.shapes) is None
    saved(tmp_path, run, [2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_2", "train"]


def test_a_later_checkpoint_of_an_abandoned_future_is_set_aside(tmp_path, run):
    saved(tmp_path, run, [2, 4])
    checkpointer = Checkpointer(tmp_path)
    restored = checkpointer.restore(2, run.shapes)
    with pytest.warns(UserWarning, match="checkpoint_4 set aside"):
        save(checkpointer, 3, restored.state)
    checkpointer.close()
    assert checkpointer.steps() == [2, 3]


# Another table, model, optimizer, version


def test_another_table_is_an_error_that_names_both(tmp_path, run):
    saved(tmp_path, run, [1])
    with pytest.raises(ValueError, match=r"table_hash 'abc', this run expects 'xyz'"):
        Checkpointer(tmp_path).restore_latest(run.shapes, expected={"table_hash": "xyz"})
    with pytest.raises(ValueError, match=r"tokenizer_hash None, this run expects 'q'"):
        Checkpointer(tmp_path).restore_latest(run.shapes, expected={"tokenizer_hash": "q"})
    # The metadata is compared before anything large is read.
    truncate(tmp_path / "checkpoint_1")
    with pytest.raises(ValueError, match="this run expects 'xyz'"):
        Checkpointer(tmp_path).restore_latest(run.shapes, expected={"table_hash": "xyz"})


def test_another_model_or_optimizer_is_an_error(tmp_path, run):
    saved(tmp_path, run, [1])
    wide = Run(model=Toy(width=140))
    with pytest.raises(
        ValueError, match=r"has embedder\.embedding float32\[6, 130\], .*\[6, 140\]"
    ):
        Checkpointer(tmp_path).restore_latest(wide.shapes)
    adamw = Run(AdamW(Schedule("constant", 0.01)))
    with pytest.raises(ValueError, match=r"opt_state.*another model or optimizer saved it"):
        Checkpointer(tmp_path).restore_latest(adamw.shapes)


def test_a_later_format_is_an_error(tmp_path, run):
    saved(tmp_path, run, [1])
    path = tmp_path / "checkpoint_1" / "metadata" / "metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99, expected at most 1"):
        checkpoints.load_metadata(tmp_path / "checkpoint_1")


# Without the model


def test_load_params_and_metadata_need_no_model(tmp_path, run):
    state = saved(tmp_path, run, [1, 3])
    directory = checkpoints.latest_checkpoint(tmp_path)
    assert directory.name == "checkpoint_3"
    assert checkpoints.latest_checkpoint(directory) == directory
    assert checkpoints.load_metadata(directory) == METADATA
    params = checkpoints.load_params(directory)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    assert_same(params, state.params)


def test_load_params_keeps_bfloat16(tmp_path, run):
    state = run.init()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
    checkpointer = Checkpointer(tmp_path)
    save(checkpointer, 1, state.replace(params=params))
    checkpointer.close()
    assert_same(checkpoints.load_params(tmp_path / "checkpoint_1"), params)


def test_latest_checkpoint_passes_over_damage(tmp_path, run):
    saved(tmp_path, run, [1, 3])
    truncate(tmp_path / "checkpoint_3")
    with pytest.warns(UserWarning, match="checkpoint_3: params/"):
        assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint_1"
    with pytest.raises(ValueError, match="checkpoint_3 is not whole: params/"):
        checkpoints.load_params(tmp_path / "checkpoint_3")


def test_missing_checkpoints_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint_<step> in it"):
        checkpoints.latest_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        checkpoints.load_metadata(tmp_path / "checkpoint_1")


# Disks


def test_a_model_dir_that_cannot_be_written_is_named(tmp_path, run):
    (tmp_path / "file").write_text("")
    model_dir = tmp_path / "file" / "runs"
    with pytest.raises(OSError, match=f"MODEL_DIR {model_dir} cannot be written"):
        checkpoints.check_writable(model_dir)
    with pytest.raises(OSError, match=f"saving checkpoint {model_dir}/checkpoint_1 failed"):
        save(Checkpointer(model_dir), 1, run.init())
    checkpoints.check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def program(body: str, *arguments: object) -> subprocess.Popen:
    """A Python process that saves arrays [SIZE] full of their step."""
    head = """
        import sys
        import jax, jax.numpy as jnp
        from dsi_jax.training.checkpoints import Checkpointer
        from dsi_jax.training.state import TrainState

        def state(step, size):
            full = jnp.full(size, step, jnp.float32)
            return TrainState(jnp.int32(step), {"w": full}, {"m": full}, jnp.zeros(2, jnp.uint32))

        def save(checkpointer, step, size):
            checkpointer.save(step, state(step, size), data=b"%d" % step, metadata={"a": 1})
        """
    source = textwrap.dedent(head) + textwrap.dedent(body)
    root = Path(checkpoints.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    )


def plain_shapes(size: int) -> TrainState:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def shape(dims, dtype):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    full = shape((size,), jnp.float32)
    return TrainState(shape((), jnp.int32), {"w": full}, {"m": full}, shape((2,), jnp.uint32))


def test_a_full_disk_is_an_error_and_spares_the_last_checkpoint(tmp_path):
    # A limit on the size of files stands in for a full disk: writes fail in the same place.
    process = program(
        """
        import resource
        checkpointer = Checkpointer(sys.argv[1])
        save(checkpointer, 1, 1000)
        checkpointer.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        key = jax.random.normal(jax.random.key(0), 100_000)
        full = TrainState(jnp.int32(2), {"w": key}, {"m": key}, jnp.zeros(2, jnp.uint32))
        checkpointer.save(2, full, data=b"", metadata={})
        try:
            checkpointer.wait()
        except OSError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        save(checkpointer, 2, 1000)  # there is room again
        checkpointer.close()
        """,
        tmp_path,
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"saving checkpoint {tmp_path}/checkpoint_2 failed" in out
    for step in (1, 2):
        restored = Checkpointer(tmp_path).restore(step, plain_shapes(1000))
        np.testing.assert_array_equal(restored.state.params["w"], step)


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_latest_whole(tmp_path):
    size = 400_000
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(4):
        process = program(
            """
            checkpointer = Checkpointer(sys.argv[1], keep=2)
            size, step = int(sys.argv[2]), int(sys.argv[3])
            print("ready", flush=True)
            while True:
                step += 1
                save(checkpointer, step, size)
            """,
            tmp_path,
            size,
            steps[-1] if steps else 0,
        )
        assert process.stdout.readline() == "ready\n"
        before = steps[-1] if steps else 0
        while max(Checkpointer(tmp_path).steps(), default=0) <= before:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a kill leaves nothing that must be passed over
            restored = Checkpointer(tmp_path).restore_latest(plain_shapes(size))
        assert int(restored.state.step) == restored.step
        np.testing.assert_array_equal(restored.state.params["w"], restored.step)
        np.testing.assert_array_equal(restored.state.opt_state["m"], restored.step)
        assert restored.data == b"%d" % restored.step
        steps.append(restored.step)
    assert sorted(set(steps)) == steps
