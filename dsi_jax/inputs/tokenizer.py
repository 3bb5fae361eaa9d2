"""Text -> tokens, the same in training and in search.

A tokenizer travels with every checkpoint as plain JSON (`spec`), so that search needs no vocabulary
file. Ids of the tokenizers here follow T5: 0 pads and 1 ends a text; `tokenizer_registry` knows all
kinds.
"""

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import sentencepiece

PAD_ID = 0
END_ID = 1
T5_MODEL = "spiece.model"  # what T5's directories call their vocabulary

_BYTES_PER_TOKEN = 16  # a text is first cut to this many bytes a token that is kept
_MAX_LINE_CHARACTERS = 16_384


class Tokenizer(Protocol):
    """Turns texts into rows of token ids.

    Attributes:
      kind: names the class in `spec`.
      vocab_size: the number of ids, pad and end included.
      end_id: ends a text; the first of a row does.
      pad_id: follows it.
      start_id: begins every row; None: rows begin with their text.
      hash: SHA-256 of what determines the ids, in hexadecimal.
    """

    kind: ClassVar[str]
    end_id: int
    pad_id: int
    start_id: int | None

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "Tokenizer":
        """Rebuilds the tokenizer of a `spec`.

        Raises:
          ValueError: the data is damaged.
        """

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer | None":
        """Reads the tokenizer of a pretrained model; None where there is none of this kind.

        Raises:
          FileNotFoundError: a file of it is absent.
          ValueError: it is damaged.
        """

    @property
    def vocab_size(self) -> int: ...

    @property
    def hash(self) -> str: ...

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """Tokenises texts, as seqio's trim, append EOS and pad do.

        Args:
          texts: B strings, or their UTF-8 bytes. What is not valid Unicode is replaced.
          length: S >= 1.

        Returns:
          int32 [B, S]: `start_id` if there is one, the ids of each text that fit, then `end_id`,
          then `pad_id`s.

        Raises:
          ValueError: if the length is below 1.
        """

    def mask(self, tokens_BxS: np.ndarray) -> np.ndarray:
        """Tells a text, its end included, from what pads it.

        Args:
          tokens_BxS: int [B, S], as `encode_batch` gives them.

        Returns:
          bool [B, S].
        """

    def spec(self) -> dict[str, Any]:
        """All that `tokenizer_registry.from_spec` needs to rebuild the tokenizer, as plain JSON."""


class ByteTokenizer:
    """UTF-8 bytes as tokens, byte b as b + 3 (ByT5, Xue et al. 2022; `seqio.ByteVocabulary`).

    Example:
      >>> ByteTokenizer().encode_batch(["abc", "d"], length=3)
      array([[100, 101,   1],
             [103,   1,   0]], dtype=int32)
    """

    kind = "byte"
    vocab_size = 259
    end_id = END_ID
    pad_id = PAD_ID
    start_id = None

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ByteTokenizer":
        """See `Tokenizer`."""
        del spec
        return cls()

    @classmethod
    def from_directory(cls, directory: Path) -> None:
        """See `Tokenizer`: no file is needed, so none tells."""
        del directory

    @property
    def hash(self) -> str:
        """See `Tokenizer`."""
        return _digest(self.spec())

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """See `Tokenizer`."""
        ids = (np.frombuffer(_utf8(text)[: length - 1], np.uint8) + 3 for text in texts)
        return _padded([row.astype(np.int32) for row in ids], length)

    def mask(self, tokens_BxS: np.ndarray) -> np.ndarray:
        """See `Tokenizer`."""
        return tokens_BxS != PAD_ID

    def spec(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"type": self.kind}


class SentencePieceTokenizer:
    """A SentencePiece model (Kudo and Richardson 2018) with T5's ids: pad 0, end 1.

    Args:
      model: the bytes of a `.model` file.
      extra_ids: T5's sentinels `<extra_id_n>` appended to the vocabulary, the last id being number
        0, as `seqio.SentencePieceVocabulary(..., extra_ids)` does; 100 for T5's own vocabulary.

    Raises:
      ValueError: if the bytes are no SentencePiece model, or its pad and end ids are not 0 and 1.
    """

    kind = "sentencepiece"
    end_id = END_ID
    pad_id = PAD_ID
    start_id = None

    def __init__(self, model: bytes, extra_ids: int = 0):
        if extra_ids < 0:
            raise ValueError(f"extra_ids is {extra_ids}, expected at least 0")
        self.model = model
        self.extra_ids = extra_ids
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model + _sentinel_pieces(extra_ids))
        except RuntimeError as error:
            raise ValueError(
                f"no SentencePiece model with {extra_ids} extra ids: {error}"
            ) from error
        pad_id, end_id = self._processor.pad_id(), self._processor.eos_id()
        if (pad_id, end_id) != (PAD_ID, END_ID):
            raise ValueError(
                f"the SentencePiece model has pad_id {pad_id} and eos_id {end_id}, expected "
                f"{PAD_ID} and {END_ID} as in T5: train it with --pad_id=0 --eos_id=1 --unk_id=2"
            )
        self._words_are_independent = not any(map(_spans_words, self._pieces()))

    @classmethod
    def from_file(cls, path: str | os.PathLike, extra_ids: int = 0) -> "SentencePieceTokenizer":
        """Reads a `.model` file.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: as the class; the message names the file.
        """
        model = Path(path).read_bytes()
        try:
            return cls(model, extra_ids)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "SentencePieceTokenizer":
        """See `Tokenizer`."""
        model = base64.b64decode(spec["model"])
        actual = hashlib.sha256(model).hexdigest()
        if actual != spec["sha256"]:
            raise ValueError(
                f"the SentencePiece model has sha256 {actual}, expected {spec['sha256']}"
            )
        return cls(model, spec["extra_ids"])

    @classmethod
    def from_directory(cls, directory: Path) -> "SentencePieceTokenizer | None":
        """See `Tokenizer`: the vocabulary that T5's directories hold."""
        path = directory / T5_MODEL
        return cls.from_file(path) if path.is_file() else None

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`; sentinels are included."""
        return self._processor.get_piece_size()

    @property
    def first_sentinel(self) -> int:
        """The id of <extra_id_99>, or of the first of fewer: where T5 has or would have it."""
        pieces = self._pieces()
        for name in ("▁<extra_id_99>", "<extra_id_99>"):  # a model that has them itself
            if name in pieces:
                return pieces.index(name)
        return self.vocab_size - self.extra_ids

    @property
    def unknown_id(self) -> int:
        """The id of what the vocabulary cannot spell."""
        return self._processor.unk_id()

    @property
    def hash(self) -> str:
        """See `Tokenizer`."""
        return _digest({name: value for name, value in self.spec().items() if name != "model"})

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """See `Tokenizer`.

        Long texts are cut before they are tokenised, which changes nothing: no piece of the
        vocabulary spans two words (else nothing is cut), so the ids of a word depend on that word
        alone, and a text whose beginning gives too few ids is tokenised again in full.
        """
        texts = [_utf8(text) for text in texts]
        starts = texts
        if self._words_are_independent:
            starts = [_beginning(text, _BYTES_PER_TOKEN * length) for text in texts]
        ids = self._processor.encode(starts, out_type=int)
        short = [
            i for i, row in enumerate(ids)
            if len(row) < length - 1 and len(starts[i]) < len(texts[i])
        ]  # fmt: skip
        for i, row in zip(short, self._processor.encode([texts[i] for i in short]), strict=True):
            ids[i] = row
        return _padded(ids, length)

    def mask(self, tokens_BxS: np.ndarray) -> np.ndarray:
        """See `Tokenizer`."""
        return tokens_BxS != PAD_ID

    def spec(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {
            "type": self.kind,
            "extra_ids": self.extra_ids,
            "sha256": hashlib.sha256(self.model).hexdigest(),
            "model": base64.b64encode(self.model).decode("ascii"),
        }

    def _pieces(self) -> list[str]:
        return self._processor.id_to_piece(list(range(self.vocab_size)))


def bare_ids(tokenizer: Tokenizer, texts: Sequence[str | bytes], most: int) -> list[np.ndarray]:
    """The ids of each text without start, end and padding, at most `most`; B arrays int32.

    What pads is told by its place, not by its id: to CLIP 0 and 1 are tokens like any other.
    """
    begin = 0 if tokenizer.start_id is None else 1
    ids_BxS = tokenizer.encode_batch(texts, begin + most + 1)
    ends_B = (ids_BxS == tokenizer.end_id).argmax(axis=1)
    return [row[begin:end] for row, end in zip(ids_BxS, ends_B, strict=True)]


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    seed: int = 42,
    max_sentences: int = 1_000_000,
    lower_case: bool = True,
) -> SentencePieceTokenizer:
    """Trains a unigram vocabulary on the lines of texts (Kudo 2018), with T5's ids.

    The result is a function of the arguments alone: lines are sampled here rather than by
    SentencePiece, and one thread trains. Rare characters are spelled in bytes, so nothing is
    unknown.

    Args:
      texts: the texts; each line is a sentence, its first 16,384 characters are used.
      vocab_size: the largest vocabulary; a small corpus gives a smaller one.
      seed: of the sample.
      max_sentences: how many lines are used at most; a uniform sample of all lines.
      lower_case: the vocabulary folds case by itself, so every text it meets is lower-cased alike.

    Raises:
      ValueError: if there is no text, or `vocab_size` is too small for the corpus's characters.
    """
    sentences = _sample_lines(texts, max_sentences, seed)
    if not sentences:
        raise ValueError("no text to train a vocabulary on: all texts are empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc_cf" if lower_case else "nmt_nfkc",
            pad_id=PAD_ID,
            eos_id=END_ID,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=4 * _MAX_LINE_CHARACTERS,  # in bytes; longer ones are skipped
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a vocabulary of {vocab_size} pieces: {error}") from error
    return SentencePieceTokenizer(model.getvalue())


def _sample_lines(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """A uniform sample of the texts' lines in one pass (algorithm R, Vitter 1985)."""
    rng = random.Random(seed)
    sample: list[str] = []
    seen = 0
    for text in texts:
        for line in text.splitlines():
            line = line.strip()[:_MAX_LINE_CHARACTERS]
            if not line:
                continue
            seen += 1
            if len(sample) < count:
                sample.append(line)
            elif (place := rng.randrange(seen)) < count:
                sample[place] = line
    return sample


def _sentinel_pieces(count: int) -> bytes:
    """T5's sentinels as a serialised ModelProto, to be appended to a model's bytes.

    Concatenated serialised protocol buffers merge: repeated fields, here the pieces, append. A
    ModelProto holds pieces as field 1; a piece has its string as field 1, its score (float) as
    field 2 and its type as field 3, of which 4 is user-defined.
    """
    pieces = b""
    for number in reversed(range(count)):
        string = f"▁<extra_id_{number}>".encode()
        piece = b"\x0a" + bytes([len(string)]) + string + b"\x15\0\0\0\0" + b"\x18\x04"
        pieces += b"\x0a" + bytes([len(piece)]) + piece
    return pieces


def _spans_words(piece: str) -> bool:
    """Whether a piece holds white space (▁ stands for a blank) anywhere but at its beginning."""
    return any(c == "▁" or c.isspace() for c in piece.lstrip("▁"))


def _beginning(text: bytes, size: int) -> bytes:
    """At most `size` bytes of a text up to a blank between ASCII letters or digits; else all.

    Between those characters no rule of Unicode normalisation reaches across the blank.
    """
    cut = len(text) if len(text) <= size else text.rfind(b" ", 1, size)
    while 0 < cut < len(text):
        if text[cut - 1 : cut].isalnum() and text[cut + 1 : cut + 2].isalnum():
            return text[:cut]
        cut = text.rfind(b" ", 1, cut)
    return text


def _utf8(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", errors="replace")


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    if length < 1:
        raise ValueError(f"texts cannot be tokenised to length {length}, expected at least 1")
    padded = np.full((len(rows), length), PAD_ID, np.int32)
    for out, row in zip(padded, rows, strict=True):
        kept = row[: length - 1]
        out[: len(kept)] = kept
        out[len(kept)] = END_ID
    return padded


def _digest(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
