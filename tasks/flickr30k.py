"""Tasks and mixtures of Flickr30k in Karpathy's splits (see `dsi_jax.data.readers.tfds_images`).

`flickr30k_indexing`, `flickr30k_retrieval`, `flickr30k_dsi` and `flickr30k_pairs`. Importing this
module reads nothing: the data, built before, is read when its examples are first asked for.
"""

import functools

from dsi_jax.data.readers import load
from dsi_jax.data.readers.tfds_images import SPECS
from dsi_jax.data.seqio_tasks import images as image_tasks

_counts = SPECS["flickr30k"].counts

image_tasks.register_lazily(
    "flickr30k",
    functools.partial(load.load_corpus, "flickr30k", seed=42),
    retrieval=("train", "dev", "test"),
    # In a pass each image is indexed once, and each training image gives one of its captions.
    indexing_ratio=sum(_counts.values()) / _counts["train"],
)
