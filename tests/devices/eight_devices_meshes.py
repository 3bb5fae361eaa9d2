"""The shipped meshes on eight simulated devices; `test_partitioning.py` runs these cases.

What one device computes is the reference: losses and gradients of ten steps of a DSI of texts and
of one of texts and images under SGD, the parameters after them, and the ranking of a constrained
beam search.
"""

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec

from dsi_jax.cli import gin_utils
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.random_control import Random
from dsi_jax.inputs.streams import MODALITIES
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.docid_ranker import DocidRanker, to_host
from dsi_jax.training import partitioning, program
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.partitioning import MeshConfig
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, shardings_of
from dsi_jax.training.step import summarize

FOLDER = gin_utils.shipped_directory() / "meshes"
MESHES = sorted(path.stem for path in FOLDER.glob("*.gin") if path.stem != "one_device")
ROWS, S, LENGTH, STEPS = 16, 6, 3, 10
TOKENS = 32
CLIP_TOKENS = 31  # rows that no mesh divides
SIDE, PATCH = 8, 4
SCHEDULE = Schedule("constant", 0.05)
TABLE = Random(length=LENGTH, clusters=14).build(DocumentColumns([str(row) for row in range(60)]))
# Mesh axes by which each logical axis of a parameter is split.
SPLIT_BY = {"embed": "fsdp", "vocab": "model", "heads": "model", "joined_kv": "model"}
SPLIT_BY |= {"mlp": "model", "relpos_buckets": None}

T5 = T5Config(
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
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
TOWERS = TowersConfig(
    ClipTextConfig(**CLIP, vocab_size=CLIP_TOKENS, eos_token_id=1),
    ClipVisionConfig(**CLIP, image_size=SIDE, patch_size=PATCH),
)
KINDS = {"texts": None, "images": TOWERS}  # the towers of the model
# Of images as many as hold each axis of a mesh.
OF_IMAGES = ("mixed", "multi_slice", "tensor_parallel")
CASES = [f"texts-{mesh}" for mesh in MESHES] + [f"images-{mesh}" for mesh in OF_IMAGES]


def mesh_config(name: str) -> MeshConfig:
    gin_utils.parse(gin_utils.GinArguments([f"meshes/{name}.gin"]))
    return gin_utils.query_macro("MESH").scoped_configurable_fn()


@dataclasses.dataclass(frozen=True)
class RecordingSgd:
    """Gradient descent whose state is the gradient of the step before."""

    learning_rate: Schedule = SCHEDULE
    groups: tuple = ()

    def build(self, train_steps: int) -> optax.GradientTransformation:
        rate = self.learning_rate.build(train_steps)

        def update(grads, state, params=None):
            del state, params
            return jax.tree.map(lambda grad: -rate(0) * grad, grads), grads

        return optax.GradientTransformation(optax.tree.zeros_like, update)


def make_program(
    kind: str, config: MeshConfig, devices=None, docid_vocab_size: int = TABLE.vocab_size
) -> program.Program:
    """The model of a kind and its training step on a mesh, as a run builds them."""
    return program.build(
        DSIModel(DSIConfig(T5, docid_vocab_size, LENGTH, towers=KINDS[kind])),
        RecordingSgd(),
        partitioning.make_mesh(config, devices),
        make_batch(kind, 0),
        train_steps=STEPS,
        microbatches=1,
        loss=cross_entropy.docid_loss,
    )


def make_batch(kind: str, index: int) -> dict:
    """Batch `index`: texts, or half of them texts and half images."""
    rng = np.random.default_rng(index)
    rows = rng.integers(0, TABLE.num_documents, ROWS).astype(np.int32)
    targets = TABLE.docids(rows)
    batch = {
        "decoder": {
            "inputs": np.pad(targets, [(0, 0), (1, 0)])[:, :-1],
            "targets": targets,
            "weights": (targets != 0).astype(np.float32),
        },
        "is_indexing": (np.arange(ROWS) % 2).astype(np.int32),
    }
    texts, vocab_size = (ROWS, TOKENS) if kind == "texts" else (ROWS // 2, CLIP_TOKENS)
    batch["text"] = {
        "tokens": rng.integers(1, vocab_size, (texts, S)).astype(np.int32),
        "mask": rng.random((texts, S)) < 0.9,
    }
    if kind == "images":
        pixels = rng.integers(0, 256, (ROWS - texts, SIDE, SIDE, 3)).astype(np.uint8)
        batch["image"] = {"pixels": pixels}
    return batch


class Measured(NamedTuple):
    """What `measure` found, on the host; `parts` are the shapes of the last state's shards."""

    kind: str
    program: program.Program
    parts: TrainState
    ranking: BeamResult
    losses: list[float]
    gradients: list[Any]
    params: Any


@functools.cache
def initial_state(kind: str) -> TrainState:
    """On the host; `eight_devices.py` shows that every mesh begins with the same one."""
    return jax.device_get(make_program(kind, MeshConfig(), jax.devices()[:1]).init(0))


def measure(kind: str, config: MeshConfig, devices=None) -> Measured:
    """Searches with the first parameters, then trains ten steps."""
    run = make_program(kind, config, devices)
    state = jax.device_put(initial_state(kind), shardings_of(run.shapes))
    searcher = DocidRanker(run.model, TABLE, beam_size=20, mesh=run.mesh, rules=run.rules)
    batch = make_batch(kind, 0)
    queries = {name: batch[name] for name in MODALITIES if name in batch}
    ranking = to_host(searcher.search(state.params, queries))
    losses, gradients = [], []
    for index in range(STEPS):
        batch = partitioning.shard_batch(make_batch(kind, index), run.mesh)
        state, metrics = run.step(state, batch)
        losses.append(summarize(metrics)["loss"])
        gradients.append(jax.tree.map(np.array, state.opt_state))
    parts = jax.tree.map(
        lambda leaf: {shard.data.shape for shard in leaf.addressable_shards}, state
    )
    params = jax.tree.map(np.array, state.params)
    return Measured(kind, run, parts, ranking, losses, gradients, params)


@functools.cache
def one_device(kind: str) -> Measured:
    return measure(kind, MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module", params=CASES)
def measured(request) -> Measured:
    kind, mesh = request.param.split("-")
    return measure(kind, mesh_config(mesh))


def flatten(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/", is_leaf=lambda _, leaf: not isinstance(leaf, dict))


def assert_close(ours: Any, reference: Any) -> None:
    """Every leaf to 1e-5 of its norm; of the whole tree's where the true gradient is zero.

    Softmax does not see what a bias of the keys adds to all scores of a query.
    """
    reference = flatten(reference)
    whole = np.linalg.norm([np.linalg.norm(leaf) for leaf in reference.values()])
    for path, leaf in flatten(ours).items():
        norm = whole if path.endswith("k_proj/bias") else np.linalg.norm(reference[path])
        assert np.linalg.norm(leaf - reference[path]) <= 1e-5 * norm, path


def test_ten_steps_and_their_gradients_are_those_of_one_device(measured):
    expected = one_device(measured.kind)
    np.testing.assert_allclose(measured.losses, expected.losses, rtol=1e-5)
    for gradient, other in zip(measured.gradients, expected.gradients, strict=True):
        assert_close(gradient, other)
    assert_close(measured.params, expected.params)
    assert measured.losses[-1] < measured.losses[0]


def test_the_ranking_is_that_of_one_device(measured):
    ours, expected = measured.ranking, one_device(measured.kind).ranking
    np.testing.assert_array_equal(ours.rows, expected.rows)
    np.testing.assert_allclose(ours.scores, expected.scores, atol=1e-5)
    assert ours.valid.all()


def test_no_parameter_that_should_be_split_is_whole(measured):
    run = measured.program
    # The mesh divides all that it is to split.
    assert run.rules == partitioning.LOGICAL_AXIS_RULES
    assert run.path_rules == run.model.path_rules
    for parts in map(flatten, (measured.parts.params, measured.parts.opt_state)):
        for path, box in flatten(run.boxed).items():
            if hasattr(box, "names"):
                axes = [SPLIT_BY[axis] for axis in box.names]
                sizes = [run.mesh.shape.get(axis, 1) for axis in axes]
                shape = tuple(n // k for n, k in zip(box.value.shape, sizes, strict=True))
                assert parts[path] == {shape}, path
            else:
                (shape,) = parts[path]
                ways = tower_ways(path, len(shape))
                split = np.prod([run.mesh.shape[axis] for axis in ways], dtype=int)
                assert np.prod(shape) * split == box.size, path


def tower_ways(path: str, rank: int) -> tuple[str, ...]:
    """The mesh axes that split a tower's parameter: all matrices, and biases of split columns."""
    if rank > 1:
        return ("fsdp",) if "position_embedding" in path else ("fsdp", "model")
    return ("model",) if re.search(r"([qkv]_proj|fc1)/bias$", path) else ()


def test_a_towers_columns_are_split_before_its_rows():
    run = make_program("images", mesh_config("mixed"))
    layer = run.shapes.params["text_tower"]["text_model"]["encoder"]["layers"]["0"]
    assert layer["mlp"]["fc1"]["kernel"].sharding.spec == PartitionSpec("fsdp", "model")
    assert layer["mlp"]["fc2"]["kernel"].sharding.spec == PartitionSpec("model", "fsdp")


@pytest.mark.parametrize("name", ["tensor_parallel", "mixed"])
def test_no_device_ever_holds_the_logits_of_the_whole_vocabulary(name):
    """Softmax, loss, accuracy and their gradients work on each device's part of the vocabulary."""
    vocab_size = 8 * 1009  # found nowhere else in the program
    run = make_program("texts", mesh_config(name), docid_vocab_size=vocab_size)
    text = run.lower().compile().as_text()
    part = vocab_size // run.mesh.shape["model"]
    assert re.search(rf"f32\[[\d,]*\b{part}\b", text)
    whole = re.findall(rf"^.*= \S*\[[\d,]*\b{vocab_size}\b.*$", text, re.MULTILINE)
    assert not whole, whole[:3]
