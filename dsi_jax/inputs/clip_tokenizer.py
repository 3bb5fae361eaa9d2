"""CLIP's byte-pair encoding (Radford et al., 2021, section 2.4), with Hugging Face's tokenizers.

Unlike T5's, its ids have a start (49,406 in OpenAI's vocabulary) and an end (49,407), and 0 is a
token like any other. Texts are padded with the end, as transformers does; a text is what stands
before and at its first end, see `dsi_jax.models.encoders.clip.ClipTextTransformer`.
"""

import functools
import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dsi_jax.inputs.packed import as_text, packed, unpacked

START = "<|startoftext|>"
END = "<|endoftext|>"

_END_OF_WORD = "</w>"
_NUM_MERGES = 49_152 - 256 - 2  # of the lines in OpenAI's file, those in use
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """CLIP's lower-cased byte-pair encoding; see `dsi_jax.inputs.tokenizer.Tokenizer`.

    Equal to transformers' `CLIPTokenizerFast`, but for texts that spell out "<|endoftext|>", which
    here is text like any other.

    Args:
      vocab: token -> id.
      merges: pairs of tokens in the order of merging, each as "left right".

    Raises:
      ValueError: the start or end token is absent, ids are not 0 to V - 1, or a merge makes no
        token.
    """

    kind: ClassVar[str] = "clip"

    def __init__(self, vocab: dict[str, int], merges: Sequence[str]):
        absent = [token for token in (START, END) if token not in vocab]
        if absent:
            raise ValueError(f"the vocabulary has no {absent[0]!r}; expected one of CLIP's")
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError(f"the ids of {len(vocab)} tokens are not 0 to {len(vocab) - 1}")
        strange = [merge for merge in merges if merge.replace(" ", "", 1) not in vocab]
        if strange:
            raise ValueError(f"the vocabulary has no token for the merge {strange[0]!r}")
        self._vocab = dict(vocab)
        self._merges = list(merges)
        self._data = json.dumps(
            {"tokens": sorted(vocab, key=vocab.__getitem__), "merges": self._merges}
        ).encode()
        self.start_id = vocab[START]
        self.end_id = vocab[END]
        self.pad_id = self.end_id

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "ClipTokenizer":
        """Reads OpenAI's list of merges, or the tokenizer of a Hugging Face directory.

        Args:
          path: `bpe_simple_vocab_16e6.txt.gz`, unpacked or not, or a directory that holds
            tokenizer.json, or vocab.json and merges.txt.

        Raises:
          FileNotFoundError: if there is no such file, or none of these in the directory.
          ValueError: as the class, or the files are of another kind; the message names them.
        """
        path = Path(path)
        try:
            return cls(*(_read_directory(path) if path.is_dir() else _read_merges(path)))
        except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} holds no tokenizer of a CLIP: {error}") from error

    @classmethod
    def from_directory(cls, directory: Path) -> "ClipTokenizer | None":
        """See `Tokenizer`: of a CLIP, or of any merges.txt."""
        config = directory / "config.json"
        if (directory / "merges.txt").is_file() or (
            config.is_file()
            and "clip" in json.loads(config.read_text("utf-8")).get("model_type", "")
        ):
            return cls.from_file(directory)
        return None

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> "ClipTokenizer":
        """Rebuilds a tokenizer from its `spec`.

        Raises:
          ValueError: the data is damaged.
        """
        value = json.loads(unpacked(spec, "the vocabulary of CLIP"))
        return cls({token: i for i, token in enumerate(value["tokens"])}, value["merges"])

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer`."""
        return len(self._vocab)

    @property
    def hash(self) -> str:
        """See `Tokenizer`."""
        return hashlib.sha256(b"clip" + self._data).hexdigest()

    def encode_batch(self, texts: Sequence[str | bytes], length: int) -> np.ndarray:
        """See `Tokenizer`; here a row is start, ids, end, and ends to the length.

        Args:
          texts: B strings, or their UTF-8 bytes. What is not valid Unicode is replaced.
          length: S >= 1. A text that is cut keeps its end.

        Returns:
          int32 [B, S].

        Raises:
          ValueError: if the length is below 1.
        """
        if length < 1:
            raise ValueError(f"texts cannot be tokenised to length {length}, expected at least 1")
        encodings = self._bpe.encode_batch([as_text(text) for text in texts])
        rows = np.full((len(texts), length), self.end_id, np.int32)
        for row, encoding in zip(rows, encodings, strict=True):
            ids = [self.start_id, *encoding.ids][: length - 1]
            row[: len(ids)] = ids
        return rows

    def mask(self, tokens_BxS: np.ndarray) -> np.ndarray:
        """See `Tokenizer`; what pads is told by its place, for it is the end once more."""
        ends_BxS = tokens_BxS == self.end_id
        return np.cumsum(ends_BxS, axis=1) - ends_BxS == 0

    def spec(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {"type": self.kind} | packed(self._data)

    @functools.cached_property
    def _bpe(self) -> Any:
        # Not at the top: `python dsi_jax/train.py` would find dsi_jax/inputs/tokenizer.py.
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        merges = [tuple(merge.split(" ")) for merge in self._merges]
        bpe = Tokenizer(models.BPE(self._vocab, merges, end_of_word_suffix=_END_OF_WORD))
        bpe.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
        return bpe


def _read_merges(path: Path) -> tuple[dict[str, int], list[str]]:
    """OpenAI's file: a version, then more merges than are in use; ids follow from them."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    merges = data.decode("utf-8").split("\n")[1 : 1 + _NUM_MERGES]
    merges = [merge for merge in merges if merge]
    characters = _byte_characters()
    tokens = [*characters, *(character + _END_OF_WORD for character in characters)]
    tokens += [merge.replace(" ", "", 1) for merge in merges]
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def _read_directory(path: Path) -> tuple[dict[str, int], list[str]]:
    if (path / "tokenizer.json").is_file():
        model = json.loads((path / "tokenizer.json").read_text("utf-8"))["model"]
        if model.get("end_of_word_suffix") != _END_OF_WORD:
            raise ValueError(f"tokenizer.json is no byte-pair encoding with {_END_OF_WORD}")
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return model["vocab"], merges
    for name in ("vocab.json", "merges.txt"):
        if not (path / name).is_file():
            raise FileNotFoundError(
                f"{path} holds neither tokenizer.json nor vocab.json with merges.txt"
            )
    lines = (path / "merges.txt").read_text("utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    return json.loads((path / "vocab.json").read_text("utf-8")), merges


def _byte_characters() -> list[str]:
    """The characters that stand for bytes, as in GPT-2, in the order of CLIP's ids.

    Printable bytes stand for themselves and come first; the others follow as characters from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
