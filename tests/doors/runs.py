"""Run folders of tiny colorizers to compare."""

from pathlib import Path

import torch

from tests.models import tiny_parts
from tests.runs.saved_runs import colorizer_node, save_run

BRIDGE = {
    "_target_": "lightning_modules.diffusing_colors.DiffusingColors",
    "path": {"_target_": "diffusion.bridge_paths.BridgePath", "noise_scale": 0.0},
    "sampler": {"_target_": "diffusion.bridge_samplers.BridgeSampler", "solver": "cold", "num_steps": 3},
}


def save_runs(folder: Path) -> dict[str, str]:
    """A ControlNet, and two trainings of a walk without noise, on one base; their folders by name."""
    parts = tiny_parts()
    parts.vae.register_to_config(scaling_factor=0.05)  # an untrained decoder hardly shows colour otherwise
    parts.save(folder / "base")
    walk = colorizer_node(folder / "base", guidance_scale=1.0) | BRIDGE
    nodes = {
        "controlnet": colorizer_node(folder / "base"),
        "walk": walk,
        "walk_b": walk,
        "vivid": walk | {"chroma_scale": 2.0},
    }
    for name, node in nodes.items():
        save_run(folder / name, node)
    config = folder / "walk_b" / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    _disturb(folder / "walk_b" / "checkpoints" / "best.ckpt")
    return {name: str(folder / name) for name in nodes}


def _disturb(checkpoint: Path) -> None:
    """Adds a little noise to all that a checkpoint holds, in place: another training."""
    content = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(7)
    for value in content["state_dict"].values():
        if value.is_floating_point():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    torch.save(content, checkpoint)
