"""gin configuration as T5X's users know it: files, macros, bindings and where files are found.

    --gin_file=experiments/demo_text.gin --gin.MODEL_DIR=/tmp/demo --gin_bindings='a.b = 1'

Only the entry points import this module; everything below them receives objects.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dsi_jax
import gin

_MACRO_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_DEFINED = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s*=", re.MULTILINE)
_USED = re.compile(r"%([A-Z][A-Z0-9_]*)")


class ConfigError(ValueError):
    """A gin file, macro or binding that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class GinArguments:
    """What the command line said about the configuration.

    Attributes:
      files: gin files, in order; a later file wins.
      bindings: `NAME=VALUE` texts, in order, after all the files.
      search_paths: directories tried before the working directory and ours.
    """

    files: Sequence[str] = ()
    bindings: Sequence[str] = ()
    search_paths: Sequence[str] = ()


def shipped_directory() -> Path:
    """The installed `dsi_jax/gin` folder (a link to `gin/` in a checkout)."""
    return Path(dsi_jax.__file__).resolve().parent / "gin"


def parse(arguments: GinArguments) -> None:
    """Reads files and bindings into gin's global configuration and checks them.

    Raises:
      ConfigError: a file that no search path holds (all are named), a file or a binding that gin
        cannot read, an unknown macro, or a macro that must be given and is not.
    """
    gin.clear_config()
    for directory in (shipped_directory(), *reversed(arguments.search_paths)):
        gin.add_config_file_search_path(str(directory))
    bindings = [_binding(text) for text in arguments.bindings]
    try:
        with gin.unlock_config(), _quiet():
            for name in arguments.files:
                gin.parse_config_file(_resolved(name, arguments.search_paths))
            known = _macros_defined() | _macros_referenced()
            for name, text in bindings:
                if _MACRO_NAME.match(name) and name not in known:
                    raise ConfigError(_unknown_macro(name, known, "on the command line"))
                gin.parse_config(text)
    except ConfigError:
        raise
    except (OSError, ImportError, SyntaxError, ValueError, AttributeError, NameError) as error:
        raise ConfigError(f"gin configuration: {error}") from error
    _refuse_unused_macros()
    _refuse_missing_macros()


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the parsed bindings applied to its parameters.

    Raises:
      ConfigError: no parsed file mentions the function.
    """
    try:
        return gin.get_configurable(function)
    except (KeyError, ValueError) as error:
        name = f"{function.__module__}.{function.__name__}"
        raise ConfigError(
            f"the gin files do not configure {name}; pass a run or experiment file, for example "
            "--gin_file=runs/train.gin"
        ) from error


def query_macro(name: str) -> Any:
    """The value of a macro, or None where it is not set."""
    try:
        return gin.query_parameter(f"{name}/macro.value")
    except ValueError:
        return None


def config_text() -> str:
    """The whole parsed configuration as one gin file (what `config.gin` keeps)."""
    return gin.config_str(max_line_length=100)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """gin logs an error for each place where an included file is not; only the last counts."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _resolved(name: str, search_paths: Sequence[str]) -> str:
    """The first existing candidate for a gin file's name.

    gin's own look-up does the same for includes; doing it here too names every place tried.
    """
    if Path(name).is_absolute():
        candidates = [Path(name)]
    else:
        folders = [*map(Path, search_paths), Path.cwd(), shipped_directory()]
        candidates = [folder / name for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate.resolve())
    places = ", ".join(str(c) for c in candidates)
    raise ConfigError(f"gin file {name!r} was not found; looked for {places}")


def _binding(text: str) -> tuple[str, str]:
    """Splits `NAME=VALUE`, quoting a value that is no gin literal, so that paths need no quotes."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name:
        raise ConfigError(f"gin binding {text!r}: expected NAME=VALUE")
    return name, f"{name} = {value if _is_gin_value(value) else repr(value)}"


def _is_gin_value(value: str) -> bool:
    if value.startswith(("@", "%", "[", "(", "{", '"', "'")):
        return True
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return False
    return True


def _macro_bindings() -> dict[str, Any]:
    """Macro name -> its value or reference, in gin's current configuration."""
    return {
        scope: bound["value"]
        for (scope, selector), bound in gin.config._CONFIG.items()
        if selector == "gin.macro" and "value" in bound
    }


def _macros_defined() -> set[str]:
    return set(_macro_bindings())


def _macros_referenced() -> set[str]:
    references = gin.config.iterate_references(gin.config._CONFIG)
    return {r.scoped_selector.rpartition("/")[0] for r in references if _is_macro(r)}


def _is_macro(reference: Any) -> bool:
    return reference.scoped_selector.endswith("/gin.macro")


def _is_required(value: Any) -> bool:
    """Whether a macro still stands for `%gin.REQUIRED`."""
    return getattr(value, "scoped_selector", "") == "gin.REQUIRED/gin.constant"


def _shipped_macros() -> set[str]:
    names: set[str] = set()
    for file in shipped_directory().rglob("*.gin"):
        text = file.read_text()
        names.update(_DEFINED.findall(text), _USED.findall(text))
    return names


def _unknown_macro(name: str, known: Iterable[str], where: str) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"unknown macro {name} {where}{hint} Known: {', '.join(known)}"


def _refuse_unused_macros() -> None:
    """A mistyped macro is a definition that nothing reads; gin itself says nothing about it."""
    known = _macros_referenced() | _shipped_macros()
    for name in sorted(_macros_defined()):
        if name not in known:
            raise ConfigError(_unknown_macro(name, known, "in a gin file"))


def _refuse_missing_macros() -> None:
    missing = [n for n, value in sorted(_macro_bindings().items()) if _is_required(value)]
    missing += sorted(_macros_referenced() - _macros_defined())
    if missing:
        flags = " ".join(f"--gin.{n}=..." for n in missing)
        raise ConfigError(f"must be given and is not: {', '.join(missing)} ({flags})")
