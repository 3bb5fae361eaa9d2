"""`dsi-jax precompile --gin_file=... --gin.TOPOLOGY=v5p:4x4x4 --gin.NUM_DOCUMENTS=100000`"""

import os
from collections.abc import Sequence

from dsi_jax.cli import flags, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles a run's programs for a machine that is not here, and says what they need."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: no accelerator is of use here
    return flags.launch(
        "dsi_jax.jobs.precompile.job:precompile",
        "Compile a run for a TPU slice or for GPUs that are not here.",
        argv,
        prog="dsi-jax precompile",
    )


if __name__ == "__main__":
    terminal.run(main)
