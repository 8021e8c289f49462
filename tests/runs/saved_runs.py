"""Run folders of tiny models, as train.py leaves them, without a training."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from lightning_modules.base import TranslationModule
from runs.build import build
from runs.config import load_config
from tests.models import tiny_parts
from tests.networks.sd_folder import save_sd_folder

SAMPLER = {"_target_": "diffusion.samplers.Sampler", "solver": "ddim", "num_steps": 2, "eta": 0.0}
OPTIMIZER = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3}


def datamodule(**settings: Any) -> dict[str, Any]:
    node = {
        "_target_": "datamodules.builtin.BuiltinPhotosDataModule",
        "size_px": 32,
        "batch_size": 4,
        "seed": 0,
    }
    return node | settings


def save_run(run_dir: Path, module: dict[str, Any], *, name: str = "best.ckpt") -> TranslationModule:
    """Writes config.yaml and a checkpoint with open zero convolutions, so that conditions show; returns the module."""
    config = {
        "experiment_name": "tiny",
        "seed": 0,
        "compile": False,
        "resume": None,
        "ckpt_path": None,
        "run_dir": str(run_dir),
        "module": module | {"optimizer": OPTIMIZER, "lr_schedule": "constant", "num_warmup_steps": 0},
        "datamodule": datamodule(),
        "trainer": {"max_steps": 1},
        "callbacks": {},
        "logger": {},
    }
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), run_dir / "config.yaml")
    torch.manual_seed(0)
    built = build(load_config(run_dir)["module"], "module", seed=0)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    checkpoint: dict[str, Any] = {"state_dict": built.state_dict(), "callbacks": {}}
    built.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, run_dir / "checkpoints" / name)
    return built.eval()


def colorizer_node(base: Path, **settings: Any) -> dict[str, Any]:
    return {
        "_target_": "lightning_modules.colorize_controlnet.ColorizeControlNet",
        "parts": {
            "_target_": "networks.latent_diffusion_parts.LatentDiffusionParts.from_folder",
            "source": str(base),
            "revision": None,
        },
        "sampler": SAMPLER,
        "guidance_scale": 1.5,
        **settings,
    }


def save_colorizer(folder: Path, *, sd: bool = True) -> Path:
    """A colorizer on a base in Stable Diffusion's layout (f4 here, to be quick); returns the run folder."""
    if sd:
        save_sd_folder(folder / "base", halvings=2)
    else:
        tiny_parts().save(folder / "base")
    save_run(folder / "run", colorizer_node(folder / "base"))
    return folder / "run"


def save_latent_diffusion(folder: Path) -> Path:
    parts = tiny_parts()
    parts.save(folder / "base")
    node = colorizer_node(folder / "base") | {
        "_target_": "lightning_modules.latent_diffusion.LatentDiffusion",
        "train_text_encoder": True,
    }
    save_run(folder / "run", node)
    return folder / "run"


def save_autoencoder(folder: Path) -> Path:
    vae = {
        "_target_": "diffusers.AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [8, 8],
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }
    save_run(folder / "run", {"_target_": "lightning_modules.autoencoder.Autoencoder", "vae": vae})
    return folder / "run"


def save_bridge(folder: Path, **settings: Any) -> Path:
    """A diffusing_colors run on which hints show; settings replace the module's, noise_scale is the path's."""
    tiny_parts().save(folder / "base")
    noise_scale = settings.pop("noise_scale", 0.0)
    solver = {"solver": "posterior" if noise_scale else "cold", "num_steps": 2}
    node = colorizer_node(folder / "base", hint_prob=0.5) | {
        "_target_": "lightning_modules.diffusing_colors.DiffusingColors",
        "path": {
            "_target_": "diffusion.bridge_paths.BridgePath",
            "noise_scale": noise_scale,
        },
        "sampler": {"_target_": "diffusion.bridge_samplers.BridgeSampler", **solver},
    }
    save_run(folder / "run", node | settings)
    file = folder / "run" / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    torch.nn.init.normal_(checkpoint["state_dict"]["parts.unet.conv_in.weight"])
    torch.save(checkpoint, file)
    return folder / "run"


def save_ranker(folder: Path) -> Path:
    ranker = {"_target_": "networks.vividness.VividnessRanker", "channels": [8, 16]}
    target = "lightning_modules.vividness_ranker.VividnessRanking"
    save_run(folder / "run", {"_target_": target, "ranker": ranker})
    return folder / "run"
