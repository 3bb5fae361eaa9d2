"""CLIP weights from and to Hugging Face's formats.

Read are safetensors in PyTorch's naming, without torch, and Flax's msgpack; whole models or one
half of them. Parameters have the paths of `models.encoders.towers.EmbeddingTowers`, which are those
of transformers' Flax models; its subtrees `text_model` and `vision_model` are those of the towers.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict, unflatten_dict

from dsi_jax.convert import hf_safetensors
from dsi_jax.convert.hf_clip_config import check_writable, read_config, write_config
from dsi_jax.convert.hub import FLAX_WEIGHTS, local_directory
from dsi_jax.convert.position_embeddings import resize_positions
from dsi_jax.models.encoders.clip import ClipTextTransformer, ClipVisionTransformer
from dsi_jax.models.encoders.clip_config import ClipConfig, ClipVisionConfig

Params = dict[str, Any]
Flat = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

_POSITIONS = "vision_model/embeddings/position_embedding/embedding"
_TABLES = ("token_embedding", "position_embedding")
_BUFFER = ".position_ids"  # in files of old transformers; no parameter


def load_clip_config(
    source: str | Path,
    *,
    text: bool = True,
    vision: bool = True,
    image_size: int | None = None,
    dtype: str = "float32",
    remat: bool = False,
) -> ClipConfig:
    """The config of a CLIP; of the weights, only that they are there is checked.

    Args:
      source: a directory or a hub id, see `local_directory`.
      text: whether the text half is wanted, if there is one.
      vision: whether the vision half is wanted, if there is one.
      image_size: pixels a side; the model's own if None.
      dtype: of the matrix products.
      remat: whether to recompute activations in the backward pass.

    Returns:
      The config; a half that is not wanted or not there is None, and so is `projection_dim` where
      the weights have no projections.

    Raises:
      FileNotFoundError: the source, its config.json or its weights are absent.
      ValueError: the model is of another kind, or lacks what is wanted.
    """
    directory = local_directory(source)
    own = read_config(directory)
    if not ((text and own.text) or (vision and own.vision)):
        wanted = [name for name, asked in (("text", text), ("vision", vision)) if asked]
        raise ValueError(f"{directory} has none of the wanted halves of a CLIP: {wanted}")
    if not _is_flax(directory):
        hf_safetensors.tensor_files(directory)
    options: dict[str, Any] = {"dtype": dtype, "remat": remat}
    text_config = dataclasses.replace(own.text, **options) if text and own.text else None
    if image_size is not None:
        options["image_size"] = image_size
    vision_config = dataclasses.replace(own.vision, **options) if vision and own.vision else None
    return ClipConfig(text_config, vision_config, own.projection_dim)


def load_clip(source: str | Path, config: ClipConfig | None = None) -> tuple[ClipConfig, Params]:
    """Reads a CLIP of Hugging Face.

    Args:
      source: a directory or a hub id, see `local_directory`.
      config: what to read, from `load_clip_config`; all there is if None. Where it asks for another
        image size, the position embeddings are interpolated, see `resize_positions`.

    Returns:
      The config and the parameters, float32 NumPy arrays under the paths of `EmbeddingTowers`.

    Raises:
      FileNotFoundError: the source, its config.json or its weights are absent.
      ValueError: the model is of another kind or architecture, or a tensor is absent, unknown or of
        another shape.
    """
    directory = local_directory(source)
    config = config or load_clip_config(directory)
    own = read_config(directory)
    stored = dataclasses.replace(
        config,
        vision=config.vision
        and dataclasses.replace(config.vision, image_size=own.vision.image_size),
    )
    flat = _read(directory, param_shapes(stored))
    if config.vision:
        flat = fit_positions(flat, own.vision, config.vision)
    return config, unflatten_dict(flat, sep="/")


def fit_positions(flat: Flat, stored: ClipVisionConfig, wanted: ClipVisionConfig) -> Flat:
    """Returns the parameters with position embeddings for images of another size.

    Args:
      flat: parameters by path, as in `load_clip`.
      stored: the architecture that they are of.
      wanted: the architecture that they are for.
    """
    if stored.grid_size == wanted.grid_size:
        return flat
    resized = resize_positions(flat[_POSITIONS], wanted.grid_size)
    return flat | {_POSITIONS: resized}


def save_clip(directory: str | Path, config: ClipConfig, params: Mapping[str, Any]) -> None:
    """Writes a CLIP, or a half of one, that transformers' PyTorch classes and `load_clip` read.

    Args:
      directory: made if absent; config.json, preprocessor_config.json and model.safetensors in it
        are overwritten.
      config: the architecture.
      params: parameters under the paths of `EmbeddingTowers`.

    Raises:
      ValueError: the parameters do not fit the config, or the format cannot express it.
    """
    directory = Path(directory)
    check_writable(config)
    flat = flatten_dict(dict(params), sep="/")
    found, expected = {path: np.shape(value) for path, value in flat.items()}, param_shapes(config)
    if found != expected:
        differing = sorted(
            path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)
        )
        path = differing[0]
        raise ValueError(
            f"{len(differing)} parameters do not fit the config, first {path}: shape "
            f"{found.get(path, 'none')}; expected {expected.get(path, 'none')}"
        )
    paths = {_torch_name(path): path for path in sorted(flat)}
    tensors = {name: _to_torch(path, np.asarray(flat[path])) for name, path in paths.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    hf_safetensors.write_tensors(directory, shapes, tensors.__getitem__)
    write_config(directory, config)


def param_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of `EmbeddingTowers`, by its path."""
    shapes: dict[str, tuple[int, ...]] = {}

    def add(model: str, projection: str, module: nn.Module, inputs: jax.ShapeDtypeStruct) -> None:
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), inputs)
        flat = flatten_dict(variables["params"], sep="/")
        shapes.update({f"{model}/{path}": value.shape for path, value in flat.items()})
        if config.projection_dim:
            shapes[f"{projection}/kernel"] = (module.config.hidden_size, config.projection_dim)

    if config.text:
        tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        add("text_model", "text_projection", ClipTextTransformer(config.text), tokens)
    if config.vision:
        size = config.vision.image_size
        pixels = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        add("vision_model", "visual_projection", ClipVisionTransformer(config.vision), pixels)
    if config.text and config.vision and config.projection_dim:
        shapes["logit_scale"] = ()
    return shapes


def _read(directory: Path, shapes: Shapes) -> Flat:
    """The parameters of these paths, float32."""
    read = _read_flax if _is_flax(directory) else _read_torch
    flat = {
        path: np.asarray(value, dtype=np.float32, order="C")
        for path, value in read(directory, shapes).items()
    }
    for path, value in flat.items():
        if value.shape != shapes[path]:
            raise ValueError(
                f"{directory}: {path} has shape {value.shape}; expected {shapes[path]} by the "
                "config"
            )
    return flat


def _read_flax(directory: Path, shapes: Shapes) -> Flat:
    values = flatten_dict(msgpack_restore((directory / FLAX_WEIGHTS).read_bytes()), sep="/")
    _check_paths(directory, values.keys(), shapes)
    return {path: values[path] for path in shapes}


def _read_torch(directory: Path, shapes: Shapes) -> Flat:
    files = hf_safetensors.tensor_files(directory)
    paths = {name: _path(name) for name in files if not name.endswith(_BUFFER)}
    _check_paths(directory, paths.values(), shapes)
    wanted = {name for name, path in paths.items() if path in shapes}
    read = hf_safetensors.read_tensors(files, wanted)
    return {paths[name]: _from_torch(paths[name], tensor) for name, tensor in read}


def _is_flax(directory: Path) -> bool:
    has_safetensors = any(directory.glob("*.safetensors"))
    return not has_safetensors and (directory / FLAX_WEIGHTS).is_file()


def _check_paths(directory: Path, found: Iterable[str], shapes: Shapes) -> None:
    """Raises unless the models that the shapes belong to hold these parameters and no others."""
    models = tuple({path.split("/")[0] + "/" for path in shapes if "_model/" in path})
    found = {path for path in found if path in shapes or path.startswith(models)}
    absent, unknown = sorted(shapes.keys() - found), sorted(found - shapes.keys())
    if absent or unknown:
        raise ValueError(
            f"{directory}: the weights do not fit the config: absent {absent[:5]} "
            f"({len(absent)} in all), unknown {unknown[:5]} ({len(unknown)} in all)"
        )


def _path(torch_name: str) -> str:
    """Our path of a tensor of PyTorch's."""
    *modules, parameter = torch_name.split(".")
    if parameter == "weight":
        module = modules[-1]
        if "norm" in module or module == "pre_layrnorm":
            parameter = "scale"
        else:
            parameter = "embedding" if module in _TABLES else "kernel"
    return "/".join([*modules, parameter])


def _torch_name(path: str) -> str:
    """PyTorch's name of the parameter at `path`."""
    *modules, parameter = path.split("/")
    if parameter in ("kernel", "scale", "embedding"):
        parameter = "weight"
    return ".".join([*modules, parameter])


def _from_torch(path: str, value: np.ndarray) -> np.ndarray:
    """Torch keeps kernels as (output, input) and (output, input, height, width)."""
    if not path.endswith("/kernel"):
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_torch(path: str, value: np.ndarray) -> np.ndarray:
    """The inverse of `_from_torch`."""
    if not path.endswith("/kernel"):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
