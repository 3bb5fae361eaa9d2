"""`python -m dsi_jax.infer --gin_file=runs/infer.gin --gin.MODEL_DIR=... --gin.QUERIES=FILE`"""

from collections.abc import Sequence

from dsi_jax import cli, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Ranks documents for a file of queries and writes them as JSON lines and as a TREC run."""
    return cli.launch(
        "dsi_jax.inference:infer",
        "Rank documents for a file of queries.",
        argv,
        prog="dsi-jax infer",
    )


if __name__ == "__main__":
    terminal.run(main)
