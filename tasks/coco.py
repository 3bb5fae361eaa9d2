"""Tasks and mixtures of COCO's captions in Karpathy's splits (see `data.readers.tfds_images`).

`coco_captions_indexing`, `coco_captions_retrieval`, `coco_captions_dsi` and `coco_captions_pairs`.
Importing this module reads nothing: the data, built before, is read when its examples are first
asked for.
"""

import functools

from dsi_jax.data.readers import load
from dsi_jax.data.readers.tfds_images import SPECS
from dsi_jax.data.seqio_tasks import images as image_tasks

_counts = SPECS["coco_captions"].counts

image_tasks.register_lazily(
    "coco_captions",
    functools.partial(load.load_corpus, "coco_captions", seed=42),
    retrieval=("train", "dev", "test"),
    # In a pass each image is indexed once, and each training image gives one of its captions.
    indexing_ratio=sum(_counts.values()) / (_counts["train"] + _counts["restval"]),
)
