"""Tasks of any directory of captioned images, for a module of tasks of your own:

    from dsi_jax.tasks import captions

    captions.register("holidays", "/pictures", "/pictures/captions.csv")

`holidays_indexing`, `holidays_retrieval`, `holidays_images` and the mixtures `holidays_dsi` and
`holidays_pairs`. A run on such a directory needs no module: it has `--gin.IMAGES=DIR
--gin.CAPTIONS=FILE`.
"""

import functools
from pathlib import Path

from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import images as image_tasks


def register(name: str, images: str | Path, captions: str | Path, seed: int = 42) -> None:
    """Registers tasks of the protocol `heldout_caption`; nothing is read until examples are.

    Args:
      name: prefix of the registered names.
      images: the directory of images.
      captions: COCO JSON, a Flickr token file or a CSV file.
      seed: decides which caption of each image is held out.

    Raises:
      ValueError: if the names are taken by other content.
    """
    image_tasks.register_lazily(
        name,
        functools.partial(
            load.load_corpus,
            images,
            seed=seed,
            modality="image",
            captions=captions,
            protocol="heldout_caption",
        ),
        retrieval=("train", "test"),
        images=("test",),
    )
