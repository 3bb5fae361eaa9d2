"""Tokenizers by the kind that a checkpoint names, or by the files that they are read from."""

from pathlib import Path
from typing import Any

from dsi_jax.inputs.clip_tokenizer import ClipTokenizer
from dsi_jax.inputs.hf_tokenizer import HuggingFaceTokenizer
from dsi_jax.inputs.tokenizer import ByteTokenizer, SentencePieceTokenizer, Tokenizer

_KINDS: dict[str, type[Tokenizer]] = {}


def register(*kinds: type[Tokenizer]) -> None:
    """Makes kinds known; files that several recognise are read by the one registered first."""
    _KINDS.update({known.kind: known for known in kinds})


def from_spec(spec: dict[str, Any]) -> Tokenizer:
    """Rebuilds a tokenizer from its `spec`.

    Raises:
      ValueError: the type is unknown, or the data is damaged.
    """
    kind = spec.get("type")
    if kind not in _KINDS:
        *names, last = (repr(name) for name in sorted(_KINDS))
        raise ValueError(
            f"unknown type of tokenizer {kind!r}, expected {', '.join(names)} or {last}"
        )
    return _KINDS[kind].from_spec(spec)


def from_directory(directory: Path) -> Tokenizer | None:
    """Reads the tokenizer of a pretrained model; None where no kind recognises the directory.

    Raises:
      FileNotFoundError: a file of it is absent.
      ValueError: it is damaged.
    """
    found = (known.from_directory(directory) for known in _KINDS.values())
    return next((tokenizer for tokenizer in found if tokenizer is not None), None)


register(ClipTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer, ByteTokenizer)
