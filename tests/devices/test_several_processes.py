"""The train command as two processes over gloo is the run of one; so are four, benchmarks/hosts.py.

Of texts two processes begin a run that one ends; of images two end a run that one began.
"""

import itertools

import pytest

from benchmarks.hosts import Trained, problems
from benchmarks.local_runs import ONE, SEVERAL, STEPS, Corpus

pytestmark = [pytest.mark.devices, pytest.mark.slow]


def test_two_processes_train_on_texts_and_one_goes_on(tmp_path):
    corpus = Corpus.write(tmp_path, "texts")
    one = Trained(corpus.train("one", ONE))
    assert len(one.steps()) == STEPS and len(one.rankings()) == 3
    assert not problems(Trained(corpus.train("two", SEVERAL[2])), one)
    assert not problems(Trained(corpus.train("two_one", ONE, after="two")), one)
    # What is compared can differ: at least a hundred times as much from one batch to the next.
    losses = [metrics["loss"] for metrics in one.steps().values()]
    assert all(abs(a / b - 1) > 1e-3 for a, b in itertools.pairwise(losses))


def test_two_processes_go_on_with_images_where_one_was(tmp_path):
    corpus = Corpus.write(tmp_path, "images")
    one = Trained(corpus.train("one", ONE))
    assert not problems(Trained(corpus.train("one_two", SEVERAL[2], after="one")), one)
