"""The features that every task of this project, or of another one, declares.

`inputs` is the text as it stands: it is tokenized after the iterator, by the
tokenizer that search uses, so one task serves every tokenizer. Tasks that already
hold token ids are accepted as well (`tokenized=...`).
"""

from __future__ import annotations

import seqio
import tensorflow as tf

# Features of the tasks.
INPUTS = "inputs"
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


def output_features(tokenized: seqio.Vocabulary | None = None) -> dict[str, seqio.Feature]:
    """Output features of a text task: `output_features=features.output_features()`.

    Args:
      tokenized: the vocabulary of `inputs` where the task emits int32 token ids that
        end with EOS; None where it emits text.

    Returns:
      `inputs`: UTF-8 text, string [1] (or ids, int32 [S]); `targets`: the document's
      row, int32 [1]; `is_indexing`: 1 where `inputs` is the document itself and 0
      where it is a query, int32 [1].
    """
    if tokenized is None:
        inputs = seqio.ContinuousFeature(dtype=tf.string, rank=1)
    else:
        inputs = seqio.Feature(tokenized, add_eos=True)
    return {
        INPUTS: inputs,
        TARGETS: seqio.Feature(ROW_VOCABULARY, add_eos=False),
        IS_INDEXING: seqio.Feature(FLAG_VOCABULARY, add_eos=False),
    }
