"""The vocabulary of a run: one that is given, or one that is trained on its corpus."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dsi_jax.convert import hub
from dsi_jax.data.corpora.any_corpus import AnyCorpus
from dsi_jax.inputs import tokenizer as tokenizer_lib
from dsi_jax.inputs import tokenizer_registry
from dsi_jax.storage.model_dir import TOKENIZER, ModelDir
from dsi_jax.training import checkpoints
from dsi_jax.utils import atomic_files

BYTES = "bytes"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a trained vocabulary depends on; stored beside it.

    Attributes:
      corpus_hash: of the corpus.
      vocabulary_size: pieces, at most.
      seed: of the sample of texts.
    """

    corpus_hash: str
    vocabulary_size: int
    seed: int


_ORIGIN = tuple(field.name for field in dataclasses.fields(Origin))


def given(vocabulary: str) -> tokenizer_lib.Tokenizer:
    """The tokenizer that VOCABULARY names.

    Raises:
      FileNotFoundError: there is none; the path is named.
      ValueError: it is damaged.
    """
    if vocabulary == BYTES:
        return tokenizer_lib.ByteTokenizer()
    path = Path(vocabulary).expanduser()
    if not path.exists() and hub.is_hub_id(vocabulary):
        path = hub.local_directory(vocabulary)
    if (tokenizer := tokenizer_registry.from_directory(path)) is not None:
        return tokenizer
    if _is_or_has_checkpoint(path):
        metadata = checkpoints.load_metadata(checkpoints.latest_checkpoint(path))
        return tokenizer_registry.from_spec(metadata["tokenizer"])
    if (path / TOKENIZER).is_file():
        path /= TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(
            f"VOCABULARY {vocabulary!r}: {path} is no file; expected a SentencePiece model, a "
            f"directory with {tokenizer_lib.T5_MODEL}, a MODEL_DIR, a checkpoint, or {BYTES!r}"
        )
    if path.suffix == ".json":
        return _read_tokenizer(path)[0]
    return tokenizer_lib.SentencePieceTokenizer.from_file(path)


def _is_or_has_checkpoint(path: Path) -> bool:
    return (path / "metadata").is_dir() or any(
        (checkpoint / "metadata").exists() for checkpoint in ModelDir(path).checkpoints()
    )


def trained(model_dir: Path, origin: Origin) -> tokenizer_lib.Tokenizer | None:
    """The vocabulary that was trained in this MODEL_DIR; None if there is none.

    Raises:
      ValueError: it was trained on something else, or is damaged.
    """
    path = ModelDir(model_dir).tokenizer
    if not path.exists():
        return None
    tokenizer, stored = _read_tokenizer(path)
    for name, value in vars(origin).items():
        if stored[name] != value:
            raise ValueError(
                f"{path} was trained with {name} {stored[name]}; this run asks for {value}: "
                "remove the file or choose another MODEL_DIR"
            )
    return tokenizer


def train(
    corpus: AnyCorpus, origin: Origin, model_dir: Path, *, write: bool
) -> tokenizer_lib.Tokenizer:
    """Trains one on the documents and training queries; bytes where they have not a word."""
    texts = corpus.document_texts()
    if corpus.has_training_queries:
        texts += corpus.queries["train"].texts
    if not any(texts):
        return tokenizer_lib.ByteTokenizer()  # images without a word
    tokenizer = tokenizer_lib.train_sentencepiece(
        texts, vocab_size=origin.vocabulary_size, seed=origin.seed
    )
    if write:
        value = vars(origin) | {"tokenizer": tokenizer.spec()}
        atomic_files.write_json(ModelDir(model_dir).tokenizer, value)
    return tokenizer


def _read_tokenizer(path: Path) -> tuple[tokenizer_lib.Tokenizer, dict[str, Any]]:
    """The tokenizer of a run's tokenizer.json, and what it was trained on."""
    try:
        stored = json.loads(path.read_text("utf-8"))
        tokenizer = tokenizer_registry.from_spec(stored["tokenizer"])
        origin = {name: stored[name] for name in _ORIGIN}
    except KeyError as error:
        raise ValueError(f"{path} is no vocabulary of a run: it lacks {error}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no vocabulary of a run: {error}") from error
    return tokenizer, origin
