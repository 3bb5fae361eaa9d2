"""Dense retrieval on eight simulated devices; `test_partitioning.py` runs this in a process."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsi_jax.inputs.encoder_inputs import Inputs
from dsi_jax.inputs.tokenizer import ByteTokenizer
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.models.dual_encoder import DualEncoderConfig, DualEncoderModel
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.dense_ranker import DenseRanker
from dsi_jax.ranking.docid_ranker import to_host
from dsi_jax.ranking.document_inputs import DocumentInputs
from dsi_jax.ranking.top_k import exact_top_k
from dsi_jax.training import partitioning
from dsi_jax.training.optimizers import Adafactor
from dsi_jax.training.partitioning import BATCH_AXES, MeshConfig
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import init_state, param_shapes, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step, summarize

MESHES = {
    "data": MeshConfig(),
    "all": MeshConfig(replica=2, data=1, fsdp=2, model=2),
}
ROWS, S = 16, 6
TEXTS = [f"{i * i} words" for i in range(29)]
T5 = T5Config(
    vocab_size=264,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
)
MODEL = DualEncoderModel(DualEncoderConfig(T5, embedding_dim=16))


def make_batch(index=0):
    rng = np.random.default_rng(index)
    tokens = rng.integers(1, 260, (2, ROWS, S)).astype(np.int32)
    return {
        "text": {"tokens": tokens[0], "mask": tokens[0] > 20},
        "document": {"tokens": tokens[1], "mask": tokens[1] > 20},
        "row": rng.integers(0, 12, ROWS).astype(np.int32),
        "weights": (rng.random(ROWS) < 0.9).astype(np.float32),
        "is_indexing": (np.arange(ROWS) % 2).astype(np.int32),
    }


def make_mesh(name):
    if name == "one":
        return partitioning.make_mesh(MeshConfig(), jax.devices()[:1])
    return partitioning.make_mesh(MESHES[name])


def three_losses(mesh):
    """Losses of three steps: the negatives of a query lie on all devices."""
    choice = Adafactor(Schedule("constant", 0.1))
    optimizer = choice.build(3)
    boxed = param_shapes(MODEL, make_batch())
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed, mesh)
    shapes = state_shapes(MODEL, optimizer, make_batch(), mesh, rules)
    step = make_train_step(
        MODEL,
        optimizer,
        shardings_of(shapes),
        mesh=mesh,
        rules=rules,
        learning_rate=choice.learning_rate.build(3),
        loss=DualEncoder(symmetric=True).train_loss,
    )
    state = init_state(MODEL, optimizer, make_batch(), 0, mesh, rules)
    losses = []
    for index in range(3):
        state, metrics = step(state, partitioning.shard_batch(make_batch(index), mesh))
        losses.append(summarize(metrics)["loss"])
    return losses


def test_every_mesh_learns_as_one_device_does():
    expected = three_losses(make_mesh("one"))
    for name in MESHES:
        np.testing.assert_allclose(three_losses(make_mesh(name)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize(("k", "chunk_size"), [(1, 2), (7, 3), (40, 64)])
def test_parts_are_merged_in_the_order_of_rows(name, k, chunk_size):
    mesh = make_mesh(name)
    rng = np.random.default_rng(k)
    # Products of small integers are exact, and many are equal: ties between parts are decided.
    queries = rng.integers(-1, 2, (5, 3)).astype(np.float32)
    documents = rng.integers(-1, 2, (40, 3)).astype(np.float32)
    parts = partitioning.num_batch_shards(mesh)
    placed = partitioning.place(documents.reshape(parts, -1, 3), partitioning.data_sharding(mesh))
    queries_placed = partitioning.place(queries, partitioning.replicated(mesh))
    rank = functools.partial(exact_top_k, k=k, chunk_size=chunk_size)
    found = rank(queries_placed, placed, 37, mesh=mesh)
    expected = rank(queries, documents[None], 37, mesh=make_mesh("one"))
    jax.tree.map(np.testing.assert_array_equal, to_host(found), to_host(expected))
    order = np.argsort(-(queries @ documents[:37].T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(np.asarray(found.rows)[:, :37], order)


@pytest.mark.parametrize("name", MESHES)
def test_search_on_a_mesh_equals_that_on_one_device(name):
    inputs = DocumentInputs(TEXTS, ByteTokenizer(), S)
    text = inputs(np.arange(2))
    init = jax.jit(functools.partial(MODEL.init, deterministic=True))
    params = init(jax.random.key(0), {"text": text, "document": text})["params"]
    mesh = make_mesh(name)
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, params, mesh)
    shardings = partitioning.param_shardings(params, mesh, rules)
    params = nn.meta.unbox(params)
    batch = {"text": Inputs(ByteTokenizer(), {"inputs": S}).texts(TEXTS[:8])}
    searcher = DenseRanker(MODEL, inputs, beam_size=5, mesh=mesh, rules=rules)
    placed = jax.device_put(params, shardings)
    found = searcher.search(placed, batch)
    assert searcher._embeddings.sharding.spec == PartitionSpec(BATCH_AXES)
    expected = DenseRanker(MODEL, inputs, beam_size=5).search(params, batch)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
