"""BERT, RoBERTa and XLM-RoBERTa of Hugging Face as pretrained encoders of texts.

MiniLM, BGE, E5, GTE and other embedding models are of these. Directories of sentence-transformers
say how states are pooled. Read are safetensors in PyTorch's naming,
without torch or transformers.
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsi_jax.convert import hf_safetensors
from dsi_jax.convert.encoder_format import EncoderFormat, Flat, PretrainedEncoders
from dsi_jax.models.encoders.bert import ACTIVATIONS, BertConfig

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
)
# Fields that change the computation, and the only values that are computed here.
_EXPECTED = {"position_embedding_type": "absolute", "is_decoder": False, "hidden_act": ACTIVATIONS}
_ROBERTA = ("roberta", "xlm-roberta", "camembert")
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
# Not of the encoder: heads of pretraining, the pooler, and a buffer of old transformers.
_LEFT_OUT = re.compile(r"(pooler|cls|lm_head|classifier)\.|.*\.position_ids$")
_PREFIX = re.compile(r"^(bert|roberta|model|0\.auto_model)\.")


class BertFormat(EncoderFormat):
    """See `EncoderFormat`; the encoder of texts alone, with no projection."""

    family: ClassVar[str] = "bert"
    model_types: ClassVar[tuple[str, ...]] = ("bert", *_ROBERTA)

    def load_configs(self, directory: Path) -> PretrainedEncoders:
        """See `EncoderFormat`."""
        hf_safetensors.tensor_files(directory)
        return PretrainedEncoders(load_bert_config(directory), None)

    def load_params(self, directory: Path, encoders: PretrainedEncoders) -> Flat:
        """See `EncoderFormat`."""
        params = load_bert(directory, encoders.text)
        return {f"{BertConfig.module_name}/{path}": value for path, value in params.items()}


def load_bert_config(directory: Path) -> BertConfig:
    """Reads the architecture.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: a field is absent, out of its range, or asks for what is not computed here.
    """
    path = directory / "config.json"
    value = _read_json(path)
    absent = [name for name in _FIELDS if name not in value]
    if absent:
        raise ValueError(f"{path} lacks {absent}; expected the config of a BERT")
    for name, expected in _EXPECTED.items():
        known = expected if isinstance(expected, dict) else (expected,)
        if value.get(name, next(iter(known))) not in known:
            raise ValueError(f"{path}: {name} is {value[name]!r}; expected one of {[*known]}")
    offset = 0
    if value["model_type"] in _ROBERTA:  # positions begin behind that of the padding token
        offset = value.get("pad_token_id", 1) + 1
    try:
        return BertConfig(
            **{name: value[name] for name in _FIELDS},
            position_offset=offset,
            pooling=_pooling(directory),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_bert(directory: Path, config: BertConfig) -> Flat:
    """Reads the weights, float32, under the paths of `models.encoders.bert.Bert`.

    Raises:
      FileNotFoundError: there are none.
      ValueError: a tensor is absent, unknown, or of another shape.
    """
    files = hf_safetensors.tensor_files(directory)
    ours = {name: _path(name) for name in files if not _LEFT_OUT.match(_PREFIX.sub("", name))}
    shapes = _shapes(config)
    absent = sorted(set(shapes) - set(ours.values()))
    unknown = sorted(name for name, path in ours.items() if path not in shapes)
    if absent or unknown:
        raise ValueError(
            f"{directory} lacks the weights {absent[:3]} and has the unknown weights "
            f"{unknown[:3]}; expected those of a BERT of {config.num_hidden_layers} layers"
        )
    params = {}
    for name, tensor in hf_safetensors.read_tensors(files, set(ours)):
        array = np.asarray(tensor, np.float32)
        path = ours[name]
        params[path] = array.T if path.endswith("kernel") else array
        if params[path].shape != shapes[path]:
            raise ValueError(
                f"{directory}: {name} has shape {array.shape}; the architecture asks for "
                f"{shapes[path]} at {path}"
            )
    return params


def _path(name: str) -> str:
    """Returns our path of a tensor: encoder.layer.0.output.dense.weight -> .../kernel."""
    *modules, leaf = _PREFIX.sub("", name).split(".")
    if modules[-1] == "LayerNorm":  # gamma and beta in files of 2018
        leaf = {"weight": "scale", "gamma": "scale", "beta": "bias"}.get(leaf, leaf)
    elif leaf == "weight":
        leaf = "embedding" if modules[-1].endswith("_embeddings") else "kernel"
    return "/".join([*modules, leaf])


def _shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each parameter by its path."""
    width, hidden = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings/word_embeddings/embedding": (config.vocab_size, width),
        "embeddings/position_embeddings/embedding": (config.max_position_embeddings, width),
        "embeddings/token_type_embeddings/embedding": (config.type_vocab_size, width),
    }
    dense = {f"attention/self/{name}": (width, width) for name in ("query", "key", "value")}
    dense |= {
        "attention/output/dense": (width, width),
        "intermediate/dense": (width, hidden),
        "output/dense": (hidden, width),
    }
    norms = ["embeddings/LayerNorm"]
    for index in range(config.num_hidden_layers):
        layer = f"encoder/layer/{index}"
        norms += [f"{layer}/attention/output/LayerNorm", f"{layer}/output/LayerNorm"]
        for name, (rows, columns) in dense.items():
            shapes[f"{layer}/{name}/kernel"] = (rows, columns)
            shapes[f"{layer}/{name}/bias"] = (columns,)
    for name in norms:
        shapes |= {f"{name}/scale": (width,), f"{name}/bias": (width,)}
    return shapes


def _pooling(directory: Path) -> str:
    """Returns how sentence-transformers pools these states; "mean" where nothing says.

    Raises:
      ValueError: it pools otherwise than by mean or first token.
    """
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    asked = [
        name
        for name, on in _read_json(path).items()
        if name.startswith("pooling_mode") and on is True
    ]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise ValueError(f"{path} asks for {asked}; expected one of {sorted(_POOLINGS)}")
    return _POOLINGS[asked[0]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}; expected an object")
    return value
