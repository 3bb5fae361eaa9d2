"""Beam search in `text` space against PyTorch T5's constrained `generate`, random checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.convert.hf_t5 import load_t5
from dsi_jax.decoding.adapter import make_search
from dsi_jax.decoding.constraint import TrieConstraint
from dsi_jax.decoding.finished_pool import AsGenerate
from dsi_jax.decoding.strategies import BeamSearch
from dsi_jax.decoding.trie import build_trie
from dsi_jax.docids.table import DocidTable
from dsi_jax.models.dsi import DSIConfig, DSIModel

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dsi-jax[parity]'")
transformers = pytest.importorskip("transformers")

V = 300  # the text vocabulary; docids are made of ten of its tokens, its digits
N, NUM_DIGITS = 150, 4
B, S = 3, 7
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def checkpoint(request, tmp_path_factory):
    """A random PyTorch T5 and the directory that it was saved to."""
    torch.manual_seed(0)
    v1_1 = request.param == "v1.1"
    config = transformers.T5Config(
        vocab_size=V,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu" if v1_1 else "relu",
        tie_word_embeddings=not v1_1,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    directory = tmp_path_factory.mktemp("t5")
    model.save_pretrained(directory, safe_serialization=True)
    return model, directory


def make_table(ends: bool, lengths: tuple[int, ...] = (NUM_DIGITS,)) -> DocidTable:
    """Docids of random digits, followed by the end token or by nothing."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(10**NUM_DIGITS, N, replace=False)
    digits = numbers[:, None] // 10 ** np.arange(NUM_DIGITS)[::-1] % 10
    tokens = 20 + 3 * digits
    if ends:
        tokens = np.pad(tokens, ((0, 0), (0, 1)), constant_values=1)
    if lengths != (NUM_DIGITS,):
        length_N = rng.choice(lengths, N)[:, None]
        levels = np.arange(tokens.shape[1])
        tokens = np.where(levels < length_N, tokens, levels == length_N)
        tokens = np.unique(tokens, axis=0)  # in their order: some short ones are equal
        numbers = np.arange(len(tokens))
    return DocidTable(
        tokens=tokens.astype(np.uint16),
        keys=[str(number) for number in numbers],
        vocab_size=V,
        kind="test",
        parameters={},
        corpus_hash="none",
        variable_length=ends,
    )


def make_texts() -> tuple[np.ndarray, np.ndarray]:
    """Padded token ids int64 [B, S] of several lengths, and their mask."""
    rng = np.random.default_rng(1)
    mask = np.arange(S) < np.array([S, 3, 5])[:, None]
    return rng.integers(2, V, (B, S)) * mask, mask


def generate(model, table: DocidTable, num_beams: int, **options) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's docids [B, M, L] and scores [B, M]."""
    children: dict[tuple[int, ...], set[int]] = {}
    for docid in table.tokens.tolist():
        for level, token in enumerate(docid):
            children.setdefault(tuple(docid[:level]), set()).add(token)
    tokens, mask = make_texts()
    options = {"length_penalty": 0.0} | options
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask.astype(np.int64)),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            do_sample=False,
            max_new_tokens=table.length,
            # Dead beams, of which it has some, end up at prefixes of no document.
            prefix_allowed_tokens_fn=lambda _, prefix: sorted(
                children.get(tuple(prefix.tolist()[1:]), {0})
            ),
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    sequences = output.sequences.numpy()[:, 1:]  # as long as the longest that was found
    sequences = np.pad(sequences, ((0, 0), (0, table.length - sequences.shape[1])))
    ends = sequences == 1  # more ends may follow the first: pads, as its pad token is 0
    sequences[np.cumsum(ends, axis=1) - ends > 0] = 0
    sequences = sequences.reshape(B, num_beams, table.length)
    return sequences, output.sequences_scores.numpy().reshape(B, num_beams)


def search(directory, table: DocidTable, num_beams: int, decoding=BeamSearch()):
    """What we find for the same texts with the same weights."""
    config, params = load_t5(directory)
    model = DSIModel(DSIConfig(config, V, table.length, docid_space="text"))
    tokens, mask = make_texts()
    return make_search(model, beam_size=num_beams, decoding=decoding)(
        params,
        {"text": {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(mask)}},
        TrieConstraint(jax.device_put(build_trie(table))),
    )


def assert_same(result, docids, scores, table):
    np.testing.assert_allclose(result.scores, scores, atol=TOLERANCE)
    np.testing.assert_array_equal(result.rows, table.rows_of(result.tokens))
    for query in range(B):  # documents closer than the tolerance may change places
        score_of = dict(zip(map(tuple, docids[query].tolist()), scores[query], strict=True))
        found = [score_of[tuple(docid)] for docid in np.asarray(result.tokens)[query].tolist()]
        np.testing.assert_allclose(found, scores[query], atol=TOLERANCE)
        assert len(score_of) == scores.shape[1]


@pytest.mark.parametrize(("num_beams", "ends"), [(2, True), (10, False), (10, True)])
def test_scores_and_docids_equal_those_of_generate(checkpoint, num_beams, ends):
    torch_model, directory = checkpoint
    table = make_table(ends)
    docids, scores = generate(torch_model, table, num_beams)
    assert_same(search(directory, table, num_beams), docids, scores, table)


@pytest.mark.parametrize(
    ("num_beams", "length_penalty", "early_stopping"),
    [(3, 0.0, True), (8, 1.0, False), (8, 2.0, "never"), (5, -1.0, True)],
)
def test_finished_docids_are_treated_as_by_generate(
    checkpoint, num_beams, length_penalty, early_stopping
):
    torch_model, directory = checkpoint
    table = make_table(True, lengths=(1, 2, 2, 3, 4))
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    docids, scores = generate(torch_model, table, num_beams, **options)
    found = search(directory, table, num_beams, BeamSearch(finished=AsGenerate(**options)))
    assert_same(found, docids, scores, table)
    lengths = (docids != 0).sum(-1)
    assert len(np.unique(lengths)) > 1
