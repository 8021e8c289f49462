"""Run folders of tiny colorizers for the measurements."""

from pathlib import Path

import torch

from benchmarks.colorizer_photos import Photos
from tests.models import photo_batch, tiny_parts
from tests.runs.saved_runs import colorizer_node, save_run


def bridge_node(base: Path, **settings) -> dict:
    node = colorizer_node(base, guidance_scale=1.0) | {
        "_target_": "lightning_modules.diffusing_colors.DiffusingColors",
        "path": {"_target_": "diffusion.bridge_paths.BridgePath", "noise_scale": 0.0},
        "sampler": {"_target_": "diffusion.bridge_samplers.BridgeSampler", "solver": "cold", "num_steps": 3},
    }
    return node | settings


def save_runs(folder: Path) -> dict[str, str]:
    """A ControlNet, three walks without noise and two with, on one base; their folders by name.

    Of each kind of walk the second has the settings of the first and other weights, as of another seed; walk_vivid has
    other settings.
    """
    parts = tiny_parts()
    parts.vae.register_to_config(scaling_factor=0.05)  # an untrained decoder hardly shows colour otherwise
    parts.save(folder / "base")
    noisy = {
        "path": {"_target_": "diffusion.bridge_paths.BridgePath", "noise_scale": 1.0},
        "sampler": {
            "_target_": "diffusion.bridge_samplers.BridgeSampler",
            "solver": "posterior",
            "num_steps": 2,
        },
    }
    nodes = {
        "controlnet": colorizer_node(folder / "base"),
        "walk": bridge_node(folder / "base"),
        "walk_b": bridge_node(folder / "base"),
        "walk_vivid": bridge_node(folder / "base", chroma_scale=2.0),
        "noisy": bridge_node(folder / "base", **noisy),
        "noisy_b": bridge_node(folder / "base", **noisy),
    }
    for name, node in nodes.items():
        save_run(folder / name, node)
        if name.endswith("_b"):
            config = folder / name / "config.yaml"
            config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
            other_weights(folder / name / "checkpoints" / "best.ckpt")
    return {name: str(folder / name) for name in nodes}


def other_weights(checkpoint: Path) -> None:
    """Adds a little noise to all that a checkpoint holds, in place."""
    content = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(7)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    torch.save(content, checkpoint)


def photos(count: int = 4) -> Photos:
    batch = photo_batch(count)
    return Photos(batch["image"], [""] * count, list(range(count)), batch["name"])
