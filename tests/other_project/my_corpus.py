"""Documents and questions of your own, under a name."""

from dsi_jax import Corpus, register_corpus
from dsi_jax.data.corpora.corpus import make_query_set

DOCUMENTS = {  # key: (title, text)
    "tea": ("Tea", "Pour water just off the boil over the leaves and wait four minutes."),
    "rice": ("Rice", "Rinse the rice until the water is clear, then cover and simmer."),
    "eggs": ("Eggs", "Lower the eggs into boiling water and take them out after six minutes."),
}
QUESTIONS = {  # split: {question: key}
    "train": {"how long does tea take": "tea", "do I wash rice": "rice"},
    "test": {"when are eggs done": "eggs", "how hot is water for tea": "tea"},
}


def load(seed):
    row = {key: i for i, key in enumerate(DOCUMENTS)}
    titles, texts = zip(*DOCUMENTS.values(), strict=True)
    queries = {
        split: make_query_set(
            {question: question for question in answers},
            {question: {row[key]: 1.0} for question, key in answers.items()},
        )
        for split, answers in QUESTIONS.items()
    }
    return Corpus("my_corpus", list(DOCUMENTS), list(titles), list(texts), queries)


register_corpus("my_corpus", load)
