"""The seqio tasks: a poem -> its row, and a memory of a poem -> its row."""

import functools

import seqio

from dsi_jax.data.seqio_tasks import features, metrics, preprocessors, sources
from haiku_search.corpus import CORPUS, HAIKU
from haiku_search.metrics import season_at_1

UNSEEN = range(0, len(HAIKU), 5)  # poems of which no memory is trained on


def poems():
    """Each poem whole."""
    return {"text": CORPUS.texts, "row": list(range(len(CORPUS)))}


def memories(split):
    """Tests with one memory of each poem; trains on another of most, and on all single lines."""
    pairs = [(haiku["memories"][1], row) for row, haiku in enumerate(HAIKU)]
    if split == "train":
        pairs = [(line, row) for row, h in enumerate(HAIKU) for line in h["poem"].split(" / ")]
        pairs += [(h["memories"][0], row) for row, h in enumerate(HAIKU) if row not in UNSEEN]
    texts, rows = zip(*pairs, strict=True)
    seen = [int(row not in UNSEEN) for row in rows]
    return {"text": list(texts), "row": list(rows), features.SEEN: seen}


seqio.TaskRegistry.add(
    "haiku_poems",
    source=sources.InMemorySource({"train": poems()}, "haiku_poems", CORPUS.hash),
    preprocessors=[
        functools.partial(preprocessors.examples, inputs="text", row="row", is_indexing=True),
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features=features.output_features(),
    shuffle_buffer_size=None,  # the source shuffles
)
seqio.TaskRegistry.add(
    "haiku_memories",
    source=sources.InMemorySource(
        {split: memories(split) for split in ("train", "test")}, "haiku_memories", CORPUS.hash
    ),
    preprocessors=[
        functools.partial(preprocessors.examples, inputs="text", row="row"),
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features=features.output_features(),
    postprocess_fn=metrics.postprocess,
    metric_fns=[metrics.retrieval_metrics, season_at_1],
    shuffle_buffer_size=None,
)
seqio.MixtureRegistry.add("haiku", [("haiku_poems", 1.0), ("haiku_memories", 3.0)])
