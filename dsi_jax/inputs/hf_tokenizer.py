"""Tokenizers of Hugging Face's `tokenizer.json`: WordPiece of BERT, and any other.

They are the files' own, run by Hugging Face's tokenizers: normalisation, splits, special tokens at
both ends.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Tokenizer

from dsi_jax.inputs.packed import as_text, packed, unpacked

FILE = "tokenizer.json"
_PADS = ("[PAD]", "<pad>")


class HuggingFaceTokenizer:
    """The tokenizer of a `tokenizer.json`; see `dsi_jax.inputs.tokenizer.Tokenizer`.

    A text that spells out the padding token holds it, as with transformers.

    Args:
      data: the file; what it says of truncation is left out, as lengths are the run's own.
      pad_id: the token to pad with; None: what the file pads with, else "[PAD]" or "<pad>".

    Raises:
      ValueError: it is no tokenizer, puts no special token behind a text, or has no token to pad
        with.
    """

    kind: ClassVar[str] = "huggingface"

    def __init__(self, data: bytes, pad_id: int | None = None):
        try:
            value = json.loads(data)
            padding = value.pop("padding", None) or {}
            bare = value | {"truncation": None, "padding": None}
            self._data = json.dumps(bare, sort_keys=True).encode()
            self._tokenizer = Tokenizer.from_str(self._data.decode())
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"no tokenizer of Hugging Face: {error}") from error
        around = self._tokenizer.encode("").ids
        if len(around) not in (1, 2):
            raise ValueError(
                f"an empty text has the ids {around}; expected an end token, with a start token "
                "before it or without"
            )
        self.start_id = around[0] if len(around) == 2 else None
        self.end_id = around[-1]
        self.pad_id = padding.get("pad_id", pad_id)
        if self.pad_id is None:
            known = [self._tokenizer.token_to_id(token) for token in _PADS]
            self.pad_id = next((i for i in known if i is not None), None)
        if self.pad_id is None:
            raise ValueError(f"no token to pad with; expected one of {_PADS}")

    @classmethod
    def from_file(cls, path: str | Path) -> "HuggingFaceTokenizer":
        """Reads a `tokenizer.json`, or that of a directory.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is damaged; the message names it.
        """
        path = Path(path)
        if path.is_dir():
            path /= FILE
        try:
            return cls(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path) -> "HuggingFaceTokenizer | None":
        """See `Tokenizer`: of any model whose directory has a tokenizer.json and a config.json."""
        if all((directory / name).is_file() for name in (FILE, "config.json")):
            return cls.from_file(directory)
        return None

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "HuggingFaceTokenizer":
        """See `Tokenizer`."""
        return cls(unpacked(spec, "the tokenizer"), spec["pad_id"])

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return self._tokenizer.get_vocab_size()

    @property
    def hash(self) -> str:
        """See `Tokenizer`."""
        return hashlib.sha256(f"{self.kind} {self.pad_id} ".encode() + self._data).hexdigest()

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """See `Tokenizer`; a text that is cut keeps its end."""
        if length < 1:
            raise ValueError(f"texts cannot be tokenised to length {length}, expected at least 1")
        encodings = self._tokenizer.encode_batch([as_text(text) for text in texts])
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, encoding in zip(rows, encodings, strict=True):
            ids = encoding.ids
            if len(ids) > length:
                ids = [*ids[: length - 1], self.end_id]
            row[: len(ids)] = ids
        return rows

    def mask(self, tokens_BxS: np.ndarray) -> np.ndarray:
        """See `Tokenizer`."""
        return tokens_BxS != self.pad_id

    def spec(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"type": self.kind, "pad_id": self.pad_id} | packed(self._data)
