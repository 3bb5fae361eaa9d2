"""T5 weights from and to Hugging Face's directories (config.json and *.safetensors).

Neither torch nor transformers is needed. The parameters are those of a DSI model in `text` space;
`lend` turns them into those of a compact docid vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dsi_jax.convert import tensor_files
from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config

Params = dict[str, Any]

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
        "pre_attention_layer_norm": "layer.0.layer_norm",
        "attention": "layer.0.SelfAttention",
        "pre_mlp_layer_norm": "layer.1.layer_norm",
        "mlp": "layer.1.DenseReluDense",
    },
    "decoder": {
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
    tensor_files.tensor_files(Path(directory))
    return config


def load_t5(directory: str | Path, *, encoder_only: bool = False) -> tuple[T5Config, Params]:
    """Reads a T5 v1.0, v1.1 or mT5 of Hugging Face.

    Args:
      directory: holds config.json and model.safetensors, or its shards with their index.
      encoder_only: reads the encoder and its embeddings alone; the files need not hold a decoder.

    Returns:
      The config (float32, dropout as in config.json) and the parameters, float32 NumPy arrays
      under the paths of `DSIModel` in `text` space.

    Raises:
      FileNotFoundError: config.json or the weights are absent.
      ValueError: the model is of another kind, or a tensor is absent, unknown or of another shape.
    """
    directory = Path(directory)
    config = _read_config(directory)
    shapes = _shapes(config)
    if encoder_only:
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith("decoder/")}
    files = tensor_files.tensor_files(directory)
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
    for name, tensor in tensor_files.read_tensors(files, set(paths)):
        path = paths[name]
        value = np.ascontiguousarray(_transposed(path, tensor), dtype=np.float32)
        if value.shape != shapes[path]:
            raise ValueError(
                f"{directory}: {name} has shape {tensor.shape}; expected "
                f"{_transposed(path, np.empty(shapes[path], np.bool_)).shape} by config.json"
            )
        flat[path] = value
    return config, unflatten_dict(flat, sep="/")


def save_t5(
    directory: str | Path,
    config: T5Config,
    params: Mapping[str, Any],
    *,
    shard_bytes: int = tensor_files.SHARD_BYTES,
) -> None:
    """Writes config.json and float32 safetensors that transformers' T5 reads.

    Args:
      directory: made if absent; files of the same names are overwritten.
      config: the architecture.
      params: parameters under the paths of `DSIModel` in `text` space, without metadata boxes.
      shard_bytes: size of a file of weights at most (a single tensor may exceed it).

    Raises:
      ValueError: the parameters do not fit the config, or transformers has no such mlp.
    """
    directory = Path(directory)
    text = json.dumps(_hf_config(config), indent=2, sort_keys=True) + "\n"
    flat = flatten_dict(dict(params), sep="/")
    found, expected = {path: np.shape(value) for path, value in flat.items()}, _shapes(config)
    if found != expected:
        differing = sorted(
            path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)
        )
        path = differing[0]
        raise ValueError(
            f"{len(differing)} parameters do not fit the config, first {path}: shape "
            f"{found.get(path, 'none')}; expected {expected.get(path, 'none')}"
        )
    paths = {_hf_name(path): path for path in sorted(flat)}

    def tensor(name: str) -> np.ndarray:
        return _transposed(paths[name], np.asarray(flat[paths[name]]))

    shapes = {name: expected[path] for name, path in paths.items()}
    tensor_files.write_tensors(directory, shapes, tensor, shard_bytes)
    (directory / "config.json").write_text(text)


def lend(
    params: Mapping[str, Any], rows: Sequence[int], own: Mapping[str, Any] | None = None
) -> Params:
    """Parameters of a compact docid vocabulary, its rows borrowed from a text vocabulary.

    The docid embeddings, and the head where it is untied, are the lender's rows; every other
    parameter is the lender's. The logits then are the lender's logits of those rows.

    Args:
      params: parameters of a `DSIModel` in `text` space, as `load_t5` gives them.
      rows: for each docid token the lender's token id, e.g. "7" for the digit 7, or -1 for a
        docid token that has none.
      own: parameters of the compact model, of which the rows of -1 are taken.

    Returns:
      Parameters of the `DSIModel` in `compact` space with V = len(rows), NumPy arrays.

    Raises:
      ValueError: a row lies outside the lender's vocabulary, or is -1 while `own` is None.
    """
    rows = np.asarray(rows, dtype=np.int64)
    embedding = np.asarray(params["token_embedder"]["embedding"])
    if rows.ndim != 1 or not ((rows >= -1) & (rows < len(embedding))).all():
        raise ValueError(
            f"rows has shape {rows.shape} and values in [{rows.min()}, {rows.max()}]; expected a "
            f"vector of token ids in [0, {len(embedding)}), or -1"
        )
    borrowed = rows >= 0
    if own is None and not borrowed.all():
        raise ValueError(
            f"{np.count_nonzero(~borrowed)} docid tokens have row -1; expected `own`, the "
            "parameters to take them from"
        )

    def mixed(lender: np.ndarray, path: tuple[str, str, str] | tuple[str, str]) -> np.ndarray:
        taken = lender[np.where(borrowed, rows, 0)]
        if own is None:
            return taken
        value: Any = own
        for name in path:
            value = value[name]
        value = np.asarray(value) if path[-1] == "embedding" else np.asarray(value).T
        if value.shape != taken.shape:
            raise ValueError(
                f"{'/'.join(path)} of `own` holds {value.shape[0]} tokens of width "
                f"{value.shape[1]}; expected {taken.shape[0]} of width {taken.shape[1]}"
            )
        return np.where(borrowed[:, None], taken, value)

    lent = dict(params)
    lent["docid_embedder"] = {"embedding": mixed(embedding, ("docid_embedder", "embedding"))}
    if "logits_dense" in params["decoder"]:
        kernel = np.asarray(params["decoder"]["logits_dense"]["kernel"])
        head = mixed(kernel.T, ("decoder", "logits_dense", "kernel"))
        lent["decoder"] = dict(params["decoder"]) | {"logits_dense": {"kernel": head.T}}
    return lent


def _read_config(directory: Path) -> T5Config:
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a Hugging Face T5 directory")
    value = json.loads(path.read_text())

    def check(name: str, found: Any, expected: Any) -> None:
        if found not in expected:
            raise ValueError(f"{path}: {name} is {found!r}; expected one of {sorted(expected)}")

    check("model_type", value.get("model_type"), ("t5", "mt5"))
    projection = value.get("feed_forward_proj", "relu")
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
        tie_embeddings=value.get("tie_word_embeddings", True),
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
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
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


def _shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the model in `text` space, by its path."""
    model = DSIModel(DSIConfig(config, config.vocab_size, docid_length=1, docid_space="text"))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens}, "decoder": {"inputs": tokens}}
    variables = jax.eval_shape(
        lambda batch: model.init(jax.random.key(0), batch, deterministic=True), batch
    )
    flat = flatten_dict(nn.meta.unbox(variables["params"]), sep="/")
    return {path: value.shape for path, value in flat.items()}


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
