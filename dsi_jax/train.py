"""`python -m dsi_jax.train --gin_file=experiments/demo_text.gin --gin.MODEL_DIR=runs/demo`"""

from collections.abc import Sequence

from dsi_jax.cli import flags, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, or goes on with, the index that the gin files describe."""
    return flags.launch(
        "dsi_jax.jobs.trainer:train",
        "Train a differentiable search index.",
        argv,
        prog="dsi-jax train",
    )


if __name__ == "__main__":
    terminal.run(main)
