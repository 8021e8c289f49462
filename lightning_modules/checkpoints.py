"""What a checkpoint of a method holds, the trained weights alone, and which ones it takes."""

from typing import Any

from torch import nn

from networks.content_hash import content_hash

# Networks that serve the training loss alone: a run is used without them.
_OF_THE_LOSS = "perceptual."


def frozen_hash(module: nn.Module) -> str | None:
    """Content hash of the frozen weights of a method; None where there are none."""
    # A codec and the parts name the same autoencoder; the later name is the one of earlier versions' checkpoints.
    names = {p: n.removeprefix("parts.") for n, p in module.named_parameters(remove_duplicate=False)}
    frozen = {n: p for p, n in names.items() if not p.requires_grad and not n.startswith(_OF_THE_LOSS)}
    return content_hash(frozen) if frozen else None


def leave_out_frozen(module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Takes the frozen weights out of a checkpoint, and notes the method's class."""
    named = module.named_parameters(remove_duplicate=False)  # parts and codec both name the autoencoder
    frozen = {name for name, p in named if not p.requires_grad}
    kept = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
    checkpoint["state_dict"] = {k: v for k, v in kept.items() if not k.startswith(_OF_THE_LOSS)}
    checkpoint["module_class"] = type(module).__name__


def check_fit(module: nn.Module, checkpoint: dict[str, Any], *, base_hash: str | None) -> None:
    """Raises a ValueError for a checkpoint of another method or size, or trained on other frozen weights.

    Args:
        module: the method.
        checkpoint: as `leave_out_frozen` left it.
        base_hash: of the method's frozen weights; None takes a checkpoint on any.
    """
    kind = type(module).__name__
    found = checkpoint.get("module_class", kind)
    if found != kind:
        raise ValueError(
            f"the checkpoint is of {found}, but this experiment is {kind}; give a checkpoint of the same experiment"
        )
    trained_on = checkpoint.get("base_sha256")
    if base_hash and trained_on and trained_on != base_hash:
        raise ValueError(
            f"the checkpoint was trained on a base with the content hash {trained_on[:12]}, but the frozen weights that the "
            f"config names have {base_hash[:12]}; give the base it was trained on, or set module.check_base=false to go on "
            "with another"
        )
    wanted = {name for name, p in module.named_parameters() if p.requires_grad}
    given, own = checkpoint["state_dict"], module.state_dict()
    missing = sorted(wanted - given.keys())
    unlike = sorted(k for k, v in given.items() if k not in own or own[k].shape != v.shape)
    if missing or unlike:
        raise ValueError(
            f"the checkpoint does not fit this {kind}: {len(missing)} weights missing and {len(unlike)} of another name or "
            f"shape (first: {(missing + unlike)[0]}); use the config.yaml of the run that wrote it"
        )
