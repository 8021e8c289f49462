"""Run folders of tiny colorizers for the measurements."""

from pathlib import Path

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
    """A ControlNet, two deterministic walks and a noisy one, on one base; their folders by name."""
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
        "walk_b": bridge_node(folder / "base", chroma_scale=2.0),
        "noisy": bridge_node(folder / "base", **noisy),
    }
    for name, node in nodes.items():
        save_run(folder / name, node)
    return {name: str(folder / name) for name in nodes}


def photos(count: int = 4) -> Photos:
    batch = photo_batch(count)
    return Photos(batch["image"], [""] * count, list(range(count)), batch["name"])
