"""gin configuration as T5X's users know it: files, macros, bindings and where files are found.

    --gin_file=experiments/demo_text.gin --gin.MODEL_DIR=/tmp/demo --gin_bindings='a.b = 1'

Only the entry points import this module; everything below them receives objects.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import importlib.util  # noqa: F401 (gin uses it without importing it)
import logging
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dsi_jax
import gin
from dsi_jax.utils import checks

_MACRO_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_DEFINED = re.compile(r"^\s*([A-Z][A-Z0-9_]*)\s*=", re.MULTILINE)
_USED = re.compile(r"%([A-Z][A-Z0-9_]*)")
_LITERAL_WORDS = {"true": "True", "false": "False", "none": "None"}
# Macros that stand for an object, and a shipped file that sets each.
_FILE_OF_OBJECT = {
    "DOCIDS": "docids/atomic.gin",
    "MESH": "meshes/data_parallel.gin",
    "MODEL": "models/t5_tiny.gin",
    "OPTIMIZER": "optimizers/adafactor.gin",
}


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
        cannot read, an unknown macro, a macro that must be given and is not, or a value of another
        type than the parameter it is for.
    """
    gin.clear_config()
    # Replaced, not added to: gin would try the working directory first, and those of calls before.
    gin.config._LOCATION_PREFIXES[:] = map(str, _folders(arguments.search_paths))
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
    _refuse_wrong_types()


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


def _folders(search_paths: Sequence[str]) -> list[Path]:
    """Where gin files are looked for, in order."""
    return [*map(Path, search_paths), Path.cwd(), shipped_directory()]


def _resolved(name: str, search_paths: Sequence[str]) -> str:
    """The first existing candidate for a gin file's name.

    gin's own look-up does the same for includes; doing it here too names every place tried.
    """
    if Path(name).is_absolute():
        candidates = [Path(name)]
    else:
        candidates = [folder / name for folder in _folders(search_paths)]
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
    word = _LITERAL_WORDS.get(value.lower(), value)
    if word != value:  # as a text, "false" would be true
        raise ConfigError(
            f"{name} is {value}; expected True, False or None, so written: {name}={word}"
        )
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
        flags = " ".join(
            f"--gin_file={_FILE_OF_OBJECT[n]}" if n in _FILE_OF_OBJECT else f"--gin.{n}=..."
            for n in missing
        )
        raise ConfigError(f"must be given and is not: {', '.join(missing)} (for example {flags})")


def _refuse_wrong_types() -> None:
    """Compares what is bound to our own parameters with their annotations.

    Here, because a constructor that meets a text where it expects a number fails in its own words,
    and because only gin knows the macro that the value came from.
    """
    macros = _macro_bindings()
    for (_, selector), parameters in gin.config._CONFIG.items():
        hints = _hints(selector)
        for parameter, value in parameters.items():
            name = f"{selector}.{parameter}"
            while isinstance(value, gin.config.ConfigurableReference) and _is_macro(value):
                name = value.scoped_selector.rpartition("/")[0]
                value = macros[name]
            # What holds a reference is not known before it is called.
            if parameter in hints and not any(gin.config.iterate_references(value)):
                try:
                    checks.check_type(name, value, hints[parameter])
                except ValueError as error:
                    raise ConfigError(str(error)) from error


def _hints(selector: str) -> dict[str, Any]:
    """Annotations of a configurable's parameters; none for what is not ours."""
    configurable = gin.config._REGISTRY[selector].wrapped
    if not configurable.__module__.startswith("dsi_jax."):
        return {}
    return typing.get_type_hints(configurable)
