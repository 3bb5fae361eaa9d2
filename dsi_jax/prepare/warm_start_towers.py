"""Weights of towers to start from: a CLIP of Hugging Face, or contrastive towers of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import traverse_util

from dsi_jax.convert import hf_clip, hub
from dsi_jax.convert.position_embeddings import resize_positions
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.base import Method
from dsi_jax.methods.contrastive import Contrastive
from dsi_jax.methods.registry import method_of
from dsi_jax.models.contrastive import ContrastiveConfig
from dsi_jax.models.dsi import DSIConfig
from dsi_jax.models.encoders.clip_config import ClipTextConfig, ClipVisionConfig
from dsi_jax.training import assignment, checkpoints

_POSITIONS = "vision_model/embeddings/position_embedding/embedding"
# Where the transformers lie in a model, by the first part of their paths in a CLIP.
_OF_DSI = {"text_model": "text_tower/text_model", "vision_model": "image_tower/vision_model"}


@dataclasses.dataclass(frozen=True)
class PretrainedTowers:
    """Towers that can be borrowed.

    Attributes:
      name: what messages call it.
      text: the architecture of the tower of texts; None: there is none.
      image: likewise of images.
      load: gives the weights under the paths of `models.clip.Clip`, with slashes.
      tokenizer_hash: of its vocabulary, where that is known.
      embedding_dim: width of its embeddings; None: it has no projections.
    """

    name: str
    text: ClipTextConfig | None
    image: ClipVisionConfig | None
    load: Callable[[], dict[str, Any]]
    tokenizer_hash: str | None = None
    embedding_dim: int | None = None

    def suit(self, method: Method) -> Method:
        """The method with embeddings as wide as the checkpoint's, where it leaves that open."""
        if isinstance(method, Contrastive) and method.embedding_dim is None:
            return dataclasses.replace(method, embedding_dim=self.embedding_dim)
        return method

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises where the tower of texts was trained with another vocabulary.

        Raises:
          ValueError: naming both.
        """
        found, expected = tokenizer.hash, self.tokenizer_hash
        if expected is None and self.text is not None:
            found, expected = tokenizer.vocab_size, self.text.vocab_size
        if found != expected:
            raise ValueError(
                f"the vocabulary of this run is {found}, that of CLIP_CHECKPOINT {self.name} is "
                f"{expected}: expected VOCABULARY = %CLIP_CHECKPOINT"
            )

    def initialize(self, config: DSIConfig | ContrastiveConfig, params: Any) -> Any:
        """`params` of a new model with the towers put in their places.

        A DSI takes the transformers; contrastive towers take all, projections included, where their
        widths are the same.

        Raises:
          ValueError: shapes differ.
        """
        flat = self.load()
        grid = _image_config(config).grid_size
        if self.image is not None and grid != self.image.grid_size:
            flat[_POSITIONS] = resize_positions(flat[_POSITIONS], grid)
        own = traverse_util.flatten_dict(params, sep="/")
        lent: dict[str, Any] = {}
        for path, value in flat.items():
            if isinstance(config, ContrastiveConfig):
                place = f"clip/{path}"
            else:
                part, _, rest = path.partition("/")
                place = f"{_OF_DSI.get(part, '')}/{rest}"
            if place not in own:
                continue
            if path.endswith("_projection/kernel") and own[place].shape != value.shape:
                continue  # to embeddings of another width: learned anew
            lent[place] = value
        result = assignment.apply_assignment_map(
            traverse_util.unflatten_dict({p: own[p] for p in lent}, sep="/"),
            traverse_util.unflatten_dict(lent, sep="/"),
            (),
        )
        merged = own | traverse_util.flatten_dict(result, sep="/")
        return traverse_util.unflatten_dict(merged, sep="/")


def open_pretrained(source: str | Path) -> PretrainedTowers:
    """Opens a CLIP by its directory or hub id, or a MODEL_DIR of contrastive towers.

    Raises:
      FileNotFoundError, ValueError: it is none of these; it is named.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        return _open_checkpoint(checkpoints.latest_checkpoint(path))
    directory = hub.local_directory(source)
    config = hf_clip.load_clip_config(directory)

    def load() -> dict[str, Any]:
        _, params = hf_clip.load_clip(directory, config)
        return traverse_util.flatten_dict(params, sep="/")

    return PretrainedTowers(
        str(source), config.text, config.vision, load, embedding_dim=config.projection_dim
    )


def _open_checkpoint(directory: Path) -> PretrainedTowers:
    metadata = checkpoints.load_metadata(directory)
    method = method_of(metadata)
    if method.kind != Contrastive.kind:
        raise ValueError(
            f"CLIP_CHECKPOINT {directory} holds a {method.title}; expected contrastive towers"
        )
    config = method.load_model(metadata["model"]).config

    def load() -> dict[str, Any]:
        flat = traverse_util.flatten_dict(checkpoints.load_params(directory), sep="/")
        return {path.removeprefix("clip/"): value for path, value in flat.items()}

    return PretrainedTowers(
        str(directory),
        config.text,
        config.image,
        load,
        metadata["tokenizer_hash"],
        config.embedding_dim,
    )


def _image_config(config: DSIConfig | ContrastiveConfig) -> ClipVisionConfig:
    return config.towers.image if isinstance(config, DSIConfig) else config.image
