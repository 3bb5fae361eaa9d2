"""The figures of a running training: the mean over a period, one step late; the alarm for NaN."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from dsi_jax.jobs.progress import NonFiniteLoss, Progress
from dsi_jax.training.losses.cross_entropy import Mean


def metrics(loss: float, count: float = 2.0, grad_norm: float = 3.0) -> dict[str, Mean]:
    one = jnp.float32(1.0)
    return {
        "loss": Mean(jnp.float32(loss * count), jnp.float32(count)),
        "loss_indexing": Mean(jnp.float32(0.0), jnp.float32(0.0)),
        "grad_norm": Mean(jnp.float32(grad_norm), one),
        "learning_rate": Mean(jnp.float32(0.5), one),
    }


def lines(directory) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_the_mean_over_its_period_weighted_by_counts(tmp_path):
    progress = Progress(tmp_path, first_step=0, last_step=5, period=2, write=True)
    losses, counts = [4.0, 2.0, 1.0, 3.0, 7.0], [1, 3, 2, 2, 2]
    for step, (loss, count) in enumerate(zip(losses, counts, strict=True), start=1):
        progress.add(step, metrics(loss, count))
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]  # the last step may still run
    progress.settle()
    progress.close()
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [2, 4, 5]
    np.testing.assert_allclose([line["loss"] for line in written], [10 / 4, 2.0, 7.0])
    assert "loss_indexing" not in written[0]  # there was nothing to average
    assert all(line["steps_per_second"] > 0 for line in written)
    assert list(tmp_path.glob("events*"))


def test_first_line_of_a_period_of_one_has_no_speed_yet(tmp_path):
    progress = Progress(tmp_path, first_step=0, last_step=2, period=1, write=True)
    for step in (1, 2):
        progress.add(step, metrics(1.0))
    progress.settle()
    progress.close()
    assert ["steps_per_second" in line for line in lines(tmp_path)] == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_with_a_hint(tmp_path, bad):
    progress = Progress(tmp_path, first_step=10, last_step=20, period=5, write=False)
    progress.add(11, metrics(1.0))
    progress.add(12, metrics(bad))
    with pytest.raises(NonFiniteLoss, match=r"step 12 .*gradient norm 3.*learning rate 0.5.*lower"):
        progress.add(13, metrics(1.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradient_that_is_not_finite_stops_though_the_loss_is(tmp_path, bad):
    progress = Progress(tmp_path, first_step=10, last_step=20, period=5, write=False)
    progress.add(11, metrics(1.0, grad_norm=bad))
    with pytest.raises(NonFiniteLoss, match=r"step 11 is not finite: loss 1, gradient norm"):
        progress.settle()


def test_compilation_and_pauses_do_not_count_as_speed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = Progress(
        tmp_path, first_step=0, last_step=4, period=2, seconds_before=1000.0, write=True
    )
    assert progress.seconds == 1000.0
    now[0] += 30.0
    for step in (1, 2, 3, 4):
        now[0] += 1.0
        progress.add(step, metrics(1.0))
        if step == 3:
            with progress.paused():
                now[0] += 50.0
    progress.settle()
    progress.close()
    assert progress.seconds == pytest.approx(1034.0)
    # The laps begin when step 1 is settled, which is when step 2 is added.
    assert [line["steps_per_second"] for line in lines(tmp_path)] == pytest.approx([1.0, 2.0])
