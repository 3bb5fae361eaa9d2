"""`python -m dsi_jax.infer --gin_file=runs/infer.gin --gin.MODEL_DIR=... --gin.QUERIES=FILE`"""

import argparse
import sys
from collections.abc import Sequence

from dsi_jax.cli import flags, terminal

MODES = {
    "rank": ("dsi_jax.jobs.infer:infer", "Rank documents for a file of queries."),
    "embed": ("dsi_jax.jobs.embed:embed", "Embed the documents of a corpus to a file."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Ranks documents for a file of queries, or with `--mode=embed` embeds documents to a file."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--mode", choices=sorted(MODES), default="rank")
    chosen, rest = chooser.parse_known_args(sys.argv[1:] if argv is None else argv)
    target, description = MODES[chosen.mode]
    if chosen.mode == "rank":
        description += " --mode=embed embeds documents instead (runs/embed.gin)."
    return flags.launch(target, description, rest, prog="dsi-jax infer")


if __name__ == "__main__":
    terminal.run(main)
