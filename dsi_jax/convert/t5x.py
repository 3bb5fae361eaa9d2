"""T5 weights from T5X's checkpoints (`dsi_jax.convert.t5x_files` has their format).

Parameter paths are T5X's here too. What differs is brought to our shapes: scalable_t5 keeps heads
and head size apart in the kernels of attention (query, key and value [D, H, P], out [H, P, D]).
Layers stay stacked where they are stacked.

A T5X checkpoint says nothing of its architecture: that is in the gin files it was trained with. The
config is read off the shapes; what has none is taken to be as in all published T5: a gated mlp is
GELU, relative positions share a bucket from 128 on.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import unflatten_dict

from dsi_jax.convert import docid_vocabulary, t5x_files
from dsi_jax.convert.docid_vocabulary import Params
from dsi_jax.models import layer_stacking
from dsi_jax.models.t5 import T5Config

_ATTENTION = re.compile(r".*/(?:self_|encoder_decoder_)?attention/(query|key|value|out)/kernel")
_ACTIVATIONS = {("wi",): ("relu",), ("wi_0", "wi_1"): ("gelu", "linear")}

Shapes = Mapping[str, tuple[int, ...]]


def load_t5_config(directory: str | Path) -> T5Config:
    """The config of `load_t5`; no array is read.

    Raises:
      FileNotFoundError, ValueError: as `load_t5`, but for the arrays.
    """
    directory = Path(directory)
    return _config(directory, _shapes(t5x_files.open_target(directory)))


def load_t5(directory: str | Path, *, encoder_only: bool = False) -> tuple[T5Config, Params]:
    """Reads a T5 v1.0 or v1.1 (also Flan-T5, LM-adapted), an mT5, ByT5 or umT5 of T5X.

    Args:
      directory: `checkpoint_<step>`.
      encoder_only: reads the encoder and its embeddings alone.

    Returns:
      The config (float32; scan_layers as in the checkpoint) and the parameters, float32 NumPy
      arrays under the paths of `DSIModel` in `text` space. The optimizer's state is not read.

    Raises:
      FileNotFoundError: there is no index, or an array is missing.
      ValueError: the index or an array is damaged, or the parameters are not those of a T5.
    """
    directory = Path(directory)
    target = t5x_files.open_target(directory)
    config = _config(directory, _shapes(target))
    flat = {
        path: np.ascontiguousarray(_with_joined_heads(path, stored.read()), dtype=np.float32)
        for path, stored in target.items()
        if not (encoder_only and path.startswith("decoder/"))
    }
    return config, unflatten_dict(flat, sep="/")


def _config(directory: Path, shapes: Shapes) -> T5Config:
    """The architecture of parameters of these shapes; all of them are compared with it."""
    try:
        config = _inferred_config(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"{directory} does not hold a T5 as T5X names its parameters: {error} (it has "
            f"{len(shapes)}, for example {min(shapes, default='none')})"
        ) from error
    docid_vocabulary.check_shapes(shapes, docid_vocabulary.parameter_shapes(config), str(directory))
    return config


def _inferred_config(shapes: Shapes) -> T5Config:
    scanned = any(map(layer_stacking.is_stacked, shapes))

    def depth(stack: str) -> int:
        if scanned:
            return shapes[f"{stack}/{stack}/pre_mlp_layer_norm/scale"][layer_stacking.AXIS]
        layers = {path.split("/")[1] for path in shapes if path.startswith(f"{stack}/layers_")}
        return len(layers)

    layer = "encoder/encoder" if scanned else "encoder/layers_0"
    vocab_size, emb_dim = shapes["token_embedder/embedding"]
    per_layer = f"{layer}/relpos_bias/rel_embedding" in shapes
    owner = layer if per_layer else "encoder"
    num_heads, *_, buckets = shapes[f"{owner}/relpos_bias/rel_embedding"]
    names = {path.split("/")[-2] for path in shapes if path.startswith(f"{layer}/mlp/wi")}
    activations = _ACTIVATIONS[tuple(sorted(names))]
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=shapes[f"{layer}/attention/query/kernel"][-1] // num_heads,
        mlp_dim=shapes[f"{layer}/mlp/wo/kernel"][0],
        num_encoder_layers=depth("encoder"),
        num_decoder_layers=depth("decoder"),
        mlp_activations=activations,
        tie_embeddings="decoder/logits_dense/kernel" not in shapes,
        scan_layers=scanned,
        relpos_per_layer=per_layer,
        relpos_buckets=buckets,
    )


def _shapes(target: Mapping[str, t5x_files.StoredArray]) -> Shapes:
    return {path: _joined_shape(path, stored.shape) for path, stored in target.items()}


def _joined_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a kernel of attention with heads and head size joined; any other as it is."""
    match = _ATTENTION.fullmatch(path)
    stacked = layer_stacking.is_stacked(path)
    if match is None or len(shape) != 3 + stacked:
        return shape
    if match.group(1) != "out":
        return (*shape[:-2], shape[-2] * shape[-1])  # from [D, (N,) H, P]
    heads, *layers, size, width = shape  # [H, (N,) P, D]
    return (heads * size, *layers, width)


def _with_joined_heads(path: str, value: np.ndarray) -> np.ndarray:
    shape = _joined_shape(path, value.shape)
    if value.ndim == 4 and path.endswith("/out/kernel"):
        value = np.moveaxis(value, layer_stacking.AXIS, 2)  # [H, P, N, D]
    return value.reshape(shape)
