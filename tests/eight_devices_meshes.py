"""Every shipped mesh on eight simulated devices; `test_partitioning.py` runs these cases.

What one device computes is the reference: losses and gradients of ten steps under SGD, the
parameters after them, and the ranking of a constrained beam search.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from dsi_jax import gin_utils
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.docids.random_control import Random
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.searcher import Searcher, to_host
from dsi_jax.training import partitioning
from dsi_jax.training.partitioning import MeshConfig
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, init_state, param_shapes, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step, summarize

FOLDER = gin_utils.shipped_directory() / "meshes"
MESHES = sorted(path.stem for path in FOLDER.glob("*.gin") if path.stem != "one_device")
ROWS, S, LENGTH, STEPS, TOKENS = 16, 6, 3, 10, 32
SCHEDULE = Schedule("constant", 0.05)
TABLE = Random(length=LENGTH, clusters=14).build([str(row) for row in range(60)], corpus_hash="")
# Mesh axes by which each logical axis of a parameter is split.
SPLIT_BY = {"embed": "fsdp", "vocab": "model", "heads": "model", "joined_kv": "model"}
SPLIT_BY |= {"mlp": "model", "relpos_buckets": None}


def mesh_config(name: str) -> MeshConfig:
    gin_utils.parse(gin_utils.GinArguments([f"meshes/{name}.gin"]))
    return gin_utils.query_macro("MESH").scoped_configurable_fn()


@dataclasses.dataclass(frozen=True)
class RecordingSgd:
    """Gradient descent whose state is the gradient of the step before."""

    learning_rate: Schedule = SCHEDULE

    def build(self, train_steps: int) -> optax.GradientTransformation:
        rate = self.learning_rate.build(train_steps)

        def update(grads, state, params=None):
            del state, params
            return jax.tree.map(lambda grad: -rate(0) * grad, grads), grads

        return optax.GradientTransformation(optax.tree.zeros_like, update)


class Run:
    """The text DSI, its step and its search on a mesh."""

    def __init__(self, config: MeshConfig, *, devices=None, docid_vocab_size=TABLE.vocab_size):
        t5 = T5Config(
            vocab_size=TOKENS,
            emb_dim=32,
            num_heads=4,
            head_dim=8,
            mlp_dim=64,
            num_encoder_layers=1,
            num_decoder_layers=1,
            mlp_activations=("gelu", "linear"),
            tie_embeddings=False,
        )
        self.model = DSIModel(DSIConfig(t5, docid_vocab_size, LENGTH))
        self.mesh = partitioning.make_mesh(config, devices)
        self.boxed = param_shapes(self.model, make_batch(0))
        self.rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, self.boxed, self.mesh)
        optimizer = RecordingSgd()
        self.optimizer = optimizer.build(STEPS)
        self.shapes = state_shapes(self.model, self.optimizer, make_batch(0), self.mesh, self.rules)
        self.step = make_train_step(
            self.model,
            self.optimizer,
            shardings_of(self.shapes),
            mesh=self.mesh,
            rules=self.rules,
            learning_rate=optimizer.learning_rate.build(STEPS),
        )

    def measure(self) -> "Measured":
        """Searches with the first parameters, then trains ten steps."""
        state = init_state(self.model, self.optimizer, make_batch(0), 0, self.mesh, self.rules)
        searcher = Searcher(self.model, TABLE, beam_size=20, mesh=self.mesh, rules=self.rules)
        ranking = to_host(searcher.search(state.params, {"text": make_batch(0)["text"]}))
        parts = jax.tree.map(
            lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}, state
        )
        losses, gradients = [], []
        for index in range(STEPS):
            batch = partitioning.shard_batch(make_batch(index), self.mesh)
            state, metrics = self.step(state, batch)
            losses.append(summarize(metrics)["loss"])
            gradients.append(jax.tree.map(np.array, state.opt_state))
        params = jax.tree.map(np.array, state.params)
        return Measured(self, parts, ranking, losses, gradients, params)


class Measured(NamedTuple):
    """What `Run.measure` found, on the host; `parts` are the shapes of the state's shards."""

    run: Run
    parts: TrainState
    ranking: BeamResult
    losses: list[float]
    gradients: list[Any]
    params: Any


def make_batch(index: int) -> dict:
    rng = np.random.default_rng(index)
    rows = rng.integers(0, TABLE.num_documents, ROWS).astype(np.int32)
    targets = TABLE.docids(rows)
    return {
        "text": {
            "tokens": rng.integers(1, TOKENS, (ROWS, S)).astype(np.int32),
            "mask": rng.random((ROWS, S)) < 0.9,
        },
        "decoder": {
            "inputs": np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
            "targets": targets,
            "weights": (targets != 0).astype(np.float32),
        },
        "is_indexing": (np.arange(ROWS) % 2).astype(np.int32),
    }


@pytest.fixture(scope="module")
def one_device() -> Measured:
    return Run(MeshConfig(), devices=jax.devices()[:1]).measure()


@pytest.fixture(scope="module", params=MESHES)
def measured(request) -> Measured:
    return Run(mesh_config(request.param)).measure()


def assert_close(ours, reference) -> None:
    """Every leaf to 1e-5 of its norm."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_ten_steps_and_their_gradients_are_those_of_one_device(measured, one_device):
    np.testing.assert_allclose(measured.losses, one_device.losses, rtol=1e-5)
    assert_close(measured.gradients, one_device.gradients)
    assert_close(measured.params, one_device.params)
    assert measured.losses[-1] < measured.losses[0]


def test_the_ranking_is_that_of_one_device(measured, one_device):
    ours, expected = measured.ranking, one_device.ranking
    np.testing.assert_array_equal(ours.rows, expected.rows)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-5)
    assert ours.valid.all()


def test_no_parameter_that_should_be_split_is_whole(measured):
    run = measured.run
    assert run.rules == partitioning.LOGICAL_AXIS_RULES  # the mesh divides all that it is to split
    boxed = jax.tree.leaves(run.boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    for parts in (measured.parts.params, measured.parts.opt_state):
        found = jax.tree.leaves(parts, is_leaf=lambda leaf: isinstance(leaf, set))
        for box, shapes in zip(boxed, found, strict=True):
            sizes = [run.mesh.shape.get(SPLIT_BY[axis], 1) for axis in box.names]
            expected = tuple(n // k for n, k in zip(box.value.shape, sizes, strict=True))
            assert shapes == {expected}, box.names


@pytest.mark.parametrize("name", ["tensor_parallel", "mixed"])
def test_no_device_ever_holds_the_logits_of_the_whole_vocabulary(name):
    """Softmax, loss, accuracy and their gradients work on each device's part of the vocabulary."""
    vocab_size = 8 * 1009  # found nowhere else in the program
    run = Run(mesh_config(name), docid_vocab_size=vocab_size)
    batch = partitioning.shard_batch(make_batch(0), run.mesh)
    text = run.step.lower(run.shapes, batch).compile().as_text()
    part = vocab_size // run.mesh.shape["model"]
    assert re.search(rf"f32\[[\d,]*\b{part}\b", text)
    whole = re.findall(rf"^.*= \S*\[[\d,]*\b{vocab_size}\b.*$", text, re.MULTILINE)
    assert not whole, whole[:3]
