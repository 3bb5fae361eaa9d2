"""The command line that all gin-configured entry points share (T5X's flags)."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence

from dsi_jax.cli import distributed, gin_utils
from dsi_jax.cli.terminal import guarded

_PREFIX = "--gin."
_NEEDED = ("tensorflow", "seqio", "tensorflow_datasets", "clu")  # of the extra `train`


def parser(description: str, *, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser of T5X's flags; `--gin.NAME=VALUE` is understood by `parse_arguments`."""
    result = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog="--gin.NAME=VALUE sets a macro, for example --gin.MODEL_DIR=runs/demo",
    )
    add = result.add_argument
    add("--gin_file", action="append", default=[], metavar="FILE", help="many; a later one wins")
    add("--gin_bindings", action="append", default=[], metavar="NAME=VALUE")
    add("--gin_search_paths", default="", metavar="DIR,DIR", help="searched before our own files")
    add("--dry_run", action="store_true", help="check everything, print the plan, stop")
    add("--tfds_data_dir", metavar="DIR", help="where TensorFlow Datasets lie")
    add("--seqio_additional_cache_dirs", default="", metavar="DIR,DIR")
    add("--multiprocess_gpu", action="store_true", help="one process of a multi-host run")
    add("--coordinator_address", metavar="HOST:PORT")
    add("--process_count", type=int)
    add("--process_index", type=int)
    timeout = "seconds that the processes wait for each other"
    add("--initialization_timeout", type=int, default=300, metavar="SECONDS", help=timeout)
    add("--traceback", action="store_true", help="print Python's traceback with an error")
    return result


def parse_arguments(parser_: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Like `parse_args`, with `--gin.NAME=VALUE` turned into a binding first."""
    rewritten = [
        f"--gin_bindings={text[len(_PREFIX) :]}" if text.startswith(_PREFIX) else text
        for text in argv
    ]
    return parser_.parse_args(rewritten)


def launch(target: str, description: str, argv: Sequence[str] | None, *, prog: str) -> int:
    """Parses the command line, configures `target` ("module:function") and calls it.

    Returns:
      The process's exit status: what the function returned if that is an int, else 0; 2 for bad
      input, whose one-line message goes to standard error.
    """
    arguments = parse_arguments(
        parser(description, prog=prog), sys.argv[1:] if argv is None else argv
    )
    return guarded(lambda: _call(target, arguments), show_traceback=arguments.traceback)


def _call(target: str, arguments: argparse.Namespace) -> int | None:
    module_name, function_name = target.split(":")
    gin_arguments = gin_utils.GinArguments(
        files=arguments.gin_file,
        bindings=arguments.gin_bindings,
        search_paths=_split(arguments.gin_search_paths),
    )
    if not gin_arguments.files:
        raise gin_utils.ConfigError(
            "no gin file given; for example --gin_file=experiments/demo_text.gin"
        )
    _require_train_extra()
    _join_hosts(arguments)
    _import_tensorflow()
    # Last, and as under `python -m`: gin files may import modules of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    gin_utils.parse(gin_arguments)
    if arguments.tfds_data_dir or arguments.seqio_additional_cache_dirs:
        import seqio  # seconds to import; only where a flag asks for it

        if arguments.tfds_data_dir:
            seqio.set_tfds_data_dir_override(arguments.tfds_data_dir)
        seqio.add_global_cache_dirs(_split(arguments.seqio_additional_cache_dirs))
    function = getattr(importlib.import_module(module_name), function_name)
    return gin_utils.configured(function)(
        config_text=gin_utils.config_text(), dry_run=arguments.dry_run
    )


def _require_train_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise gin_utils.ConfigError(
            f"this command needs {', '.join(missing)}: pip install 'dsi-jax[train]'"
        )


def _import_tensorflow() -> None:
    """Imports tensorflow, without its start-up chatter, as the reader of data that it is here.

    It writes to the file descriptor before any setting of its own is read, and would take the
    accelerator's memory at its first operation.
    """
    with _silent_stderr():
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _join_hosts(arguments: argparse.Namespace) -> None:
    found = distributed.find(
        arguments.coordinator_address,
        arguments.process_count,
        arguments.process_index,
        asked=arguments.multiprocess_gpu,
    )
    if found is not None:
        distributed.join(found, arguments.initialization_timeout)


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part]
