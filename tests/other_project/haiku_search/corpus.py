"""The documents: forty haiku; a document's row is its place in the file."""

import json
from importlib import resources

from dsi_jax.data import corpora

_FILE = resources.files("haiku_search") / "haiku.jsonl"
HAIKU = [json.loads(line) for line in _FILE.read_text().splitlines()]

CORPUS = corpora.Corpus(
    name="haiku",
    keys=[haiku["key"] for haiku in HAIKU],
    titles=[""] * len(HAIKU),
    texts=[haiku["poem"] for haiku in HAIKU],
    queries={},
)
corpora.register_corpus("haiku", lambda seed: CORPUS)
