"""What the methods on latents share: encode, corrupt, compare, draw.

Shapes: B batch, Z latent channels, H/W pixels, h/w latent cells, N tokens, D text width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.codec import LatentCodec
from diffusion.guidance import guide
from diffusion.objectives import GaussianObjective, Weighting
from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler
from diffusion.seeding import Stream, generators, keyed_uniform, randn
from lightning_modules.base import TranslationModule
from lightning_modules.requests import DrawSettings
from networks.content_hash import content_hash
from networks.latent_diffusion_parts import LatentDiffusionParts, to_dtype
from networks.text_cache import TextCache

# Validation draws its noise from keys of its own, the same at every validation.
_VALIDATION = 1_000_003


@dataclass(frozen=True)
class Condition:
    """What the network is told besides the noisy latent."""

    context: Tensor | None  # (B, N, D) text states
    cond: Tensor | None = None  # (B, 1, H, W) or any other spatial condition


class LatentModule(TranslationModule):
    """Learns to denoise latents; a method says what the condition is and which networks answer.

    Args:
        parts: the latent diffusion model.
        sampler: how samples are drawn.
        weighting: of the timesteps: uniform, snr or min_snr.
        gamma: cap of min_snr.
        prompt_dropout: probability in [0, 1] that a training prompt is replaced by the empty one.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        guidance_rescale: in [0, 1], against over-saturation.
        frozen_dtype: of the frozen parts while training: float32, bfloat16, float16, or auto for the trainer's.
        text_cache_dir: folder for the states of a frozen text encoder; None keeps them in memory alone.
        check_base: refuse a checkpoint that was trained on other frozen weights; false takes any that fit in shape.
        shared: as TranslationModule.
    """

    def __init__(
        self,
        *,
        parts: LatentDiffusionParts,
        sampler: Sampler,
        weighting: Weighting = "uniform",
        gamma: float = 5.0,
        prompt_dropout: float = 0.1,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        frozen_dtype: str = "auto",
        text_cache_dir: str | None = None,
        check_base: bool = True,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"module.prompt_dropout is {prompt_dropout}; expected a probability in [0, 1]")
        self.parts = parts
        self.codec = LatentCodec(parts.vae)
        config = dict(parts.scheduler.config)
        self.path = GaussianPath.from_scheduler_config(config)
        self.objective = GaussianObjective(
            self.path, prediction=config["prediction_type"], weighting=weighting, gamma=gamma
        )
        self.sampler = sampler
        self.prompt_dropout = prompt_dropout
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self._frozen_dtype = frozen_dtype
        self._text_cache_dir = text_cache_dir
        self._text_cache: TextCache | None = None
        self._check_base = check_base
        self._base_hash: str | None = None

    # ---- what a method answers

    @property
    def door_options(self) -> frozenset[str]:
        return frozenset({"prompt", "negative_prompt", "steps", "guidance"})

    def condition(self, batch: dict[str, Any], captions: list[str]) -> Condition:
        """The condition of a batch; the text alone unless the method has more."""
        return Condition(self.embed(captions))

    def denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The network's prediction (B, Z, h, w) at `noisy` (B, Z, h, w), timestep int64 (B,)."""
        return self.parts.unet(noisy, timestep, condition.context).sample

    def negative(self, condition: Condition, prompt: str) -> Condition:
        """The condition that guidance pushes away from."""
        if condition.context is None:
            raise ValueError(
                "guidance on an unconditional model has nothing to push away from; set guidance_scale=1"
            )
        return replace(condition, context=self.embed([prompt] * len(condition.context)))

    # ---- shared

    def embed(self, captions: list[str]) -> Tensor | None:
        """Text states (B, N, D), or None for an unconditional model."""
        encoder = self.parts.text_encoder
        if encoder is None or encoder in self.trained_networks():
            return None if encoder is None else encoder(captions)
        if self._text_cache is None:
            self._text_cache = TextCache(encoder, folder=self._text_cache_dir)
        return self._text_cache(captions).float()  # the trained networks stay in float32

    def setup(self, stage: str) -> None:
        """Puts the frozen parts of a training into low precision: autocast would convert them anew in every step."""
        if stage != "fit":
            return
        self.base_hash()  # of the weights as they were loaded, before their precision changes
        name = self._frozen_dtype
        if name == "auto":
            name = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}.get(
                str(self.trainer.precision), "float32"
            )
        trained = {id(p) for p in self.parameters() if p.requires_grad}
        # Stable Diffusion's autoencoders overflow in float16 (their configs say so: force_upcast).
        keep_vae = name == "float16" and self.parts.vae.config.get("force_upcast", False)
        kept = {id(p) for p in self.parts.vae.parameters()} if keep_vae else set()
        for parameter in self.parts.parameters():
            if id(parameter) not in trained | kept:
                parameter.data = parameter.data.to(to_dtype(name))
        self._text_cache = None

    def base_hash(self) -> str:
        """Content hash of the frozen parts as they were loaded."""
        if self._base_hash is None:
            frozen = {n: p for n, p in self.parts.named_parameters() if not p.requires_grad}
            self._base_hash = content_hash(frozen)
        return self._base_hash

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["base_sha256"] = self.base_hash()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        trained_on = checkpoint.get("base_sha256")
        if self._check_base and trained_on not in (None, self.base_hash()):
            raise ValueError(
                f"the checkpoint was trained on a base with the content hash {trained_on[:12]}, but the frozen weights that "
                f"module.parts names have {self.base_hash()[:12]}; give the base it was trained on, or set "
                "module.check_base=false to go on with another"
            )

    def latents(self, batch: dict[str, Any], noise: Tensor | None = None) -> Tensor:
        """Scaled latents (B, Z, h, w) of batch["image"], from the cached moments where the batch has them."""
        moments = batch["moments"] if "moments" in batch else self.codec.moments(batch["image"])
        return self.codec.sample(moments, noise)

    def latent_shape(self, batch: dict[str, Any]) -> tuple[int, int, int]:
        """(Z, h, w) of the batch's latents."""
        height, width = batch["image"].shape[-2:]
        return self.codec.num_channels, height // self.codec.downscale, width // self.codec.downscale

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        size, shape = len(batch["image"]), self.latent_shape(batch)
        sample = self.batch_positions(size)
        clean = self.latents(batch, randn(shape, self.step_generators(Stream.POSTERIOR, size)))
        noise = randn(shape, self.step_generators(Stream.NOISE, size))
        uniform = keyed_uniform(*self.step_key(Stream.TIMESTEP), sample=sample)
        dropped = keyed_uniform(*self.step_key(Stream.DROPOUT), sample=sample) < self.prompt_dropout
        captions = ["" if drop else text for text, drop in zip(batch["caption"], dropped, strict=True)]
        loss = self.losses(batch, captions, clean, noise, self.timesteps(uniform)).mean()
        self.log_training(loss)
        return loss

    def losses(
        self, batch: dict[str, Any], captions: list[str], clean: Tensor, noise: Tensor, timestep: Tensor
    ) -> Tensor:
        """Loss of each sample, float32 (B,), at given noise and timesteps."""
        noisy = self.path.corrupt(clean, noise, timestep)
        pred = self.denoise(noisy, timestep, self.condition(batch, captions))
        return self.objective.loss(pred, clean, noise, timestep)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._log_loss(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self._log_loss(batch, "test")

    def _log_loss(self, batch: dict[str, Any], split: str) -> None:
        """Logs the loss at noise and timesteps that are the same in every validation."""
        index = batch["index"].cpu().numpy()
        noise = randn(
            self.latent_shape(batch),
            generators(self.seed, Stream.NOISE, _VALIDATION, sample=index, device=self.device),
        )
        uniform = keyed_uniform(self.seed, Stream.TIMESTEP, _VALIDATION, sample=index)
        timestep = self.timesteps(uniform)
        loss = self.losses(batch, batch["caption"], self.latents(batch), noise, timestep)
        self.log(f"{split}/loss", loss.mean(), batch_size=len(index), sync_dist=True, prog_bar=True)
        # The loss by quarter of the path (guided-diffusion's habit) shows what one mean hides.
        quarters = timestep.cpu().numpy() * 4 // self.path.num_timesteps
        for quarter in range(4):
            chosen = np.flatnonzero(quarters == quarter)
            if len(chosen):
                self.log(
                    f"{split}/loss_q{quarter}", loss[chosen].mean(), batch_size=len(chosen), sync_dist=True
                )

    @torch.no_grad()
    def draw(
        self,
        condition: Condition,
        shape: tuple[int, int, int],
        sample_ids: list[int],
        settings: DrawSettings | None = None,
    ) -> Tensor:
        """Latents (B, Z, h, w) drawn under a condition; image i depends on (seed, sample_ids[i]) alone.

        Args:
            condition: of B images.
            shape: (Z, h, w).
            sample_ids: B numbers that key the noise.
            settings: steps, guidance, negative prompt and seed.
        """
        settings = settings or DrawSettings()
        sources = self.sources(sample_ids, settings.seed)
        return self.draw_from(randn(shape, sources), sources, condition, settings)

    def draw_from(
        self,
        first: Tensor,
        sources: list[torch.Generator],
        condition: Condition,
        settings: DrawSettings,
        **walk: Any,
    ) -> Tensor:
        """Latents (B, Z, h, w) drawn from the first ones (B, Z, h, w), with guidance; `sources` give further noise.

        `walk` goes to the sampler: BridgeSampler takes start, current and after_step.
        """
        scale = self.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        sampler = self.sampler
        if settings.num_steps is not None:
            sampler = sampler.with_steps(settings.num_steps)
        if scale == 1.0:
            return sampler(
                lambda x, t: self.denoise(x, t, condition), first, self.objective, generators=sources, **walk
            )
        negative = self.negative(condition, settings.negative_prompt)

        def guided(noisy: Tensor, timestep: Tensor) -> Tensor:
            pred, pred_negative = self.denoise_both(noisy, timestep, condition, negative)
            return guide(pred.float(), pred_negative.float(), scale=scale, rescale=self.guidance_rescale)

        return sampler(guided, first, self.objective, generators=sources, **walk)

    def grid_px(self) -> int:
        """Sides of an image that the networks take are multiples of this many pixels."""
        return self.codec.downscale * 2 ** (len(self.parts.unet.config.block_out_channels) - 1)

    def sources(self, sample_ids: list[int], seed: int) -> list[torch.Generator]:
        """What the noise of each drawn sample comes from."""
        return generators(seed, Stream.SAMPLE, sample=sample_ids, device=self.device)

    def denoise_both(
        self, noisy: Tensor, timestep: Tensor, condition: Condition, negative: Condition
    ) -> tuple[Tensor, Tensor]:
        """The predictions under both conditions, in one pass of twice the batch."""
        both = Condition(_stack(condition.context, negative.context), _stack(condition.cond, negative.cond))
        pred = self.denoise(torch.cat([noisy, noisy]), torch.cat([timestep, timestep]), both)
        first, second = pred.chunk(2)
        return first, second

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """int64 (B,) on the path from numbers in [0, 1)."""
        steps = torch.from_numpy((uniform * self.path.num_timesteps).astype(np.int64))
        return steps.to(self.device, non_blocking=True)


def _stack(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])
