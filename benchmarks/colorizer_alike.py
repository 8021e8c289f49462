"""What runs must have in common to be joined as one method, so that they differ in the seed of their training alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.colorizer_costs import training_images
from benchmarks.colorizer_methods import Entrant

_NAME_OF_ITS_OWN = "give runs of other settings a name of their own"
_NOT_SET = "not set"


def check_alike(methods: Mapping[str, Sequence[Entrant]]) -> None:
    """Raises ValueError where runs joined as one method are not: their mean would be of two different things."""
    for name, entrants in methods.items():
        first = entrants[0]
        for other in entrants[1:]:
            if first.source.settings != other.source.settings:
                raise ValueError(
                    f"methods= joins runs of '{name}' that draw with {first.source.settings} and with "
                    f"{other.source.settings}; {_NAME_OF_ITS_OWN}"
                )
            unlike = differing(first.run.config["module"], other.run.config["module"])
            if unlike:
                listed = ", ".join(f"module.{key} ({a} and {b})" for key, (a, b) in unlike.items())
                raise ValueError(
                    f"methods= joins runs of '{name}' that differ in {listed}; {_NAME_OF_ITS_OWN}"
                )
        counts = sorted({count for count in (training_images(e.run) for e in entrants) if count is not None})
        if len(counts) > 1:
            raise ValueError(
                f"methods= joins runs of '{name}' that were trained on {' and '.join(map(str, counts))} photos; join runs of "
                "equal training, or give them names of their own"
            )


def differing(one: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """The values of two configs by the dotted keys in which they differ.

    Example:
        >>> differing({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
        {'b.c': (2, 3)}
    """
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return {} if one == other else {"": (one, other)}
    found = {}
    for key in dict.fromkeys([*one, *other]):
        for rest, values in differing(one.get(key, _NOT_SET), other.get(key, _NOT_SET)).items():
            found[f"{key}.{rest}" if rest else str(key)] = values
    return found
