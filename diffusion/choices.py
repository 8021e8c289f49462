"""One check for every argument that takes one of a few names."""

from typing import Any, get_args


def check_literal(key: str, value: Any, literal: Any) -> None:
    """Raises a ValueError that names the key and the choices unless `value` is one of a Literal's."""
    choices = get_args(literal)
    if value not in choices:
        listed = ", ".join(map(str, choices[:-1]))
        raise ValueError(f"{key} is '{value}'; expected {listed} or {choices[-1]}")
