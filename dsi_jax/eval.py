"""`python -m dsi_jax.eval --gin_file=runs/eval.gin --gin.MODEL_DIR=runs/demo`"""

from collections.abc import Sequence

from dsi_jax.cli import flags, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates a checkpoint on a split of a corpus or task."""
    return flags.launch(
        "dsi_jax.jobs.evaluate:evaluate", "Evaluate a checkpoint.", argv, prog="dsi-jax eval"
    )


if __name__ == "__main__":
    terminal.run(main)
