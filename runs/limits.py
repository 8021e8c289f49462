"""Values that Hydra or Lightning take and a run cannot follow, refused in one sentence before anything is made."""

from collections.abc import Callable, Mapping
from typing import Any

from runs.choices import groups, options, train_keys

Values = Mapping[str, Any]
_STEPS = "as a run counts optimiser steps; set trainer.max_steps"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _is_seed(value: Any) -> bool:
    return not isinstance(value, int) or 0 <= value < 1 << 32


def _is_val_interval(value: Any, trainer: Values) -> bool:
    if isinstance(value, float) and trainer.get("check_val_every_n_epoch") is not None:
        return 0 < value <= 1  # of an epoch
    return not isinstance(value, (int, float)) or _is_count(value)


# Keys of the trainer: what a value must fulfil, beside the others, and what is expected in words.
_TRAINER: dict[str, tuple[Callable[[Any, Values], bool], str]] = {
    "max_steps": (
        lambda value, _: _is_count(value),
        "a whole number of at least 1: order, schedule and resume follow the length of the run",
    ),
    "max_epochs": (lambda value, _: value in (None, -1), f"-1, {_STEPS}"),
    "min_epochs": (lambda value, _: value is None, f"null, {_STEPS}"),
    "check_val_every_n_epoch": (
        # One epoch of Lightning's is the whole run, unless a few batches are repeated.
        lambda value, trainer: (
            value in (None, 1) or bool(trainer.get("overfit_batches") and _is_count(value))
        ),
        f"null, {_STEPS} and trainer.val_check_interval",
    ),
    "val_check_interval": (
        _is_val_interval,
        "training batches between validations, at least 1; trainer.limit_val_batches=0 turns validation off",
    ),
    "precision": (
        lambda value, _: "true" not in str(value) and "engine" not in str(value) or value == "32-true",
        "32-true, bf16-mixed or 16-mixed, as trained weights stay in float32",
    ),
    "accumulate_grad_batches": (lambda value, _: _is_count(value), "a whole number of at least 1"),
    "log_every_n_steps": (
        lambda value, _: _is_count(value),
        "a whole number of at least 1; logger=none writes no figures",
    ),
    "limit_train_batches": (
        lambda value, _: value is None or value > 0,
        "more than 0, or nothing is trained",
    ),
    "max_time": (
        lambda value, _: isinstance(value, (str, dict, type(None))),
        "DAYS:HOURS:MINUTES:SECONDS, such as 00:06:00:00",
    ),
    "strategy": (
        lambda value, _: not (isinstance(value, str) and value.endswith(("spawn", "fork", "notebook"))),
        "ddp, as processes are started by their command",
    ),
    "logger": (lambda *_: False, "no value, as it has no effect here; set logger=none, csv or wandb"),
    "callbacks": (lambda *_: False, "no value, as it has no effect here; set callbacks.NAME"),
}
_TRAINER_DEFAULTS = {"max_steps": -1}  # Lightning's own, of a key that was taken out


def check_limits(config: Values) -> None:
    """Raises a ValueError with the key for a value that a run cannot follow; keys have their types already."""
    for key, value in (
        ("seed", config.get("seed")),
        ("datamodule.seed", (config.get("datamodule") or {}).get("seed")),
    ):
        if not _is_seed(value):
            raise ValueError(f"{key} is {value}, expected a whole number from 0 to {(1 << 32) - 1}")
    trainer = {**_TRAINER_DEFAULTS, **config["trainer"]} if config.get("trainer") else {}
    for name, (is_good, expected) in _TRAINER.items():
        if name in trainer and not is_good(trainer[name], trainer):
            given = "null" if trainer[name] is None else repr(trainer[name])
            raise ValueError(f"trainer.{name} is {given}, expected {expected}")


def check_complete(config: Values) -> None:
    """Raises a ValueError for a part of the config that the command line took out, such as ~logger."""
    for key in train_keys():
        if key not in config:
            choices = ", ".join(options(key)) if key in groups() else ""
            raise ValueError(
                f"the config has no {key}, and a run needs one; "
                + (f"instead of ~{key} choose one: {key}= {choices}" if choices else f"leave out ~{key}")
            )
