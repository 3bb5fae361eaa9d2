"""Weights of towers to start from: encoders of Hugging Face, or contrastive towers of ours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import traverse_util

from dsi_jax.convert import encoder_formats, hub
from dsi_jax.convert.encoder_format import Flat, PretrainedEncoders
from dsi_jax.inputs.streams import IMAGE, TEXT
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.base import Method
from dsi_jax.methods.contrastive import Contrastive
from dsi_jax.methods.registry import method_of
from dsi_jax.models.contrastive import ContrastiveConfig
from dsi_jax.models.dsi import DSIConfig
from dsi_jax.models.encoders.base import ImageEncoderConfig, TextEncoderConfig
from dsi_jax.training import assignment, checkpoints

_TOWER_OF_DSI = {"text": "text_tower", "image": "image_tower"}


@dataclasses.dataclass(frozen=True)
class PretrainedTowers:
    """Towers that can be borrowed.

    Attributes:
      name: what messages call it.
      encoders: their architectures and the width of their embeddings.
      load: gives the weights under the paths of `EmbeddingTowers`, with slashes.
      tokenizer_hash: of its vocabulary, where that is known.
      macro: the macro that names the tower of texts, for messages.
    """

    name: str
    encoders: PretrainedEncoders
    load: Callable[[], Flat]
    tokenizer_hash: str | None = None
    macro: str = "CLIP_CHECKPOINT"

    @property
    def text(self) -> TextEncoderConfig | None:
        """The architecture of the tower of texts; None: there is none."""
        return self.encoders.text

    @property
    def image(self) -> ImageEncoderConfig | None:
        """The architecture of the tower of images; None: there is none."""
        return self.encoders.image

    def suit(self, method: Method) -> Method:
        """The method with embeddings as wide as the checkpoint's, where it leaves that open."""
        if isinstance(method, Contrastive) and method.embedding_dim is None:
            return dataclasses.replace(method, embedding_dim=self.encoders.embedding_dim)
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
                f"the vocabulary of this run is {found}, that of {self.macro} {self.name} is "
                f"{expected}: expected VOCABULARY = %{self.macro}"
            )

    def initialize(self, config: DSIConfig | ContrastiveConfig, params: Any) -> Any:
        """`params` of a new model with the towers put in their places.

        A DSI takes the transformers; contrastive towers take all, projections included, where their
        widths are the same.

        Raises:
          ValueError: shapes differ.
        """
        flat = self.load()
        towers = config.towers if isinstance(config, DSIConfig) else config
        if self.image is not None and towers.image is not None:
            flat = encoder_formats.fit_image_size(flat, self.image, towers.image)
        own = traverse_util.flatten_dict(params, sep="/")
        lent: dict[str, Any] = {}
        for path, value in flat.items():
            place = _place(config, path)
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


def open_towers(
    both: str | None, *, text: str | None = None, image: str | None = None
) -> PretrainedTowers | None:
    """Opens the pretrained encoders that a run names; None if it names none.

    Args:
      both: CLIP_CHECKPOINT.
      text: TEXT_CHECKPOINT, in place of the encoder of texts of `both`.
      image: IMAGE_CHECKPOINT, in place of its encoder of images.

    Raises:
      FileNotFoundError, ValueError: one is not there, or lacks the encoder; it is named.
    """
    if text is None and image is None:
        return None if both is None else open_pretrained(both)
    whole = None if both is None else open_pretrained(both)
    halves = []
    for modality, macro, source in (
        (TEXT, "TEXT_CHECKPOINT", text),
        (IMAGE, "IMAGE_CHECKPOINT", image),
    ):
        if source is not None:
            halves.append(_half(open_pretrained(source, macro), modality))
        elif whole is not None and getattr(whole, modality) is not None:
            halves.append(_half(whole, modality))
    return halves[0] if len(halves) == 1 else _joined(*halves)


def _half(towers: PretrainedTowers, modality: str) -> PretrainedTowers:
    """Returns the encoder of one modality alone, with its projection.

    Raises:
      ValueError: there is none.
    """
    config = getattr(towers, modality)
    if config is None:
        raise ValueError(
            f"{towers.macro} {towers.name} has no encoder of {modality}s; expected one that has"
        )
    names = (config.module_name, config.projection_name)

    def load() -> Flat:
        return {k: v for k, v in towers.load().items() if k.partition("/")[0] in names}

    other = {"image" if modality == TEXT else "text": None}
    return dataclasses.replace(
        towers, encoders=dataclasses.replace(towers.encoders, **other), load=load
    )


def _joined(text: PretrainedTowers, image: PretrainedTowers) -> PretrainedTowers:
    """Returns the encoder of texts of one checkpoint beside the encoder of images of another."""
    dims = {towers.encoders.embedding_dim for towers in (text, image)}
    encoders = PretrainedEncoders(text.text, image.image, dims.pop() if len(dims) == 1 else None)
    return dataclasses.replace(text, encoders=encoders, load=lambda: text.load() | image.load())


def open_pretrained(source: str | Path, macro: str = "CLIP_CHECKPOINT") -> PretrainedTowers:
    """Opens pretrained encoders by directory or hub id, or a MODEL_DIR of contrastive towers.

    Args:
      source: the checkpoint.
      macro: the macro that names it, for messages.

    Raises:
      FileNotFoundError, ValueError: it is none of these; it is named.
    """
    path = Path(source).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        return _open_checkpoint(checkpoints.latest_checkpoint(path), macro)
    directory = hub.local_directory(source)
    encoder_format = encoder_formats.format_in(directory)
    encoders = encoder_format.load_configs(directory)
    load = functools.partial(encoder_format.load_params, directory, encoders)
    return PretrainedTowers(str(source), encoders, load, macro=macro)


def _open_checkpoint(directory: Path, macro: str) -> PretrainedTowers:
    metadata = checkpoints.load_metadata(directory)
    method = method_of(metadata)
    if method.kind != Contrastive.kind:
        raise ValueError(f"{macro} {directory} holds a {method.title}; expected contrastive towers")
    config = method.load_model(metadata["model"]).config
    encoders = PretrainedEncoders(config.text, config.image, config.embedding_dim)

    def load() -> Flat:
        flat = traverse_util.flatten_dict(checkpoints.load_params(directory), sep="/")
        return {path.removeprefix(f"{config.scope}/"): value for path, value in flat.items()}

    return PretrainedTowers(str(directory), encoders, load, metadata["tokenizer_hash"], macro)


def _place(config: DSIConfig | ContrastiveConfig, path: str) -> str | None:
    """Returns where a model keeps the parameter at a path of `EmbeddingTowers`; None: nowhere."""
    if isinstance(config, ContrastiveConfig):
        return f"{config.scope}/{path}"
    for tower in config.towers.present:
        if path.startswith(f"{tower.module_name}/"):
            return f"{_TOWER_OF_DSI[tower.modality]}/{path}"
    return None
