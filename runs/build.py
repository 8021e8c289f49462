"""The one place where a config becomes objects: targets from an allow-list, errors that name the config path.

A config is data: no `_target_` in it may reach anything but the classes named here, wherever the config comes from
(the command line, a sweep's server, the config.yaml of somebody else's run).
"""

import ast
from typing import Any

from runs.choices import nearest
from runs.signatures import classes, classmethods, definition, modules

OWN_ROOMS = ("callbacks.", "datamodules.", "diffusion.", "lightning_modules.", "metrics.", "networks.")
OWN_FUNCTIONS = {"networks.latent_diffusion_parts.load_vae"}
ALLOWED = {
    "diffusers.DDIMScheduler",
    "diffusers.AutoencoderKL",
    "diffusers.ControlNetModel",
    "diffusers.UNet2DConditionModel",
    "diffusers.UNet2DModel",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.DeviceStatsMonitor",
    "lightning.pytorch.callbacks.EarlyStopping",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.callbacks.RichProgressBar",
    "lightning.pytorch.callbacks.TQDMProgressBar",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "lightning.pytorch.profilers.AdvancedProfiler",
    "lightning.pytorch.profilers.PyTorchProfiler",
    "lightning.pytorch.profilers.SimpleProfiler",
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.FSDPStrategy",
    "timm.create_model",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
}
# What each part of a config may be, by the start of its target.
ROLES = {
    "module": ("lightning_modules.",),
    "datamodule": ("datamodules.",),
    "trainer": ("lightning.pytorch.Trainer",),
    "callbacks.*": ("callbacks.", "lightning.pytorch.callbacks."),
    "logger.*": ("callbacks.", "lightning.pytorch.loggers."),
}
# Hydra's other special keys have no use here; _args_ would pass by the check of argument names.
UNUSED_KEYS = ("_args_", "_convert_", "_recursive_")


def check_plain(node: Any, path: str) -> None:
    """Refuses interpolations and everything else but plain values.

    Hydra would resolve an interpolation once more, and so reveal a target or an environment variable to a class.

    Raises:
        ValueError: with the config path.
    """
    match node:
        case dict():
            for key, value in node.items():
                check_plain(value, f"{path}.{key}" if path else str(key))
        case list():
            for index, value in enumerate(node):
                check_plain(value, f"{path}[{index}]")
        case str() if "${" in node:
            raise ValueError(f"{path} is {_shown(node)}, an interpolation; write the value itself")
        case None | str() | int() | float() | bytes():
            return
        case _:
            raise ValueError(f"{path} is a {type(node).__name__}, expected plain values")


def check_targets(node: Any, path: str) -> None:
    """Refuses every `_target_` in a plain `node`, however deep, that is not on the allow-list.

    Raises:
        ValueError: with the config path of the target, or of another special key of Hydra's.
    """
    if isinstance(node, dict):
        if "_target_" in node:
            _check_target(node["_target_"], path)
        _check_special_keys(node, path)
        for key, value in node.items():
            check_targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{path}[{index}]")


def _check_target(target: Any, path: str) -> None:
    key = f"{path}._target_" if path else "_target_"
    if not isinstance(target, str):
        raise ValueError(f"{key} is {_shown(target)}, expected the name of a class")
    if target.startswith(OWN_ROOMS):
        if not _is_own(target):
            raise ValueError(
                f"{key} is {_shown(target)}, which is no class that this project defines"
                f"{nearest(target, _own_names(target))}"
            )
    elif target not in ALLOWED:
        raise ValueError(
            f"{key} is {_shown(target)}, which is not among the classes this project builds; use a class of its "
            f"own packages or one listed in runs/build.py{nearest(target, ALLOWED)}"
        )
    wanted = ROLES.get(path) or ROLES.get(f"{path.partition('.')[0]}.*" if path.count(".") == 1 else "")
    if wanted and not target.startswith(wanted):
        raise ValueError(f"{key} is {_shown(target)}, expected one that starts with {' or '.join(wanted)}")


def _check_special_keys(node: dict[str, Any], path: str) -> None:
    for key in UNUSED_KEYS:
        if key in node:
            raise ValueError(f"{path}.{key} is not used in this project; give arguments by their names")
    if not isinstance(node.get("_partial_", False), bool):
        raise ValueError(f"{path}._partial_ is {_shown(node['_partial_'])}, expected true or false")


def _is_own(target: str) -> bool:
    """Whether the text of our files makes it a public class, or a classmethod that such a class itself has.

    Hydra walks attributes, so that `callbacks.checkpoints.torch.load` would be found too.
    """
    if target in OWN_FUNCTIONS:
        return True
    parts = target.split(".")
    plain = all(p.isidentifier() and p.isascii() and not p.startswith("_") for p in parts)
    if not plain or len(parts) not in (3, 4):
        return False
    room, file, name, *method = parts
    module, node = definition(f"{room}.{file}", name) or ("", None)
    if not (module.startswith(OWN_ROOMS) and isinstance(node, ast.ClassDef)):
        return False
    return not method or method[0] in classmethods(node)


def _own_names(target: str) -> list[str]:
    """What the file of a target offers, or the files of its room."""
    room, _, rest = target.partition(".")
    module = f"{room}.{rest.partition('.')[0]}"
    functions = [name for name in OWN_FUNCTIONS if name.startswith(f"{module}.")]
    return [*(f"{module}.{name}" for name in classes(module)), *functions] or modules(room)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."


def build(node: dict[str, Any], path: str, **objects: Any) -> Any:
    """The object that a resolved config node describes; nested nodes are built first.

    Args:
        node: plain dict with `_target_`.
        path: where the node stands in the config, for error texts.
        objects: already built arguments.

    Raises:
        ValueError: a target off the allow-list, or arguments that its class refuses.
        OSError: what reading files raised, unchanged.
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
