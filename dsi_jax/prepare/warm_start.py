"""Weights to start from: a checkpoint of ours, or a T5 of Hugging Face or T5X."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

from dsi_jax.convert import docid_vocabulary, hf_t5, t5x, t5x_files
from dsi_jax.docids.kinds.registry import kind_of
from dsi_jax.docids.table import DocidTable
from dsi_jax.inputs.tokenizer import Tokenizer
from dsi_jax.methods.registry import method_of
from dsi_jax.models import layer_stacking
from dsi_jax.models.dsi import TEXT_SPACE, DSIConfig
from dsi_jax.models.dual_encoder import DualEncoderConfig
from dsi_jax.models.t5 import T5Config
from dsi_jax.training import assignment, checkpoints

# Of a docid vocabulary of its own; what is borrowed for it depends on the table.
_DOCID_PARAMETERS = ("docid_embedder/embedding", "decoder/logits_dense/kernel")
# With the axis of the text tokens; a head over them exists in text space alone.
_TOKEN_PARAMETERS = (("token_embedder/embedding", 0), ("decoder/logits_dense/kernel", 1))
_TEXT_ENCODER = ("token_embedder/", "encoder/")
_DOCUMENT_TOWER = "document/"  # of a dual encoder with two
_TOWERS = ("text_tower", "image_tower")
_LEXICAL_HEAD = "lexical_head"  # fitted anew on the documents at hand


@dataclasses.dataclass(frozen=True)
class NewModel:
    """Who borrows: the new model's configuration, docid table and tokenizer."""

    config: DSIConfig | DualEncoderConfig
    table: DocidTable
    tokenizer: Tokenizer

    @property
    def decodes(self) -> bool:
        """Whether it has a decoder of docids; a dual encoder has none."""
        return isinstance(self.config, DSIConfig)


class Pretrained(Protocol):
    """Weights that can be borrowed; `t5` is the architecture they belong to."""

    t5: T5Config

    def vocab_size_for(self, tokenizer: Tokenizer) -> int:
        """Rows of the embedding that the new model must have.

        Raises:
          ValueError: the tokenizer has ids that the weights have no row for.
        """

    def initialize(
        self, new_model: NewModel, params: Any, assignment_map: assignment.AssignmentMap | None
    ) -> Any:
        """`params` of a new model with what is borrowed put in its place.

        Its layers are stacked, or not, as the new model's; so are the paths of the map.

        Raises:
          ValueError: a pattern matches nothing, or shapes differ.
        """


def open_pretrained(path: str | Path) -> Pretrained:
    """Opens a checkpoint of ours or of T5X, a MODEL_DIR, or a Hugging Face directory.

    Raises:
      ValueError, FileNotFoundError: it is none of these; the path is named.
    """
    path = Path(path).expanduser()
    if (path / "config.json").is_file():
        return PretrainedT5(path, hf_t5.load_t5_config(path), hf_t5.load_t5)
    if directory := t5x_files.find_checkpoint(path):
        return PretrainedT5(directory, t5x.load_t5_config(directory), t5x.load_t5)
    if path.is_dir():
        return PretrainedCheckpoint(checkpoints.latest_checkpoint(path))
    raise FileNotFoundError(
        f"INITIAL_CHECKPOINT_PATH {path} does not exist; expected a checkpoint, a MODEL_DIR, a "
        "Hugging Face directory with config.json or a checkpoint of T5X"
    )


class PretrainedT5:
    """A T5 in another library's format; digits of docids borrow the rows of T5's digits."""

    def __init__(
        self, directory: Path, t5: T5Config, load: Callable[..., tuple[T5Config, Any]]
    ) -> None:
        self._directory = directory
        self._load = load
        self.t5 = t5

    def vocab_size_for(self, tokenizer: Tokenizer) -> int:
        """See `Pretrained`."""
        return _checked_vocab_size(self._directory, self.t5, tokenizer)

    def initialize(
        self, new_model: NewModel, params: Any, assignment_map: assignment.AssignmentMap | None
    ) -> Any:
        """See `Pretrained`."""
        _, text_params = self._load(self._directory, encoder_only=not new_model.decodes)
        if not new_model.decodes:
            return _lend_encoder(new_model, text_params, params, assignment_map)
        if new_model.config.docid_space == TEXT_SPACE:
            lent = _with_new_tokens(text_params, params)
        else:
            # Of towers the vocabulary is another one than T5's.
            has_towers = new_model.config.towers is not None
            rows = [0, 1]
            if not has_towers:
                table = new_model.table
                rows = kind_of(table).text_tokens(table, new_model.tokenizer).tolist()
            rows += [-1] * (new_model.config.docid_vocab_size - len(rows))  # where it is padded
            lent = docid_vocabulary.initialize(text_params, rows, _docid_parameters(params))
        lent = layer_stacking.arrange_layers(lent, stacked=new_model.config.t5.scan_layers)
        return assignment.apply_assignment_map(
            params, lent, [*(assignment_map or ()), *_kept(params, *_TOWERS, _LEXICAL_HEAD)]
        )


class PretrainedCheckpoint:
    """A checkpoint of ours; docid rows are borrowed only for the very same docid table."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._metadata = checkpoints.load_metadata(directory)
        method = method_of(self._metadata)
        self._config = method.load_model(self._metadata["model"]).config
        if not hasattr(self._config, "t5"):
            raise ValueError(
                f"INITIAL_CHECKPOINT_PATH {directory} holds {method.title} towers; expected them "
                "as CLIP_CHECKPOINT"
            )
        self.t5 = self._config.t5

    def vocab_size_for(self, tokenizer: Tokenizer) -> int:
        """See `Pretrained`; the weights are also of use to the tokenizer they grew with only."""
        if tokenizer.hash != self._metadata["tokenizer_hash"]:
            raise ValueError(
                f"the vocabulary of this run is {tokenizer.hash[:16]}; that of "
                f"INITIAL_CHECKPOINT_PATH {self._directory} is "
                f"{self._metadata['tokenizer_hash'][:16]}"
            )
        return self.t5.vocab_size

    def initialize(
        self, new_model: NewModel, params: Any, assignment_map: assignment.AssignmentMap | None
    ) -> Any:
        """See `Pretrained`."""
        lent = checkpoints.load_params(self._directory)
        if type(new_model.config) is not type(self._config):
            return _lend_encoder(new_model, lent, params, assignment_map)
        lent = layer_stacking.arrange_layers(lent, stacked=new_model.config.t5.scan_layers)
        if not new_model.decodes:
            return assignment.apply_assignment_map(params, lent, assignment_map or ())
        own = traverse_util.flatten_dict(params, sep="/")
        spaces = (new_model.config.docid_space, self._config.docid_space)
        in_text = tuple(space == TEXT_SPACE for space in spaces)
        same = new_model.table.hash == self._metadata["docid_table_hash"]
        if assignment_map is None and not same and not all(in_text):
            assignment_map = [(re.escape(path), None) for path in _DOCID_PARAMETERS if path in own]
        if in_text[0]:
            lent = _with_new_tokens(lent, params, paths=_TOKEN_PARAMETERS[: 1 + in_text[1]])
        return assignment.apply_assignment_map(
            params, lent, [*(assignment_map or ()), *_kept(params, _LEXICAL_HEAD)]
        )


def _lend_encoder(
    new_model: NewModel, lent: Any, params: Any, assignment_map: assignment.AssignmentMap | None
) -> Any:
    """What a DSI, a dual encoder and a T5 have in common: the encoder of texts.

    A tower of its own for documents begins as the one for queries; all else as initialised.
    """
    lent = layer_stacking.arrange_layers(lent, stacked=new_model.config.t5.scan_layers)
    lent = _with_new_tokens(lent, params, paths=_TOKEN_PARAMETERS[:1])
    if assignment_map is None:
        assignment_map = []
        for path in traverse_util.flatten_dict(params, sep="/"):
            source = path.removeprefix(_DOCUMENT_TOWER)
            if not source.startswith(_TEXT_ENCODER):
                assignment_map.append((re.escape(path), None))
            elif source != path:
                assignment_map.append((re.escape(path), source))
    return assignment.apply_assignment_map(params, lent, assignment_map)


def _kept(params: Any, *names: str) -> list[tuple[str, None]]:
    """Rules for those of these modules that are there: the checkpoint does not lend them."""
    return [(f"{name}/.*", None) for name in names if name in params]


def _with_new_tokens(
    lent: Any, params: Any, paths: Sequence[tuple[str, int]] = _TOKEN_PARAMETERS
) -> Any:
    """The checkpoint's parameters, tokens that only the new model has taken from `params`.

    In text space the new model's vocabulary goes on where the checkpoint's ends: sentinels, and a
    token a document where docids are atomic.
    """
    flat = traverse_util.flatten_dict(lent, sep="/")
    own = traverse_util.flatten_dict(params, sep="/")
    for path, axis in paths:
        if path in flat and own[path].shape[axis] > (known := flat[path].shape[axis]):
            new = np.split(_whole(own[path]), [known], axis=axis)[1]
            flat[path] = np.concatenate([np.asarray(flat[path]), new], axis=axis)
    return traverse_util.unflatten_dict(flat, sep="/")


def _docid_parameters(params: Any) -> Any:
    """The parameters of the docid vocabulary alone, whole on every host."""
    flat = traverse_util.flatten_dict(params, sep="/")
    own = {path: _whole(flat[path]) for path in _DOCID_PARAMETERS if path in flat}
    return traverse_util.unflatten_dict(own, sep="/")


def _whole(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _checked_vocab_size(directory: Path, t5: T5Config, tokenizer: Tokenizer) -> int:
    if tokenizer.vocab_size > t5.vocab_size:
        raise ValueError(
            f"the vocabulary has {tokenizer.vocab_size} tokens; the embedding of {directory} has "
            f"{t5.vocab_size} rows"
        )
    return t5.vocab_size
