"""The benchmarks: that the accelerator's checks run and pass, and that noise makes no figures."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import gin
from benchmarks import (
    beam_scaling,
    constrained_search,
    constraint_share,
    decoders,
    docid_kinds,
    docid_kmeans,
    docid_scale,
    filter,
    gpu_check,
    gpu_decoding,
    gpu_setting,
    gpu_training,
    image_input,
    index_build,
    index_swap,
    made_docids,
    made_points,
    mask_op,
    static_peer,
    timing,
    tpu_constraint,
)
from benchmarks.made_texts import text_batch
from dsi_jax.cli import gin_utils
from dsi_jax.decoding.beam import BeamResult
from dsi_jax.decoding.constraint import Free, TrieConstraint
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.prepare import model as model_lib
from dsi_jax.training.state import param_shapes

ROOT = Path(__file__).resolve().parents[2]
TINIEST = (
    "--small --layers 1 --dtypes float32 --batch 4 --source 8 --documents 200 "
    "--atomic_documents 50 --query_batches 2 --beam_sizes 4 --scaled_beams 1 4 --rounds 3 "
    "--steps_a_round 1 --jump_docids 8x16 --jump_documents 200 --peak_tflops float32=0.1 "
    "--bandwidth_gbs 10"
)


class Clock:
    """A clock that the calls themselves move on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, durations: list[float]):
        """A call that takes the next of the durations."""
        left = iter(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += next(left)

        return run


def test_percentiles_are_those_of_the_durations():
    made = timing.Timing.of([3.0, 1.0, 2.0, 5.0, 4.0])
    assert (made.p50, made.rounds) == (3.0, 5)
    assert made.p10 == pytest.approx(1.4)
    assert made.p90 == pytest.approx(4.6)
    with pytest.raises(ValueError, match="2 rounds; expected at least 3"):
        timing.Timing.of([1.0, 2.0])


@pytest.mark.parametrize(
    ("slow_rounds", "slow", "unreliable"),
    [
        (0, 1.0, False),
        (1, 9.0, False),  # one round in twenty lies beyond p90
        (4, 1.25, False),
        (4, 1.35, True),
        (4, 9.0, True),
    ],
)
def test_no_figure_is_made_of_unreliable_timings(slow_rounds, slow, unreliable):
    noisy = timing.Timing.of([1.0] * (20 - slow_rounds) + [slow] * slow_rounds)
    steady = timing.Timing.of([2.0] * 20)
    assert noisy.unreliable is unreliable
    asked = []

    def figures():
        asked.append(True)
        return {"ratio": steady.p50 / noisy.p50}

    line = timing.line({"noisy": noisy, "steady": steady}, figures)
    assert line["unreliable"] is unreliable
    assert line["noisy_p90_s"] == noisy.p90  # what the refusal is based on is always shown
    assert ("ratio" in line) is not unreliable
    assert bool(asked) is not unreliable


def test_contenders_take_turns_after_warming_up():
    clock = Clock()
    calls = {
        "a": clock.call("a", [100.0, 2.0, 2.0, 2.0]),  # the first is the warm-up
        "b": clock.call("b", [100.0, 4.0, 6.0, 8.0]),
    }
    timings = timing.measure(calls, rounds=3, warmup=1, per_call=2, clock=clock)
    assert clock.calls == ["a", "b", *"ab", *"ba", *"ab"]
    assert timings["a"].p50 == 1.0
    assert timings["b"].p50 == 3.0


def test_too_few_rounds_are_refused_before_anything_runs():
    clock = Clock()
    with pytest.raises(ValueError, match="rounds is 2; expected at least 3"):
        timing.measure({"a": clock.call("a", [])}, rounds=2, clock=clock)
    assert not clock.calls


def test_lines_are_json_even_of_numbers_that_are_none(capsys):
    timing.emit(
        share=np.float32(1 / 3), losses=[float("nan"), 2.0], rows=np.int32(3), ok=np.bool_(True)
    )
    fields = json.loads(capsys.readouterr().out)
    assert fields == {"share": 0.333333, "losses": ["nan", 2.0], "rows": 3, "ok": True}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are bound on Linux only")
def test_pinning_names_cores_that_are_not_there():
    before = os.sched_getaffinity(0)
    core = min(before)
    try:
        assert timing.pin(None) == len(before)
        assert timing.pin(f"{core}-{core}") == 1
        with pytest.raises(ValueError, match="cores is 'all', expected"):
            timing.pin("all")
    finally:
        os.sched_setaffinity(0, before)


def test_docid_kinds_are_compared_seed_by_seed():
    def line(docids, seed, utilisation, by_prefix):
        measured = {"utilisation": utilisation, "recall_by_prefix": by_prefix}
        return {"docids": docids, "seed": seed, "recall_by_codes": 0.5, **measured}

    lines = [
        line("rq", 0, 100.0, 0.2),
        line("rq", 1, 110.0, 0.3),
        line("irgen", 0, 120.0, 0.4),
        line("irgen", 1, 120.0, 0.3),  # not above rq
        line("pq", 0, 1.0, 0.0),
    ]
    found = {(v["docids"], v["measure"]): v for v in docid_kinds.compare(lines)}
    assert [measure for _, measure in found] == list(docid_kinds.MEASURES)
    assert {docids for docids, _ in found} == {"irgen"}  # no rqvae was measured
    assert found["irgen", "utilisation"]["passed"]
    recall = found["irgen", "recall_by_prefix"]
    assert not recall["passed"]
    assert (recall["values"], recall["of_rq"]) == ([0.4, 0.3], [0.2, 0.3])
    assert not found["irgen", "recall_by_codes"]["passed"]


def test_docid_kinds_are_measured():
    points = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    keys = [str(row) for row in range(60)]  # no more than the 64 codes
    for name, builder in docid_kinds.kinds(levels=2, codes=8, epochs=1).items():
        table = builder.build(DocumentColumns(keys, "corpus", embeddings=points), 0)
        measured = docid_kinds.measures(table, points, levels=2)
        assert len(measured["perplexity"]) == 2, name
        assert measured["utilisation"] == pytest.approx(np.mean(measured["perplexity"]))


def test_kmeans_contenders_split_all_documents():
    points = made_points.made_points(900, 8)
    for leaves in (
        docid_kmeans.our_leaves,
        docid_kmeans.sklearn_leaves,
        docid_kmeans.faiss_leaves,
    ):
        found = leaves(points, 0)
        assert sorted(np.concatenate(found).tolist()) == list(range(900))
        assert max(map(len, found)) <= docid_kmeans.LEAF_SIZE
    by_hand = sum(((points[rows] - points[rows].mean(0)) ** 2).sum() for rows in found) / 900
    assert docid_kmeans.leaf_error(points, found) == pytest.approx(by_hand, rel=1e-5)


def test_kmeans_comparison_stops_where_our_leaves_are_worse(monkeypatch, capsys):
    options = "--documents 400 --dimensions 8 --trees 1 --rounds 3 --sklearn_up_to 0 --nci_up_to 0"
    assert docid_kmeans.main(options.split()) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["ours_leaf_error"] > 0 and line["faiss_leaf_error"] > 0 and line["trees"] == 1
    assert not {"sklearn_leaf_error", "nci_leaf_error"} & line.keys()
    monkeypatch.setattr(docid_kmeans, "our_leaves", lambda points, seed: [np.arange(len(points))])
    with pytest.raises(SystemExit, match="our leaves are worse than others'"):
        docid_kmeans.main(options.split())


@pytest.mark.skipif(not docid_scale.STATUS.exists(), reason="memory is told apart by Linux alone")
@pytest.mark.parametrize("kind", docid_scale.KINDS)
def test_scale_of_docids_is_measured(kind, tmp_path):
    path = str(tmp_path / "vectors.npy")
    docid_scale.make_points(path, 3000, 8)
    line = docid_scale.measure(path, kind)
    assert min(line["table_s"], line["table_cpu_s"], line["trie_s"], line["table_peak_mib"]) > 0
    assert line["mapped_mib"] == pytest.approx(3000 * 8 * 4 / 2**20, rel=0.01)
    assert ("collided" in line) is (kind != "semantic")


@pytest.mark.skipif(not docid_scale.STATUS.exists(), reason="memory is told apart by Linux alone")
def test_peak_memory_counts_what_is_freed_but_no_mapped_file(tmp_path):
    np.save(tmp_path / "file.npy", np.ones(8 << 20))  # 64 MiB
    mapped = np.load(tmp_path / "file.npy", mmap_mode="r")
    with docid_scale.Cost() as reading:
        assert mapped.sum() == 8 << 20
    with docid_scale.Cost() as writing:
        freed = np.ones(8 << 20)
        time.sleep(0.2)
        del freed
    assert reading.peak_mib < 32 < 60 < writing.peak_mib < 90
    assert writing.seconds >= 0.2 and writing.cpu_seconds < writing.seconds


@pytest.mark.parametrize("shape", made_docids.SHAPES)
def test_made_docids_are_distinct(shape):
    codes = made_docids.made_codes(3000, 20, 4, shape)
    assert len(np.unique(codes, axis=0)) == 3000
    largest = int(np.bincount(codes[:, 0]).max())
    assert (largest > 300) is (shape == "skewed")
    with pytest.raises(ValueError, match="9 docids of 1 codes below 8 were not found"):
        made_docids.made_codes(9, 8, 1, shape)


def test_static_is_asked_for_where_it_is_absent(monkeypatch, tmp_path):
    monkeypatch.delenv("STATIC_DECODING", raising=False)
    with pytest.raises(SystemExit, match="static-constraint-decoding"):
        static_peer.Static(str(tmp_path))


def test_indexes_of_other_docids_are_told_apart():
    codes = made_docids.made_codes(300, 9, 4)
    trie = index_build.build(codes, 9)
    # By hand what STATIC's builder makes of these docids: dense two levels, then edges.
    index = index_of(codes, 9)
    index_build.check_contents(trie, index, codes, 9)
    with pytest.raises(SystemExit, match="hold different docids"):
        index_build.check_contents(trie, index_of(codes[:200], 9), codes, 9)
    with pytest.raises(SystemExit, match="does not find the documents"):
        index_build.check_contents(trie, index, codes[::-1], 9)


def index_of(codes: np.ndarray, num_codes: int) -> static_peer.StaticIndex:
    """STATIC's arrays, from a dictionary of prefixes."""
    prefixes = [(code,) for code in range(num_codes)]
    prefixes += sorted({tuple(docid[:n]) for docid in codes.tolist() for n in range(2, 4)})
    state = {prefix: number for number, prefix in enumerate(prefixes, start=1)}
    children = {number: [] for number in range(len(state) + 1)}
    for docid in sorted({tuple(docid[:n]) for docid in codes.tolist() for n in range(2, 5)}):
        children[state[docid[:-1]]].append((docid[-1], state.get(docid, 0)))
    counts = [len(children[number]) for number in sorted(children)]
    mask, states = np.zeros((2, num_codes, num_codes), np.int32)
    for docid in codes.tolist():
        mask[tuple(docid[:2])], states[tuple(docid[:2])] = 1, state[tuple(docid[:2])]
    edges = np.array([edge for number in sorted(children) for edge in children[number]])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return static_peer.StaticIndex(edges, indptr, (), mask[0], mask.astype(bool), states)


def test_masks_that_differ_stop_the_benchmark():
    tokens, scores = np.array([[3, 5]]), np.array([[-1.0, -np.inf]])
    mask_op.assert_equal((tokens, scores), (np.array([[7, 3]]), np.array([[-np.inf, -1.0]])))
    with pytest.raises(SystemExit, match="different children"):
        mask_op.assert_equal((tokens, scores), (np.array([[7, 3]]), np.array([[-np.inf, -2.0]])))


def static_mask(log_probs, states, packed_csr, indptr, limit, vocab_size):
    """What STATIC's sparse mask is documented to return, state by state."""
    start, end = jnp.asarray(indptr)[states], jnp.asarray(indptr)[states + 1]
    place = start[:, None] + jnp.arange(limit)
    token, state = jnp.moveaxis(jnp.asarray(packed_csr)[place % len(packed_csr)], -1, 0)
    scores = jnp.take_along_axis(log_probs, token % vocab_size, axis=1)
    return jnp.where(place < end[:, None], scores, -jnp.inf), token, state


@pytest.mark.parametrize("level", [1, 2, 3])
def test_one_level_of_both_searches_picks_the_same_beams(level):
    setting = tpu_constraint.Setting(queries=2, beams=12, length=4, codes=9, source=5)
    codes = made_docids.made_codes(300, 9, 4)
    constraint = TrieConstraint(index_build.build(codes, 9))
    decoder = SimpleNamespace(
        generate_and_apply_logprobs_mask=static_mask,
        _gather_beams=lambda x, index: jax.vmap(lambda own, i: own[i])(x, index),
    )
    static = SimpleNamespace(decoder=decoder)
    peer = index_of(codes, 9)._replace(max_branches=(9, 9, 9, 9))
    trie = tpu_constraint.ours(constraint, level, setting)
    theirs = tpu_constraint.theirs(static, peer, level, setting)
    tpu_constraint.check(trie, theirs, peer, codes, level, setting)

    fewer = TrieConstraint(index_build.build(codes[:200], 9))
    trie = tpu_constraint.ours(fewer, level, setting)
    with pytest.raises(SystemExit, match=f"different beams at level {level}"):
        tpu_constraint.check(trie, theirs, peer, codes, level, setting)


def test_what_a_constraint_adds_to_a_level_of_a_tpu():
    cost = tpu_constraint.Cost
    found = {
        "free": cost(1.0, 40.0, 0.2),
        "trie": cost(1.0, 20.0, 0.3),
        "static": cost(1.0, 100.0, None),
    }
    line = tpu_constraint.fields(cost(5.0, 60.0, 0.7), found)
    assert line["trie_share_of_bytes"] == pytest.approx(-20 / 80)
    assert line["trie_share_of_seconds"] == pytest.approx(0.1 / 1.0)
    assert line["static_share_of_bytes"] == pytest.approx(60 / 160)
    assert line["static_share_of_seconds"] is None
    assert line["step_flops"] == 5.0 and line["free_seconds"] == 0.2


def test_a_level_is_compiled_from_shapes():
    setting = tpu_constraint.Setting(queries=2, beams=3, length=4, codes=9, source=5)
    compiler = tpu_constraint.Compiler(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    step = compiler.compile(*tpu_constraint.decoder_step("t5_tiny", setting))
    codes = made_docids.made_codes(300, 9, 4)
    free = tpu_constraint.ours(Free(index_build.build(codes, 9)), 2, setting)
    assert step.flops > 10 * compiler.compile(*free).flops > 0


@pytest.fixture(scope="module")
def tiny_decoders():
    setting = decoders.Setting("t5_tiny", 300, 10, 3, batch=2, source=5, vocab_size=100)
    return decoders.Decoders(setting)


def test_the_decoders_that_are_timed_find_the_same(tiny_decoders):
    found = tiny_decoders.ours(5)()
    decoders.assert_same(found, tiny_decoders.t5x(5, "compact")(), "ours")
    constraint_share.check(tiny_decoders, *found)
    tokens, scores = found
    with pytest.raises(SystemExit, match="other scores than the model"):
        constraint_share.check(tiny_decoders, tokens, scores - 1e-3)
    with pytest.raises(SystemExit, match="no document, or one twice"):
        constraint_share.check(tiny_decoders, np.repeat(tokens[:, :1], 5, axis=1), scores)
    with pytest.raises(SystemExit, match="ours has other scores"):
        decoders.assert_same((tokens, scores - 1e-3), found, "ours")
    with pytest.raises(SystemExit, match="ours ranks"):
        decoders.assert_same((tokens[:, ::-1], scores), found, "ours")


def test_pytorch_finds_the_same(tiny_decoders):
    pytest.importorskip("torch", reason="needs PyTorch: pip install 'dsi-jax[parity]'")
    for space in ("text", "compact"):
        found = tiny_decoders.ours(5, space)()
        decoders.assert_same(found, tiny_decoders.torch(5, space)(), space)


def test_slopes_are_those_of_a_line():
    found = beam_scaling.slopes([1, 10, 50], {"ours": [2.0, 11.0, 51.0], "t5x": [3.0, 21.0, 101.0]})
    assert found["slope_over_t5x"] == pytest.approx(0.5)


def test_lists_and_swapped_tries_are_checked():
    codes = made_docids.made_codes(310, 9, 4)
    old, new = index_build.build(codes[10:], 9), index_build.build(codes[:300], 9)
    assert index_swap.check(old, new, codes[:10]) in (0, 1)
    with pytest.raises(SystemExit, match="lacks documents"):
        index_swap.check(old, old, codes[:10])
    allowed = np.arange(300) % 3 == 0
    filter.check(old, filter.alive_bits(old, allowed), allowed)
    with pytest.raises(SystemExit, match="other documents than the list"):
        filter.check(old, filter.alive_bits(old, allowed), ~allowed)


def test_the_search_without_a_model_finds_the_likeliest_paths():
    codes = made_docids.made_codes(200, 7, 3)
    constraint = TrieConstraint(index_build.build(codes, 7))
    table = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)), jnp.float32)
    found = constrained_search.ours(constraint, table, 1, 200, 3)()
    log_probs = np.asarray(jax.nn.log_softmax(table))
    before = np.pad(codes, ((0, 0), (1, 0)))[:, :-1]  # the first code stands for the beginning
    totals = log_probs[before, codes].sum(axis=1)
    expected = codes[np.argsort(-totals)]
    np.testing.assert_array_equal(found[0, :, :], expected)


def test_searches_may_differ_in_one_docid_of_a_hundred():
    found = np.arange(200).reshape(1, 100, 2)
    other = found.copy()
    other[0, 0, 0] = 999
    constrained_search.assert_same(found, other)
    other[0, 1, 0] = 999
    with pytest.raises(SystemExit, match="of 100 docids STATIC finds 98"):
        constrained_search.assert_same(found, other)


def ranking(rows: list[int], scores: list[float]) -> BeamResult:
    rows, scores = np.array([rows], np.int32), np.array([scores], np.float32)
    return BeamResult(rows, scores, rows >= 0, np.zeros((*rows.shape, 1), np.int32))


@pytest.mark.parametrize(
    ("rows", "scores", "passed"),
    [
        ([4, 2, 7, -1], [-1.0, -2.0, -2.00001, -np.inf], True),
        ([4, 7, 2, -1], [-1.0, -2.0, -2.00001, -np.inf], True),  # a tie within rounding
        ([2, 4, 7, -1], [-1.0, -2.0, -2.00001, -np.inf], False),  # the scores are 1 apart
        ([4, 2, 7, -1], [-1.0, -2.0, -2.1, -np.inf], False),
        ([4, 2, 7, 8], [-1.0, -2.0, -2.00001, -3.0], False),  # a document too many
        ([4, 2, -1, -1], [-1.0, -2.0, -np.inf, -np.inf], False),
    ],
)
def test_rankings_are_equal_but_for_ties(rows, scores, passed):
    expected = ranking([4, 2, 7, -1], [-1.0, -2.0, -2.00001, -np.inf])
    assert gpu_decoding.compare_rankings(ranking(rows, scores), expected)["passed"] is passed


STEPS = [{"loss": 8.0, "grad_norm": 2.0}, {"loss": 7.0, "grad_norm": 2.0}]
NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "grad_norm", "bfloat16", "passed"),
    [
        ([8.00004, 7.005], 2.0001, [8.5, 7.5], True),
        ([8.0002, 7.0], 2.0, [8.5, 7.5], False),  # 2.5e-5 in the first
        ([8.0, 7.01], 2.0, [8.5, 7.5], False),  # 1.4e-3 in a later one
        ([8.0, 7.0], 2.001, [8.5, 7.5], False),
        ([8.0, NAN], 2.0, [8.5, 7.5], False),
        ([8.0, 7.0], NAN, [8.5, 7.5], False),
        ([8.0, 7.0], 2.0, [8.5, NAN], False),
    ],
)
def test_losses_are_held_to_tolerances(losses, grad_norm, bfloat16, passed):
    found = [{"loss": loss, "grad_norm": grad_norm} for loss in losses]
    beside = {"bfloat16": [{"loss": loss, "grad_norm": 9.0} for loss in bfloat16]}
    fields = gpu_training.compare_losses(found, STEPS, beside)
    assert fields["passed"] is passed
    assert fields["losses"] == pytest.approx(losses, nan_ok=True)
    assert fields["bfloat16_relative_differences"][0] == pytest.approx(0.0625)


def test_one_other_bit_is_found():
    tree = {"a": np.zeros(3, np.float32), "b": {"c": np.ones(2, np.int32)}}
    assert gpu_training.first_difference(tree, tree) is None
    other = {"a": np.array([0, 0, -0.0], np.float32), "b": tree["b"]}
    assert gpu_training.first_difference(other, tree) == "a"


@pytest.mark.parametrize(
    "setting", [gpu_setting.Setting(), gpu_setting.SMALL], ids=["full", "small"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu_models_and_optimizer_are_those_of_the_gin_files(setting, dtype):
    model = setting.models[0]
    files = ["runs/train.gin", f"models/{model}.gin", f"models/{setting.clip}.gin"]
    files += ["optimizers/adafactor.gin", "docids/naive.gin"]
    bindings = {
        "MODEL_DIR": "'somewhere'",
        "DTYPE": f"'{dtype}'",
        "LEARNING_RATE_FACTORS": "'constant'",
        "LEARNING_RATE": "0.001",
    }
    try:
        gin_utils.parse(
            gin_utils.GinArguments(files, [f"{name}={value}" for name, value in bindings.items()])
        )
        reference = gin.query_parameter("dsi_jax.jobs.trainer.train.config")
        config = reference.scoped_configurable_fn()
    finally:
        gin.clear_config()
    t5 = dataclasses.replace(
        model_lib.with_options(config.model.architecture, config.model), vocab_size=setting.vocab
    )
    assert gpu_setting.t5_config(setting, model, dtype) == t5
    towers, _ = model_lib.towers_of(config)
    text = towers.text.for_vocabulary(setting.vocab, 1)  # T5's end token
    assert gpu_setting.towers_config(setting, dtype) == dataclasses.replace(towers, text=text)
    assert config.optimizer == gpu_training.OPTIMIZER
    assert config.method.z_loss == gpu_training.Z_LOSS


def test_least_bytes_of_decoding():
    setting = dataclasses.replace(gpu_setting.SMALL, models=("t5_small",), layers=2, vocab=50)
    table = made_docids.made_table(made_docids.made_codes(60, 20, 3), 20)
    width, heads, mlp, layers, vocab = 512, 8 * 64, 2048, 2, 22
    for dtype, item in (("float32", 4), ("bfloat16", 2)):
        model = gpu_setting.new_model(setting, "t5_small", table, dtype)
        decoder = {"inputs": np.zeros((1, 3), np.int32)}
        batch = text_batch(np.ones((1, 4), np.int32)) | {"decoder": decoder}
        shapes = nn.meta.unbox(param_shapes(model, batch))
        found = gpu_decoding.least_bytes(
            model, shapes, num_tokens=7, beams_L=[1, 5, 6], batch_size=2
        )
        # Self-attention, query and output of cross-attention, mlp, three norms.
        layer = 4 * width * heads + 2 * width * heads + 2 * width * mlp + 3 * width
        step = layers * layer + width + vocab * width + 8 * 32  # norm, tied head, position bias
        keys = 2 * layers * heads
        own = 2 * (1 * 5 + 2 * 6) * keys  # the second step reads one position, the third two
        assert found == item * (layers * 2 * width * heads + 3 * (step + 7 * keys) + own)


def test_beams_are_no_more_than_prefixes():
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [2, 0, 0], [2, 0, 1], [2, 1, 1]], np.int32)
    table = made_docids.made_table(codes, 3)
    assert gpu_decoding.live_beams(table, 100) == [1, 2, 4]
    assert gpu_decoding.live_beams(table, 3) == [1, 2, 3]


def test_the_floor_is_told_where_the_bandwidth_is():
    without = gpu_decoding.step_fields(0.008, 4_000_000, 4, None)
    assert without == {"seconds_a_step": 0.002, "bytes_a_step": 1_000_000}
    fields = gpu_decoding.step_fields(0.008, 4_000_000, 4, 2.0)
    assert fields == without | {"floor_seconds": 0.0005, "share_of_floor": 0.25}
    assert gpu_decoding.step_fields(-0.001, 4_000_000, 4, 2.0)["share_of_floor"] is None


def test_a_table_without_a_jump_fails_its_check():
    setting = dataclasses.replace(gpu_setting.SMALL, documents=200, jump_docids=((3, 16),))
    fields = gpu_decoding.check_jump(setting)
    assert (fields["passed"], fields["jump"]) == (False, None)


def run_gpu_check(subject: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", subject, *TINIEST.split()],
        cwd=ROOT,
        # Programs this small are compiled for longer than they run.
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    abouts = [line for line in lines if line["kind"] == "about"]
    assert [line["part"] for line in abouts] == ["checks", "measurements"]
    deterministic = ["--xla_gpu_deterministic_ops=true" in line["xla_flags"] for line in abouts]
    assert deterministic == [True, False]
    checks = [line for line in lines if line["kind"] == "check"]
    assert all(line["passed"] for line in checks), checks
    assert lines[-1]["kind"] == "summary"
    assert lines[-1]["checks_passed"] == len(checks)
    assert lines[-1]["failed"] == []
    return lines


def names_of(lines: list[dict], kind: str) -> list[str]:
    return [line["name"] for line in lines if line["kind"] == kind]


@pytest.mark.slow
def test_all_of_training_runs_and_passes():
    lines = run_gpu_check("train")
    assert names_of(lines, "check") == [
        "repeat_text_float32",
        "repeat_image_float32",
        "loss_text",
        "loss_image",
        "checkpoint",
    ]
    assert names_of(lines, "measurement") == ["train_step_text", "train_step_image", "memory"]
    for line in lines:
        if line.get("name", "").startswith("train_step"):
            assert line["flops_per_step"] > 0
            assert ("share_of_peak" in line) is not line["unreliable"]


@pytest.mark.slow
def test_all_of_decoding_runs_and_passes():
    lines = run_gpu_check("decode")
    assert names_of(lines, "check") == [
        "search_atomic",
        "search_naive",
        "search_random",
        "search_jump",
    ]
    measured = [line for line in lines if line["kind"] == "measurement"]
    assert [(line["name"], line.get("kind_of_docid")) for line in measured] == [
        ("search", "atomic"),
        ("search", "naive"),
        ("beam_scaling", "naive"),
        ("beam_scaling", "naive"),
        ("beam_scaling", "naive"),
        ("jump", None),
        ("memory", None),
    ]
    *searches, slope, jump, _ = measured
    for line in (*searches, jump):
        assert ("share_of_floor" in line) is not line["unreliable"]
    for line in searches[:2]:
        assert ("constraint_share" in line) is not line["unreliable"]
    assert ("speedup" in jump) is not jump["unreliable"]
    assert ("seconds_a_beam" in slope) is not slope["unreliable"]


def test_what_fails_is_a_line_and_the_rest_goes_on(monkeypatch, capsys):
    def broken() -> dict:
        raise MemoryError("no room")

    runs = {"broken": broken, "wrong": lambda: {"passed": False}, "right": lambda: {"passed": True}}
    monkeypatch.setattr(gpu_training, "checks", lambda setting: runs)
    assert gpu_check.run_part("checks", "train", gpu_setting.SMALL, only=()) == 1
    _, *lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["passed"]) for line in lines] == [
        ("broken", False),
        ("wrong", False),
        ("right", True),
    ]
    assert lines[0]["error"] == "MemoryError: no room"


def test_gpu_check_needs_none_of_what_a_gpu_machine_may_lack():
    absent = ("gin", "seqio", "tensorflow", "transformers", "torch")
    code = f"import sys, benchmarks.gpu_check; print(set({absent}) & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_subjects_choose_what_runs():
    both = {
        part: {
            subject: list(gpu_check.runs_of(part, subject, gpu_setting.SMALL))
            for subject in ("train", "decode", "all")
        }
        for part in gpu_check.PARTS
    }
    assert both["checks"]["all"] == both["checks"]["train"] + both["checks"]["decode"]
    assert both["measurements"]["train"] == ["train_step_text", "train_step_image", "memory"]
    assert both["measurements"]["decode"] == ["search", "beam_scaling", "jump", "memory"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --only loss_text jump", "--only loss_text jump: expected some of repeat_text_"),
        ("--part measurements --only loss_text", "loss_text: expected some of train_step_text"),
        ("--check_batch 1", "check_batch is 1; expected at least 2"),
    ],
)
def test_gpu_check_refuses_what_it_cannot_do(capsys, arguments, message):
    with pytest.raises(SystemExit):
        gpu_check.main(arguments.split())
    assert message in capsys.readouterr().err


def test_a_part_takes_its_own_of_the_names(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_check, "run_part", lambda *arguments: asked.append(arguments) or 0)
    monkeypatch.setattr(gpu_check, "run_all", lambda parts, _: asked.append(parts) or 0)
    assert gpu_check.main(["--only", "loss_text", "search_jump"]) == 0
    assert gpu_check.main(["--part", "checks", "--only", "loss_text", "jump"]) == 0
    assert asked[0] == ["checks"]
    assert asked[1][:2] == ("checks", "all")


def test_image_input(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for index, shape in enumerate([(40, 50, 3), (300, 30, 3), (90, 90, 3)]):
        pixels = Image.fromarray(rng.integers(64, 192, shape, np.uint8))
        pixels.save(tmp_path / f"{index}.jpg")
    options = ["--size", "16", "--canvas", "64", "--rounds", "3", "--images", str(tmp_path)]
    assert image_input.main(options) == 0
    on_host, on_device = map(json.loads, capsys.readouterr().out.splitlines())
    assert (on_host["images"], on_host["host_bytes"], on_host["canvas_bytes"]) == (3, 768, 12_288)
    assert on_host["differing"] <= 1  # of 90 x 90, which do not fit
    assert on_device["p50_s"] > 0
    with pytest.raises(SystemExit, match="peer: 1 of 2 images differ by more than 1 / 255"):
        pixels = np.zeros((2, 4, 4, 3), np.uint8)
        image_input.check("peer", pixels, pixels + np.array([0, 2]).reshape(2, 1, 1, 1))
