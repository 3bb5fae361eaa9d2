"""What the checks and measurements of `gpu_check` share: sizes, devices, tables, models, texts."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from dsi_jax.docids.document_columns import DocumentColumns
from dsi_jax.docids.kinds.atomic import Atomic
from dsi_jax.docids.kinds.naive import NaiveString
from dsi_jax.docids.kinds.random_control import Random
from dsi_jax.docids.table import END_TOKEN, FIRST_CODE, DocidTable
from dsi_jax.models import t5_sizes
from dsi_jax.models.dsi import DSIConfig, DSIModel, padded_vocab_size
from dsi_jax.models.encoders import clip_sizes
from dsi_jax.models.encoders.clip_config import ClipConfig
from dsi_jax.models.encoders.config import TowersConfig
from dsi_jax.models.t5 import T5Config

# By the file of gin/models that binds it.
CLIPS: dict[str, Callable[..., ClipConfig]] = {
    "clip_b32": clip_sizes.vit_b32,
    "clip_tiny": functools.partial(clip_sizes.clip_tiny, image_size=64, patch_size=8),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """The sizes of all checks and measurements.

    Attributes:
      models: files of gin/models (names in `models.t5_sizes`); the checks and the searches use
        the first.
      clip: a file of gin/models, one of CLIPS: the towers of the image DSI.
      dtypes: of the matrix products, each trained and repeated.
      layers: of T5's encoder and decoder each; None for the model's own.
      vocab: text tokens, T5's and those of the tower of texts.
      batch: examples of a measured training step; those of an image DSI are half texts, half
        images.
      check_batch: examples of a checked one, and queries of a checked search.
      source: tokens of a text.
      documents: of the naive and random tables, and of the checked jump.
      atomic_documents: of the atomic table.
      query_batches: B of the measured searches.
      beam_sizes: M of the measured searches; the checked searches have the first.
      scaled_beams: M of `beam_scaling`.
      scaled_batch: B of `beam_scaling`.
      jump_docids: levels and codes of a level of `jump`; the check has the first.
      jump_documents: of the measured jump.
      jump_batches: B of the measured jump.
      decode_dtype: of the matrix products of measured searches.
      rounds: timed rounds.
      steps_a_round: training steps dispatched before the device is waited for, as a run does.
      peak_tflops: of the device, by dtype; shares of it are printed where it is known.
      bandwidth_gbs: of the device's memory, in 1e9 bytes a second; None: unknown.

    Raises:
      ValueError: a training batch is too small to hold a text and an image.
    """

    models: tuple[str, ...] = ("t5_small",)
    clip: str = "clip_b32"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    layers: int | None = None
    vocab: int = t5_sizes.VOCAB_SIZE
    batch: int = 256
    check_batch: int = 16
    source: int = 64
    documents: int = 100_000
    atomic_documents: int = 10_000
    query_batches: tuple[int, ...] = (1, 8, 64)
    beam_sizes: tuple[int, ...] = (10,)
    scaled_beams: tuple[int, ...] = (1, 10, 50, 100, 200)
    scaled_batch: int = 8
    jump_docids: tuple[tuple[int, int], ...] = ((32, 256), (8, 2048))
    jump_documents: int = 1_000_000
    jump_batches: tuple[int, ...] = (1, 8)
    decode_dtype: str = "float32"
    rounds: int = 30
    steps_a_round: int = 5
    peak_tflops: tuple[tuple[str, float], ...] = ()
    bandwidth_gbs: float | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "check_batch"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 2")


SMALL = Setting(
    models=("t5_tiny",),
    clip="clip_tiny",
    vocab=1024,
    batch=16,
    check_batch=4,
    source=16,
    documents=2_000,
    atomic_documents=500,
    query_batches=(1, 4),
    beam_sizes=(5,),
    scaled_beams=(1, 5, 20),
    scaled_batch=2,
    jump_docids=((8, 16), (6, 64)),
    jump_documents=2_000,
    jump_batches=(1,),
    rounds=10,
    steps_a_round=2,
)


def device() -> jax.Device:
    """What is checked and measured."""
    return jax.devices()[0]


def reference() -> jax.Device:
    """What results are compared with."""
    return jax.devices("cpu")[0]


@functools.cache
def table(kind: str, setting: Setting) -> DocidTable:
    """The docids of a kind: "atomic", "naive" or "random"."""
    count = setting.atomic_documents if kind == "atomic" else setting.documents
    builder = {"atomic": Atomic(), "naive": NaiveString(), "random": Random(clusters=32)}[kind]
    return builder.build(DocumentColumns([f"document {row}" for row in range(count)]))


def t5_config(setting: Setting, name: str, dtype: str) -> T5Config:
    """The architecture that gin/models/<name>.gin binds, with runs/train.gin's DROPOUT_RATE."""
    config = getattr(t5_sizes, name)(vocab_size=setting.vocab, dropout_rate=0.1, dtype=dtype)
    if setting.layers is None:
        return config
    layers = {"num_encoder_layers": setting.layers, "num_decoder_layers": setting.layers}
    return dataclasses.replace(config, **layers)


def towers_config(setting: Setting, dtype: str) -> TowersConfig:
    """The towers that gin/models/<clip>.gin binds, in a run with T5's tokenizer."""
    clip = CLIPS[setting.clip](dtype=dtype)
    return TowersConfig(clip.text.for_vocabulary(setting.vocab, END_TOKEN), clip.vision)


def new_model(
    setting: Setting, name: str, docids: DocidTable, dtype: str, *, towers: bool = False
) -> DSIModel:
    """A text DSI, or an image DSI with towers, for a docid table; as a run makes it."""
    return DSIModel(
        DSIConfig(
            t5_config(setting, name, dtype),
            padded_vocab_size(docids.vocab_size),
            docids.length,
            towers=towers_config(setting, dtype) if towers else None,
        )
    )


def random_texts(rng: np.random.Generator, count: int, setting: Setting) -> np.ndarray:
    """Token ids int32 [count, S], texts of unlike lengths that end with the end token."""
    tokens_BxS = rng.integers(FIRST_CODE, setting.vocab, (count, setting.source), dtype=np.int32)
    last_Bx1 = rng.integers(0, setting.source, count)[:, None]
    positions_S = np.arange(setting.source)
    tokens_BxS[positions_S == last_Bx1] = END_TOKEN
    return tokens_BxS * (positions_S <= last_Bx1)
