"""The image DSI as a whole: gradients, absent modalities, groups of parameters, beam search."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import gin
from dsi_jax.cli import gin_utils
from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.inputs.streams import interleave
from dsi_jax.models import transposed_kernels
from dsi_jax.models.dsi import DSIConfig, DSIModel, shift_right
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.ranking.docid_ranker import DocidRanker, to_host
from dsi_jax.training import param_groups, partitioning, program
from dsi_jax.training.losses import cross_entropy
from dsi_jax.training.optimizers import AdamW
from dsi_jax.training.param_groups import ParamGroup
from dsi_jax.training.schedules import Schedule
from dsi_jax.training.state import TrainState

SIDE, LENGTH, NUM_DOCUMENTS = 16, 6, 23
TABLE = NaiveString().build(DocumentColumns([f"k{i}" for i in range(NUM_DOCUMENTS)], "corpus"))
TEXTS, IMAGES = 4, 2
RATE = 0.01


def make_model(text: bool = True) -> DSIModel:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    towers = TowersConfig(
        ClipTextConfig(**sizes, vocab_size=30, eos_token_id=1) if text else None,
        ClipVisionConfig(**sizes, image_size=SIDE, patch_size=8),
    )
    t5 = T5Config(
        vocab_size=8,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
    )
    return DSIModel(DSIConfig(t5, TABLE.vocab_size, TABLE.length, towers=towers))


def make_batch(texts: int = TEXTS, images: int = IMAGES) -> dict:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 30, (texts, LENGTH)).astype(np.int32)
    tokens[:, -1] = 1
    streams = {
        "text": {"tokens": tokens, "mask": tokens != 0},
        "image": {"pixels": rng.integers(0, 256, (images, SIDE, SIDE, 3)).astype(np.uint8)},
    }
    rows = rng.integers(0, NUM_DOCUMENTS, texts + images).astype(np.int32)
    targets = TABLE.docids(rows)
    return {m: s for m, s in streams.items() if len(next(iter(s.values())))} | {
        "decoder": {
            "inputs": np.asarray(shift_right(targets)),
            "targets": targets,
            "weights": (targets != 0).astype(np.float32),
        },
        "row": rows,
        "is_indexing": np.zeros(len(rows), np.int32),
    }


def flat(tree) -> dict:
    return {k: np.array(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


@pytest.fixture(scope="module")
def params():
    """Random parameters, layer norms and biases too, so that all that is computed matters."""
    model = make_model()
    init = functools.partial(model.init, deterministic=True)
    shapes = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), make_batch())["params"])
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        mean = float(path[-1].key == "scale")
        return np.float32(mean + 0.3 * rng.standard_normal(leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_transposed_kernels_leave_the_towers_alone(params):
    model, batch = make_model(), make_batch()
    turned_model, turned = transposed_kernels.for_search(model, params)
    for name in ("text_tower", "image_tower"):
        jax.tree.map(lambda a, b: np.testing.assert_(a is b), turned[name], params[name])
    logits = [
        jax.jit(functools.partial(which.apply, deterministic=True))({"params": own}, batch)
        for which, own in ((model, params), (turned_model, turned))
    ]
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)


def test_gradients_reach_both_towers_and_the_decoder(params):
    model, batch = make_model(), make_batch()

    def loss(params):
        return cross_entropy.docid_loss(
            model.apply({"params": params}, batch, deterministic=True), batch
        )[0]

    largest = {path: np.abs(g).max() for path, g in flat(jax.jit(jax.grad(loss))(params)).items()}
    # A key's bias shifts all logits of a query alike.
    without = {path for path, value in largest.items() if value < 1e-5}
    assert all(path.endswith("k_proj/bias") for path in without), without
    parts = {path.partition("/")[0] for path in largest.keys() - without}
    assert parts == {"text_tower", "image_tower", "docid_embedder", "decoder"}


def test_a_mixed_batch_gives_what_each_modality_gives_alone(params):
    model, batch = make_model(), make_batch()
    apply = jax.jit(functools.partial(model.apply, deterministic=True))
    mixed = apply({"params": params}, batch)
    places = interleave([np.arange(TEXTS), TEXTS + np.arange(IMAGES)])
    for modality, first, last in (("text", 0, TEXTS), ("image", TEXTS, TEXTS + IMAGES)):
        mine = np.flatnonzero((first <= places) & (places < last))
        alone = {modality: batch[modality], "decoder": {"inputs": batch["decoder"]["inputs"][mine]}}
        np.testing.assert_allclose(
            apply({"params": params}, alone), mixed[mine], rtol=0, atol=1e-5, err_msg=modality
        )


class RunsBoth(nn.Module):
    """What is avoided: both towers on every example, of which one memory is thrown away."""

    config: DSIConfig

    def setup(self) -> None:
        self.dsi = DSIModel(self.config)

    def __call__(self, batch, *, deterministic: bool) -> jax.Array:
        streams = ({m: batch[m]} for m in ("text", "image"))
        memories, masks = zip(*map(self.dsi.encode, streams), strict=True)
        length = max(mask.shape[1] for mask in masks)
        mask_BxS = jnp.zeros((len(masks[0]), length), bool)
        memory_BxSxD = jnp.zeros((*mask_BxS.shape, memories[0].shape[2]))
        for kind, (memory, mask) in enumerate(zip(memories, masks, strict=True)):
            rest = [(0, 0), (0, length - mask.shape[1])]
            mine_Bx1 = batch["kind"][:, None] == kind
            mask_BxS = jnp.where(mine_Bx1, jnp.pad(mask, rest), mask_BxS)
            memory = jnp.pad(memory, [*rest, (0, 0)])
            memory_BxSxD = jnp.where(mine_Bx1[..., None], memory, memory_BxSxD)
        inputs = batch["decoder"]["inputs"]
        return self.dsi.decode(memory_BxSxD, mask_BxS, inputs, deterministic=deterministic)


def gradient_flops(model, params, batch) -> float:
    """Of a batch's gradient, lowered and not compiled."""

    def loss(params):
        outputs = model.apply({"params": params}, batch, deterministic=True)
        return cross_entropy.docid_loss(outputs, batch)[0]

    return jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]


def test_no_tower_runs_on_an_absent_example(params):
    """Half texts and half images take about half the work of both towers on every example."""
    half, config = 32, make_model().config
    mixed = make_batch(half, half)
    streams = {m: make_batch(2 * half, 2 * half)[m] for m in ("text", "image")}
    whole = mixed | streams | {"kind": np.arange(2 * half) % 2}
    ours = gradient_flops(DSIModel(config), params, mixed)
    both = gradient_flops(RunsBoth(config), {"dsi": params}, whole)
    assert ours < 0.7 * both, ours / both


# Groups of parameters


def step_once(groups, params, batch) -> tuple[dict, dict]:
    optimizer = AdamW(Schedule("constant", RATE), weight_decay=0.0, groups=groups)
    run = program.build(
        make_model(),
        optimizer,
        partitioning.one_device_mesh(),
        batch,
        train_steps=5,
        microbatches=1,
        loss=cross_entropy.docid_loss,
    )
    placed = jax.tree.map(jnp.array, params)
    key = jax.random.key_data(jax.random.key(0))
    state = TrainState(jnp.int32(0), placed, run.transformation.init(placed), key)
    state, _ = run.step(state, batch)
    return flat(state.params), flat(params)


def test_frozen_towers_keep_every_bit_and_groups_move_at_their_rates(params):
    groups = (
        ParamGroup("vision", "image_tower/vision_model/.*", frozen=True),
        ParamGroup("text", "text_tower/text_model/.*", rate=0.01),
        ParamGroup("docids", "docid_embedder/.*|decoder/logits_dense/.*", rate=0.5),
    )
    batch = make_batch()
    after, before = step_once(groups, params, batch)
    plain, _ = step_once((), params, batch)
    rates = {"image_tower/vision_model": 0.0, "text_tower/text_model": 0.01, "docid_embedder": 0.5}
    moved = dict.fromkeys(rates, 0)
    for path, value in after.items():
        prefix = next((p for p in rates if path.startswith(p)), None)
        if prefix == "image_tower/vision_model":
            assert value.tobytes() == before[path].tobytes(), path
        else:
            rate = rates.get(prefix, 0.5 if "logits_dense" in path else 1.0)
            np.testing.assert_allclose(
                value - before[path], rate * (plain[path] - before[path]), atol=2e-6, err_msg=path
            )
        if prefix:
            moved[prefix] += (plain[path] != before[path]).any()
    assert min(moved.values()) > 0
    # Without groups the step moves all there is: both towers, what leads to the decoder, and it.
    still = [path for path, value in plain.items() if (value == before[path]).all()]
    assert all(path.endswith("k_proj/bias") for path in still), still


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_shipped_groups_suit_an_image_dsi(optimizer, params):
    files = [f"optimizers/{optimizer}.gin", "optimizers/clip_groups.gin"]
    gin_utils.parse(gin_utils.GinArguments(files, ["LAYER_DECAY=0.5", "UNFREEZE_AT=100"]))
    chosen = gin.query_parameter("OPTIMIZER/macro.value").scoped_configurable_fn()
    gin.clear_config()
    shares = traverse_util.flatten_dict(param_groups.resolve(chosen.groups, params), sep="/")
    found = {path: share.factor for path, share in shares.items()}
    assert found["image_tower/vision_model/encoder/layers/0/mlp/fc1/kernel"] == 0.01
    assert found["image_tower/vision_model/embeddings/patch_embedding/kernel"] == 0.005
    assert found["text_tower/text_model/final_layer_norm/scale"] == 0.01
    assert found["image_tower/memory_projection/kernel"] == 1.0
    lines = param_groups.describe(chosen.groups, params)
    assert [line.partition(":")[0] for line in lines] == [
        "vision",
        "text",
        "docid embedding",
        "decoder",
        "all others",
    ]
    assert "frozen until step 100" in lines[0] and "frozen" not in lines[3]


# Search


def test_search_by_an_image_equals_scoring_every_document(params):
    model, images = make_model(), 3
    pixels = np.random.default_rng(5).integers(0, 256, (images, SIDE, SIDE, 3)).astype(np.uint8)
    searcher = DocidRanker(model, TABLE, beam_size=NUM_DOCUMENTS, constraint="trie")
    result = to_host(searcher.search(params, {"image": {"pixels": pixels}}))
    docids = TABLE.docids(np.arange(NUM_DOCUMENTS, dtype=np.int32))
    batch = {
        "image": {"pixels": np.repeat(pixels, NUM_DOCUMENTS, axis=0)},
        "decoder": {"inputs": np.tile(np.asarray(shift_right(docids)), (images, 1))},
    }
    logits = jax.jit(functools.partial(model.apply, deterministic=True))({"params": params}, batch)
    targets = np.tile(docids, (images, 1))
    scores = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], axis=-1)
    scores = (scores[..., 0] * (targets != 0)).sum(-1).reshape(images, NUM_DOCUMENTS)
    assert result.valid.all()
    np.testing.assert_array_equal(result.rows, np.argsort(-scores, axis=1, kind="stable"))
    np.testing.assert_allclose(result.scores, -np.sort(-scores, axis=1), rtol=0, atol=1e-4)


def test_a_batch_of_nothing_is_refused(params):
    with pytest.raises(ValueError, match=r"batch has \['decoder'\]; expected 'text', 'image'"):
        make_model().apply({"params": params}, {"decoder": {}}, method="encode")


def test_absent_encoders_are_named(params):
    batch = make_batch()
    with pytest.raises(ValueError, match="the batch has texts, and the model has no encoder of t"):
        jax.eval_shape(functools.partial(make_model(text=False).init, deterministic=True),
                       jax.random.key(0), batch)  # fmt: skip
    model = DSIModel(dataclasses.replace(make_model().config, towers=None))
    with pytest.raises(ValueError, match="batch has images, and the model has no encoder of imag"):
        jax.eval_shape(functools.partial(model.init, deterministic=True), jax.random.key(0), batch)
