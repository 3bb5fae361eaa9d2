"""What every command owes a terminal: plain messages, one line for an error, an exit status."""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

# Objects between two collections of garbage. The libraries make millions that stay: by Python's
# default, going through them again and again takes 1.5 s of the 20 of a run of a few steps.
COLLECT_EVERY = 20_000


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


def end_process(message: str) -> NoReturn:
    """Ends the process at once with an error's line and status, from whatever thread."""
    print(f"dsi-jax: error: {message}", file=sys.stderr, flush=True)
    os._exit(2)


def set_up() -> None:
    """Prepares the process of a command, before the libraries are imported.

    Our own messages go to standard output, plainly, our warnings to standard error; the libraries
    keep theirs, which speak of their own insides.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("USE_TORCH", "0")  # transformers would import torch and tensorflow
    os.environ.setdefault("USE_TF", "0")
    gc.set_threshold(COLLECT_EVERY)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("dsi_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    warnings.showwarning = _show_warning


def run(main: Callable[[], int]) -> NoReturn:
    """A command as a process: sets up, runs, exits."""
    set_up()
    sys.exit(main())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, lineno, file, line
    if Path(filename).is_relative_to(Path(__file__).parent):
        print(f"dsi-jax: warning: {message}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror
    # gin appends the call it was in, with an address of memory.
    message = re.sub(r"\s+In call to configurable .*", "", str(error), flags=re.DOTALL)
    return " ".join(message.split()) or type(error).__name__
