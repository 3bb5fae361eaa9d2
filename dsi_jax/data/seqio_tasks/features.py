"""The features that every task of this project, or of another one, declares.

`inputs` is the text as it stands: it is tokenized after the iterator, by the
tokenizer that search uses, so one task serves every tokenizer. Tasks that already
hold token ids are accepted as well (`tokenized=...`). `image` is an encoded file, which
is decoded after the iterator, too. An example has the one or the other; the absent one
is a vector of length 0.
"""

from __future__ import annotations

import seqio
import tensorflow as tf

# Features of the tasks.
INPUTS = "inputs"
IMAGE = "image"
TARGETS = "targets"
IS_INDEXING = "is_indexing"
# Of examples that may be cached, string [1]: the hash of the corpus that the rows refer to, and
# that of everything the task was made from.
CORPUS_HASH = "corpus_hash"
FINGERPRINT = "fingerprint"
# Features of evaluation examples alone, read by `metrics.postprocess`.
QUERY_ID = "query_id"
RELEVANT = "relevant"
RELEVANCE = "relevance"
SEEN = "seen"

# The same constant size everywhere: mixtures demand equal vocabularies, and rows of
# any corpus fit. No EOS: a row is not a sequence.
ROW_VOCABULARY = seqio.PassThroughVocabulary(size=2**31 - 1)
FLAG_VOCABULARY = seqio.PassThroughVocabulary(size=2)


def output_features(
    tokenized: seqio.Vocabulary | None = None, *, images: bool = False
) -> dict[str, seqio.Feature]:
    """Output features of a task: `output_features=features.output_features()`.

    Args:
      tokenized: the vocabulary of `inputs` where the task emits int32 token ids that
        end with EOS; None where it emits text.
      images: whether the task, or another one of its mixtures, emits images.

    Returns:
      `inputs`: UTF-8 text, string [1] (or ids, int32 [S]); `targets`: the document's
      row, int32 [1]; `is_indexing`: 1 where the input is the document itself and 0
      where it is a query, int32 [1]; with `images`, `image`: an encoded file, string [1].
    """
    if tokenized is None:
        inputs = seqio.ContinuousFeature(dtype=tf.string, rank=1)
    else:
        inputs = seqio.Feature(tokenized, add_eos=True)
    declared = {INPUTS: inputs}
    if images:
        declared[IMAGE] = seqio.ContinuousFeature(dtype=tf.string, rank=1)
    return declared | {
        TARGETS: seqio.Feature(ROW_VOCABULARY, add_eos=False),
        IS_INDEXING: seqio.Feature(FLAG_VOCABULARY, add_eos=False),
    }
