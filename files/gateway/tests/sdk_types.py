"""Checks a body against the types of a vendor's SDK, key by key.

Not pydantic: it takes the SDKs' `Iterable` fields for generators, looks into them only when they are read,
and in a union of types then settles for the first that has no other fault.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from functools import cache
from typing import Any

import typing_extensions


def fault(value: Any, kind: Any, path: str = "$") -> str | None:
    """Where ``value`` is not what ``kind`` says, or None."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in (Any, object):
        return None
    if origin is typing.Annotated or origin in (typing.Required, typing.NotRequired):
        return fault(value, arguments[0], path)
    if origin in (typing.Union, types.UnionType):
        faults = [fault(value, member, path) for member in arguments]
        return None if None in faults else max((found or "" for found in faults), key=lambda found: found.count("."))
    if origin is typing.Literal:
        return None if value in arguments else f"{path}: {value!r} is none of {arguments}"
    if typing_extensions.is_typeddict(kind):
        return _fault_of_object(value, kind, path)
    if origin in (dict, collections.abc.Mapping):
        return None if isinstance(value, dict) else f"{path}: no object"
    if origin is not None and isinstance(origin, type) and (issubclass(origin, collections.abc.Iterable) or "Sequence" in origin.__name__):
        if not isinstance(value, list):
            return f"{path}: no array"
        found = (fault(item, arguments[0], f"{path}.{index}") for index, item in enumerate(value))
        return next((item for item in found if item), None)
    if kind is float:
        kind = (int, float)
    plain = origin or (kind if kind is not None else type(None))  # an open file, a path: never JSON
    good = isinstance(value, plain) and not (isinstance(value, bool) and kind is not bool)
    return None if good else f"{path}: {value!r} is no {kind}"


@cache
def _fields(kind: Any) -> dict[str, Any]:
    return typing_extensions.get_type_hints(kind, include_extras=True)


def _fault_of_object(value: Any, kind: Any, path: str) -> str | None:
    if not isinstance(value, dict):
        return f"{path}: no object"
    fields = _fields(kind)
    for name in kind.__required_keys__:
        if name not in value:
            return f"{path}: {name} is missing"
    for name, item in value.items():
        if name not in fields:
            return f"{path}.{name}: unknown"
        found = fault(item, fields[name], f"{path}.{name}")
        if found:
            return found
    return None
