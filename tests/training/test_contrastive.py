"""The in-batch softmax against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.training.losses.contrastive import contrastive_loss, in_batch_softmax
from dsi_jax.training.step import summarize

B, E = 7, 5
SCALE = 3.0


def make_pairs(seed=0):
    rng = np.random.default_rng(seed)
    queries, documents = rng.normal(size=(2, B, E)).astype(np.float32)
    # Rows 4 and 9 come more than once; copies of a document differ, as dropout makes them.
    batch = {
        "row": np.array([4, 2, 4, 9, 9, 4, 1], np.int32),
        "weights": np.array([1, 1, 1, 0, 1, 1, 1], np.float32),
        "is_indexing": np.array([0, 1, 1, 0, 0, 0, 1], np.int32),
    }
    return queries, documents, batch


def by_hand(queries, documents, batch):
    """Each query's loss and whether its document comes first, one at a time."""
    losses, right = [], []
    for i in range(B):
        own = SCALE * float(queries[i] @ documents[i])
        others = [
            SCALE * float(queries[i] @ documents[j])
            for j in range(B)
            if batch["row"][j] != batch["row"][i] and batch["weights"][j] > 0
        ]
        losses.append(np.log(np.sum(np.exp([own, *others]))) - own)
        right.append(all(own > other for other in others))
    return np.array(losses), np.array(right)


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_and_figures_equal_loops(symmetric):
    queries, documents, batch = make_pairs()
    losses, right = by_hand(queries, documents, batch)
    if symmetric:
        losses = (losses + by_hand(documents, queries, batch)[0]) / 2
    weights, indexing = batch["weights"], batch["is_indexing"]
    total, metrics = contrastive_loss(queries, documents, SCALE, batch, symmetric=symmetric)
    np.testing.assert_allclose(total, (losses * weights).sum(), rtol=1e-5)
    values = summarize(metrics)
    assert values["scale"] == SCALE
    assert values["loss"] == pytest.approx((losses * weights).sum() / weights.sum(), rel=1e-5)
    for part, chosen in (("indexing", indexing), ("retrieval", 1 - indexing)):
        share = chosen * weights / (chosen * weights).sum()
        assert values[f"loss_{part}"] == pytest.approx((losses * share).sum(), rel=1e-5)
        assert values[f"in_batch_accuracy_{part}"] == pytest.approx((right * share).sum())


def test_what_has_no_weight_changes_nothing():
    queries, documents, batch = make_pairs()
    total, _ = contrastive_loss(queries, documents, SCALE, batch, symmetric=True)
    queries[3], documents[3] = 100.0, 100.0
    changed, _ = contrastive_loss(queries, documents, SCALE, batch, symmetric=True)
    assert total == changed


def test_batch_of_one_document_has_no_loss_and_no_gradient():
    queries, documents, batch = make_pairs()
    rows, weights = np.zeros(B, np.int32), batch["weights"]

    def loss(queries):
        return in_batch_softmax(queries, documents, SCALE, rows, weights)[0].sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(queries))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)


def test_equal_scores_are_no_success():
    same = np.ones((2, E), np.float32)
    _, right = in_batch_softmax(same, same, SCALE, np.arange(2), np.ones(2, np.float32))
    assert not right.any()
