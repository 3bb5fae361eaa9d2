"""Checkpoints in T5X's layout, written by hand, load to the same logits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from dsi_jax.convert import docid_vocabulary, t5x, t5x_files
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config
from tests.fixtures import t5x_checkpoint

V1_0 = T5Config(
    vocab_size=50,
    emb_dim=16,
    num_heads=3,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=3,
    num_decoder_layers=2,
)
V1_1 = dataclasses.replace(V1_0, mlp_activations=("gelu", "linear"), tie_embeddings=False)
UMT5 = dataclasses.replace(V1_1, relpos_per_layer=True)
KERNEL = "encoder/layers_1/mlp/wo/kernel"


def random_parameters(config: T5Config, seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters of the layers one by one, by path."""
    rng = np.random.default_rng(seed)
    return {
        path: (path.endswith("/scale") + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        for path, shape in docid_vocabulary.parameter_shapes(config).items()
    }


def logits(config: T5Config, params: dict) -> jax.Array:
    rng = np.random.default_rng(0)
    tokens, inputs = rng.integers(1, config.vocab_size, (2, 3, 6), dtype=np.int32)
    batch = {
        "text": {"tokens": tokens, "mask": np.arange(6) < [[6], [2], [4]]},
        "decoder": {"inputs": inputs},
    }
    model = DSIModel(DSIConfig(config, config.vocab_size, docid_length=6, docid_space="text"))
    return jax.jit(lambda p: model.apply({"params": p}, batch, deterministic=True))(params)


def write_minimal(tmp_path, config: T5Config = V1_1, **options):
    """A checkpoint of t5x/examples/t5 with norms and position biases inside the index."""
    flat = t5x_checkpoint.minimal_target(random_parameters(config))
    inline = {path: value for path, value in flat.items() if path.endswith(("scale", "embedding"))}
    inline.pop("token_embedder/embedding")
    large = {path: value for path, value in flat.items() if path not in inline}
    directory = tmp_path / "checkpoint_1100000"
    return t5x_checkpoint.write_checkpoint(directory, large, inline=inline, **options), flat


# --- What is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [V1_0, V1_1], ids=["v1_0", "v1_1"])
@pytest.mark.parametrize(
    "options",
    [{}, {"compressor": None, "gcs": True, "version": 2}, {"compressor": "zstd", "version": None}],
    ids=["gzip", "none", "zstd"],
)
def test_layers_one_by_one(tmp_path, config, options) -> None:
    directory, flat = write_minimal(tmp_path, config, **options)
    assert len(list((directory / f"target.{KERNEL.replace('/', '.')}").iterdir())) == 1 + 3 * 2
    found, params = t5x.load_t5(directory)
    assert found == t5x.load_t5_config(directory) == config
    loaded = flatten_dict(params, sep="/")
    assert loaded.keys() == flat.keys()
    for path, value in flat.items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)
    expected = logits(config, unflatten_dict(flat, sep="/"))
    np.testing.assert_array_equal(logits(found, params), expected)


@pytest.mark.parametrize("scan", [True, False], ids=["scanned", "one_by_one"])
def test_scalable_t5(tmp_path, scan) -> None:
    flat = random_parameters(UMT5)
    target = t5x_checkpoint.scalable_target(flat, UMT5.num_heads, scan=scan)
    layer = "decoder/decoder" if scan else "decoder/layers_0"
    depth = (UMT5.num_decoder_layers,) if scan else ()
    assert target[f"{layer}/self_attention/query/kernel"].shape == (16, *depth, 3, 8)
    assert target[f"{layer}/self_attention/out/kernel"].shape == (3, *depth, 8, 16)
    assert target[f"{layer}/relpos_bias/rel_embedding"].shape == (3, *depth, 32)
    directory = t5x_checkpoint.write_checkpoint(tmp_path / "checkpoint_5", target)
    config, params = t5x.load_t5(directory)
    assert config == dataclasses.replace(UMT5, scan_layers=scan)
    expected = logits(UMT5, unflatten_dict(flat, sep="/"))
    np.testing.assert_allclose(logits(config, params), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_becomes_float32(tmp_path) -> None:
    flat = {path: v.astype(jnp.bfloat16) for path, v in random_parameters(V1_1).items()}
    inline = {"encoder/encoder_norm/scale": flat.pop("encoder/encoder_norm/scale")}
    directory = t5x_checkpoint.write_checkpoint(tmp_path / "checkpoint_5", flat, inline=inline)
    loaded = flatten_dict(t5x.load_t5(directory)[1], sep="/")
    for path, value in (flat | inline).items():
        assert loaded[path].dtype == np.float32
        np.testing.assert_array_equal(loaded[path], value.astype(np.float32), err_msg=path)


def test_orbax_placeholders(tmp_path) -> None:
    """The format of Orbax before it had an index of its own, as in t5x/testdata/tiny_orbax."""
    directory, flat = write_minimal(tmp_path)
    tree: dict = {}
    for path, value in flat.items():
        name = f"_optimizer.target.{path.replace('/', '.')}"
        t5x_checkpoint.write_zarr(directory / name, value, compressor="gzip", chunk=16)
        t5x_checkpoint.insert(tree, path, f"PLACEHOLDER://{name}")
    contents = {"_optimizer": {"target": tree, "state": {}}, "flax_mutables": {}}
    (directory / "checkpoint").write_bytes(msgpack.packb(contents))
    config, params = t5x.load_t5(directory)
    assert config == V1_1
    np.testing.assert_array_equal(flatten_dict(params, sep="/")[KERNEL], flat[KERNEL])


def test_orbax_state(tmp_path) -> None:
    """What T5X's OrbaxCheckpointManagerInterface writes: an item `state`, in OCDBT."""
    flat = random_parameters(V1_1)
    target = unflatten_dict(flat, sep="/")
    state = {"target": target, "state": {"step": np.int32(3), "param_states": {"gone": np.ones(4)}}}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint")
    handlers = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    with ocp.CheckpointManager(tmp_path, options=options, item_handlers=handlers) as manager:
        for step in (3, 12):
            manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)))
    directory = t5x_files.find_checkpoint(tmp_path)
    assert directory == tmp_path / "checkpoint_12"
    config, params = t5x.load_t5(directory)
    assert config == V1_1
    loaded = flatten_dict(params, sep="/")
    assert loaded.keys() == flat.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(loaded[path], value, err_msg=path)


@pytest.mark.parametrize("name", [name for name in vars(t5_sizes) if name.startswith("t5_")])
def test_config_of_every_size_is_read_off_its_shapes(name) -> None:
    config = getattr(t5_sizes, name)()
    assert t5x._inferred_config(docid_vocabulary.parameter_shapes(config)) == config


def test_config_of_mt5_is_read_off_its_shapes() -> None:
    config = t5_sizes.t5_1_1_small(vocab_size=250_112)
    assert t5x._inferred_config(docid_vocabulary.parameter_shapes(config)) == config


def test_the_newest_checkpoint_of_a_directory(tmp_path) -> None:
    assert t5x_files.find_checkpoint(tmp_path) is None
    for step in (9, 10):
        t5x_checkpoint.write_checkpoint(tmp_path / f"checkpoint_{step}", {})
    (tmp_path / "checkpoint_11.tmp-1").mkdir()
    assert t5x_files.find_checkpoint(tmp_path).name == "checkpoint_10"
    assert t5x_files.find_checkpoint(tmp_path / "checkpoint_9").name == "checkpoint_9"


# --- What is refused ---------------------------------------------------------------------------


def test_missing_array(tmp_path) -> None:
    directory, _ = write_minimal(tmp_path)
    folder = directory / f"target.{KERNEL.replace('/', '.')}"
    folder.rename(directory / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"array of parameter {KERNEL} is missing: .*zarr"):
        t5x.load_t5(directory)


def test_missing_chunk(tmp_path) -> None:
    directory, _ = write_minimal(tmp_path)
    (directory / f"target.{KERNEL.replace('/', '.')}" / "2.1").unlink()
    with pytest.raises(ValueError, match=rf"parameter {KERNEL}: .* has 5 chunks; expected 6"):
        t5x.load_t5(directory)


@pytest.mark.parametrize("compressor", ["gzip", None])
def test_truncated_chunk(tmp_path, compressor) -> None:
    directory, _ = write_minimal(tmp_path, compressor=compressor)
    chunk = directory / f"target.{KERNEL.replace('/', '.')}" / "1.1"
    chunk.write_bytes(chunk.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"parameter {KERNEL}: .* cannot be read: .*1\.1"):
        t5x.load_t5(directory)


def test_array_of_another_shape_than_the_index_says(tmp_path) -> None:
    directory, _ = write_minimal(tmp_path)
    path = directory / f"target.{KERNEL.replace('/', '.')}" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [24, 15]}))
    message = rf"parameter {KERNEL}: .* has shape \(24, 15\); expected \(24, 16\) by the index"
    with pytest.raises(ValueError, match=message):
        t5x.load_t5(directory)
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"parameter {KERNEL}: .*\.zarray is damaged"):
        t5x.load_t5(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda flat: flat.update({KERNEL: np.ones((24, 15), "f4")}),
            rf"1 parameters do not fit .* {KERNEL}: shape \(24, 15\); expected \(24, 16\)",
        ),
        (
            lambda flat: flat.pop(KERNEL),
            rf"1 parameters do not fit .* {KERNEL}: shape none; expected \(24, 16\)",
        ),
        (
            lambda flat: flat.update({"decoder/layers_0/mlp/router/kernel": np.ones((2, 2), "f4")}),
            r"first decoder/layers_0/mlp/router/kernel: shape \(2, 2\); expected none",
        ),
        (
            lambda flat: flat.pop("token_embedder/embedding"),
            r"does not hold a T5 .*'token_embedder/embedding'",
        ),
        (
            lambda flat: [flat.pop(path) for path in list(flat) if path.startswith("decoder")],
            r"num_decoder_layers is 0",
        ),
    ],
    ids=["shape", "absent", "unknown", "no_embedding", "encoder_only"],
)
def test_parameters_of_no_t5(tmp_path, change, message) -> None:
    flat = random_parameters(V1_1)
    change(flat)
    directory = t5x_checkpoint.write_checkpoint(tmp_path / "checkpoint_5", flat)
    with pytest.raises(ValueError, match=message):
        t5x.load_t5_config(directory)


def test_index_of_another_kind(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="is no T5X checkpoint: there is no file"):
        t5x.load_t5(tmp_path)
    directory, _ = write_minimal(tmp_path)
    index = directory / "checkpoint"
    contents = index.read_bytes()
    for wrong, message in [
        (contents[:-9], "is no index of a T5X checkpoint, or damaged"),
        (b"hello", "is no index of a T5X checkpoint, or damaged"),
        (msgpack.packb({"params": {}}), "or damaged: 'target'"),
        (b'model_checkpoint_path: "model.ckpt-1"', "is a TensorFlow checkpoint"),
        (contents.replace(b"version\x03", b"version\x04"), r"version 4; expected one of \(2, 3\)"),
    ]:
        assert wrong != contents
        index.write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            t5x.load_t5(directory)


def test_bfloat16_as_uint16_is_refused(tmp_path) -> None:
    flat = random_parameters(V1_1)
    flat[KERNEL] = flat[KERNEL].astype(jnp.bfloat16).view(np.uint16)
    directory = t5x_checkpoint.write_checkpoint(tmp_path / "checkpoint_5", flat, version=2)
    with pytest.raises(ValueError, match=rf"holds parameter {KERNEL} as uint16"):
        t5x.load_t5_config(directory)
