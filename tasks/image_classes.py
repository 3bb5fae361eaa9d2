"""Tasks and mixtures of IRGen's data sets: images look for images of their class.

`cars196_indexing`, `cars196_images`, `cars196_dsi`, `cars196_pairs`, and so for each data set (see
`dsi_jax.data.tfds_images`). IRGen trains on `_pairs`, which has no indexing examples. Importing
this module reads nothing: a data set, built before, is read when its examples are first asked for.
"""

import functools

from dsi_jax.data import image_corpora, image_registration
from dsi_jax.data.tfds_images import SPECS

for _name, _spec in SPECS.items():
    if _spec.has_classes:
        image_registration.register_lazily(
            _name,
            functools.partial(image_corpora.load_image_corpus, _name, seed=42),
            images=("train", "test"),
        )
