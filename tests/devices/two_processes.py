"""One of two processes of one device each; `test_partitioning.py` runs both. Prints JSON.

Usage: two_processes.py INDEX PORT MODEL_DIR
"""

import json
import sys
import warnings
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from dsi_jax.training import partitioning
from dsi_jax.training.checkpoints import Checkpointer
from dsi_jax.training.optimizers import AdamW
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import init_state, shardings_of, state_shapes
from dsi_jax.training.step import make_train_step, summarize

ROWS, L, V = 8, 2, 6


class Toy(nn.Module):
    """A model with the DSI model's call."""

    @nn.compact
    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        embedding = nn.with_logical_partitioning(nn.initializers.normal(1.0), (None, "embed"))
        x_BxD = self.param("embedding", embedding, (V, 16))[batch["tokens"]]
        return nn.Dense(L * V)(x_BxD).reshape(-1, L, V)


def make_batch(step: int) -> dict:
    rng = np.random.default_rng(step)
    return {
        "tokens": rng.integers(0, V, ROWS).astype(np.int32),
        "decoder": {
            "targets": rng.integers(0, V, (ROWS, L)).astype(np.int32),
            "weights": np.ones((ROWS, L), np.float32),
        },
        "is_indexing": np.arange(ROWS, dtype=np.int32) % 2,
    }


def main() -> None:
    index, port, model_dir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=index)
    mesh = partitioning.make_mesh(partitioning.MeshConfig(data=1, fsdp=-1))
    optimizer = AdamW(Schedule("constant", 0.1))
    transformation = optimizer.build(10)
    shapes = state_shapes(Toy(), transformation, make_batch(0), mesh)
    learning_rate = optimizer.learning_rate.build(10)
    step = make_train_step(
        Toy(), transformation, shardings_of(shapes), mesh=mesh, learning_rate=learning_rate
    )
    (part,), count = partitioning.process_parts(mesh)
    rows = slice(part * ROWS // count, (part + 1) * ROWS // count)

    def train(state, start, stop):
        losses = []
        for at in range(start, stop):
            mine = jax.tree.map(lambda leaf: leaf[rows], make_batch(at))
            state, metrics = step(state, partitioning.shard_batch(mine, mesh))
            losses.append(summarize(metrics)["loss"])
        return state, losses

    state, losses = train(init_state(Toy(), transformation, make_batch(0), 0, mesh), 0, 2)
    checkpointer = Checkpointer(model_dir)
    checkpointer.save(2, state, data=b"same on both", metadata={})
    state, more = train(state, 2, 4)
    checkpointer.save(4, state, data=b"same on both", metadata={})
    checkpointer.close()

    # A file that only one process checks: both must pass the checkpoint over.
    if index == 0:
        directory = Path(model_dir) / "checkpoint_4"
        files = json.loads((directory / "files.json").read_text())
        (directory / sorted(files)[1]).write_text("damaged")
    jax.experimental.multihost_utils.sync_global_devices("damaged")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        restored = Checkpointer(model_dir).restore_latest(shapes)
    _, again = train(restored.state, 2, 4)

    local = jax.tree.map(lambda leaf: leaf.addressable_data(0), state)
    try:
        checkpointer.save(5, local, data=b"", metadata={})
        refused = ""
    except ValueError as error:
        refused = str(error)
    report = {
        "part": [part, count],
        "losses": losses + more,
        "again": losses + again,
        "restored": restored.step,
        "warnings": [str(warning.message) for warning in caught],
        "refused": refused,
        "lead_says": [partitioning.lead_says(index == lead) for lead in (0, 1)],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
