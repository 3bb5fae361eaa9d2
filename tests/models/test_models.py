"""T5 and the DSI model: sizes, parameters, masks, dtypes, cached decoding, remat, dropout."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict

from dsi_jax.models import layers, t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.t5 import T5Config
from tests.fixtures.golden_files import check_golden

BATCH, SOURCE, LENGTH, BEAMS, DOCID_VOCAB = 3, 11, 6, 4, 12
V1_0 = T5Config(
    vocab_size=50,
    emb_dim=32,
    num_heads=4,
    head_dim=16,
    mlp_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
V1_1 = dataclasses.replace(V1_0, mlp_activations=("gelu", "linear"), tie_embeddings=False)
VERSIONS = pytest.mark.parametrize("t5", [V1_0, V1_1], ids=["v1_0", "v1_1"])
SPACES = pytest.mark.parametrize("space", ["compact", "text"])


def dsi_model(t5: T5Config, space: str = "compact") -> DSIModel:
    vocab_size = t5.vocab_size if space == "text" else DOCID_VOCAB
    return DSIModel(DSIConfig(t5, vocab_size, LENGTH, space))


def random_batch(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, SOURCE + 1, (BATCH, 1))
    return {
        "text": {
            "tokens": rng.integers(1, V1_0.vocab_size, (BATCH, SOURCE), dtype=np.int32),
            "mask": np.arange(SOURCE) < lengths,
        },
        "decoder": {"inputs": rng.integers(0, DOCID_VOCAB, (BATCH, LENGTH), dtype=np.int32)},
    }


def init(model: DSIModel, batch: dict) -> dict:
    return nn.meta.unbox(
        jax.jit(lambda: model.init(jax.random.key(0), batch, deterministic=True))()
    )


@functools.cache
def jitted(model: DSIModel, method: str = "__call__", **options):
    """`model.apply` as one program; `options` are static arguments of the method."""
    return jax.jit(
        lambda variables, *args, rngs=None: model.apply(
            variables, *args, rngs=rngs, method=method, **options
        )
    )


def forward(model: DSIModel, variables: dict, batch: dict) -> jax.Array:
    return jitted(model, deterministic=True)(variables, batch)


def abstract_params(t5: T5Config, space: str) -> dict[str, nn.LogicallyPartitioned]:
    model, batch = dsi_model(t5, space), random_batch()
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, deterministic=True))
    assert variables.keys() == {"params"}
    return flatten_dict(variables["params"], sep="/")


# --- Configurations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("t5_small", 60_506_624),
        ("t5_base", 222_903_552),
        ("t5_large", 737_668_096),
        ("t5_xl", 2_851_598_336),
        ("t5_xxl", 11_307_321_344),
        ("t5_1_1_small", 76_961_152),
        ("t5_1_1_base", 247_577_856),
        ("t5_1_1_large", 783_150_080),
        ("t5_1_1_xl", 2_849_757_184),
        ("t5_1_1_xxl", 11_135_332_352),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    parameters = abstract_params(getattr(t5_sizes, name)(), "text").values()
    assert sum(math.prod(value.unbox().shape) for value in parameters) == count


def test_sizes_take_options() -> None:
    t5 = t5_sizes.t5_1_1_base(vocab_size=300, dropout_rate=0.0, dtype="bfloat16", remat=True)
    assert (t5.vocab_size, t5.dropout_rate, t5.dtype, t5.remat) == (300, 0.0, "bfloat16", True)


def test_every_size_has_a_gin_file() -> None:
    names = {name for name in vars(t5_sizes) if name.startswith("t5_")}
    files = (Path(__file__).parents[2] / "gin" / "models").glob("t5_*.gin")
    assert {file.stem for file in files} == names


@VERSIONS
def test_config_survives_json(t5: T5Config) -> None:
    config = dsi_model(t5).config
    loaded = DSIConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert loaded == config
    assert hash(loaded) == hash(config)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; expected a positive integer"),
        ({"emb_dim": 64.0}, "emb_dim is 64.0; expected a positive integer"),
        ({"dtype": "float16"}, "dtype is 'float16'; expected 'float32' or 'bfloat16'"),
        ({"remat": "full"}, "remat is 'full'; expected True, False or 'minimal'"),
        ({"dropout_rate": 1.0}, r"dropout_rate is 1.0; expected a number in \[0, 1\)"),
        ({"mlp_activations": ("rellu",)}, r"mlp_activations is \('rellu',\); expected names"),
        ({"width": 3}, r"unknown fields \['width'\], absent fields \[\]"),
    ],
)
def test_t5_config_names_what_is_wrong(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5Config.from_json(V1_0.to_json() | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"docid_space": "tiny"}, "docid_space is 'tiny'; expected one of"),
        ({"docid_space": "text"}, "docid_vocab_size is 12; .* vocabulary size 50"),
        ({"docid_length": 0}, "docid_length is 0; expected positive"),
    ],
)
def test_dsi_config_names_what_is_wrong(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DSIConfig.from_json(dsi_model(V1_0).config.to_json() | changed)


# --- Parameters --------------------------------------------------------------------------------


def test_golden_parameters() -> None:
    """Paths, shapes and logical axes are those of T5X's checkpoints and must not drift."""

    def described(t5: T5Config) -> dict[str, str]:
        return {
            path: f"{value.unbox().dtype} {list(value.unbox().shape)} ({', '.join(value.names)})"
            for path, value in sorted(abstract_params(t5, "text").items())
        }

    layers_of_each = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    scanned = {"scan_layers": True, "relpos_per_layer": True}
    found = {
        "v1.0": described(dataclasses.replace(V1_0, **layers_of_each)),
        "v1.1": described(dataclasses.replace(V1_1, **layers_of_each)),
        "v1.1 scanned": described(dataclasses.replace(V1_1, **layers_of_each, scan_layers=True)),
        "umT5 scanned": described(dataclasses.replace(V1_1, **layers_of_each, **scanned)),
    }
    check_golden("t5_parameters.json", json.dumps(found, indent=2) + "\n")


@VERSIONS
def test_compact_space_differs_by_the_docid_embedder_and_the_head_alone(t5: T5Config) -> None:
    def shapes(space: str) -> dict[str, tuple[int, ...]]:
        return {path: value.unbox().shape for path, value in abstract_params(t5, space).items()}

    expected = shapes("text") | {"docid_embedder/embedding": (DOCID_VOCAB, t5.emb_dim)}
    if not t5.tie_embeddings:
        expected["decoder/logits_dense/kernel"] = (t5.emb_dim, DOCID_VOCAB)
    assert shapes("compact") == expected


@VERSIONS
def test_initial_scales(t5: T5Config) -> None:
    t5 = dataclasses.replace(t5, emb_dim=256, num_heads=4, head_dim=64, mlp_dim=512)
    batch = random_batch()
    model = dsi_model(t5)
    variables = init(model, batch)
    flat = flatten_dict(variables["params"], sep="/")

    def deviation(path: str) -> float:
        return float(np.std(flat[path]))

    attention = "encoder/layers_0/attention"
    assert deviation(f"{attention}/query/kernel") == pytest.approx((256 * 64) ** -0.5, rel=0.03)
    for name in ("key", "value", "out"):
        assert deviation(f"{attention}/{name}/kernel") == pytest.approx(256**-0.5, rel=0.03)
    assert deviation("decoder/layers_0/mlp/wo/kernel") == pytest.approx(512**-0.5, rel=0.03)
    assert deviation("token_embedder/embedding") == pytest.approx(1.0, rel=0.03)
    assert deviation("docid_embedder/embedding") == pytest.approx(1.0, rel=0.05)
    # A tied head favours the token just read: its embedding is part of the hidden state.
    logits = np.array(forward(model, variables, batch))
    np.put_along_axis(logits, batch["decoder"]["inputs"][..., None], np.nan, axis=-1)
    assert 0.7 < float(np.nanstd(logits)) < 1.3


# --- Forward pass ------------------------------------------------------------------------------


def test_shift_right() -> None:
    np.testing.assert_array_equal(
        shift_right(jnp.array([[5, 6, 1], [7, 1, 0]])), [[0, 5, 6], [0, 7, 1]]
    )


@VERSIONS
def test_masked_tokens_and_later_inputs_change_nothing(t5: T5Config) -> None:
    batch, other = random_batch(0), random_batch(1)
    model = dsi_model(t5)
    variables = init(model, batch)
    expected = forward(model, variables, batch)

    mask = batch["text"]["mask"]
    tokens = np.where(mask, batch["text"]["tokens"], other["text"]["tokens"])
    masked = batch | {"text": {"tokens": tokens, "mask": mask}}
    np.testing.assert_array_equal(forward(model, variables, masked), expected)

    inputs = batch["decoder"]["inputs"].copy()
    inputs[:, 3] = (inputs[:, 3] + 1) % DOCID_VOCAB
    later = forward(model, variables, batch | {"decoder": {"inputs": inputs}})
    np.testing.assert_array_equal(later[:, :3], expected[:, :3])
    assert (np.abs(later[:, 3:] - expected[:, 3:]).max(axis=-1) > 1e-4).all()


def test_an_empty_text_gives_finite_logits_and_gradients() -> None:
    batch = random_batch()
    batch["text"]["mask"] = np.zeros((BATCH, SOURCE), bool)
    model = dsi_model(V1_0)
    variables = init(model, batch)
    value, gradient = jax.jit(
        jax.value_and_grad(lambda variables: forward(model, variables, batch).std())
    )(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


def test_a_parameter_that_is_there_is_checked_without_its_initialiser() -> None:
    calls = []

    def init(*args: Any) -> jax.Array:
        calls.append(args)
        return jnp.ones(args[1])

    dense = layers.Dense(5, ("embed", "mlp"), kernel_init=init)
    params = nn.unbox(dense.init(jax.random.key(0), jnp.ones((2, 3))))
    assert len(calls) == 1
    dense.apply(params, jnp.ones((2, 3)))
    assert len(calls) == 1
    with pytest.raises(ScopeParamShapeError, match=r"\(4, 5\), but .* \(3, 5\)"):
        dense.apply(params, jnp.ones((2, 4)))


def test_a_token_outside_the_vocabulary_shows() -> None:
    embedder = layers.Embedder(vocab_size=5, features=3)
    variables = embedder.init(jax.random.key(0), jnp.arange(5))
    found = embedder.apply(variables, jnp.array([4, 5]))
    assert np.isnan(found).all(axis=-1).tolist() == [False, True]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_position_bias_is_the_bucket_of_each_pair(bidirectional: bool, length: int) -> None:
    module = layers.RelativePositionBias(4, 32, 128, bidirectional)
    variables = nn.meta.unbox(module.init(jax.random.key(0), length))
    distances = np.arange(length)[None, :] - np.arange(length)[:, None]
    buckets = layers.relative_position_buckets(
        distances, bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    visible = np.ones_like(distances, bool) if bidirectional else distances <= 0

    def direct(variables: dict) -> jax.Array:
        pairs = variables["params"]["rel_embedding"][:, buckets]
        return jnp.where(visible, pairs, layers.MASKED_LOGIT)[None]

    def through(function, variables: dict) -> jax.Array:
        return jnp.sum(
            function(variables)
            * jnp.cos(jnp.arange(length * length * 4.0)).reshape(1, 4, length, length)
            * visible
        )

    bias = module.apply(variables, length)
    np.testing.assert_array_equal(bias, direct(variables))
    gradient = jax.grad(lambda v: through(lambda v: module.apply(v, length), v))(variables)
    expected = jax.grad(lambda v: through(direct, v))(variables)
    np.testing.assert_allclose(
        gradient["params"]["rel_embedding"], expected["params"]["rel_embedding"], atol=1e-3
    )
    if not bidirectional:
        first, count = length // 2, -(-length // 3)
        rows = module.apply(variables, jnp.int32(first), count, length, method="step")
        np.testing.assert_array_equal(rows, bias[0, :, first : first + count])


def test_buckets_by_hand() -> None:
    def buckets(distances: list[int], bidirectional: bool) -> list[int]:
        return layers.relative_position_buckets(
            np.array(distances), bidirectional=bidirectional, num_buckets=32, max_distance=128
        ).tolist()

    distances = [-500, -128, -127, -64, -32, -16, -8, -7, -1, 0, 1, 7, 8, 500]
    assert buckets(distances, True) == [15, 15, 15, 14, 12, 10, 8, 7, 1, 0, 17, 23, 24, 31]
    assert buckets(distances, False) == [31, 31, 31, 26, 21, 16, 8, 7, 1, 0, 0, 0, 0, 0]


# --- Cached decoding ---------------------------------------------------------------------------


@pytest.fixture(params=["all keys", "own keys"])
def keys_looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of attending to a lineage."""
    if request.param == "own keys":
        monkeypatch.setattr(layers, "_FEW_BEAMS", 0)


@VERSIONS
@SPACES
@pytest.mark.usefixtures("keys_looked_at")
def test_decode_step_equals_teacher_forcing(t5: T5Config, space: str) -> None:
    batch = random_batch()
    model = dsi_model(t5, space)
    variables = init(model, batch)
    memory, mask = jitted(model, "encode")(variables, batch)
    rng = np.random.default_rng(2)
    # What is decoded at each position, and which beam of the position before each beam extends.
    inputs = rng.integers(0, DOCID_VOCAB, (BATCH, BEAMS, LENGTH), dtype=np.int32)
    parents = rng.integers(0, BEAMS, (BATCH, BEAMS, LENGTH), dtype=np.int32)
    own = np.broadcast_to(np.arange(BEAMS, dtype=np.int32)[:, None], inputs.shape)
    lineages = [own]
    for position in range(1, LENGTH):
        parent = parents[:, :, position, None]
        before = np.take_along_axis(lineages[-1], parent, axis=1)
        lineages.append(np.where(np.arange(LENGTH) < position, before, own))

    def sequences(lineage: np.ndarray) -> np.ndarray:
        return np.take_along_axis(inputs, lineage, axis=1)

    decode = jitted(model, "decode")

    def expected(lineage: np.ndarray) -> np.ndarray:
        found = sequences(lineage)
        logits = [decode(variables, memory, mask, found[:, beam]) for beam in range(BEAMS)]
        return np.stack(logits, axis=1)

    # One beam more than there is needs room for none.
    cache = jitted(model, "init_cache", num_beams=BEAMS + 1, length=LENGTH)(variables, memory, mask)
    step = jitted(model, "decode_step")
    for position, lineage in enumerate(lineages):
        logits, cache = step(variables, cache, inputs[:, :, position], position, lineage)
        assert logits.dtype == jnp.float32
        of_position = expected(lineage)[:, :, position]
        np.testing.assert_allclose(logits, of_position, rtol=0, atol=1e-5)
        if position == 1:
            after_two = cache
    lineage = np.where(np.arange(LENGTH) < 2, lineages[2], own)
    several = jitted(model, "decode_positions")
    hidden, at_once = several(variables, after_two, inputs[:, :, 2:], 2, lineage)
    logits = jitted(model, "head")(variables, hidden)
    np.testing.assert_allclose(logits, expected(lineage)[:, :, 2:], rtol=0, atol=1e-5)
    assert not np.array_equal(lineage, lineages[-1])  # the beams changed places
    # Both wrote the position at which the lineages are still one.
    first = functools.partial(jax.tree.map, lambda leaf: leaf[:, :, :3])
    check = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(check, first(at_once["self"]), first(cache["self"]))


@VERSIONS
def test_first_step_of_a_known_position_is_that_of_a_traced_one(t5: T5Config) -> None:
    batch = random_batch()
    model = dsi_model(t5)
    variables = init(model, batch)
    memory, mask = jitted(model, "encode")(variables, batch)
    cache = jitted(model, "init_cache", num_beams=BEAMS, length=LENGTH)(variables, memory, mask)
    tokens = np.zeros((BATCH, 1), np.int32)
    lineage = np.zeros((BATCH, 1, LENGTH), np.int32)
    expected, of_traced = jitted(model, "decode_step")(variables, cache, tokens, 0, lineage)
    known = jax.jit(
        lambda variables: model.apply(variables, cache, tokens, 0, lineage, method="decode_step")
    )
    found, of_known = known(variables)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    check = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(check, of_known["self"], of_traced["self"])


def test_cache_has_room_for_beams_in_its_own_part_alone() -> None:
    batch = random_batch()
    model = dsi_model(dataclasses.replace(V1_1, dtype="bfloat16"))
    variables = init(model, batch)
    memory, mask = jitted(model, "encode")(variables, batch)

    def cache(num_beams: int) -> dict:
        init_cache = jitted(model, "init_cache", num_beams=num_beams, length=LENGTH)
        return init_cache(variables, memory, mask)

    one, many = cache(1), cache(BEAMS)
    assert one.keys() == many.keys() == {"self", "cross"}
    shapes = {leaf.shape for leaf in jax.tree.leaves(many["self"])}
    assert shapes == {(BATCH, V1_1.num_heads, LENGTH, BEAMS, V1_1.head_dim)}
    assert not any(leaf.any() for leaf in jax.tree.leaves(many["self"]))
    jax.tree.map(np.testing.assert_array_equal, one["cross"], many["cross"])
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(many)}
    assert dtypes == {jnp.dtype("bfloat16"), jnp.dtype(bool)}


# --- Options -----------------------------------------------------------------------------------


def equations(jaxpr: jax.extend.core.Jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda leaf: isinstance(leaf, jax.extend.core.ClosedJaxpr),
        ):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(getattr(value, "jaxpr", value))


@VERSIONS
@SPACES
def test_bfloat16_is_for_products_alone(t5: T5Config, space: str) -> None:
    batch = random_batch()
    half = dsi_model(dataclasses.replace(t5, dtype="bfloat16"), space)
    variables = init(half, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    logits = forward(half, variables, batch)
    expected = forward(dsi_model(t5, space), variables, batch)
    assert logits.dtype == jnp.float32
    assert 1e-4 < np.abs(logits - expected).max() < 0.1

    jaxpr = jax.make_jaxpr(lambda v: half.apply(v, batch, deterministic=True))(variables)
    operands: dict[str, set] = {"dot_general": set(), "exp": set(), "rsqrt": set()}
    for equation in equations(jaxpr.jaxpr):
        if equation.primitive.name in operands:
            operands[equation.primitive.name] |= {value.aval.dtype for value in equation.invars}
    assert operands == {
        "dot_general": {jnp.dtype("bfloat16")},
        "exp": {jnp.dtype("float32")},
        "rsqrt": {jnp.dtype("float32")},
    }


def test_remat_keeps_less_and_changes_no_gradient() -> None:
    batch = random_batch()

    def loss(t5: T5Config):
        model = dsi_model(t5)
        rngs = {"dropout": jax.random.key(1)}
        return lambda variables: jnp.std(
            model.apply(variables, batch, deterministic=False, rngs=rngs)
        )

    def kept_bytes(t5: T5Config) -> int:
        """What the backward pass keeps besides the parameters."""
        backward = jax.eval_shape(lambda variables: jax.vjp(loss(t5), variables)[1], variables)
        leaves = jax.tree.leaves(backward)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) - sum(
            leaf.nbytes for leaf in jax.tree.leaves(variables)
        )

    remat = dataclasses.replace(V1_0, remat=True)
    variables = init(dsi_model(V1_0), batch)
    assert kept_bytes(remat) < 0.25 * kept_bytes(V1_0)
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6),
        jax.jit(jax.grad(loss(remat)))(variables),
        jax.jit(jax.grad(loss(V1_0)))(variables),
    )


def test_dropout_is_random_and_shared_along_the_length() -> None:
    batch = random_batch()
    model = dsi_model(dataclasses.replace(V1_0, dropout_rate=0.5))
    variables = init(model, batch)

    def dropped_logits(seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return jitted(model, deterministic=False)(variables, batch, rngs=rngs)

    plain = forward(model, variables, batch)
    np.testing.assert_array_equal(dropped_logits(0), dropped_logits(0))
    assert np.abs(dropped_logits(0) - plain).max() > 0.1
    assert np.abs(dropped_logits(0) - dropped_logits(1)).max() > 0.1

    dropped = layers.shared_along_length(0.5).apply(
        {}, jnp.ones((2, 5, 400)), False, rngs={"dropout": jax.random.key(0)}
    )
    np.testing.assert_array_equal(dropped, jnp.broadcast_to(dropped[:, :1], dropped.shape))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    assert np.mean(dropped) == pytest.approx(1.0, abs=0.15)


@VERSIONS
def test_memorises_from_random_weights(t5: T5Config) -> None:
    rng = np.random.default_rng(0)
    documents = 16
    tokens = rng.integers(2, t5.vocab_size, (documents, 8), dtype=np.int32)
    targets = jnp.asarray(rng.integers(2, DOCID_VOCAB, (documents, 3), dtype=np.int32))
    batch = {
        "text": {"tokens": tokens, "mask": np.ones_like(tokens)},
        "decoder": {"inputs": shift_right(targets)},
    }
    model = dsi_model(dataclasses.replace(t5, dropout_rate=0.0))
    optimizer = optax.adam(2e-3)

    def loss(variables: dict) -> jax.Array:
        logits = model.apply(variables, batch, deterministic=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def train(variables: dict) -> jax.Array:
        def step(carry, _):
            variables, state = carry
            value, gradient = jax.value_and_grad(loss)(variables)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(variables, updates), state), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), length=120)[1]

    losses = train(init(model, batch))
    assert losses[0] < math.log(DOCID_VOCAB) + 2.0
    assert losses[-1] < 0.05
