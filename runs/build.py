"""The one place where a config becomes objects: targets from an allow-list, errors that name the config path."""

from typing import Any

from runs.choices import nearest

OWN_ROOMS = ("callbacks.", "datamodules.", "diffusion.", "lightning_modules.", "metrics.", "networks.")
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


def check_targets(node: Any, path: str) -> None:
    """Refuses every `_target_` in `node`, however deep, that is not on the allow-list.

    Raises:
        ValueError: with the config path of the target.
    """
    if isinstance(node, dict):
        target = node.get("_target_")
        if target is not None and not (isinstance(target, str) and _allowed(target)):
            raise ValueError(
                f"{path}._target_ is '{target}', which is not among the classes this project builds"
                f"{nearest(str(target), ALLOWED)}; use a class of its own packages or one listed in runs/build.py"
            )
        for key, value in node.items():
            check_targets(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            check_targets(value, f"{path}[{index}]")


def _allowed(target: str) -> bool:
    return target in ALLOWED or target.startswith(OWN_ROOMS)


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

    check_targets(node, path)
    try:
        return instantiate(node, **objects, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, OSError)):
            raise cause from None
        where = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else ""
        reason = f"{type(cause).__name__}: {cause}" if cause else str(error).splitlines()[0]
        raise ValueError(f"{path}{'.' + where if where else ''} cannot be built: {reason}") from error
