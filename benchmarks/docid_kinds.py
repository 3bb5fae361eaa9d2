"""The health of every docid kind on one corpus: do learned codes beat those of k-means?

    python -m benchmarks.docid_kinds --corpus DIR

A line a kind and seed; all kinds of a seed are built from the same embeddings. The last lines
compare rqvae and irgen with rq: each must be above it in every seed (`passed`).
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import timing
from dsi_jax.data.readers import load
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.embedders.text import TfidfSvd
from dsi_jax.docids.health.oracle_recall import oracle_recall
from dsi_jax.docids.health.report import health
from dsi_jax.docids.kinds.learned import RQVAE, IRGen
from dsi_jax.docids.kinds.quantized import ProductQuantized, ResidualQuantized
from dsi_jax.docids.kinds.random_control import Random
from dsi_jax.docids.kinds.semantic import Semantic
from dsi_jax.docids.table import DocidTable

BASE, LEARNED = "rq", ("rqvae", "irgen")
MEASURES = ("utilisation", "recall_by_prefix", "recall_by_codes")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the lines; the exit status is 0 if the learned kinds are above rq."""
    options = _parser().parse_args(argv)
    timing.pin(options.cores)
    corpus = load.load_corpus(options.corpus)
    embedder = TfidfSvd(options.dimensions)
    embeddings = embedder.embed(corpus.document_texts())
    documents = DocumentColumns(corpus.keys, corpus.hash, embeddings=embeddings)
    timing.emit(kind="about", corpus=corpus.name, documents=len(corpus), **embedder.describe())
    lines = []
    for seed in options.seeds:
        for name, builder in kinds(options.levels, options.codes, options.epochs).items():
            if name not in options.kinds:
                continue
            start = time.process_time()
            table = builder.build(documents, seed)
            seconds = time.process_time() - start
            line = {"docids": name, "seed": seed} | measures(table, embeddings, options.levels)
            lines.append(line)
            timing.emit(kind="health", **line, cpu_s=seconds)
    verdicts = compare(lines)
    for verdict in verdicts:
        timing.emit(kind="comparison", **verdict)
    return 0 if all(verdict["passed"] for verdict in verdicts) else 1


def kinds(levels: int, codes: int, epochs: int) -> dict[str, Any]:
    """The builders that are compared, by name."""
    shape = {"levels": levels, "codes": codes, "embedder": None}
    return {
        "random": Random(length=levels, clusters=codes),
        "semantic": Semantic(embedder=None),
        "pq": ProductQuantized(**shape),
        "rq": ResidualQuantized(**shape),
        "rqvae": RQVAE(**shape, epochs=epochs),
        "irgen": IRGen(**shape, epochs=epochs),
    }


def measures(table: DocidTable, embeddings: np.ndarray, levels: int) -> dict[str, Any]:
    """What is compared of a table.

    `utilisation` is the mean, over the levels that are no collision numbers, of the perplexity of
    a level's tokens: the number of tokens, used alike, that would say as much.
    """
    found = health(table)[: min(levels, table.length)]
    oracle = oracle_recall(table, embeddings)
    return {
        "length": table.length,
        "vocabulary": table.vocab_size,
        "collided": table.parameters.get("collided", 0),
        "tokens": [level.tokens for level in found],
        "perplexity": [level.perplexity for level in found],
        "utilisation": statistics.mean(level.perplexity for level in found),
        "recall_by_prefix": oracle.by_prefix,
        "recall_by_depth": oracle.by_depth,
        "recall_by_codes": oracle.by_codes,
        "chance": oracle.chance,
    }


def compare(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each learned kind and measure: its values, rq's, and whether it is above in all seeds."""
    verdicts = []
    for name in LEARNED:
        for measure in MEASURES:
            own, base = (
                {line["seed"]: line[measure] for line in lines if line["docids"] == docids}
                for docids in (name, BASE)
            )
            seeds = sorted(own.keys() & base.keys())
            if not seeds:
                continue
            verdicts.append(
                {
                    "docids": name,
                    "measure": measure,
                    "seeds": seeds,
                    "values": [own[seed] for seed in seeds],
                    "of_rq": [base[seed] for seed in seeds],
                    "passed": all(own[seed] > base[seed] for seed in seeds),
                }
            )
    return verdicts


def _parser() -> argparse.ArgumentParser:
    names = list(kinds(1, 2, 1))
    epochs = next(f.default for f in dataclasses.fields(RQVAE) if f.name == "epochs")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--corpus", default="demo_text", help="a registered corpus, a BEIR directory, a SQuAD file")
    add("--kinds", nargs="+", default=names, choices=names)
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--levels", type=int, default=4)
    add("--codes", type=int, default=256)
    add("--epochs", type=int, default=epochs, help="of the learned kinds")
    add("--dimensions", type=int, default=128, help="of the embeddings (TF-IDF and SVD)")
    add("--cores", metavar="0-3,8", help="binds the process")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
