"""Losses, schedules, optimizers, the training step, and warm starts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from dsi_jax.methods.dsi import DSI
from dsi_jax.training import assignment, partitioning
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.optimizers import Adafactor, AdamW
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState, init_state, param_shapes, shardings_of
from dsi_jax.training.step import make_train_step, summarize

B, L, S, V, D = 8, 3, 5, 7, 16


class Toy(nn.Module):
    """A model with the DSI model's call: bag of words in, docid logits out."""

    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed")),
            (V * 4, D),
        )
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp")),
            (D, L * V),
        )
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("embed",)), (D,)
        )
        text = batch["text"]
        x_BxSxD = embedding[text["tokens"]] * text["mask"][..., None]
        x_BxD = nn.Dropout(self.dropout_rate)(x_BxSxD.sum(1) * scale, deterministic)
        return nn.relu(x_BxD @ kernel).reshape(-1, L, V)


@dataclasses.dataclass(frozen=True)
class Descent:
    """Plain gradient descent."""

    learning_rate: Schedule = Schedule("constant", 0.1)  # noqa: RUF009

    def build(self, total_steps: int) -> optax.GradientTransformation:
        return optax.sgd(self.learning_rate.build(total_steps))


def make_batch(seed: int = 0, rows: int = B) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "text": {
            "tokens": rng.integers(0, V * 4, (rows, S)).astype(np.int32),
            "mask": rng.random((rows, S)) < 0.8,
        },
        "decoder": {
            "targets": rng.integers(0, V, (rows, L)).astype(np.int32),
            # Docids of unlike lengths: parts of a batch have unlike numbers of tokens.
            "weights": (np.arange(L) < rng.integers(1, L + 1, (rows, 1))).astype(np.float32),
        },
        "is_indexing": (rng.random(rows) < 0.5).astype(np.int32),
    }


def start(model=None, optimizer=None, *, seed=0, total_steps=50, **options):
    """A state and its step on one device."""
    model = model or Toy()
    optimizer = optimizer or AdamW(Schedule("constant", 1e-2))
    transformation = optimizer.build(total_steps)
    mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1), jax.devices()[:1])
    state = init_state(model, transformation, make_batch(), seed, mesh)
    step = make_train_step(
        model,
        transformation,
        shardings_of(state),
        mesh=mesh,
        learning_rate=optimizer.learning_rate.build(total_steps),
        **options,
    )
    return state, step


# Losses


def numpy_cross_entropy(logits, targets, z_loss, label_smoothing):
    """T5X's definition, spelled out with one-hot vectors in float64."""
    logits = np.asarray(logits, np.float64)
    vocab_size = logits.shape[-1]
    confidence = 1 - label_smoothing
    rest = label_smoothing / (vocab_size - 1)
    soft = np.where(np.arange(vocab_size) == targets[..., None], confidence, rest)
    log_z = special.logsumexp(logits, axis=-1, keepdims=True)
    constant = -(
        special.xlogy(confidence, confidence) + (vocab_size - 1) * special.xlogy(rest, rest)
    )
    cross = -(soft * (logits - log_z)).sum(-1) - constant
    return cross + z_loss * log_z[..., 0] ** 2, z_loss * log_z[..., 0] ** 2


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_cross_entropy_equals_numpy(z_loss, label_smoothing):
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(B, L, V)) * 5).astype(np.float32)
    targets = rng.integers(0, V, (B, L))
    ours = cross_entropy.token_cross_entropy(
        logits, targets, z_loss=z_loss, label_smoothing=label_smoothing
    )
    theirs = numpy_cross_entropy(logits, targets, z_loss, label_smoothing)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_cross_entropy_equals_optax():
    rng = np.random.default_rng(2)
    logits = jnp.asarray(rng.normal(size=(B, L, V)), jnp.float32)
    targets = rng.integers(0, V, (B, L))

    def ours(logits):
        return cross_entropy.token_cross_entropy(logits, targets)[0].sum()

    def theirs(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).sum()

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(theirs)(logits), atol=1e-6)


def test_smoothed_loss_is_zero_at_its_optimum():
    smoothing = 0.1
    soft = np.where(np.arange(V) == 2, 1 - smoothing, smoothing / (V - 1))
    logits = jnp.log(jnp.asarray(soft, jnp.float32))[None]

    def loss(logits):
        return cross_entropy.token_cross_entropy(logits, np.array([2]), label_smoothing=smoothing)[
            0
        ][0]

    assert abs(loss(logits)) < 1e-6
    np.testing.assert_allclose(jax.grad(loss)(logits), 0.0, atol=1e-6)


def test_loss_is_float32_for_bfloat16_logits():
    logits = jnp.full((1, 1, 4096), 3.0, jnp.bfloat16)
    loss, _ = cross_entropy.token_cross_entropy(logits, np.zeros((1, 1), np.int32))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(4096), rtol=1e-6)


def test_metrics_split_indexing_and_retrieval():
    targets = np.array([[1, 2], [3, 0], [1, 1], [0, 0]])
    weights = np.array([[1, 1], [1, 0], [1, 1], [0, 0]], np.float32)  # the last row is padding
    predictions = np.array([[1, 2], [3, 5], [1, 4], [0, 0]])
    logits = 3.0 * jax.nn.one_hot(predictions, V)
    is_indexing = np.array([[1], [0], [0], [1]])
    total, metrics = cross_entropy.cross_entropy(logits, targets, weights, is_indexing)
    values = summarize(metrics)
    token_losses = numpy_cross_entropy(logits, targets, 0.0, 0.0)[0] * weights
    np.testing.assert_allclose(total, token_losses.sum(), rtol=1e-5)
    np.testing.assert_allclose(values["loss"], token_losses.sum() / 5, rtol=1e-5)
    np.testing.assert_allclose(values["loss_indexing"], token_losses[0].sum() / 2, rtol=1e-5)
    np.testing.assert_allclose(values["loss_retrieval"], token_losses[1:3].sum() / 3, rtol=1e-5)
    assert values["token_accuracy"] == pytest.approx(4 / 5)
    assert values["docid_accuracy_indexing"] == 1.0
    assert values["docid_accuracy_retrieval"] == 0.5


def test_summary_leaves_out_absent_parts():
    ones = np.ones((B, L))
    _, metrics = cross_entropy.cross_entropy(
        jnp.zeros((B, L, V)), np.ones((B, L), int), ones, np.zeros(B, int)
    )
    values = summarize(metrics)
    assert "loss_retrieval" in values
    assert "loss_indexing" not in values


def test_loss_errors():
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        cross_entropy.token_cross_entropy(jnp.zeros((1, V)), np.zeros(1, int), label_smoothing=1.5)
    with pytest.raises(ValueError, match="do not fit targets"):
        cross_entropy.token_cross_entropy(jnp.zeros((2, V)), np.zeros(3, int))


# Schedules


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant", 0.3), lambda t: 0.3),
        (Schedule("constant * linear_warmup", 2.0, 10), lambda t: 2 * min(1, t / 10)),
        (Schedule("rsqrt_decay", warmup_steps=10), lambda t: max(t, 10) ** -0.5),
        (
            Schedule("constant * rsqrt_normalized_decay", 2.0, 10),
            lambda t: 2 * (10 / max(t, 10)) ** 0.5,
        ),
        (
            Schedule("constant*linear_warmup*rsqrt_decay", 3.0, 10),
            lambda t: 3 * min(1, t / 10) / max(t, 10) ** 0.5,
        ),
        (
            Schedule("linear_decay", 2.0, 10, decay_factor=0.01),
            lambda t: 2 * min(t / 10, 1 + 0.01 * (10 - t)),
        ),
        (Schedule("linear_decay", 2.0, 10), lambda t: 2 * min(t / 10, (110 - t) / 100)),
        (
            Schedule("constant * decay_every", decay_factor=0.1, steps_per_decay=20),
            lambda t: 0.1 ** (t // 20),
        ),
        (
            Schedule("cosine_decay", warmup_steps=10),
            lambda t: 0.5 * (1 + np.cos(np.pi * max(0, t - 10) / 100)),
        ),
        (
            Schedule("cosine_decay", warmup_steps=10, steps_per_cycle=30),
            lambda t: 0.5 * (1 + np.cos(np.pi * (max(0, t - 10) / 30 % 1))),
        ),
        (
            Schedule("linear_warmup", warmup_steps=10, step_offset=5),
            lambda t: min(1, max(0, t - 5) / 10),
        ),
        (Schedule("constant * linear_warmup * rsqrt_decay", 1.0, 0), lambda t: max(t, 1) ** -0.5),
    ],
    ids=lambda value: value.factors if isinstance(value, Schedule) else "",
)
def test_schedule(schedule, expected):
    rate = schedule.build(total_steps=110)
    for t in (0, 1, 5, 9, 10, 11, 19, 20, 41, 77, 110):
        value = jax.jit(rate)(t)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, max(expected(t), 1e-8), rtol=1e-5, atol=1e-6)


def test_schedule_ends_and_stays_at_its_minimum():
    rate = Schedule("cosine_decay", min_learning_rate=1e-4).build(total_steps=2000)
    assert rate(2000) == rate(5000) == np.float32(1e-4)


def test_schedule_errors():
    with pytest.raises(ValueError, match=r"'linear_warmpu'.*expected one of: constant, linear_war"):
        Schedule("constant * linear_warmpu")
    with pytest.raises(ValueError, match="expected it without constant"):
        Schedule("constant * linear_decay")
    with pytest.raises(ValueError, match="warmup_steps is -1"):
        Schedule(warmup_steps=-1)


# Optimizers


def numpy_adafactor(params, gradients, rates, weight_decay):
    """T5X's Adafactor for one parameter of rank 1 or 2, in float64."""
    params = params.astype(np.float64)
    factored = params.ndim == 2 and min(params.shape) >= 128
    rows = columns = moments = 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True)):
        decay = 1 - (t + 1.0) ** -0.8
        squares = gradient.astype(np.float64) ** 2 + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * squares.mean(1)
            columns = decay * columns + (1 - decay) * squares.mean(0)
            update = gradient / np.sqrt(np.outer(rows / rows.mean(), columns))
        else:
            moments = decay * moments + (1 - decay) * squares
            update = gradient / np.sqrt(moments)
        update = update / max(1.0, np.sqrt((update**2).mean()))
        scale = max(np.sqrt((params**2).mean()), 1e-3)
        params = (1 - weight_decay) * params - rate * scale * update
    return params


@pytest.mark.parametrize("shape", [(128, 130), (130, 128), (128, 128), (5, 200), (64,)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_adafactor_equals_numpy(shape, weight_decay):
    schedule = Schedule("constant * linear_warmup * rsqrt_decay", 1.0, 2)
    rng = np.random.default_rng(3)
    params = rng.normal(size=shape).astype(np.float32)
    gradients = rng.normal(size=(5, *shape)).astype(np.float32)
    gradients[2] *= 30  # so that the update is clipped
    optimizer = Adafactor(schedule, weight_decay=weight_decay).build(5)
    state, ours = optimizer.init(params), jnp.asarray(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    rates = [float(schedule.build(5)(t)) for t in range(5)]
    theirs = numpy_adafactor(params, gradients, rates, weight_decay * (len(shape) > 1))
    assert np.abs(theirs - params).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_adafactor_keeps_no_full_moment_of_a_matrix():
    state = Adafactor(Schedule("constant")).build(1).init({"kernel": jnp.zeros((256, 128))})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 256 + 128 + 8


def test_adamw_equals_numpy_and_spares_norms():
    optimizer = AdamW(Schedule("constant", 0.1), b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.5)
    transformation = optimizer.build(3)
    rng = np.random.default_rng(4)
    params = {"kernel": rng.normal(size=(3, 4)), "scale": rng.normal(size=(4,))}
    params = jax.tree.map(np.float32, params)
    gradients = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(3)]
    ours, state = params, transformation.init(params)
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, decay in (("kernel", 0.5), ("scale", 0.0)):
        theirs, first, second = params[name], 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            first = 0.8 * first + 0.2 * gradient[name]
            second = 0.9 * second + 0.1 * gradient[name] ** 2
            direction = first / (1 - 0.8**t) / (np.sqrt(second / (1 - 0.9**t)) + 1e-6)
            theirs = theirs - 0.1 * (direction + decay * theirs)
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_by_global_norm():
    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(3)}
    gradients = {"a": jnp.full((2, 2), 3.0), "b": jnp.full(3, 4.0)}
    norm = float(optax.tree.norm(gradients))
    optimizer = AdamW(Schedule("constant", 1.0), b1=0.0, b2=0.0, eps=1e3, max_grad_norm=0.5)
    transformation = optimizer.build(1)
    updates, _ = transformation.update(gradients, transformation.init(params), params)
    # With a huge eps the update is proportional to the clipped gradient.
    np.testing.assert_allclose(updates["b"], -4.0 * 0.5 / norm / 1e3, rtol=1e-3)
    with pytest.raises(ValueError, match="max_grad_norm is 0"):
        dataclasses.replace(optimizer, max_grad_norm=0.0).build(1)


# The step


def test_training_lowers_the_loss():
    state, step = start(optimizer=Adafactor(Schedule("constant * linear_warmup", 0.3, 5)))
    batch = make_batch()
    history = []
    for _ in range(30):
        state, metrics = step(state, batch)
        history.append(summarize(metrics)["loss"])
    assert history[-1] < 0.3 * history[0]
    assert int(state.step) == 30


def test_metrics_of_a_step():
    state, step = start(optimizer=AdamW(Schedule("constant * linear_warmup", 0.5, 10)))
    params = jax.tree.map(np.array, state.params)
    batch = make_batch()
    state, metrics = step(state, batch)
    state, second = step(state, batch)
    values = summarize(metrics)
    logits = Toy().apply({"params": params}, batch, deterministic=True)
    weights = batch["decoder"]["weights"]
    expected = numpy_cross_entropy(logits, batch["decoder"]["targets"], 0.0, 0.0)[0] * weights
    assert values["loss"] == pytest.approx(expected.sum() / weights.sum(), rel=1e-5)
    assert values["param_norm"] == pytest.approx(float(optax.tree.norm(params)), rel=1e-5)
    assert summarize(second)["learning_rate"] == pytest.approx(0.05)

    def mean_loss(params):
        logits = Toy().apply({"params": params}, batch, deterministic=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["decoder"]["targets"]
        )
        return (losses * weights).sum() / weights.sum()

    grad_norm = float(optax.tree.norm(jax.grad(mean_loss)(params)))
    assert values["grad_norm"] == pytest.approx(grad_norm, rel=1e-5)


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_equal_the_whole_batch(microbatches):
    options = {"loss": DSI(z_loss=1e-3, label_smoothing=0.1).train_loss}
    # Plain descent, as adaptive optimizers blow rounding of tiny gradients up.
    whole_state, whole = start(optimizer=Descent(), **options)
    parts_state, parts = start(optimizer=Descent(), microbatches=microbatches, **options)
    for index in range(3):
        whole_state, whole_metrics = whole(whole_state, make_batch(index))
        parts_state, parts_metrics = parts(parts_state, make_batch(index))
    for ours, theirs in zip(
        jax.tree.leaves(parts_state.params), jax.tree.leaves(whole_state.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    for name, mean in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name].total, mean.total, rtol=2e-6, err_msg=name)
        assert parts_metrics[name].count == mean.count, name


def test_dropout_depends_on_seed_and_step_alone():
    # A rate of zero freezes the parameters, so only dropout can change the loss.
    frozen = AdamW(Schedule("constant", 0.0, min_learning_rate=0.0))
    state, step = start(Toy(dropout_rate=0.5), frozen)
    rng, params = np.array(state.rng), jax.tree.map(np.array, state.params)

    def loss(key_data, at):
        arrays = jax.tree.map(jnp.array, (params, key_data))
        fresh = frozen.build(50).init(arrays[0])
        now = TrainState(jnp.int32(at), arrays[0], fresh, arrays[1])
        return float(step(now, make_batch())[1]["loss"].total)

    assert loss(rng, 0) == loss(rng, 0)
    assert loss(rng, 3) == loss(rng, 3)
    assert len({loss(rng, 0), loss(rng, 1), loss(rng + 1, 0)}) == 3


def test_state_is_donated():
    state, step = start()
    kernel = state.params["kernel"]
    step(state, make_batch())
    assert kernel.is_deleted()


def test_step_lowers_from_shapes():
    state, step = start()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch())
    assert step.lower(state, shapes).cost_analysis()["flops"] > 0


def test_step_errors():
    with pytest.raises(ValueError, match="microbatches is 0"):
        start(microbatches=0)
    state, step = start(microbatches=3)
    with pytest.raises(ValueError, match=r"of \[8\] rows does not divide into 3 microbatches"):
        step(state, make_batch())


def test_init_depends_on_the_seed_alone():
    first, _ = start(seed=5)
    again, _ = start(seed=5)
    other, _ = start(seed=6)
    assert np.array_equal(first.params["kernel"], again.params["kernel"])
    assert not np.array_equal(first.params["kernel"], other.params["kernel"])
    assert first.rng.dtype == np.uint32 and not np.array_equal(first.rng, other.rng)


def test_param_shapes_compute_nothing_and_keep_axes():
    shapes = param_shapes(Toy(), make_batch())
    assert isinstance(shapes["kernel"].value, jax.ShapeDtypeStruct)
    assert shapes["kernel"].names == ("embed", "mlp")


# Warm start


def test_assignment_map():
    state, _ = start()
    pretrained = {
        "old": {"embedding": np.full((V * 4, D), 2.0, np.float64)},
        "scale": np.full(D, 3.0, np.float32),
    }
    params = assignment.apply_assignment_map(
        state.params, pretrained, [(r"(embedding)", r"old/\1"), ("kernel", None)]
    )
    assert params["kernel"] is state.params["kernel"]
    np.testing.assert_array_equal(params["embedding"], pretrained["old"]["embedding"])
    assert params["embedding"].dtype == jnp.float32
    assert params["embedding"].sharding == state.params["embedding"].sharding
    np.testing.assert_array_equal(params["scale"], pretrained["scale"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("nothing.*", None), (".*", None)], r"'nothing\.\*' matches no parameter"),
        ([("kernel|embedding", None)], "shape \\(3,\\), scale expects \\(16,\\)"),
        ([("kernel", "absent"), ("embedding", None)], "no parameter absent for kernel"),
    ],
)
def test_assignment_map_errors(rules, message):
    state, _ = start()
    with pytest.raises(ValueError, match=message):
        assignment.apply_assignment_map(state.params, {"scale": np.zeros(3)}, rules)
