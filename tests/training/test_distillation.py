"""The losses with a teacher against NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dsi_jax.methods.dsi import DSI
from dsi_jax.models.dsi import ScoredLogits
from dsi_jax.training.losses import cross_entropy, distillation

B, V = 6, 9
DOCUMENTS = np.arange(V) >= 2
SEEN = np.isin(np.arange(V), [3, 5, 6])
Z = 1e-2


def make_batch():
    """Three questions, of which one has an unseen document, and three documents; one weighs 0."""
    return {
        "decoder": {
            "targets": np.array([3, 5, 4, 2, 7, 8], np.int32)[:, None],
            "weights": np.array([1, 1, 1, 1, 1, 0], np.float32)[:, None],
        },
        "is_indexing": np.array([0, 0, 0, 1, 1, 1], np.int32),
    }


def make_outputs():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (B, 1, V)).astype(np.float32)
    teacher = np.where(DOCUMENTS, rng.gamma(1, 2, (B, 1, V)), 0).astype(np.float32)
    teacher[4] = 0  # it knows no word
    return logits, teacher


def reference(logits, teacher, batch, *, seen, questions):
    """(losses [B], gradient [B, V]) in float64, written out for each example."""
    losses, grads = [], []
    for i in range(B):
        x, target = logits[i, 0].astype(np.float64), batch["decoder"]["targets"][i, 0]
        wanted = np.eye(V)[target]
        asks = questions and not batch["is_indexing"][i]
        kept = np.ones(V, bool)
        if asks and seen is not None:
            kept = seen | (np.arange(V) == target)
        elif not asks and teacher is not None and teacher[i].any():
            wanted = np.where(
                DOCUMENTS, special.softmax(np.where(DOCUMENTS, teacher[i, 0], -1e9)), 0
            )
        log_z = special.logsumexp(x[kept])
        found = np.where(kept, np.exp(x - log_z), 0)
        entropy = special.entr(wanted).sum()
        losses.append(-(wanted * np.where(kept, x - log_z, 0)).sum() - entropy + Z * log_z**2)
        grads.append(found - wanted + 2 * Z * log_z * found)
    weights = batch["decoder"]["weights"][:, 0]
    return np.array(losses) * weights, np.array(grads) * weights[:, None]


@pytest.mark.parametrize("questions", [True, False])
@pytest.mark.parametrize("with_teacher", [True, False])
@pytest.mark.parametrize("seen", [SEEN, None], ids=["seen", "all"])
def test_loss_and_gradient_equal_numpy(seen, with_teacher, questions):
    logits, teacher = make_outputs()
    batch, teacher = make_batch(), teacher if with_teacher else None

    def loss(logits):
        return distillation.docid_loss(
            logits,
            batch,
            seen_V=seen,
            teacher_BxLxV=teacher,
            documents_V=DOCUMENTS,
            questions=questions,
            z_loss=Z,
        )

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.array(logits))
    losses, grads = reference(logits, teacher, batch, seen=seen, questions=questions)
    assert float(value) == pytest.approx(losses.sum(), rel=1e-5)
    np.testing.assert_allclose(grad[:, 0], grads, atol=1e-5)
    indexing = batch["is_indexing"] == 1
    assert float(metrics["loss"].total) == pytest.approx(losses.sum(), rel=1e-5)
    assert float(metrics["loss"].count) == 5
    assert float(metrics["loss_indexing"].total) == pytest.approx(losses[indexing].sum(), rel=1e-5)
    assert float(metrics["loss_retrieval"].count) == 3


def test_an_equal_student_has_no_loss_and_the_teacher_no_gradient():
    logits, teacher = make_outputs()
    batch = make_batch()
    student = np.where(DOCUMENTS, teacher, -1e9)

    def loss(student, teacher):
        return distillation.docid_loss(
            student, batch, teacher_BxLxV=teacher, documents_V=DOCUMENTS, questions=False
        )[0]

    batch["decoder"]["weights"][4] = 0  # of which the teacher knows nothing
    assert float(loss(student, teacher)) == pytest.approx(0, abs=1e-5)
    assert not np.any(jax.grad(loss, argnums=1)(logits, teacher))


def test_without_options_the_loss_is_the_plain_one():
    logits, teacher = make_outputs()
    batch = make_batch()
    plain = cross_entropy.docid_loss(logits, batch, z_loss=Z)
    for outputs in (logits, ScoredLogits(logits, teacher)):
        found = DSI(z_loss=Z).train_loss(outputs, batch)
        jax.tree.map(np.testing.assert_array_equal, found, plain)
    evaluated = DSI(z_loss=Z, seen_softmax=True, soft_targets=True).eval_loss(
        ScoredLogits(logits, teacher), batch
    )
    jax.tree.map(np.testing.assert_array_equal, evaluated, cross_entropy.docid_loss(logits, batch))


def test_label_smoothing_is_refused_beside_a_teacher():
    for options in ({"seen_softmax": True}, {"soft_targets": True}):
        with pytest.raises(ValueError, match=r"LABEL_SMOOTHING is 0\.1; expected 0\.0 with SEEN"):
            DSI(label_smoothing=0.1, **options).check()
