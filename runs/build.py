"""The one place where a config becomes objects: targets from an allow-list, errors that name the config path.

A config is data: no `_target_` in it may reach anything but the classes named here, wherever the config comes from
(the command line, a sweep's server, the config.yaml of somebody else's run).
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from runs.choices import nearest

ROOT = Path(__file__).parents[1]
_ROOMS = "callbacks datamodules diffusion lightning_modules metrics networks reliability"
OWN_ROOMS = tuple(f"{room}." for room in _ROOMS.split())
OWN_FUNCTIONS = {"networks.latent_diffusion_parts.load_vae"}
_OTHERS = {
    "diffusers": "DDIMScheduler AutoencoderKL ControlNetModel UNet2DConditionModel UNet2DModel",
    "lightning.pytorch": "Trainer",
    "lightning.pytorch.callbacks": "DeviceStatsMonitor EarlyStopping LearningRateMonitor RichProgressBar TQDMProgressBar",
    "lightning.pytorch.loggers": "CSVLogger WandbLogger",
    "lightning.pytorch.profilers": "AdvancedProfiler PyTorchProfiler SimpleProfiler",
    "lightning.pytorch.strategies": "DDPStrategy FSDPStrategy",
    "timm": "create_model",
    "torch.optim": "Adam AdamW SGD",
}
ALLOWED = {f"{module}.{name}" for module, names in _OTHERS.items() for name in names.split()}
# What each part of a config may be, by the start of its target.
ROLES = {
    "module": ("lightning_modules.",),
    "datamodule": ("datamodules.",),
    "trainer": ("lightning.pytorch.Trainer",),
    "callbacks.*": ("callbacks.", "reliability.", "lightning.pytorch.callbacks."),
    "logger.*": ("callbacks.", "lightning.pytorch.loggers."),
}
# Hydra's other special keys have no use here; _args_ would pass by the check of argument names.
UNUSED_KEYS = ("_args_", "_convert_", "_recursive_")


def values(node: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The node and all that it holds with their config paths, the outer ones first."""
    yield node, path
    if isinstance(node, dict):
        for key, value in node.items():
            yield from values(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from values(value, f"{path}[{index}]")


def nodes(node: Any, path: str) -> list[tuple[dict[str, Any], str]]:
    """The dicts among `values`."""
    return [(value, where) for value, where in values(node, path) if isinstance(value, dict)]


def check_plain(node: Any, path: str) -> None:
    """Raises a ValueError with the config path for interpolations and everything else but plain values.

    Hydra would resolve an interpolation once more, and so reveal a target or an environment variable to a class.
    """
    for value, where in values(node, path):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{where} is {_shown(value)}, an interpolation; write the value itself")
        if not isinstance(value, (dict, list, str, int, float, bytes, NoneType)):
            raise ValueError(f"{where} is a {type(value).__name__}, expected plain values")


def check_targets(node: Any, path: str) -> None:
    """Raises a ValueError with its config path for a `_target_`, however deep, that is not on the allow-list.

    What can be refused by its name alone is refused before anything is imported.
    """
    for check in (_check_keys, _check_class):
        for found, where in nodes(node, path):
            check(found, where)


def _check_keys(node: dict[str, Any], path: str) -> None:
    for key in UNUSED_KEYS:
        if key in node:
            raise ValueError(f"{path}.{key} is not used in this project; give arguments by their names")
    if not isinstance(node.get("_partial_", False), bool):
        raise ValueError(f"{path}._partial_ is {_shown(node['_partial_'])}, expected true or false")
    if "_target_" not in node:
        return
    target = node["_target_"]
    if not isinstance(target, str):
        raise ValueError(f"{_key(path)} is {_shown(target)}, expected the name of a class")
    if not (target.startswith(OWN_ROOMS) or target in ALLOWED):
        raise ValueError(
            f"{_key(path)} is {_shown(target)}, which is not among the classes this project builds; use a class of its "
            f"own packages or one listed in runs/build.py{nearest(target, ALLOWED)}"
        )


def _check_class(node: dict[str, Any], path: str) -> None:
    target = node.get("_target_")
    if target is None:
        return
    if target not in ALLOWED and located(target) is None:
        raise ValueError(
            f"{_key(path)} is {_shown(target)}, which is no class that this project defines"
            f"{nearest(target, _own_names(target))}"
        )
    wanted = ROLES.get(path) or ROLES.get(f"{path.partition('.')[0]}.*" if path.count(".") == 1 else "")
    if wanted and not target.startswith(wanted):
        raise ValueError(
            f"{_key(path)} is {_shown(target)}, expected one that starts with {' or '.join(wanted)}"
        )


def _key(path: str) -> str:
    return f"{path}._target_" if path else "_target_"


def located(target: str) -> Any | None:
    """The class, classmethod or function that an allowed target names, imported; None if it is not allowed.

    Of our rooms these are a public class that stands in them, also where a file of theirs has imported it, and a
    classmethod that such a class itself has. Nothing but our own file is imported to find out: Hydra walks
    attributes, so that `callbacks.wandb_logger.yaml.unsafe_load` would be found too.
    """
    if target in ALLOWED | OWN_FUNCTIONS:
        module, _, name = target.rpartition(".")
        return getattr(importlib.import_module(module), name)
    if not _file_exists(target):
        return None
    room, file, name, *method = target.split(".")
    found = vars(importlib.import_module(f"{room}.{file}")).get(name)
    if not (isinstance(found, type) and found.__module__.startswith(OWN_ROOMS)):
        return None
    if not method:
        return found
    return getattr(found, method[0]) if isinstance(vars(found).get(method[0]), classmethod) else None


def _file_exists(target: str) -> bool:
    """Whether a target is ROOM.FILE.CLASS or ROOM.FILE.CLASS.METHOD, in public names, and we have that file."""
    parts = target.split(".")
    public = all(part.isidentifier() and part.isascii() and not part.startswith("_") for part in parts)
    is_ours = public and len(parts) in (3, 4) and f"{parts[0]}." in OWN_ROOMS
    return is_ours and (ROOT / parts[0] / f"{parts[1]}.py").is_file()


def own_classes(module: str) -> list[str]:
    """Full names of the public classes and functions that a module of ours may be asked for."""
    found = vars(importlib.import_module(module))
    own = [name for name, v in found.items() if isinstance(v, type) and v.__module__ == module]
    functions = [name for name in OWN_FUNCTIONS if name.rpartition(".")[0] == module]
    return [f"{module}.{name}" for name in own if not name.startswith("_")] + functions


def _own_names(target: str) -> list[str]:
    """What the file of a target offers, or the files of its room."""
    room, file, *_ = [*target.split("."), ""]
    if _file_exists(f"{room}.{file}.Any"):
        return own_classes(f"{room}.{file}")
    return [f"{room}.{path.stem}" for path in sorted((ROOT / room).glob("[!_]*.py"))]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def build(node: dict[str, Any], path: str, **objects: Any) -> Any:
    """The object that a resolved config node at a config path describes, with arguments that are objects already.

    Nested nodes are built first. Raises a ValueError for a target off the allow-list or arguments that its class
    refuses; what reading files raised comes through unchanged.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_plain(node, path)
    check_targets(node, path)
    if "_target_" not in node:
        raise ValueError(f"{path} has no _target_, so there is nothing to build")
    try:
        return instantiate(node, **objects, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        where = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error).splitlines()[0]
        raise ValueError(f"{path}{'.' + where if where else ''} cannot be built: {reason}") from error
