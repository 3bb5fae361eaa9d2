"""Sizes of T5: the published ones, and small ones to train from random weights.

v1.0 (`t5_small` to `t5_xxl`; xl and xxl are also known as 3B and 11B) has a ReLU mlp and tied
embeddings; v1.1 (`t5_1_1_small` to `t5_1_1_xxl`) a gated-GELU mlp and a head of its own.
`t5_tiny` and `t5_mini` are ours: v1.0 with a head of its own, which memorised faster from random
weights under Adam (D = 64, 400 documents, one seed).
https://github.com/google-research/text-to-text-transfer-transformer
"""

import dataclasses

from dsi_jax.models.t5 import T5Config

# Entries of the published embedding tables; SentencePiece's 32,100 tokens, padded.
VOCAB_SIZE = 32128


def _v1_0(
    emb_dim: int,
    num_heads: int,
    head_dim: int,
    mlp_dim: int,
    num_layers: int,
    vocab_size: int,
    dropout_rate: float,
    dtype: str,
    remat: bool | str,
) -> T5Config:
    return T5Config(
        vocab_size=vocab_size,
        emb_dim=emb_dim,
        num_heads=num_heads,
        head_dim=head_dim,
        mlp_dim=mlp_dim,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        mlp_activations=("relu",),
        tie_embeddings=True,
        dropout_rate=dropout_rate,
        dtype=dtype,
        remat=remat,
    )


def _untied_v1_0(*sizes_and_options: int | float | str | bool) -> T5Config:
    return dataclasses.replace(_v1_0(*sizes_and_options), tie_embeddings=False)


def _v1_1(*sizes_and_options: int | float | str | bool) -> T5Config:
    return dataclasses.replace(_untied_v1_0(*sizes_and_options), mlp_activations=("gelu", "linear"))


def t5_tiny(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """D = 64, 2 + 2 layers, ReLU mlp, untied head: trains from random weights on a CPU."""
    return _untied_v1_0(64, 4, 16, 256, 2, vocab_size, dropout_rate, dtype, remat)


def t5_shallow(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """D = 128, 8 heads, 1 + 1 layers, ReLU mlp, untied head: small corpora, from random weights.

    Width remembers words better than depth there, and many heads learn sooner than few.
    """
    return _untied_v1_0(128, 8, 16, 256, 1, vocab_size, dropout_rate, dtype, remat)


def t5_mini(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """D = 256, 4 + 4 layers, ReLU mlp, untied head: to train from random weights."""
    return _untied_v1_0(256, 4, 64, 1024, 4, vocab_size, dropout_rate, dtype, remat)


def t5_small(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.0 small, 60,506,624 parameters."""
    return _v1_0(512, 8, 64, 2048, 6, vocab_size, dropout_rate, dtype, remat)


def t5_base(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.0 base, 222,903,552 parameters."""
    return _v1_0(768, 12, 64, 3072, 12, vocab_size, dropout_rate, dtype, remat)


def t5_large(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.0 large, 737,668,096 parameters."""
    return _v1_0(1024, 16, 64, 4096, 24, vocab_size, dropout_rate, dtype, remat)


def t5_xl(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.0 3B, 2,851,598,336 parameters."""
    return _v1_0(1024, 32, 128, 16384, 24, vocab_size, dropout_rate, dtype, remat)


def t5_xxl(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.0 11B, 11,307,321,344 parameters."""
    return _v1_0(1024, 128, 128, 65536, 24, vocab_size, dropout_rate, dtype, remat)


def t5_1_1_small(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.1 small, 76,961,152 parameters."""
    return _v1_1(512, 6, 64, 1024, 8, vocab_size, dropout_rate, dtype, remat)


def t5_1_1_base(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.1 base, 247,577,856 parameters."""
    return _v1_1(768, 12, 64, 2048, 12, vocab_size, dropout_rate, dtype, remat)


def t5_1_1_large(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.1 large, 783,150,080 parameters."""
    return _v1_1(1024, 16, 64, 2816, 24, vocab_size, dropout_rate, dtype, remat)


def t5_1_1_xl(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.1 xl, 2,849,757,184 parameters."""
    return _v1_1(2048, 32, 64, 5120, 24, vocab_size, dropout_rate, dtype, remat)


def t5_1_1_xxl(
    vocab_size: int = VOCAB_SIZE,
    dropout_rate: float = 0.1,
    dtype: str = "float32",
    remat: bool | str = False,
) -> T5Config:
    """T5 v1.1 xxl, 11,135,332,352 parameters."""
    return _v1_1(4096, 64, 64, 10240, 24, vocab_size, dropout_rate, dtype, remat)
