"""Tasks and mixtures of IRGen's data sets: images look for images of their class.

`cars196_indexing`, `cars196_images`, `cars196_dsi`, `cars196_pairs`, and so for each data set (see
`data.readers.tfds_images`). IRGen trains on `_pairs`, which has no indexing examples. Importing
this module reads nothing: a data set, built before, is read when its examples are first asked for.
"""

import functools

from dsi_jax.data.readers import load
from dsi_jax.data.readers.tfds_images import SPECS
from dsi_jax.data.seqio_tasks import images as image_tasks

for _name, _spec in SPECS.items():
    if _spec.has_classes:
        image_tasks.register_lazily(
            _name,
            functools.partial(load.load_corpus, _name, seed=42),
            images=("train", "test"),
        )
