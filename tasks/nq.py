"""Tasks and mixtures of Natural Questions (see `dsi_jax.data.readers.natural_questions`).

`nq10k_indexing`, `nq10k_retrieval` and `nq10k_dsi`, and so for each corpus. Importing this module
reads nothing: a corpus is loaded, and where need be built, when its examples are first asked for.
"""

import functools

from dsi_jax.data.readers import load
from dsi_jax.data.readers.natural_questions import specs
from dsi_jax.data.seqio_tasks import text as text_tasks

INDEXING_RATIO = 32  # r of Tay et al. 2022, section 4

for _name in specs.SPECS:
    text_tasks.register_lazily(
        _name,
        functools.partial(load.load_corpus, _name),
        splits=("train", "dev"),
        indexing_ratio=INDEXING_RATIO,
    )
