"""What every command owes a terminal: plain messages, one line for an error, an exit status."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable


def guarded(call: Callable[[], int | None], *, show_traceback: bool) -> int:
    """Runs `call`; an error that bad input explains becomes one line instead of a traceback."""
    try:
        status = call()
    except (ValueError, OSError, ArithmeticError) as error:
        if show_traceback:
            traceback.print_exc()
        print(f"dsi-jax: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return status if isinstance(status, int) else 0


def quiet_logs() -> None:
    """Our own messages on standard output, plainly; of the libraries' only the warnings."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("USE_TORCH", "0")  # Flax CLIP would import torch where it is installed
    os.environ.setdefault("USE_TF", "0")
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logger = logging.getLogger("dsi_jax")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    # gin appends the call it was in, with an address of memory.
    message = re.sub(r"\s+In call to configurable .*", "", str(error), flags=re.DOTALL)
    return " ".join(message.split()) or type(error).__name__
