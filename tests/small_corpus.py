"""A small corpus in BEIR layout, made of words, for tests of whole commands."""

import json
import random
from pathlib import Path

_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "glade",
    "heath",
    "iris",
    "juniper",
    "kelp",
    "larch",
    "maple",
    "nectar",
    "olive",
    "pine",
    "quartz",
    "reed",
    "sage",
    "thyme",
    "umber",
    "violet",
    "willow",
    "yarrow",
    "zinnia",
    "basalt",
    "coral",
    "dune",
    "estuary",
    "fern",
]


def write_corpus(directory: Path, *, num_documents: int = 60, seed: int = 0) -> Path:
    """Writes documents of random words; each has two queries of its own words.

    The first query of five documents in six is for training, the second of those for dev; the
    sixth document's queries are for test, so that its document is unseen.
    """
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "qrels").mkdir(exist_ok=True)
    documents, queries = [], []
    qrels = {"train": [], "dev": [], "test": []}
    for i in range(num_documents):
        words = [rng.choice(_WORDS) for _ in range(12)] + [f"number{i}"]
        documents.append({"_id": f"d{i}", "title": f"Title {i}", "text": " ".join(words)})
        for j in range(2):
            query = f"q{i}_{j}"
            queries.append({"_id": query, "text": " ".join([f"number{i}", *rng.sample(words, 4)])})
            split = "test" if i % 6 == 5 else ("train", "dev")[j]
            qrels[split].append(f"{query}\td{i}\t1")
    _write_lines(directory / "corpus.jsonl", map(json.dumps, documents))
    _write_lines(directory / "queries.jsonl", map(json.dumps, queries))
    for split, lines in qrels.items():
        header = "query-id\tcorpus-id\tscore"
        _write_lines(directory / "qrels" / f"{split}.tsv", [header, *lines])
    return directory


def _write_lines(path: Path, lines) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
