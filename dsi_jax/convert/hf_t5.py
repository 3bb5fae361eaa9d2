"""T5 weights from and to Hugging Face's directories (config.json and *.safetensors).

Neither torch nor transformers is needed. The parameters are those of a DSI model in `text` space;
`text_model.lend` turns them into those of a compact docid vocabulary.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dsi_jax.convert import docid_vocabulary, hf_safetensors
from dsi_jax.convert.docid_vocabulary import Params
from dsi_jax.models import layer_stacking
from dsi_jax.models.t5 import T5Config
from dsi_jax.utils import atomic_files

# By model_type, what a config.json leaves out: (feed_forward_proj, tie_word_embeddings).
_DEFAULTS = {"t5": ("relu", True), "mt5": ("gated-gelu", False), "umt5": ("gated-gelu", True)}
_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}

_LONE_NAMES = {
    "token_embedder/embedding": "shared",
    "encoder/relpos_bias/rel_embedding": (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    ),
    "decoder/relpos_bias/rel_embedding": (
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    ),
    "encoder/encoder_norm/scale": "encoder.final_layer_norm",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm",
    "decoder/logits_dense/kernel": "lm_head",
}
_BLOCK_NAMES = {
    "encoder": {
        "relpos_bias": "layer.0.SelfAttention.relative_attention_bias",
        "pre_attention_layer_norm": "layer.0.layer_norm",
        "attention": "layer.0.SelfAttention",
        "pre_mlp_layer_norm": "layer.1.layer_norm",
        "mlp": "layer.1.DenseReluDense",
    },
    "decoder": {
        "relpos_bias": "layer.0.SelfAttention.relative_attention_bias",
        "pre_self_attention_layer_norm": "layer.0.layer_norm",
        "self_attention": "layer.0.SelfAttention",
        "pre_cross_attention_layer_norm": "layer.1.layer_norm",
        "encoder_decoder_attention": "layer.1.EncDecAttention",
        "pre_mlp_layer_norm": "layer.2.layer_norm",
        "mlp": "layer.2.DenseReluDense",
    },
}
_PROJECTION_NAMES = {"query": "q", "key": "k", "value": "v", "out": "o"}

# Copies of `shared.weight`, any of which a file may hold in its stead or besides.
_EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Present in old files, never read by the model.
_DISUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def load_t5_config(directory: str | Path) -> T5Config:
    """The config of `load_t5`; of the weights, only that they are there is checked.

    Raises:
      FileNotFoundError: config.json or the weights are absent.
      ValueError: the model is of another kind.
    """
    config = _read_config(Path(directory))
    hf_safetensors.tensor_files(Path(directory))
    return config


def load_t5(directory: str | Path, *, encoder_only: bool = False) -> tuple[T5Config, Params]:
    """Reads a T5 v1.0 or v1.1 (also Flan-T5, LM-adapted), an mT5 or a umT5 of Hugging Face.

    Args:
      directory: holds config.json and model.safetensors, or its shards with their index.
      encoder_only: reads the encoder and its embeddings alone; the files need not hold a decoder.

    Returns:
      The config (float32, dropout as in config.json) and the parameters, float32 NumPy arrays
      under the paths of `DSIModel` in `text` space, layers one by one.

    Raises:
      FileNotFoundError: config.json or the weights are absent.
      ValueError: the model is of another kind; a tensor is absent, unknown or of another shape; or
        config.json ties embeddings and head, and the files have two that differ.
    """
    directory = Path(directory)
    config = _read_config(directory)
    shapes = docid_vocabulary.parameter_shapes(config)
    if encoder_only:
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("decoder/")}
    files = hf_safetensors.tensor_files(directory)
    sources = {path: _hf_name(path) for path in shapes}
    copies = _EMBEDDING_COPIES + (("lm_head.weight",) if config.tie_embeddings else ())
    if "shared.weight" not in files:
        present = [name for name in copies if name in files]
        sources["token_embedder/embedding"] = present[0] if present else "shared.weight"

    absent = sorted(set(sources.values()) - set(files))
    unknown = sorted(set(files) - set(sources.values()) - {"shared.weight", *copies, _DISUSED})
    if encoder_only:
        unknown = [name for name in unknown if name.startswith("encoder.")]
    if absent or unknown:
        raise ValueError(
            f"{directory}: the weights do not fit config.json: absent {absent[:5]} "
            f"({len(absent)} in all), unknown {unknown[:5]} ({len(unknown)} in all)"
        )
    paths = {name: path for path, name in sources.items()}
    flat: dict[str, np.ndarray] = {}
    for name, tensor in hf_safetensors.read_tensors(files, set(paths)):
        path = paths[name]
        value = np.ascontiguousarray(_transposed(path, tensor), dtype=np.float32)
        if value.shape != shapes[path]:
            raise ValueError(
                f"{directory}: {name} has shape {tensor.shape}; expected "
                f"{_transposed(path, np.empty(shapes[path], np.bool_)).shape} by config.json"
            )
        flat[path] = value
    if config.tie_embeddings and {"shared.weight", "lm_head.weight"} <= files.keys():
        ((_, head),) = hf_safetensors.read_tensors(files, {"lm_head.weight"})
        if not np.array_equal(head.astype(np.float32), flat["token_embedder/embedding"]):
            raise ValueError(
                f"{directory}: config.json ties the head to the embeddings, but lm_head.weight "
                'differs from shared.weight; expected "tie_word_embeddings": false'
            )
    return config, unflatten_dict(flat, sep="/")


def save_t5(
    directory: str | Path,
    config: T5Config,
    params: Mapping[str, Any],
    *,
    shard_bytes: int = hf_safetensors.SHARD_BYTES,
) -> None:
    """Writes config.json and float32 safetensors that transformers' T5 reads.

    Args:
      directory: made if absent; files of the same names are overwritten.
      config: the architecture.
      params: parameters under the paths of `DSIModel` in `text` space, without metadata boxes;
        layers one by one or stacked.
      shard_bytes: size of a file of weights at most (a single tensor may exceed it).

    Raises:
      ValueError: the parameters do not fit the config, or transformers has no such mlp.
    """
    directory = Path(directory)
    text = json.dumps(_hf_config(config), indent=2, sort_keys=True) + "\n"
    flat = flatten_dict(layer_stacking.unstack_layers(params), sep="/")
    expected = docid_vocabulary.parameter_shapes(dataclasses.replace(config, scan_layers=False))
    found = {path: np.shape(value) for path, value in flat.items()}
    docid_vocabulary.check_shapes(found, expected, f"not saved to {directory}")
    paths = {_hf_name(path): path for path in sorted(flat)}

    def tensor(name: str) -> np.ndarray:
        return _transposed(paths[name], np.asarray(flat[paths[name]]))

    shapes = {name: expected[path] for name, path in paths.items()}
    hf_safetensors.write_tensors(directory, shapes, tensor, shard_bytes)
    atomic_files.write_text(directory / "config.json", text)


def _read_config(directory: Path) -> T5Config:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face T5 directory")
    value = json.loads(path.read_text("utf-8"))

    def check(name: str, found: Any, expected: Any) -> None:
        if found not in expected:
            raise ValueError(f"{path}: {name} is {found!r}; expected one of {sorted(expected)}")

    kind = value.get("model_type")
    check("model_type", kind, _DEFAULTS.keys())
    projection, tied = _DEFAULTS[kind]
    projection = value.get("feed_forward_proj", projection)
    check("feed_forward_proj", projection, _ACTIVATIONS.keys())
    for name in ("pad_token_id", "decoder_start_token_id"):
        check(name, value.get(name, 0), (0,))
    num_layers = value["num_layers"]
    return T5Config(
        vocab_size=value["vocab_size"],
        emb_dim=value["d_model"],
        num_heads=value["num_heads"],
        head_dim=value["d_kv"],
        mlp_dim=value["d_ff"],
        num_encoder_layers=num_layers,
        num_decoder_layers=value.get("num_decoder_layers") or num_layers,
        mlp_activations=_ACTIVATIONS[projection],
        tie_embeddings=value.get("tie_word_embeddings", tied),
        relpos_per_layer=kind == "umt5",
        dropout_rate=value.get("dropout_rate", 0.1),
        relpos_buckets=value.get("relative_attention_num_buckets", 32),
        relpos_max_distance=value.get("relative_attention_max_distance", 128),
        layer_norm_epsilon=value.get("layer_norm_epsilon", 1e-6),
    )


def _hf_config(config: T5Config) -> dict[str, Any]:
    projections = {activations: name for name, activations in _ACTIVATIONS.items()}
    if config.mlp_activations not in projections:
        raise ValueError(
            f"mlp_activations is {config.mlp_activations}; expected one of {sorted(projections)}"
        )
    kind = "umt5" if config.relpos_per_layer else "t5"
    return {
        "architectures": [f"{kind.upper()}ForConditionalGeneration"],
        "model_type": kind,
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": projections[config.mlp_activations],
        "tie_word_embeddings": config.tie_embeddings,
        "dropout_rate": config.dropout_rate,
        "relative_attention_num_buckets": config.relpos_buckets,
        "relative_attention_max_distance": config.relpos_max_distance,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float32",
    }


def _hf_name(path: str) -> str:
    """Hugging Face's name of the parameter at `path`."""
    if path in _LONE_NAMES:
        return _LONE_NAMES[path] + ".weight"
    stack, layer, block, *parameter = path.split("/")
    names = [stack, "block", layer.removeprefix("layers_"), _BLOCK_NAMES[stack][block]]
    if len(parameter) == 2:  # a projection's kernel, else a layer norm's scale
        names.append(_PROJECTION_NAMES.get(parameter[0], parameter[0]))
    return ".".join([*names, "weight"])


def _transposed(path: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps (output, input) and (bucket, head), the other way round than here."""
    return value.T if path.endswith(("/kernel", "/rel_embedding")) else value
