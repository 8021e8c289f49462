"""Checks of option values, each one sentence that names the config key, and parts built from options."""

from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def from_options(kind: type[T], options: Any) -> T:
    """An object of the dataclass `kind` by the attributes of `options` that have the names of its fields."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: getattr(options, name) for name in names if hasattr(options, name)})


def check_literals(options: Any) -> None:
    """Raises ValueError naming the first field of a dataclass whose value is not one of its Literal's."""
    for field in fields(options):
        value, allowed = getattr(options, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in allowed:
            raise ValueError(f"datamodule.{field.name} is {value!r}; expected one of {', '.join(allowed)}")


def check_at_least(minimum: int, **values: float | None) -> None:
    """Raises ValueError naming the first of the options that is smaller; None is not looked at."""
    for key, value in values.items():
        if value is not None and value < minimum:
            expected = "at least 1" if minimum else "0 or more"
            raise ValueError(f"datamodule.{key} is {value}; expected {expected}")


def check_share(**values: float) -> None:
    """Raises ValueError naming the first of the options that is not in [0, 1]."""
    for key, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"datamodule.{key} is {value}; expected a number in [0, 1]")
