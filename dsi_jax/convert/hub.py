"""Pretrained models by one name: a local directory, or a model of Hugging Face's hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w-][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
FLAX_WEIGHTS = "flax_model.msgpack"


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a hub id of an owner's model, "owner/name"."""
    return "/" in source and _HUB_ID.fullmatch(source) is not None


def local_directory(source: str | Path) -> Path:
    """The directory of a pretrained model, downloaded into the hub's cache if it is not local.

    Args:
      source: a directory, or a hub id such as "openai/clip-vit-base-patch32", to which "@" and a
        branch, tag or commit may be appended. An existing directory wins.

    Returns:
      The directory. Of weights it holds safetensors; Flax's msgpack if there are none.

    Raises:
      FileNotFoundError: it is neither, or the hub cannot be reached and the cache lacks it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    match = _HUB_ID.fullmatch(str(source))
    if match is None:
        raise FileNotFoundError(f"{source} is neither a directory nor the id of a hub's model")
    try:
        directory = _download(match, _FILES)
        if not any(directory.glob("*.safetensors")):
            directory = _download(match, [*_FILES, FLAX_WEIGHTS])
    except OSError as error:  # no network, no such model, a gated one
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{source} is no directory, and Hugging Face's hub did not give a model of that name: "
            f"{reason}"
        ) from error
    return directory


def _download(match: re.Match[str], patterns: list[str]) -> Path:
    return Path(snapshot_download(match["id"], revision=match["revision"], allow_patterns=patterns))
