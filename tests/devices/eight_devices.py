"""Cases for eight simulated devices; `test_partitioning.py` runs them in a process of their own."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import partitioning
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.optimizers import Adafactor, AdamW
from dsi_jax.training.param_groups import ParamGroup
from dsi_jax.training.partitioning import MeshConfig
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import init_state, param_shapes, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step, summarize

ROWS, LENGTH, S = 16, 3, 6
SCHEDULE = Schedule("constant * linear_warmup", 0.1, 2)
MESHES = {
    "data": MeshConfig(),
    "fsdp": MeshConfig(data=1, fsdp=-1),
    "model": MeshConfig(data=2, model=4),
    "all": MeshConfig(replica=2, data=1, fsdp=2, model=2),
}


def make_model(vocab_size: int = 12, num_layers: int = 1, **options) -> DSIModel:
    # Wide enough for Adafactor to factor the second moments of some matrices, not of others.
    t5 = T5Config(
        vocab_size=32,
        emb_dim=128,
        num_heads=4,
        head_dim=8,
        mlp_dim=128,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        dropout_rate=0.1,
        **options,
    )
    return DSIModel(DSIConfig(t5, docid_vocab_size=vocab_size, docid_length=LENGTH))


def make_batch(index: int = 0) -> dict:
    rng = np.random.default_rng(index)
    targets = rng.integers(1, 12, (ROWS, LENGTH)).astype(np.int32)
    return {
        "text": {
            "tokens": rng.integers(1, 32, (ROWS, S)).astype(np.int32),
            "mask": rng.random((ROWS, S)) < 0.9,
        },
        "decoder": {
            "inputs": np.asarray(shift_right(targets)),
            "targets": targets,
            "weights": np.ones((ROWS, LENGTH), np.float32),
        },
        "is_indexing": (np.arange(ROWS) % 2).astype(np.int32),
    }


class Run:
    """A model, an optimizer and a step on a mesh."""

    def __init__(self, config: MeshConfig, optimizer=None, devices=None, model=None, **options):
        optimizer = optimizer or Adafactor(SCHEDULE)
        self.model, self.optimizer = model or make_model(), optimizer.build(10)
        self.mesh = partitioning.make_mesh(config, devices)
        self.boxed = param_shapes(self.model, make_batch())
        self.rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, self.boxed, self.mesh)
        self.shapes = state_shapes(self.model, self.optimizer, make_batch(), self.mesh, self.rules)
        self.step = make_train_step(
            self.model,
            self.optimizer,
            shardings_of(self.shapes),
            mesh=self.mesh,
            rules=self.rules,
            learning_rate=optimizer.learning_rate.build(10),
            **options,
        )

    def init(self):
        return init_state(self.model, self.optimizer, make_batch(), 0, self.mesh, self.rules)

    def train(self, state, start, stop):
        losses = []
        for index in range(start, stop):
            state, metrics = self.step(
                state, partitioning.shard_batch(make_batch(index), self.mesh)
            )
            losses.append(summarize(metrics)["loss"])
        return state, losses


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """Three steps on one device: initial parameters, MODEL_DIR saved at step 1, losses."""
    model_dir = tmp_path_factory.mktemp("one_device")
    run = Run(MeshConfig(), devices=jax.devices()[:1], microbatches=2)
    state = run.init()
    params = jax.tree.map(np.array, state.params)
    state, _ = run.train(state, 0, 1)
    checkpointer = Checkpointer(model_dir)
    checkpointer.save(1, state, data=b"", metadata={})
    values = jax.tree.map(np.array, state)
    _, losses = run.train(state, 1, 3)
    checkpointer.close()
    return params, model_dir, values, losses


@pytest.mark.parametrize("name", MESHES)
def test_every_mesh_continues_as_one_device_does(name, one_device):
    _, model_dir, values, losses = one_device
    run = Run(MESHES[name], microbatches=2)
    state = Checkpointer(model_dir).restore_latest(run.shapes).state
    assert shardings_of(state) == shardings_of(run.shapes)
    jax.tree.map(np.testing.assert_array_equal, state, values)
    state, ours = run.train(state, 1, 3)
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    # The compiled step keeps everything where it was put.
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(run.shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


def test_every_mesh_begins_with_the_same_parameters(one_device):
    params = one_device[0]
    jax.tree.map(np.testing.assert_array_equal, Run(MESHES["all"]).init().params, params)


def test_parameters_and_moments_are_split():
    run = Run(MESHES["all"], AdamW(SCHEDULE))
    kernel = ("encoder", "layers_0", "mlp", "wi", "kernel")
    state = run.init()
    moments = state.opt_state[0].mu
    leaf, moment = state.params, moments
    for name in kernel:
        leaf, moment = leaf[name], moment[name]
    assert leaf.sharding.spec == PartitionSpec("fsdp", "model")
    assert leaf.addressable_shards[0].data.shape == (64, 64)
    assert moment.sharding == leaf.sharding
    assert state.step.sharding.is_fully_replicated


def test_stacked_layers_are_never_split_and_train_as_on_one_device():
    model = make_model(num_layers=2, scan_layers=True, remat=True)
    one = Run(MeshConfig(), devices=jax.devices()[:1], model=model)
    run = Run(MESHES["all"], model=model)
    state = run.init()
    leaf = state.params["decoder"]["decoder"]["mlp"]["wi"]["kernel"]
    assert leaf.shape == (128, 2, 128)
    assert leaf.sharding.spec == PartitionSpec("fsdp", None, "model")
    _, expected = one.train(one.init(), 0, 2)
    _, losses = run.train(state, 0, 2)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_rows_and_columns_of_adafactor_are_replicated():
    run = Run(MESHES["all"])
    factored = run.shapes.opt_state[0]
    matrix = factored.v_row["encoder"]["layers_0"]["mlp"]["wi"]["kernel"]
    norm = factored.v["encoder"]["encoder_norm"]["scale"]
    assert matrix.shape == (128,) and matrix.sharding.is_fully_replicated
    assert norm.sharding.spec == PartitionSpec("fsdp")


def test_constraints_of_activations_are_active():
    run = Run(MESHES["all"])
    batch = partitioning.shard_batch(make_batch(), run.mesh)
    text = run.step.lower(run.shapes, batch).as_text()
    # The logits [B, L, V]: batch over replica, data, fsdp; vocabulary over model.
    logits = (
        rf'sdy.sharding_constraint .*"replica", "data", "fsdp".*"model".*{ROWS}x{LENGTH}x12xf32'
    )
    assert re.search(logits, text)


def test_an_uneven_vocabulary_is_replicated_with_a_warning():
    with pytest.warns(UserWarning, match=r"logical axis vocab is replicated: docid_embedder/embed"):
        run = Run(MeshConfig(data=4, model=2), model=make_model(vocab_size=13))
    assert dict(run.rules)["vocab"] is None
    assert dict(run.rules)["mlp"] == "model"
    # Neither parameters nor the constraints of activations ask for a split.
    assert run.step.lower(run.shapes, make_batch()).as_text()
    with pytest.raises(ValueError, match=r"13 is not divisible by the 2 devices of mesh axis mod"):
        partitioning.param_shardings(run.boxed, run.mesh, partitioning.LOGICAL_AXIS_RULES)


def test_a_batch_is_split_by_rows():
    mesh = partitioning.make_mesh(MESHES["all"])
    batch = partitioning.shard_batch(make_batch(), mesh)
    tokens = batch["text"]["tokens"]
    assert tokens.shape == (ROWS, S)
    assert {shard.data.shape for shard in tokens.addressable_shards} == {(ROWS // 4, S)}
    np.testing.assert_array_equal(tokens, make_batch()["text"]["tokens"])
    assert partitioning.process_parts(mesh) == ((0, 1, 2, 3), 4)
    partitioning.check_batch_size(16, mesh, microbatches=4)
    sizes = [partitioning.round_batch_size(size, mesh, microbatches=2) for size in (1, 8, 9)]
    assert sizes == [8, 8, 16]
    with pytest.raises(ValueError, match=r"batch size 16 is not divisible by 32 .*8 microbatches"):
        partitioning.check_batch_size(16, mesh, microbatches=8)
    with pytest.raises(ValueError, match=r"batch size 6 .*by 4 \(replica=2 \* data=1 \* fsdp=2"):
        partitioning.shard_batch({"x": np.zeros((6, 2))}, mesh)


def test_replicas_are_the_outermost_axis():
    mesh = partitioning.make_mesh(MESHES["all"])
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    assert ids.shape == (2, 1, 2, 2)
    assert set(ids[0].ravel()) == {0, 1, 2, 3}


def boxed(**axes):
    """Shapes of parameters [8, 8] with these logical axes; None for a tower's."""
    shape = jax.ShapeDtypeStruct((8, 8), np.float32)
    return {
        "tower": {
            name: shape if names is None else nn.LogicallyPartitioned(shape, names)
            for name, names in axes.items()
        }
    }


def test_rules_by_path():
    mesh = partitioning.make_mesh(MESHES["all"])
    params = boxed(query=None, bias=None, mlp=("embed", "mlp"))
    shardings = partitioning.param_shardings(
        params,
        mesh,
        partitioning.LOGICAL_AXIS_RULES,
        [(r"tower/(query|mlp)", ("model", None)), (r".*/query", (None, None))],
    )["tower"]
    assert shardings["query"].spec == shardings["mlp"].spec == PartitionSpec("model", None)
    assert shardings["bias"].spec == PartitionSpec()


@pytest.mark.parametrize(
    ("params", "rules", "path_rules", "message"),
    [
        (
            boxed(query=("embed", "hedas")),
            partitioning.LOGICAL_AXIS_RULES,
            [],
            "tower/query has the unknown logical axis 'hedas', expected one of: batch, beams",
        ),
        (boxed(query=None), (), [("towr/.*", ("model", None))], "'towr/.*' matches no parameter"),
        (boxed(query=None), (), [(".*", ("model",))], "gives 1 axes, .* expects 2"),
        (boxed(query=None), (), [(".*", ("modle", None))], "mesh axis 'modle' .* does not exist"),
        (boxed(query=("embed", None)), [("embed", ("data", "x"))], [], "mesh axis 'x'"),
    ],
)
def test_errors_of_rules(params, rules, path_rules, message):
    mesh = partitioning.make_mesh(MESHES["all"])
    with pytest.raises(ValueError, match=message):
        partitioning.param_shardings(params, mesh, rules, path_rules)


def test_frozen_groups_on_a_mesh():
    groups = [
        ParamGroup("encoder", "encoder/.*", frozen=True),
        ParamGroup("decoder", "decoder/.*", decay=0.5),
    ]
    run = Run(MESHES["all"], AdamW(SCHEDULE, groups=groups), groups=groups, microbatches=2)
    state = run.init()
    before = jax.tree.map(np.array, state.params)
    state, _ = run.train(state, 0, 2)  # the first at the rate 0
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(run.shapes), strict=True):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
    jax.tree.map(np.testing.assert_array_equal, state.params["encoder"], before["encoder"])
    kernel = ("decoder", "layers_0", "mlp", "wi", "kernel")
    after, moment = state.params, state.opt_state[0].inner_state[0].mu
    for name in kernel:
        before, after, moment = before[name], after[name], moment[name]
    assert (np.array(after) != before).any()
    assert moment.sharding.spec == PartitionSpec("fsdp", "model")


def test_model_info():
    run = Run(MESHES["all"])
    text = partitioning.model_info(run.boxed, shardings_of(run.shapes).params)
    assert re.search(
        r"encoder/layers_0/mlp/wi/kernel +\(128, 128\) +float32 +\('embed', 'mlp'\) +"
        r"\('fsdp', 'model'\)",
        text,
    )
    leaves = jax.tree.leaves(run.shapes.params)
    parameters = sum(leaf.size for leaf in leaves)
    on_device = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
    assert f"total parameters: {parameters:,}\n" in text
    assert f"total bytes: {4 * parameters:,}\n" in text
    assert f"bytes a device: {4 * on_device:,}\n" in text
