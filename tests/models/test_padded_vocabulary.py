"""Docid vocabularies that are padded so that a mesh can split them."""

import jax
import numpy as np
import pytest

from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, padded_vocab_size
from dsi_jax.ranking.docid_ranker import DocidRanker, to_host

TABLE = Atomic().build(DocumentColumns([str(row) for row in range(5000)]))


def model_of(vocab_size: int) -> DSIModel:
    return DSIModel(DSIConfig(t5_sizes.t5_tiny(vocab_size=50), vocab_size, TABLE.length))


def test_small_vocabularies_stay_and_large_ones_become_multiples_of_128():
    sizes_of_tables = [12, 258, 4095, 4096, 4097, 109_741, 32_128]
    expected = [12, 258, 4095, 4096, 4224, 109_824, 32_128]
    assert [padded_vocab_size(size) for size in sizes_of_tables] == expected


@pytest.mark.parametrize("constraint", ["trie", "free"])
def test_padding_is_never_decoded(constraint):
    model = model_of(padded_vocab_size(TABLE.vocab_size))
    tokens = np.array([[3, 4, 5, 0], [7, 0, 0, 0]], np.int32)
    batch = {"text": {"tokens": tokens, "mask": tokens != 0}}
    decoder = {"inputs": np.zeros((2, 1), np.int32)}
    params = model.init(jax.random.key(0), batch | {"decoder": decoder}, deterministic=True)
    params = jax.tree.map(np.array, jax.device_get(params["params"]))
    # Padding that the model prefers to every document.
    kernel = params["decoder"]["logits_dense"]["kernel"].value
    assert kernel.shape == (64, 5120)
    kernel[:, TABLE.vocab_size :] = 100 * np.sign(kernel[:, :1])
    searcher = DocidRanker(model, TABLE, beam_size=TABLE.vocab_size, constraint=constraint)
    ranking = to_host(searcher.search(jax.device_put(params), batch))
    rows = np.sort(ranking.rows[ranking.valid].reshape(2, -1))
    np.testing.assert_array_equal(rows, np.tile(np.arange(5000), (2, 1)))


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"vocabulary of 5002 .* made for a vocabulary of 5248"):
        DocidRanker(model_of(5248), TABLE)
