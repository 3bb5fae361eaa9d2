"""Parameters of the main models, and where they lie on eight devices on the shipped meshes.

Shapes alone: no weight is made, and no device is needed. Layers of equal parameters share a line.
"""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh

from dsi_jax.cli import gin_utils
from dsi_jax.methods.dual_encoder import DualEncoder
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, padded_vocab_size
from dsi_jax.models.encoders import clip_sizes
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.training import partitioning
from dsi_jax.training.state import param_shapes
from tests.fixtures.golden_files import check_golden

DEVICES = 8
MESHES = ("data_parallel", "fsdp", "tensor_parallel", "mixed", "multi_slice")
ATOMIC = (padded_vocab_size(100_002), 1)  # tokens and length of the docids of 100,000 documents
SEMANTIC = (12, 10)


TEXT_SPACE = (t5_sizes.VOCAB_SIZE, 10, "text")


def dsi(docids: tuple, clip=None) -> DSIModel:
    towers = clip and TowersConfig(clip.text, clip.vision)
    return DSIModel(DSIConfig(t5_sizes.t5_1_1_base(), *docids, towers=towers))


MODELS = {
    "t5_1_1_base_atomic": lambda: dsi(ATOMIC),
    "t5_1_1_base_semantic": lambda: dsi(SEMANTIC),
    "t5_1_1_base_text_space": lambda: dsi(TEXT_SPACE),
    "clip_b32_t5_1_1_base": lambda: dsi(ATOMIC, clip_sizes.vit_b32()),
    "clip_l14_t5_1_1_base": lambda: dsi(ATOMIC, clip_sizes.vit_l14()),
    "dual_encoder_t5_1_1_base": lambda: DualEncoder().new_model(t5_sizes.t5_1_1_base(), None),
}


def batch_shapes(model) -> dict:
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    text = {"tokens": tokens, "mask": tokens}
    batch = {"text": text, "document": text, "decoder": {"inputs": tokens}}
    towers = getattr(model.config, "towers", None)
    if towers is not None:
        side = towers.image.image_size
        batch["image"] = {"pixels": jax.ShapeDtypeStruct((2, side, side, 3), jnp.uint8)}
        batch["decoder"] = {"inputs": jax.ShapeDtypeStruct((4, 8), jnp.int32)}
    return batch


def placements(mesh_name: str, model, boxed) -> dict[str, str]:
    """The mesh axes of each dimension of each parameter, as a run decides them."""
    gin_utils.parse(gin_utils.GinArguments([f"meshes/{mesh_name}.gin"]))
    axes = gin_utils.query_macro("MESH").scoped_configurable_fn().sizes(DEVICES)
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    rules = partitioning.fit_rules(partitioning.LOGICAL_AXIS_RULES, boxed, mesh)
    path_rules = partitioning.fit_path_rules(getattr(model, "path_rules", ()), boxed, mesh)
    found = partitioning.param_shardings(boxed, mesh, rules, path_rules)
    return {path: described(leaf.spec, axes) for path, leaf in flatten_dict(found, sep="/").items()}


def described(spec, sizes_of_axes) -> str:
    """A placement in a word; axes of one device split nothing and are not named."""
    dimensions = []
    for names in spec:
        names = (names,) if isinstance(names, str) else names or ()
        kept = [name for name in names if sizes_of_axes[name] > 1]
        dimensions.append("+".join(kept) or "-")
    return ",".join(dimensions) if set(dimensions) - {"-"} else "whole"


@pytest.mark.parametrize("name", MODELS)
def test_golden_placements(name):
    model = MODELS[name]()
    boxed = param_shapes(model, batch_shapes(model))
    flat = flatten_dict(boxed, sep="/", is_leaf=lambda _, leaf: not isinstance(leaf, dict))
    on_meshes = [placements(mesh, model, boxed) for mesh in MESHES]
    rows = Counter()
    for path, leaf in flat.items():
        value = getattr(leaf, "value", leaf)
        shape = f"{value.dtype} {list(value.shape)}".replace(", ", ",")
        axes = ",".join(leaf.names) if leaf is not value else "by path"
        pattern = re.sub(r"layers([_/])\d+", r"layers\1*", path)
        rows[pattern, shape, axes, *(found[path] for found in on_meshes)] += 1
    head = ("parameter", "times", "shape", "logical axes", *MESHES)
    table = [head, *((row[0], str(times), *row[1:]) for row, times in sorted(rows.items()))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
    total = sum(leaf.size for leaf in jax.tree.leaves(boxed))
    check_golden(f"{name}.txt", "\n".join([*lines, "", f"{total:,} parameters", ""]))
