"""Files of a tokenizer inside its plain JSON, and texts as tokenizers take them."""

import base64
import hashlib
import zlib
from collections.abc import Mapping
from typing import Any


def packed(data: bytes) -> dict[str, str]:
    """Returns the data compressed, in letters, with the SHA-256 of what was compressed."""
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "data": base64.b64encode(zlib.compress(data, 9)).decode("ascii"),
    }


def unpacked(spec: Mapping[str, Any], name: str) -> bytes:
    """Returns the data of a dict that holds what `packed` gave.

    Args:
      spec: the dict.
      name: what messages call the data.

    Raises:
      ValueError: the data is damaged.
    """
    data = zlib.decompress(base64.b64decode(spec["data"]))
    actual = hashlib.sha256(data).hexdigest()
    if actual != spec["sha256"]:
        raise ValueError(f"{name} has sha256 {actual}, expected {spec['sha256']}")
    return data


def as_text(text: str | bytes) -> str:
    """Returns a text, or its UTF-8 bytes, as valid Unicode; what is not is replaced."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", errors="replace")
    return data.decode("utf-8", errors="replace")
