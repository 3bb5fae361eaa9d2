"""Texts of token ids as the encoder's part of a batch."""

import numpy as np

from dsi_jax.inputs.encoder_inputs import text_stream
from dsi_jax.inputs.tokenizer import ByteTokenizer


def text_batch(tokens_BxS: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """The encoder's part of a batch for token ids [B, S], padded as T5's tokenizer pads."""
    return {"text": text_stream(tokens_BxS, ByteTokenizer())}
