"""The order of a batch of two modalities: that of a loop, cut wherever its streams are cut."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsi_jax.inputs.streams import interleave
from dsi_jax.training import partitioning, program
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.optimizers import AdamW
from dsi_jax.training.schedules import Schedule

SIZES = st.lists(st.integers(1, 24), min_size=1, max_size=3)


def numbered(sizes, *rest) -> list[np.ndarray]:
    """Streams whose every element tells the stream, the example and the place in it."""
    streams, start = [], 0
    for size in sizes:
        count = size * int(np.prod(rest, dtype=int))
        streams.append(np.arange(start, start + count).reshape(size, *rest))
        start += count
    return streams


def by_hand(streams) -> np.ndarray:
    groups = max(g for g in range(1, 25) if all(len(stream) % g == 0 for stream in streams))
    rows = []
    for group in range(groups):
        for stream in streams:
            run = len(stream) // groups
            rows += list(stream[group * run : (group + 1) * run])
    return np.stack(rows)


@given(sizes=SIZES, rest=st.sampled_from([(), (3,), (2, 2)]))
def test_order_is_that_of_a_loop(sizes, rest):
    streams = numbered(sizes, *rest)
    np.testing.assert_array_equal(interleave(streams), by_hand(streams))


@pytest.mark.parametrize("sizes", [(4,), (4, 6), (5, 3), (2, 4, 6)])
def test_jax_and_numpy_agree(sizes):
    streams = [stream.astype(np.float32) for stream in numbered(sizes, 3)]
    found = jax.jit(interleave)(list(map(jnp.asarray, streams)))
    assert isinstance(found, jax.Array) and isinstance(interleave(streams), np.ndarray)
    np.testing.assert_array_equal(found, interleave(streams))


@given(parts=st.integers(1, 8), shares=SIZES, held=st.randoms())
def test_parts_of_the_streams_are_parts_of_the_batch(parts, shares, held):
    """A host interleaves what it holds of each stream, without a look at the rest."""
    streams = numbered([parts * share for share in shares], 2)
    rows_of = np.split(interleave(streams), parts)
    mine = sorted(held.sample(range(parts), held.randint(1, parts)))
    own = [np.concatenate([np.split(s, parts)[part] for part in mine]) for s in streams]
    np.testing.assert_array_equal(interleave(own), np.concatenate([rows_of[p] for p in mine]))


# Microbatches


class Towers(nn.Module):
    """A layer a modality, behind which the examples go on together."""

    @nn.compact
    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        del deterministic
        streams = [batch["text"]["tokens"], batch["image"]["pixels"]]
        hidden = [nn.Dense(8)(jnp.float32(stream) / 20) for stream in streams]
        return nn.Dense(50)(nn.tanh(interleave(hidden)))[:, None]


def make_batch(texts: int, images: int) -> dict:
    """Every example has a docid of its own, so that an example astray changes the gradient."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 20, (texts, 5)).astype(np.int32)
    tokens[:, -1] = 1
    rows = np.arange(texts + images, dtype=np.int32)
    return {
        "text": {"tokens": tokens, "mask": tokens != 0},
        "image": {"pixels": rng.integers(0, 256, (images, 12)).astype(np.uint8)},
        "decoder": {
            "inputs": np.zeros((len(rows), 1), np.int32),
            "targets": 2 + rows[:, None],
            "weights": np.linspace(0.2, 1.0, len(rows), dtype=np.float32)[:, None],
        },
        "row": rows,
        "is_indexing": (rows % 2).astype(np.int32),
    }


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (2, 2)])
def test_microbatches_keep_examples_with_their_docids(sizes):
    batch = make_batch(*sizes)
    stepped = {}
    for microbatches in (1, 2):
        run = program.build(
            Towers(),
            AdamW(Schedule("constant", 0.01), eps=1.0),  # nearly the gradient itself
            partitioning.one_device_mesh(),
            batch,
            train_steps=5,
            microbatches=microbatches,
            loss=cross_entropy.docid_loss,
        )
        state = run.init(0)
        before = jax.tree.map(np.array, state.params)
        state, metrics = run.step(state, batch)
        change = jax.tree.map(lambda new, old: np.array(new) - old, state.params, before)
        stepped[microbatches] = change, jax.device_get(metrics)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), *[c for c, _ in stepped.values()]
    )
    whole, parts = (figures for _, figures in stepped.values())
    for name in ("loss", "loss_indexing", "grad_norm"):
        np.testing.assert_allclose(whole[name].total, parts[name].total, rtol=1e-5)
        np.testing.assert_allclose(whole[name].count, parts[name].count, rtol=1e-6)


def test_streams_that_do_not_divide_are_refused():
    batch = make_batch(6, 3)
    with pytest.raises(ValueError, match=r"streams of \[3, 6, 9\] rows does not divide into 2"):
        program.build(
            Towers(),
            AdamW(Schedule("constant", 0.01)),
            partitioning.one_device_mesh(),
            batch,
            train_steps=5,
            microbatches=2,
            loss=cross_entropy.docid_loss,
        ).lower()
