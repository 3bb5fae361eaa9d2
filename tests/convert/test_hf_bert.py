"""BERT, RoBERTa and XLM-RoBERTa beside transformers' PyTorch modules, and refused checkpoints."""

import json
import re

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from dsi_jax.convert import encoder_formats, hf_bert
from dsi_jax.inputs.hf_tokenizer import HuggingFaceTokenizer
from dsi_jax.models.encoders import registry

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
TEXTS = ["when did the war end", "Ünïcode, 東京 and 3.14!", "a", "word " * 40]


def save_random(directory, model_type, **more):
    """Writes a random checkpoint of a model type as transformers does; gives the torch module."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | more)
    model = transformers.AutoModel.from_config(config, add_pooling_layer=True).eval()
    for parameter in model.parameters():  # also biases and norms, which begin as 0 and 1
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return model


def encode(directory, tokens, mask):
    found = encoder_formats.format_in(directory)
    encoders = found.load_configs(directory)
    params = found.load_params(directory, encoders)
    params = {path.removeprefix("text_model/"): value for path, value in params.items()}
    module = encoders.text.build()
    return encoders.text, module.apply(
        {"params": unflatten_dict(params, sep="/")},
        {"tokens": tokens, "mask": mask},
        method="encode",
    )


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
        ("xlm-roberta", {"type_vocab_size": 1, "pad_token_id": 1}),
    ],
)
def test_states_equal_those_of_pytorch(tmp_path, model_type, more):
    theirs = save_random(tmp_path, model_type, **more)
    rng = np.random.default_rng(0)
    pad = theirs.config.pad_token_id
    tokens = rng.integers(4, 50, size=(3, 12))
    lengths = np.array([12, 5, 1])
    mask = np.arange(12) < lengths[:, None]
    tokens = np.where(mask, tokens, pad)
    config, encoded = encode(tmp_path, tokens, mask)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.numpy()
    np.testing.assert_allclose(
        np.where(mask[..., None], encoded.states, 0),
        np.where(mask[..., None], expected, 0),
        atol=2e-5,
    )
    mean = (expected * mask[..., None]).sum(1) / lengths[:, None]
    np.testing.assert_allclose(encoded.pooled, mean, atol=2e-5)
    assert config.max_length == 20 - config.position_offset
    assert registry.from_json(registry.to_json(config), "text") == config


def test_every_matrix_has_a_path_rule(tmp_path):
    save_random(tmp_path, "bert")
    config = hf_bert.load_bert_config(tmp_path)
    shapes = hf_bert._shapes(config)
    matrices = {
        path for path, shape in shapes.items() if len(shape) == 2 and "token_type" not in path
    }
    for pattern, _ in config.path_rules:
        assert any(re.fullmatch(pattern, path) for path in shapes), pattern
    for path in matrices:
        assert any(re.fullmatch(pattern, path) for pattern, _ in config.path_rules), path


def test_pooling_is_read_from_sentence_transformers(tmp_path):
    save_random(tmp_path, "bert")
    folder = tmp_path / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    tokens = np.array([[5, 6, 7, 0]])
    config, encoded = encode(tmp_path, tokens, tokens != 0)
    assert config.pooling == "cls"
    np.testing.assert_array_equal(encoded.pooled, encoded.states[:, 0])
    np.testing.assert_array_equal(encoded.pooled_place, [[True, False, False, False]])
    np.testing.assert_array_equal(encoded.mask, [[False, True, True, False]])
    (folder / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match=r"1_Pooling.*pooling_mode_max_tokens.*expected one of"):
        hf_bert.load_bert_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"num_hidden_layers": 3}, r"lacks the weights \['encoder/layer/2/"),
        ({"num_hidden_layers": 1}, r"unknown weights \['encoder.layer.1"),
        ({"intermediate_size": 25}, r"has shape \(24"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"model_type": "deberta"}, "model_type is 'deberta'; expected one of .*'bert'"),
    ],
)
def test_a_checkpoint_that_is_not_computed_here_is_refused(tmp_path, change, match):
    save_random(tmp_path, "bert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ValueError, TypeError), match=match):
        found = encoder_formats.format_in(tmp_path)
        found.load_params(tmp_path, found.load_configs(tmp_path))


def test_the_tokenizer_is_that_of_transformers_and_travels_as_json(shared_models):
    directory = shared_models / "all-MiniLM-L6-v2"
    ours = HuggingFaceTokenizer.from_directory(directory)
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for length in (4, 16, 64):
        expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)
        np.testing.assert_array_equal(ours.encode_batch(TEXTS, length), expected["input_ids"])
        np.testing.assert_array_equal(
            ours.mask(ours.encode_batch(TEXTS, length)), np.array(expected["attention_mask"]) == 1
        )
    again = HuggingFaceTokenizer.from_spec(json.loads(json.dumps(ours.spec())))
    assert again.hash == ours.hash and again.pad_id == ours.pad_id == 0
    np.testing.assert_array_equal(again.encode_batch(TEXTS, 16), ours.encode_batch(TEXTS, 16))


def test_minilm_equals_pytorch_on_its_real_weights(shared_models):
    directory = shared_models / "all-MiniLM-L6-v2"
    tokenizer = HuggingFaceTokenizer.from_directory(directory)
    tokens = tokenizer.encode_batch(TEXTS, 32)
    mask = tokenizer.mask(tokens)
    config, encoded = encode(directory, tokens, mask)
    theirs = transformers.AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.numpy()
    assert config.pooling == "mean" and config.vocab_size == tokenizer.vocab_size
    difference = np.abs(np.asarray(encoded.states) - expected)[mask]
    assert difference.max() < 1e-4
