"""Tasks of demo_text, the corpus that is on every machine (see `dsi_jax.data.demo_text`)."""

from dsi_jax.data import corpora, registration

TASKS = registration.register_corpus_tasks(corpora.load_corpus("demo_text"))
