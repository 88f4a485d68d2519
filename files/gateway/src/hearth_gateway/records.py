"""Immutable records, checked by the type checker and not at run time.

A frozen dataclass sets each field through ``object.__setattr__``, which makes a new object cost four times as
much. The records that are made for every request or every piece of an answer use this instead: mypy refuses
to assign to a field, Python does not look.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A dataclass with slots that can be compared and hashed."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
