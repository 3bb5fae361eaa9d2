"""The documents: forty haiku; a document's row is its place in the file."""

import json
from importlib import resources

from dsi_jax import Corpus, register_corpus

_FILE = resources.files("haiku_search") / "haiku.jsonl"
HAIKU = [json.loads(line) for line in _FILE.read_text().splitlines()]

CORPUS = Corpus(
    name="haiku",
    keys=[haiku["key"] for haiku in HAIKU],
    titles=[""] * len(HAIKU),
    texts=[haiku["poem"] for haiku in HAIKU],
    queries={},
)
register_corpus("haiku", lambda seed: CORPUS)
