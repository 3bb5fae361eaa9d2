"""The documents of a collection as a dual encoder reads them: by row, tokenized once."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from dsi_jax.inputs.encoder_inputs import Inputs, text_shapes, text_stream
from dsi_jax.inputs.image_files import ImageSource
from dsi_jax.inputs.streams import IMAGE
from dsi_jax.inputs.tokenizer import Tokenizer

_TEXTS_AT_A_TIME = 10_000  # bounds what lies about as Python lists while tokenizing


class ImageInputs:
    """As `DocumentInputs`, of documents that are images; decoded when asked for.

    Args:
      images: image of each row.
      inputs: decodes them.
    """

    def __init__(self, images: Sequence[ImageSource], inputs: Inputs) -> None:
        self._images, self._inputs = images, inputs

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, rows_B: np.ndarray) -> dict[str, np.ndarray]:
        """The images of documents, see `inputs.PixelReader`."""
        return self._inputs.images([self._images[row] for row in rows_B])

    def shapes(self, batch_size: int) -> dict[str, Any]:
        """ShapeDtypeStructs of the inputs of so many documents."""
        return self._inputs.shapes({IMAGE: batch_size})[IMAGE]


class SomeInputs:
    """As `DocumentInputs`, of some of the documents, which go by their places among `rows`.

    Args:
      inputs: of all documents.
      rows: int [C].
    """

    def __init__(self, inputs: "DocumentInputs | ImageInputs", rows: np.ndarray) -> None:
        self._inputs, self._rows = inputs, rows
        self.shapes = inputs.shapes

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, places_B: np.ndarray) -> dict[str, np.ndarray]:
        """See `DocumentInputs`."""
        return self._inputs(self._rows[places_B])


class AbsentImages(Sequence[ImageSource]):
    """Stands for images that are not stored beside a model; whoever asks for one is told so.

    Args:
      count: N.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row):
        """Raises.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "the images are to be embedded, and a MODEL_DIR does not hold them; expected their "
            "embeddings in it: `dsi-jax eval` with IMAGES or CORPUS makes and keeps them"
        )


class DocumentInputs:
    """Inputs of the document's tower for any rows; tokenized when first asked for.

    Args:
      texts: text of each row.
      tokenizer: of the texts.
      length: S, tokens kept of a text.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, length: int) -> None:
        self._texts, self._tokenizer, self._length = texts, tokenizer, length

    def __len__(self) -> int:
        return len(self._texts)

    def __call__(self, rows_B: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens": int32 [B, S], "mask": bool [B, S]} of documents."""
        return text_stream(self._tokens_NxS[rows_B], self._tokenizer)

    def shapes(self, batch_size: int) -> dict[str, Any]:
        """ShapeDtypeStructs of the inputs of so many documents."""
        return text_shapes(batch_size, self._length)

    @functools.cached_property
    def _tokens_NxS(self) -> np.ndarray:
        starts = range(0, len(self._texts), _TEXTS_AT_A_TIME)
        batches = (self._texts[start : start + _TEXTS_AT_A_TIME] for start in starts)
        return np.concatenate(
            [self._tokenizer.encode_batch(batch, self._length) for batch in batches]
        )
