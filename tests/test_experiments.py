"""Every experiment of conf/ runs: those added later are picked up by themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from networks.latent_diffusion_parts import LatentDiffusionParts
from reliability.checkpoint_io import read_checkpoint
from runs.choices import CONF, groups, options
from runs.config import dotted_keys, load_config, resolved
from runs.folder import status
from runs.load import load_run
from tests.doors.calls import evaluated
from tests.models import tiny_parts, tiny_unet
from tests.networks.sd_folder import save_sd_folder
from tests.runs.conftest import door  # noqa: F401

# For every experiment that has the key; {base} and {photos} are made by this file.
SHORT = {
    "datamodule.batch_size": "2",
    "datamodule.size_px": "64",
    "datamodule.root": "{photos}",
    "trainer.accelerator": "cpu",
    "trainer.accumulate_grad_batches": "1",
    "trainer.enable_progress_bar": "false",
    "trainer.limit_val_batches": "1",
    "+trainer.limit_test_batches": "1",
    "module.sampler.num_steps": "2",
    "trainer.max_steps": "2",
    "trainer.val_check_interval": "2",
    "callbacks.samples.num_images": "1",
}
# Experiments of papers stand on models that are downloaded: tiny ones of the same layout take their place.
PAPER = {"module.parts.source": "{base}"}
# What a single experiment needs besides.
FURTHER: dict[str, dict[str, str]] = {
    **{f"{task}_regression": {"module.sampler.num_steps": "1"} for task in ("colorize", "translate")},
    "ddpm_seg": {"module.parts.source": "{pixels}", "module.blocks": "[0,1]"},
    **{
        f"paper/segdiff_{name}": {
            "datamodule.root": "{masks}",
            "datamodule.size_px": "128",
            "module.network.num_blocks": "1",
            "module.network.block_out_channels": str([32] * num_levels).replace(" ", ""),
            "module.network.layers_per_block": "1",
            "module.network.attention_head_dim": "16",
        }
        for name, num_levels in (("cityscapes", 6), ("monuseg", 7), ("vaihingen", 7))
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Stable Diffusion folder of a few kilobytes and one of pixels, captioned photos and masks in two splits."""
    base, photos = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("photos")
    save_sd_folder(base)
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (photos / split).mkdir()
        lines = []
        for number in range(6):
            pixels = random.integers(0, 256, (72, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / split / f"{number}.png")
            lines.append(json.dumps({"file_name": f"{number}.png", "text": "a photo of nothing"}))
        (photos / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    pixels, masks = tmp_path_factory.mktemp("pixels"), tmp_path_factory.mktemp("masks")
    tiny = tiny_parts(text=False)
    LatentDiffusionParts(unet=tiny_unet(None, 3), vae=None, scheduler=tiny.scheduler).save(pixels)
    for split in ("train", "val"):
        for kind, shape in (("images", (72, 80, 3)), ("masks", (72, 80))):
            (masks / split / kind).mkdir(parents=True)
            for number in range(6):
                values = random.integers(0, 256 if kind == "images" else 2, shape, dtype=np.uint8)
                Image.fromarray(values).save(masks / split / kind / f"{number}.png")
    return {"base": str(base), "photos": str(photos), "pixels": str(pixels), "masks": str(masks)}


def composed(*words: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(words))


def shortened(name: str, made: dict[str, str]) -> list[str]:
    keys = set(dotted_keys(OmegaConf.to_container(composed(f"experiment={name}"))))
    wanted = SHORT | (PAPER if name.startswith("paper/") else {}) | FURTHER.get(name, {})
    return [f"{key}={value.format(**made)}" for key, value in wanted.items() if key in keys or key[0] == "+"]


def values(node: Any, path: str = "checkpoint") -> Iterator[tuple[str, Any]]:
    """Everything inside nested containers of exactly these types, with its path."""
    if type(node).__name__ in ("dict", "OrderedDict"):
        for key, value in node.items():
            yield from values(key, f"{path} key")
            yield from values(value, f"{path}.{key}")
    elif type(node) in (list, tuple):
        for index, value in enumerate(node):
            yield from values(value, f"{path}[{index}]")
    else:
        yield path, node


@pytest.mark.slow
@pytest.mark.parametrize("name", options("experiment"))
def test_two_steps_of_every_experiment(name: str, door, made: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    assert door(f"experiment={name}", "run_dir=run", *shortened(name, made)) == 0
    run_dir = tmp_path / "run"
    assert status(run_dir) == "finished"
    assert load_config(run_dir)["trainer"]["max_steps"] == 2
    assert json.loads((run_dir / "metrics.json").read_text())

    # Plain values and tensors alone: nothing else would load with weights_only in another release of a library.
    checkpoint = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2
    for path, value in values(checkpoint):
        assert value is None or type(value) in (bool, int, float, str, bytes, torch.Tensor), (
            path,
            type(value),
        )
    module = load_run(str(run_dir)).module
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained <= checkpoint["state_dict"].keys()

    if module.task is not None:
        place = evaluated(run=run_dir, output=tmp_path / "figures", split="val", limit=1, device="cpu")
        assert json.loads((place / "metrics.json").read_text())["methods"]


@pytest.mark.parametrize("group", [g for g in groups() if g not in ("experiment", "module")])
def test_every_option_of_a_group_passes_the_checks(group: str) -> None:
    for option in options(group):
        config = composed("experiment=autoencoder", f"{group}={option}")
        for key in OmegaConf.missing_keys(config):
            OmegaConf.update(config, key, "DIR")
        resolved(config)
