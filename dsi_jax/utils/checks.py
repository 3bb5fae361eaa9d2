"""Checks of what a configuration gives: types against annotations, ranges, directories."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from typing import Any

_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "None",
}


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Raises unless `value` is of the annotated type; a bool is no number, a whole number is one.

    Args:
      name: what the value is called in the message.
      value: the value.
      annotation: a class, a Protocol, a union of such, a generic of `collections.abc`, or Any.

    Raises:
      ValueError: naming the value, its type and what was expected.
    """
    if _fits(value, annotation):
        return
    expected = _describe(annotation)
    hint = ""
    if str in _alternatives(annotation) and isinstance(value, int | float):
        hint = f"; quotes make it a text: {name}=\"'{value}'\""
    found = f"{name} is {value!r}"
    if value is not None:
        found += f" ({type(value).__name__})"
    raise ValueError(f"{found}; expected {expected}{hint}")


def check_fields(config: Any) -> None:
    """Checks the fields of a dataclass, and of the dataclasses in it, against their annotations.

    Raises:
      ValueError: naming the field, its value, its type and what was expected.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        check_type(f"{type(config).__name__}.{field.name}", value, hints[field.name])
        if dataclasses.is_dataclass(value):
            check_fields(value)


def check_whole_numbers(least: int = 1, **values: Any) -> None:
    """Raises unless every given value is a whole number of at least `least`; None stands for unset.

    Raises:
      ValueError: naming the value and its type.
    """
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            expected = "a positive whole number" if least == 1 else f"at least {least}"
            raise ValueError(f"{name} is {value!r} ({type(value).__name__}); expected {expected}")


def check_fractions(**values: float | None) -> None:
    """Raises unless every given number lies in [0, 1); None stands for unset.

    Raises:
      ValueError: naming the value.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} is {value!r}; expected a number in [0, 1)")


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


# beartype's `is_bearable` would take True for a whole number and a text for a list of texts, looks
# into a list at random, and refuses to check a Protocol that is not `runtime_checkable`.
def _fits(value: Any, annotation: Any) -> bool:
    return any(_fits_one(value, kind) for kind in _alternatives(annotation))


def _fits_one(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    origin = typing.get_origin(kind) or kind
    if origin is collections.abc.Sequence and isinstance(value, str):
        return False
    if isinstance(value, bool):
        return origin is bool
    if origin is float:
        return isinstance(value, int | float)
    if getattr(origin, "_is_protocol", False):
        # A class has the members of its objects: gin's @name in place of @name().
        return not isinstance(value, type) and all(hasattr(value, n) for n in _members(origin))
    return isinstance(value, origin) if isinstance(origin, type) else True


def _members(protocol: type) -> list[str]:
    """What an object must have to be one: annotated attributes and public methods."""
    methods = [name for name in vars(protocol) if not name.startswith("_")]
    return [*vars(protocol).get("__annotations__", {}), *methods]


def _describe(annotation: Any) -> str:
    names = []
    for kind in _alternatives(annotation):
        origin = typing.get_origin(kind) or kind
        if origin is collections.abc.Mapping:
            names.append("a dict")
        elif origin is collections.abc.Sequence:
            names.append("a list")
        else:
            names.append(_NAMES.get(origin) or f"an object {getattr(origin, '__name__', origin)}")
    return " or ".join(names)
