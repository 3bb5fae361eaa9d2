"""From texts and image files to what encoders read, the same in training and in search."""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dsi_jax.inputs import image_files
from dsi_jax.inputs.lexical_vocabulary import LexicalVocabulary
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.inputs.tokenizer import Tokenizer

Stream = dict[str, np.ndarray]
_CACHE_BYTES = 1 << 30  # of decoded pixels


class Inputs:
    """Makes the streams of a batch.

    Args:
      tokenizer: of the texts.
      lengths: `lengths["inputs"]` is S, the tokens kept of a text.
      image_size: pixels a side of an image; None: the model reads none.
      image_canvas: pixels a side of what the model resizes; None: images are resized here.
      lexical_vocabulary: the stems that a lexical head knows; None: the model has none.

    Raises:
      ValueError: S is not given, or not positive.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        lengths: Mapping[str, int],
        image_size: int | None = None,
        image_canvas: int | None = None,
        lexical_vocabulary: LexicalVocabulary | None = None,
    ) -> None:
        if lengths.get("inputs", 0) < 1:
            raise ValueError(f"feature_lengths is {dict(lengths)}; expected a positive 'inputs'")
        self.tokenizer, self.length = tokenizer, lengths["inputs"]
        self.lexical_vocabulary = lexical_vocabulary
        self._reader = None if image_size is None else PixelReader(image_size, image_canvas)

    def texts(self, texts: np.ndarray | Sequence[str | bytes]) -> Stream:
        """{"tokens": int32 [B, S], "mask": bool [B, S]} of B texts, or of token ids [B, S'].

        For a lexical head also "words", int32 [B, S], the distinct stems of each text.

        Raises:
          ValueError: the model has a lexical head, and the texts are token ids.
        """
        if isinstance(texts, np.ndarray) and np.issubdtype(texts.dtype, np.integer):
            if self.lexical_vocabulary is not None:
                raise ValueError(
                    "a lexical head reads the words of texts, and the task holds token ids; "
                    "expected a task of texts"
                )
            tokens_BxS = np.zeros([len(texts), self.length], np.int32)
            tokens_BxS[:, : texts.shape[1]] = texts[:, : self.length]
        else:
            tokens_BxS = self.tokenizer.encode_batch(list(texts), self.length)
        stream = text_stream(tokens_BxS, self.tokenizer)
        if self.lexical_vocabulary is not None:
            stream["words"] = self.lexical_vocabulary.encode_batch(list(texts), self.length)
        return stream

    def images(self, sources: Sequence[str | Path | bytes]) -> Stream:
        """What the model reads of B image files, or the bytes of such; see `PixelReader`.

        Raises:
          ValueError: the model reads no images.
          FileNotFoundError, images.ImageError: as `images.decode`.
        """
        if self._reader is None:
            raise ValueError("this model reads texts alone; found images")
        return self._reader(sources)

    def stream(self, modality: str, values: np.ndarray) -> Stream:
        """The stream of B texts or token ids ("text") or encoded images ("image")."""
        if modality == IMAGE:
            return self.images(values[:, 0].tolist())
        return self.texts(values if values.dtype != object else values[:, 0].tolist())

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """ShapeDtypeStructs of streams of so many examples each."""
        shapes: dict[str, Any] = {}
        if size := sizes.get(TEXT):
            shapes[TEXT] = text_shapes(size, self.length)
            if self.lexical_vocabulary is not None:
                shapes[TEXT]["words"] = jax.ShapeDtypeStruct((size, self.length), np.int32)
        if size := sizes.get(IMAGE):
            if self._reader is None:
                raise ValueError("the tasks have images, and the model has no encoder of images")
            shapes[IMAGE] = self._reader.shapes(size)
        return shapes


def text_stream(tokens_BxS: np.ndarray, tokenizer: Tokenizer) -> Stream:
    """Makes {"tokens": int32 [B, S], "mask": bool [B, S]} of token ids, padding included."""
    return {"tokens": tokens_BxS, "mask": tokenizer.mask(tokens_BxS)}


def text_shapes(count: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the ShapeDtypeStructs of `text_stream` of so many texts."""
    shape = (count, length)
    return {
        "tokens": jax.ShapeDtypeStruct(shape, np.int32),
        "mask": jax.ShapeDtypeStruct(shape, np.bool_),
    }


class PixelReader:
    """Decodes images on all cores, and remembers the pixels of those it met last.

    Args:
      size: S, pixels a side of what encoders read.
      canvas: pixels a side of what the device resizes to that; None: it is resized here.
      cache_bytes: of remembered pixels, at most.

    Raises:
      ValueError: the canvas is less than twice the size.
    """

    def __init__(
        self, size: int, canvas: int | None = None, *, cache_bytes: int = _CACHE_BYTES
    ) -> None:
        if canvas is not None and canvas < 2 * size:
            raise ValueError(
                f"IMAGE_CANVAS is {canvas}; expected at least twice the {size} pixels of an image"
            )
        self._size, self._canvas = size, canvas
        self._side = canvas or size
        self._kept = cache_bytes // (self._side * self._side * 3)
        self._cache: OrderedDict[Any, Stream] = OrderedDict()

    def shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """ShapeDtypeStructs of so many images."""
        shape = (count, self._side, self._side, 3)
        shapes = {"pixels": jax.ShapeDtypeStruct(shape, np.uint8)}
        if self._canvas is not None:
            shapes["frames"] = jax.ShapeDtypeStruct((count, 2, 3), np.float32)
        return shapes

    def _read(self, source: str | Path | bytes) -> Stream:
        if self._canvas is None:
            return {"pixels": image_files.read(source, self._size)}
        pixels, frame = image_files.on_canvas(image_files.decode(source), self._size, self._canvas)
        return {"pixels": pixels, "frames": frame}

    def __call__(self, sources: Sequence[str | Path | bytes]) -> Stream:
        """B images, {"pixels": uint8 [B, S, S, 3]} or, on canvases, as `inputs.pixels` says.

        Raises:
          FileNotFoundError, images.ImageError: as `images.decode`.
        """
        keys = [_key(source) for source in sources]
        # Several of one image in a batch are decoded once.
        missing = {k: s for k, s in zip(keys, sources, strict=True) if k not in self._cache}
        decoded = dict(zip(missing, _pool().map(self._read, missing.values()), strict=True))
        read = []
        for key in keys:
            found = decoded.get(key)
            if found is None:
                found = self._cache[key]
            self._cache[key] = found
            self._cache.move_to_end(key)
            read.append(found)
        while len(self._cache) > self._kept:
            self._cache.popitem(last=False)
        return {name: np.stack([one[name] for one in read]) for name in read[0]}


def pad_rows(tree: Any, size: int) -> Any:
    """Repeats the last example until every array has `size` rows: one program serves all."""

    def pad(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])

    return jax.tree.map(pad, tree)


def _key(source: str | Path | bytes) -> Any:
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    return str(source)


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "images")
