"""The model in `text` space: its parameters' shapes, and what a docid vocabulary borrows of them.

In `text` space docids are made of T5's own tokens, and a `DSIModel` is a T5 parameter by parameter.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from dsi_jax.models.dsi import DSIConfig, DSIModel
from dsi_jax.models.t5 import T5Config

Params = dict[str, Any]


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the model in `text` space, by its path."""
    model = DSIModel(DSIConfig(config, config.vocab_size, docid_length=1, docid_space="text"))
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens}, "decoder": {"inputs": tokens}}
    variables = jax.eval_shape(
        lambda batch: model.init(jax.random.key(0), batch, deterministic=True), batch
    )
    flat = flatten_dict(nn.meta.unbox(variables["params"]), sep="/")
    return {path: value.shape for path, value in flat.items()}


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Raises unless both name the same parameters, of the same shapes.

    Args:
      found: the shape of every parameter, by its path.
      expected: likewise.
      what: whose parameters they are, for the message.

    Raises:
      ValueError: naming the first parameter that differs, and how many do.
    """
    differing = sorted(
        path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)
    )
    if differing:
        path = differing[0]
        raise ValueError(
            f"{what}: {len(differing)} parameters do not fit the config, first {path}: shape "
            f"{found.get(path, 'none')}; expected {expected.get(path, 'none')}"
        )


def initialize(
    params: Mapping[str, Any], rows: Sequence[int], own: Mapping[str, Any] | None = None
) -> Params:
    """Parameters of a compact docid vocabulary, its rows borrowed from a text vocabulary.

    The docid embeddings, and the head where it is untied, are the checkpoint's rows; every other
    parameter is the checkpoint's. The logits then are the checkpoint's logits of those rows.

    Args:
      params: parameters of a `DSIModel` in `text` space, as `load_t5` gives them.
      rows: for each docid token the checkpoint's token id, e.g. "7" for the digit 7, or -1 for a
        docid token that has none.
      own: parameters of the compact model, of which the rows of -1 are taken.

    Returns:
      Parameters of the `DSIModel` in `compact` space with V = len(rows), NumPy arrays.

    Raises:
      ValueError: a row lies outside the checkpoint's vocabulary, or is -1 while `own` is None.
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

    def mixed(pretrained: np.ndarray, path: tuple[str, str, str] | tuple[str, str]) -> np.ndarray:
        taken = pretrained[np.where(borrowed, rows, 0)]
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
