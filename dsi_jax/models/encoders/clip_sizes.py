"""Sizes of CLIP: OpenAI's (Radford et al., 2021, appendix F), and one to train from random weights.

https://github.com/openai/CLIP
"""

from dsi_jax.models.encoders.clip_config import ClipConfig, ClipTextConfig, ClipVisionConfig

# Tokens of OpenAI's byte-pair encoding.
VOCAB_SIZE = 49408


def vit_b32(dtype: str = "float32", remat: bool = False) -> ClipConfig:
    """ViT-B/32, 151,277,313 parameters."""
    return _openai(512, 768, 12, 224, 32, dtype, remat)


def vit_b16(dtype: str = "float32", remat: bool = False) -> ClipConfig:
    """ViT-B/16, 149,620,737 parameters."""
    return _openai(512, 768, 12, 224, 16, dtype, remat)


def vit_l14(dtype: str = "float32", remat: bool = False) -> ClipConfig:
    """ViT-L/14, 427,616,513 parameters."""
    return _openai(768, 1024, 24, 224, 14, dtype, remat)


def vit_l14_336(dtype: str = "float32", remat: bool = False) -> ClipConfig:
    """ViT-L/14 at 336 pixels, 427,944,193 parameters."""
    return _openai(768, 1024, 24, 336, 14, dtype, remat)


def clip_tiny(
    vocab_size: int = VOCAB_SIZE,
    eos_token_id: int | None = None,
    image_size: int = 32,
    patch_size: int = 8,
    dtype: str = "float32",
    remat: bool = False,
) -> ClipConfig:
    """Two layers of width 128 a tower: trains from random weights on a CPU.

    Args:
      vocab_size: of the tokenizer.
      eos_token_id: the tokenizer's end token: 1 for T5's ids, None for CLIP's.
      image_size: pixels a side.
      patch_size: pixels a side.
      dtype: of the matrix products.
      remat: whether to recompute activations in the backward pass.
    """
    sizes = (128, 512, 2, 4)
    common = {"dtype": dtype, "remat": remat}
    return ClipConfig(
        text=ClipTextConfig(*sizes, vocab_size=vocab_size, eos_token_id=eos_token_id, **common),
        vision=ClipVisionConfig(*sizes, image_size=image_size, patch_size=patch_size, **common),
        projection_dim=128,
    )


def text_of(clip: ClipConfig) -> ClipTextConfig:
    """The tower of texts; gin's TEXT_ENCODER."""
    return clip.text


def image_of(clip: ClipConfig) -> ClipVisionConfig:
    """The tower of images; gin's IMAGE_ENCODER."""
    return clip.vision


def _openai(
    text_width: int,
    vision_width: int,
    vision_layers: int,
    image_size: int,
    patch_size: int,
    dtype: str,
    remat: bool,
) -> ClipConfig:
    def sizes(width: int, layers: int) -> dict:
        return {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
            "dtype": dtype,
            "remat": remat,
        }

    return ClipConfig(
        text=ClipTextConfig(**sizes(text_width, 12), vocab_size=VOCAB_SIZE),
        vision=ClipVisionConfig(
            **sizes(vision_width, vision_layers), image_size=image_size, patch_size=patch_size
        ),
        projection_dim=text_width,
    )
