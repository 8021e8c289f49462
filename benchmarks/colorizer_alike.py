"""What runs must have in common to be joined as one method, so that they differ in the seed of their training alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.colorizer_costs import training_images
from benchmarks.colorizer_methods import Entrant

_NAME_OF_ITS_OWN = "give runs of other settings a name of their own"
_NOT_SET = "not set"
# How photos are read, and the seed.
_DATA_OF_THE_MACHINE = {"seed", "num_workers", "image_cache", "cache_dir", "val_batch_size", "timeout_s"}
_TRAINER_KEYS = ("precision", "accumulate_grad_batches", "gradient_clip_val")


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
            unlike = differing(learned_from(first.run.config), learned_from(other.run.config))
            if unlike:
                listed = ", ".join(f"{key} ({a} and {b})" for key, (a, b) in unlike.items())
                raise ValueError(
                    f"methods= joins runs of '{name}' that differ in {listed}; {_NAME_OF_ITS_OWN}"
                )
        seeds = [entrant.run.config["seed"] for entrant in entrants]
        if len(set(seeds)) < len(seeds):
            listed = ", ".join(map(str, seeds))
            raise ValueError(
                f"methods= joins runs of '{name}' of which two have the same seed ({listed}); trainings count as "
                "several only if their seeds differ"
            )
        counts = sorted({count for count in (training_images(e.run) for e in entrants) if count is not None})
        if len(counts) > 1:
            raise ValueError(
                f"methods= joins runs of '{name}' that were trained on {' and '.join(map(str, counts))} photos; join runs of "
                "equal training, or give them names of their own"
            )


def learned_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's config that its weights depend on, without the seed and the length."""
    data = {key: value for key, value in config["datamodule"].items() if key not in _DATA_OF_THE_MACHINE}
    trainer = {key: config.get("trainer", {}).get(key) for key in _TRAINER_KEYS}
    return {"module": config["module"], "datamodule": data, "trainer": trainer}


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
