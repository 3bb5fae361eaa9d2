"""`python -m dsi_jax.build_docids --gin_file=experiments/own_text.gin --gin.CORPUS=DIR ...`"""

from collections.abc import Sequence

from dsi_jax.cli import flags, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Builds a docid table (and what it needs) and prints its health report."""
    return flags.launch(
        "dsi_jax.jobs.build_docids:build_docids",
        "Build a docid table.",
        argv,
        prog="dsi-jax docids",
    )


if __name__ == "__main__":
    terminal.run(main)
