"""What the methods that diffuse share: encode, corrupt, compare, draw; of any codec, path, objective and sampler.

Shapes: B batch, Z latent channels, H/W pixels, h/w latent cells.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.bridge_objectives import BridgeObjective
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from diffusion.codecs import Codec, IdentityCodec
from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath
from diffusion.samplers import Denoise, Sampler
from diffusion.seeding import randn
from lightning_modules.base import Batch, TranslationModule
from networks.content_hash import content_hash

# Settings of an autoencoder that its moments do not depend on.
_NOT_IN_MOMENTS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


@dataclass(frozen=True)
class Step:
    """One step of training or validation, as `further_losses` sees it; tensors (B, Z, h, w), timestep int64 (B,)."""

    batch: Batch
    clean: Tensor
    source: Tensor | None
    x_t: Tensor
    timestep: Tensor
    condition: Any
    pred: Tensor
    objective: GaussianObjective | BridgeObjective

    @property
    def clean_estimate(self) -> Tensor:
        """The clean tensor that the prediction stands for; gradients reach the network."""
        return self.objective.to_clean(self.pred.float(), self.x_t, self.timestep, self.source)


class DiffusionModule(TranslationModule):
    """Learns to undo a corruption; a method answers what is clean, what it starts from, and what the network predicts.

    Args:
        codec: between images and what is diffused.
        path: how the clean tensor is corrupted.
        objective: what the network predicts, and how that is compared.
        sampler: how samples are drawn.
        shared: as TranslationModule.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        path: GaussianPath | BridgePath,
        objective: GaussianObjective | BridgeObjective,
        sampler: Sampler | BridgeSampler,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.codec, self.path, self.objective, self.sampler = codec, path, objective, sampler

    # ---- what a method answers

    def clean(self, batch: Batch) -> Tensor:
        """What is diffused, (B, Z, h, w): scaled latents of batch["image"], drawn from their posterior in training."""
        moments = self.moments(batch, "image")
        noise = None
        if self.training:
            noise = self.draws(batch).normal("posterior", (self.codec.num_channels, *moments.shape[-2:]))
        return self.codec.sample(moments, noise)

    def source(self, batch: Batch) -> Tensor | None:
        """The far end of a bridge (B, Z, h, w); None on a Gaussian path."""
        return None

    def condition(self, batch: Batch) -> Any:
        """What the network is told: any nesting of tensors, computed once per image however many steps follow."""
        return None

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Any) -> Tensor:
        """The network's prediction (B, Z, h, w) at x_t (B, Z, h, w), timestep int64 (B,)."""
        raise TypeError(f"{type(self).__name__} does not say what its network predicts")

    def valid(self, batch: Batch) -> Tensor | None:
        """Which cells count in the denoising loss, 0 or 1 (B, 1, h, w); None = all."""
        return None

    def further_losses(self, step: Step) -> dict[str, Tensor]:
        """Further scalar terms of a step, by name and weighted."""
        return {}

    # ---- shared

    def cell_px(self) -> int:
        return self.codec.downscale

    def encodings(self) -> dict[str, Callable[[Tensor], Tensor]]:
        return {} if isinstance(self.codec, IdentityCodec) else {"image": self.codec.moments}

    def encodings_key(self) -> str:
        """Hash of all that `encodings` depend on beside the images."""
        config = dict(getattr(getattr(self.codec, "vae", None), "config", {}))
        settings = {k: v for k, v in config.items() if not k.startswith("_") and k not in _NOT_IN_MOMENTS}
        parts = [content_hash(self.codec.state_dict()), json.dumps(settings, sort_keys=True, default=str)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def moments(self, batch: Batch, name: str) -> Tensor:
        """The moments (B, 2Z, h, w) of one of the `encodings`, or of another picture of the batch; once in a step.

        Those of the `encodings` come from the cache where the batch has them.
        """
        known = batch.get("encodings", {})
        if name not in known:
            encode = self.encodings().get(name)
            known[name] = (
                self.codec.moments(self.images(batch, name)) if encode is None else encode(batch["image"])
            )
        return known[name]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch | {"encodings": dict(batch.get("encodings", {}))}  # each is computed once in a step
        clean, source = self.clean(batch), self.source(batch)
        draws = self.draws(batch)
        noise = draws.normal("noise", clean.shape[1:])
        timestep = self.timesteps(draws.uniform("timestep"))
        x_t = self.path.corrupt(clean, noise, timestep, source)
        condition = self.condition(batch)
        pred = self.denoise(x_t, timestep, condition)
        error = self.objective.loss(pred, clean, noise, timestep, source, self.valid(batch))
        if not self.training:
            self._log_quarters(error, timestep)
        step = Step(batch, clean, source, x_t, timestep, condition, pred, self.objective)
        return {"denoising": error.mean(), **self.further_losses(step)}

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """int64 (B,) on the path from numbers in [0, 1)."""
        steps = torch.from_numpy((uniform * self.path.num_timesteps).astype(np.int64))
        return steps.to(self.device, non_blocking=True)

    def _log_quarters(self, error: Tensor, timestep: Tensor) -> None:
        """Logs the loss by quarter of the path (guided-diffusion's habit), which shows what one mean hides."""
        quarters = timestep.cpu().numpy() * 4 // self.path.num_timesteps
        for quarter in range(4):
            chosen = np.flatnonzero(quarters == quarter)
            if len(chosen):
                self.log_mean(f"loss_q{quarter}", error[chosen].mean(), len(chosen))

    def draw_from_noise(
        self, denoise: Denoise, size_px: tuple[int, int], numbers: list[int], options: Any
    ) -> Tensor:
        """Clean tensors (B, Z, h, w) of pictures of (H, W) pixels, on the codec's grid, drawn in `options.steps`.

        The noise of each is keyed by `options.seed` and one of the B numbers.
        """
        generators = self.generators(numbers, options.seed)
        noise = randn(self.codec.latent_shape(size_px), generators)
        return self.draw(denoise, noise, generators=generators, num_steps=options.steps)

    def draw(self, denoise: Denoise, first: Tensor, *, num_steps: int | None = None, **walk: Any) -> Tensor:
        """Clean tensors (B, Z, h, w) drawn by the sampler from `first`, noise or the source of a bridge.

        The estimates are clipped to the codec's bounds; `num_steps` None = the sampler's own; `walk` are the sampler's
        further arguments.
        """
        sampler: Any = self.sampler if num_steps is None else self.sampler.with_steps(num_steps)
        return sampler(denoise, first, self.objective, bounds=self.codec.bounds, **walk)
