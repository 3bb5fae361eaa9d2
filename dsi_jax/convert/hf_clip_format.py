"""CLIP of Hugging Face as a format of pretrained encoders."""

from pathlib import Path
from typing import ClassVar

from flax.traverse_util import flatten_dict

from dsi_jax.convert.encoder_format import EncoderFormat, Flat, PretrainedEncoders
from dsi_jax.models.encoders.clip_config import ClipConfig, ClipVisionConfig


class ClipFormat(EncoderFormat):
    """See `EncoderFormat`; a whole CLIP, or a half of one, see `dsi_jax.convert.hf_clip`."""

    family: ClassVar[str] = "clip"
    model_types: ClassVar[tuple[str, ...]] = ("clip", "clip_text_model", "clip_vision_model")

    # Transformers' CLIP takes seconds to import: only who reads one pays for it.

    def load_configs(self, directory: Path) -> PretrainedEncoders:
        """See `EncoderFormat`."""
        from dsi_jax.convert import hf_clip

        config = hf_clip.load_clip_config(directory)
        return PretrainedEncoders(config.text, config.vision, config.projection_dim)

    def load_params(self, directory: Path, encoders: PretrainedEncoders) -> Flat:
        """See `EncoderFormat`."""
        from dsi_jax.convert import hf_clip

        config = ClipConfig(encoders.text, encoders.image, encoders.embedding_dim)
        return flatten_dict(hf_clip.load_clip(directory, config)[1], sep="/")

    def fit_image_size(
        self, params: Flat, stored: ClipVisionConfig, wanted: ClipVisionConfig
    ) -> Flat:
        """See `EncoderFormat`: position embeddings are interpolated to the other grid."""
        from dsi_jax.convert import hf_clip

        return hf_clip.fit_positions(params, stored, wanted)
