"""Weights from and to Hugging Face, and parity with its PyTorch T5 on random checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from dsi_jax.convert import docid_vocabulary, hf_t5
from dsi_jax.models import layer_stacking
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config

BATCH, SOURCE, LENGTH = 4, 150, 9  # longer than the 128 positions with buckets of their own
LENGTHS = np.array([SOURCE, 1, 40, 97])

V1_0 = T5Config(
    vocab_size=96,
    emb_dim=32,
    num_heads=4,
    head_dim=16,  # num_heads * head_dim differs from emb_dim
    mlp_dim=48,
    num_encoder_layers=3,
    num_decoder_layers=2,
    dropout_rate=0.05,
)
V1_1 = dataclasses.replace(V1_0, mlp_activations=("gelu", "linear"), tie_embeddings=False)
UMT5 = dataclasses.replace(V1_1, relpos_per_layer=True)
VERSIONS = pytest.mark.parametrize("config", [V1_0, V1_1, UMT5], ids=["v1_0", "v1_1", "umt5"])


def text_model_of(config: T5Config) -> DSIModel:
    return DSIModel(DSIConfig(config, config.vocab_size, LENGTH, "text"))


def random_batch(config: T5Config) -> dict:
    rng = np.random.default_rng(0)
    return {
        "text": {
            "tokens": rng.integers(2, config.vocab_size, (BATCH, SOURCE), dtype=np.int32),
            "mask": np.arange(SOURCE) < LENGTHS[:, None],
        },
        "decoder": {"inputs": rng.integers(0, config.vocab_size, (BATCH, LENGTH), dtype=np.int32)},
    }


def random_params(config: T5Config, seed: int = 0) -> dict:
    """Parameters of the text model, every one of them random (layer norms too)."""
    rng = np.random.default_rng(seed)
    flat = {
        path: (path.endswith("/scale") + 0.1 * rng.standard_normal(shape)).astype(np.float32)
        for path, shape in docid_vocabulary.parameter_shapes(config).items()
    }
    return unflatten_dict(flat, sep="/")


def assert_equal_params(found: dict, expected: dict) -> None:
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="parity with PyTorch needs the extra `parity` (torch)"
    )


def torch_logits(torch, directory, batch: dict) -> np.ndarray:
    """Logits of transformers' T5 read from `directory`, which must hold all of its weights."""
    from transformers import AutoModelForSeq2SeqLM

    model, report = AutoModelForSeq2SeqLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        output = model.eval()(
            input_ids=torch.tensor(batch["text"]["tokens"]).long(),
            attention_mask=torch.tensor(batch["text"]["mask"]).long(),
            decoder_input_ids=torch.tensor(batch["decoder"]["inputs"]).long(),
        )
    return output.logits.numpy()


def save_random_torch_model(torch, directory, config: T5Config, **options) -> None:
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(
        AutoConfig.for_model(**hf_t5._hf_config(config) | options.pop("changed", {}))
    )
    for name, parameter in model.named_parameters():
        if "layer_norm" in name:  # ones, which would hide an exchange of two of them
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(directory, safe_serialization=True, **options)


@VERSIONS
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_reads_what_transformers_writes(torch, tmp_path, config: T5Config, shard_size: str) -> None:
    save_random_torch_model(torch, tmp_path, config, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shard_size == "20KB"
    found, params = hf_t5.load_t5(tmp_path)
    assert found == config
    batch = random_batch(config)
    logits = text_model_of(config).apply({"params": params}, batch, deterministic=True)
    np.testing.assert_allclose(logits, torch_logits(torch, tmp_path, batch), rtol=0, atol=1e-4)


@VERSIONS
def test_transformers_reads_what_is_written(torch, tmp_path, config: T5Config) -> None:
    params = random_params(config)
    hf_t5.save_t5(tmp_path, config, params)
    batch = random_batch(config)
    logits = text_model_of(config).apply({"params": params}, batch, deterministic=True)
    np.testing.assert_allclose(torch_logits(torch, tmp_path, batch), logits, rtol=0, atol=1e-4)


def test_reads_mt5(torch, tmp_path) -> None:
    save_random_torch_model(torch, tmp_path, V1_1, changed={"model_type": "mt5"})
    path = tmp_path / "config.json"
    value = json.loads(path.read_text())
    assert value["model_type"] == "mt5"
    # What MT5Config assumes where a config.json is silent differs from T5Config.
    del value["tie_word_embeddings"], value["feed_forward_proj"]
    path.write_text(json.dumps(value))
    found, params = hf_t5.load_t5(tmp_path)
    assert found == V1_1
    batch = random_batch(V1_1)
    logits = text_model_of(V1_1).apply({"params": params}, batch, deterministic=True)
    np.testing.assert_allclose(logits, torch_logits(torch, tmp_path, batch), rtol=0, atol=1e-4)


@VERSIONS
def test_compact_head_is_the_torch_head_sliced(torch, tmp_path, config: T5Config) -> None:
    save_random_torch_model(torch, tmp_path, config)
    _, params = hf_t5.load_t5(tmp_path)
    rows = np.array([0, 1, 30, 7, 55, 54, 90])
    compact = DSIModel(DSIConfig(config, len(rows), LENGTH, "compact"))
    batch = random_batch(config)
    inputs = batch["decoder"]["inputs"] % len(rows)
    batch["decoder"]["inputs"] = inputs
    logits = compact.apply(
        {"params": docid_vocabulary.initialize(params, rows)}, batch, deterministic=True
    )
    batch["decoder"]["inputs"] = rows[inputs]
    expected = torch_logits(torch, tmp_path, batch)[:, :, rows]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@VERSIONS
@pytest.mark.parametrize("shard_bytes", [2**30, 10_000])
def test_save_then_load_changes_nothing(tmp_path, config: T5Config, shard_bytes: int) -> None:
    params = random_params(config)
    hf_t5.save_t5(tmp_path, config, params, shard_bytes=shard_bytes)
    found, loaded = hf_t5.load_t5(tmp_path)
    assert found == config
    assert_equal_params(loaded, params)
    scanned = dataclasses.replace(config, scan_layers=True)
    stacked = layer_stacking.stack_layers(params)
    hf_t5.save_t5(tmp_path / "stacked", scanned, stacked)
    assert_equal_params(hf_t5.load_t5(tmp_path / "stacked")[1], params)


def test_shards_are_of_the_asked_size(tmp_path) -> None:
    hf_t5.save_t5(tmp_path, V1_0, random_params(V1_0), shard_bytes=20_000)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    header = 4_000
    assert len(sizes) > 3
    assert max(sizes) < 20_000 + header


def test_bfloat16_weights_become_float32(tmp_path) -> None:
    hf_t5.save_t5(tmp_path, V1_0, random_params(V1_0))
    path = tmp_path / "model.safetensors"
    tensors = {name: value.astype(jnp.bfloat16) for name, value in load_file(path).items()}
    save_file(tensors, path)
    _, params = hf_t5.load_t5(tmp_path)
    expected = jax.tree.map(
        lambda value: value.astype(jnp.bfloat16).astype(np.float32), random_params(V1_0)
    )
    assert_equal_params(params, expected)


@pytest.mark.parametrize("copy", ["encoder.embed_tokens.weight", "lm_head.weight"])
def test_tied_embeddings_are_found_under_any_of_their_names(tmp_path, copy: str) -> None:
    params = random_params(V1_0)
    hf_t5.save_t5(tmp_path, V1_0, params)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[copy] = tensors.pop("shared.weight")
    save_file(tensors, path)
    assert_equal_params(hf_t5.load_t5(tmp_path)[1], params)


def test_a_tied_head_that_differs_is_refused(tmp_path) -> None:
    hf_t5.save_t5(tmp_path, V1_0, random_params(V1_0))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["shared.weight"].copy()}, path)
    assert hf_t5.load_t5(tmp_path)[0] == V1_0
    save_file(tensors | {"lm_head.weight": tensors["shared.weight"] + 1}, path)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs .*tie_word_embeddings\": false"):
        hf_t5.load_t5(tmp_path)


def test_encoder_alone_is_read_from_files_without_decoder(tmp_path) -> None:
    params = random_params(V1_1)
    hf_t5.save_t5(tmp_path, V1_1, params)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: value for name, value in tensors.items() if not name.startswith(("dec", "lm"))},
        path,
    )
    config, loaded = hf_t5.load_t5(tmp_path, encoder_only=True)
    assert config == V1_1
    assert_equal_params(loaded, {name: params[name] for name in ("token_embedder", "encoder")})
    with pytest.raises(ValueError, match=r"absent \['decoder\.block\.0"):
        hf_t5.load_t5(tmp_path)


def test_lent_rows_are_mixed_with_own_ones() -> None:
    params = random_params(V1_1)
    rows = np.array([-1, 5, -1, 9])
    own = random_params(dataclasses.replace(V1_1, vocab_size=len(rows)), seed=1)
    own["docid_embedder"] = own.pop("token_embedder")
    lent = docid_vocabulary.initialize(params, rows, own)
    for index, row in enumerate(rows):
        source, at = (own, index) if row < 0 else (params, row)
        embedder = "docid_embedder" if row < 0 else "token_embedder"
        np.testing.assert_array_equal(
            lent["docid_embedder"]["embedding"][index], source[embedder]["embedding"][at]
        )
        np.testing.assert_array_equal(
            lent["decoder"]["logits_dense"]["kernel"][:, index],
            source["decoder"]["logits_dense"]["kernel"][:, at],
        )
    np.testing.assert_array_equal(
        lent["token_embedder"]["embedding"], params["token_embedder"]["embedding"]
    )


def test_lend_refuses_rows_it_cannot_fill() -> None:
    params = random_params(V1_0)
    with pytest.raises(ValueError, match=r"values in \[0, 96\]; expected .* \[0, 96\)"):
        docid_vocabulary.initialize(params, [0, 96])
    with pytest.raises(ValueError, match="1 docid tokens have row -1; expected `own`"):
        docid_vocabulary.initialize(params, [0, -1])
    own = {"docid_embedder": {"embedding": np.zeros((3, V1_0.emb_dim))}}
    with pytest.raises(ValueError, match="docid_embedder/embedding of `own` holds 3 tokens"):
        docid_vocabulary.initialize(params, [0, -1], own)


def test_load_names_what_is_wrong(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        hf_t5.load_t5(tmp_path)
    hf_t5.save_t5(tmp_path, V1_0, random_params(V1_0))
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    original, tensors = json.loads(config.read_text()), load_file(weights)

    for changed, message in [
        ({"model_type": "longt5"}, "model_type is 'longt5'; expected one of"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj is 'gelu'; expected one of"),
        ({"decoder_start_token_id": 7}, "decoder_start_token_id is 7; expected"),
        ({"num_layers": 4}, r"absent \['encoder\.block\.3"),
        ({"num_decoder_layers": 1}, r"unknown \['decoder\.block\.1"),
        ({"vocab_size": 95}, r"shared\.weight has shape \(96, 32\); expected \(95, 32\)"),
        ({"d_ff": 47}, r"wi\.weight has shape \(48, 32\); expected \(47, 32\)"),
    ]:
        config.write_text(json.dumps(original | changed))
        with pytest.raises(ValueError, match=message):
            hf_t5.load_t5(tmp_path)
    config.write_text(json.dumps(original))

    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a readable safetensors file"):
        hf_t5.load_t5(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor"):
        hf_t5.load_t5(tmp_path)
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-00001-of-00001\.safetensors does not"):
        hf_t5.load_t5(tmp_path)


def test_save_names_what_is_wrong(tmp_path) -> None:
    params = random_params(V1_0)
    with pytest.raises(ValueError, match=r"first encoder/layers_2/.*expected none"):
        hf_t5.save_t5(tmp_path, dataclasses.replace(V1_0, num_encoder_layers=2), params)
    with pytest.raises(ValueError, match=r"mlp_activations is \('silu',\); expected one of"):
        hf_t5.save_t5(tmp_path, dataclasses.replace(V1_0, mlp_activations=("silu",)), params)
    assert not list(tmp_path.iterdir())
