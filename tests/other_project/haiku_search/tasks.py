"""The seqio tasks: poem -> row, and memory -> row."""

import functools

import seqio
import tensorflow as tf

from dsi_jax.data import features, metrics, preprocessors
from haiku_search.corpus import CORPUS, HAIKU
from haiku_search.metrics import season_at_1

_ROWS = range(len(HAIKU))
_UNSEEN = _ROWS[::5]  # poems of which no memory is trained on


def _poems(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({"poem": CORPUS.texts, "row": list(_ROWS)})


def _memories(split, shuffle_files, seed=None):
    """Trains on the lines of all poems and on a memory of most; tests with another memory."""
    pairs = [(HAIKU[row]["memories"][1], row) for row in _ROWS]
    if split == "train":
        pairs = [(line, row) for row in _ROWS for line in HAIKU[row]["poem"].split(" / ")]
        pairs += [(HAIKU[row]["memories"][0], row) for row in _ROWS if row not in _UNSEEN]
    texts, rows = zip(*pairs, strict=True)
    seen = [int(row not in _UNSEEN) for row in rows]
    return tf.data.Dataset.from_tensor_slices(
        {"memory": list(texts), "row": list(rows), features.SEEN: seen}
    )


seqio.TaskRegistry.add(
    "haiku_poems",
    source=seqio.FunctionDataSource(_poems, ["train"], {"train": 40}),
    preprocessors=[
        functools.partial(
            preprocessors.examples, inputs="poem", is_indexing=True, corpus_hash=CORPUS.hash
        ),
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features=features.output_features(),
)
seqio.TaskRegistry.add(
    "haiku_memories",
    source=seqio.FunctionDataSource(_memories, ["train", "test"], {"train": 152, "test": 40}),
    preprocessors=[
        functools.partial(preprocessors.examples, inputs="memory", corpus_hash=CORPUS.hash),
        seqio.CacheDatasetPlaceholder(),
    ],
    output_features=features.output_features(),
    postprocess_fn=metrics.postprocess,
    metric_fns=[metrics.retrieval_metrics, season_at_1],
)
seqio.MixtureRegistry.add("haiku", [("haiku_poems", 1.0), ("haiku_memories", 3.0)])
