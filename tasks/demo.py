"""Tasks of demo_text, the corpus that is on every machine (see `data.readers.demo_text`)."""

from dsi_jax.data.readers import load
from dsi_jax.data.seqio_tasks import text as text_tasks

TASKS = text_tasks.register_corpus_tasks(load.load_corpus("demo_text"))
