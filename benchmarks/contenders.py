"""The same colorizer trained by three hands: a bare loop, our trainer, our trainer with caches."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import ControlNetModel
from hydra import compose, initialize_config_dir
from torch.nn import functional as F
from torch.utils.data import default_collate

from callbacks.latent_cache import LatentCache
from color.lab import lightness
from datamodules.captions import PhotoCaption
from datamodules.photo_dataset import PhotoDataset, PhotoTransform
from diffusion.samplers import Sampler
from lightning_modules.colorize_controlnet import ColorizeControlNet
from networks.latent_diffusion_parts import LatentDiffusionParts
from runs.build import build
from runs.choices import CONF
from runs.config import resolved

_CAPTIONS = ("a photo of a tulip", "a red rose", "a cat", "a cup of coffee on a wooden table")
_NEVER = 1_000_000_000


def make_photos(size_px: int, batch_size: int) -> PhotoDataset:
    """Photos in memory, at least 64, from noise: the time of a step does not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    count = max(64, batch_size)
    names = [f"{number}.png" for number in range(count)]
    return PhotoDataset(
        [Path(name) for name in names],
        names=names,
        transform=PhotoTransform(size_px),
        captions=[PhotoCaption(_CAPTIONS[number % len(_CAPTIONS)]) for number in range(count)],
        stored=torch.randint(0, 256, (count, 3, size_px, size_px), generator=generator, dtype=torch.uint8),
    )


def _batches(dataset: PhotoDataset, batch_size: int) -> Iterator[dict[str, Any]]:
    """All batches again and again, collated once, so that no contender waits for a loader."""
    rows = [dataset[index] for index in range(len(dataset))]
    starts = range(0, len(rows) - batch_size + 1, batch_size)
    return itertools.cycle([default_collate(rows[start : start + batch_size]) for start in starts])


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved config of a training with these words."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolved(compose("train", list(overrides)))


def _parts() -> LatentDiffusionParts:
    """New weights at the sizes of conf/module/latent_diffusion.yaml and conf/module/autoencoder.yaml."""
    torch.manual_seed(0)
    vae = composed("experiment=autoencoder")["module"]["vae"]
    return build(composed("experiment=latent_diffusion")["module"]["parts"] | {"vae": vae}, "module.parts")


class Bare:
    """The shortest honest loop: latents and text states in each step, float32, AdamW, clipping, EMA."""

    def __init__(self, photos: PhotoDataset, batch_size: int, device: torch.device) -> None:
        self.device = device
        parts = _parts().to(device).eval().requires_grad_(False)
        self.unet, self.vae, self.text = parts.unet, parts.vae, parts.text_encoder
        self.alphas = parts.scheduler.alphas_cumprod.to(device)
        self.controlnet = ControlNetModel.from_unet(
            parts.unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 96)
        ).to(device)
        self.controlnet.train()
        self.parameters = list(self.controlnet.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01)
        self.average = [p.detach().clone() for p in self.parameters]
        self.batches = _batches(photos, batch_size)

    def __call__(self, num_steps: int) -> float:
        """Seconds of so many steps."""
        _wait(self.device)
        start = time.perf_counter()
        for _ in range(num_steps):
            self._step(next(self.batches))
        _wait(self.device)
        return time.perf_counter() - start

    def _step(self, batch: dict[str, Any]) -> None:
        image = batch["image"].to(self.device, non_blocking=True)
        with torch.no_grad():
            clean = self.vae.encode(image * 2 - 1).latent_dist.sample() * self.vae.config.scaling_factor
            kept = torch.rand(len(image)) < 0.5
            context = self.text([c if k else "" for c, k in zip(batch["caption"], kept, strict=True)])
        noise = torch.randn_like(clean)
        timestep = torch.randint(0, len(self.alphas), (len(image),), device=self.device)
        alpha = self.alphas[timestep].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alphas[timestep]).sqrt().view(-1, 1, 1, 1)
        noisy = alpha * clean + sigma * noise
        given = (noisy, timestep, context)
        down, mid = self.controlnet(*given, controlnet_cond=lightness(image), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        pred = self.unet(*given, **residuals).sample
        loss = F.mse_loss(pred, alpha * noise - sigma * clean)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 0.001)


class _Data(L.LightningDataModule):
    """Batches without end, and what the latent cache asks for: the training set by name."""

    def __init__(self, photos: PhotoDataset, batch_size: int) -> None:
        super().__init__()
        self.train_dataset, self.batch_size = photos, batch_size

    def train_dataloader(self) -> Iterator[dict[str, Any]]:
        return _batches(self.train_dataset, self.batch_size)


class _Clock(L.Callback):
    """Times from the first batch's start to the last batch's end, all callbacks included."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _wait(pl_module.device)
        self.start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _wait(pl_module.device)
        self.seconds = time.perf_counter() - self.start


class Ours:
    """Our module under Lightning with the default callbacks; with caches no frozen encoder runs in a step."""

    def __init__(
        self, photos: PhotoDataset, batch_size: int, device: torch.device, folder: Path, *, cached: bool
    ) -> None:
        self.device, self.folder, self.cached = device, folder, cached
        # A copy, to which the cache adds its latents.
        self.data = _Data(photos.subset(range(len(photos))), batch_size)
        torch.manual_seed(0)
        self.module = ColorizeControlNet(
            parts=_parts(),
            sampler=Sampler(num_steps=2),
            optimizer=lambda p: torch.optim.AdamW(p, lr=5e-4, betas=(0.9, 0.99), weight_decay=0.01),
            prompt_dropout=0.5,
        )
        if not cached:
            # Text states anew in each step, as the bare loop does.
            self.module.embed = torch.no_grad()(self.module.parts.text_encoder.forward)

    def __call__(self, num_steps: int) -> float:
        """Seconds of so many steps; the start of the trainer and the writing of its last file are not in them."""
        clock = _Clock()
        callbacks = [*self._default_callbacks(), clock]
        if self.cached:
            callbacks.insert(0, LatentCache(folder=str(self.folder / "cache")))
        trainer = L.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            max_steps=num_steps,
            max_epochs=-1,
            gradient_clip_val=1.0,
            log_every_n_steps=10,
            limit_val_batches=0,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=self.folder,
            logger=False,
            callbacks=callbacks,
        )
        trainer.fit(self.module, datamodule=self.data)
        return clock.seconds

    def _default_callbacks(self) -> list[L.Callback]:
        """Those of conf/callbacks/default.yaml that act in a step; `last` writes once, after the clock."""
        config = composed(
            "experiment=colorize_controlnet",
            f"run_dir={self.folder}",
            "trainer.log_every_n_steps=10",
            f"callbacks.last.every_n_steps={_NEVER}",
        )
        # Pictures and `best` follow validations, of which there are none.
        nodes = config["callbacks"].items()
        return [build(node, f"callbacks.{name}") for name, node in nodes if name not in ("samples", "best")]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
