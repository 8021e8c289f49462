"""What the methods that walk between two latents share: the bridge, and at which timesteps it is learned."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.bridge_objectives import BridgeObjective, BridgePrediction, BridgeWeighting, Norm
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.stable_diffusion import StableDiffusion


class LatentBridge(StableDiffusion):
    """Learns the way from a source latent, which a method names, to the clean one.

    Args:
        path: from the clean latent to the source.
        sampler: how the way is walked back.
        prediction, bridge_weighting, norm: as BridgeObjective, whose weighting is the second.
        sees_source: give the U-Net the source too, in further input channels that start at zero weight; on a noisy path
            the latent at hand shows it only in part.
        source_prob: probability that a training sample stands at the source itself, where every walk begins; the rest is
            uniform on the path.
        timestep_list: the timesteps that are learned, each with the same probability, as in latent bridge matching (Chadebec
            et al. 2025): those that few steps walk over; None = all.
        settings: as StableDiffusion.
    """

    path: BridgePath
    sampler: BridgeSampler

    def __init__(
        self,
        *,
        path: BridgePath,
        sampler: BridgeSampler,
        prediction: BridgePrediction = "delta",
        bridge_weighting: BridgeWeighting = "uniform",
        norm: Norm = "l2",
        sees_source: bool = False,
        source_prob: float = 0.0,
        timestep_list: Sequence[int] | None = None,
        **settings: Any,
    ) -> None:
        if unused := sorted({"weighting", "gamma"} & settings.keys()):
            raise ValueError(
                f"module.{unused[0]} has no effect on a bridge; leave it out, or set module.bridge_weighting"
            )
        if not 0 <= source_prob <= 1:
            raise ValueError(f"module.source_prob is {source_prob}; expected a probability in [0, 1]")
        if timestep_list is not None and source_prob:
            raise ValueError(
                f"module.source_prob={source_prob} has no effect beside module.timestep_list; set it to 0"
            )
        if timestep_list is not None and not set(timestep_list) <= set(range(path.num_timesteps)):
            raise ValueError(
                f"module.timestep_list is {list(timestep_list)}; expected timesteps from 0 to {path.num_timesteps - 1}"
            )
        sampler.check(path)
        if path.noise_scale and not sees_source and (sampler.solver == "ode" or sampler.eta < 1):
            raise ValueError(
                f"module.sampler (solver {sampler.solver}, eta {sampler.eta:g}) misses the distribution of a path with noise where "
                "the network does not see the source; set module.sees_source=true, or solver=posterior with eta=1"
            )
        objective = BridgeObjective(path, prediction=prediction, weighting=bridge_weighting, norm=norm)
        super().__init__(path=path, objective=objective, sampler=sampler, **settings)
        self.sees_source, self.source_prob, self.timestep_list = sees_source, source_prob, timestep_list
        self._check_walk(sampler.num_steps, "module.sampler.num_steps")

    def timesteps(self, uniform: np.ndarray) -> Tensor:
        """int64 (B,) from numbers in [0, 1): of the list, or a share `source_prob` of them the source's.

        In validation too: the best checkpoint is the one of the lowest loss, and an even one would hardly see the source.
        """
        if self.timestep_list is not None:
            number = (uniform * len(self.timestep_list)).astype(np.int64)
            return torch.from_numpy(np.asarray(self.timestep_list, dtype=np.int64)[number]).to(self.device)
        spread = np.clip((uniform - self.source_prob) / max(1 - self.source_prob, 1e-12), 0, 1 - 1e-12)
        last = (self.path.num_timesteps - 0.5) / self.path.num_timesteps
        return super().timesteps(np.where(uniform < self.source_prob, last, spread))

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        super().check_options(options, is_folder=is_folder)
        if options.steps is not None:
            self._check_walk(options.steps, "steps", getattr(options, "start", 1.0))
        # A single step from the source adds no noise: it ends on the clean estimate.
        one_step = (options.steps or self.sampler.num_steps) == 1 and getattr(options, "start", 1) == 1
        if options.num_samples > 1 and (self.path.noise_scale == 0 or one_step):
            raise ValueError(
                f"num_samples={options.num_samples} would write the same picture {options.num_samples} times, as a walk without "
                "noise has one result; leave it out (module.path.noise_scale and two steps or more give several)"
            )

    def _check_walk(self, num_steps: int, key: str, start: float = 1.0) -> None:
        """Raises a ValueError for a walk that the path is too short for, or over timesteps that were not learned."""
        if num_steps > self.path.num_timesteps:
            raise ValueError(
                f"{key}={num_steps}, but the path of this model has {self.path.num_timesteps} timesteps; give at most as many"
            )
        learned = set(self.timestep_list or ())

        def fits(number: int) -> bool:
            return set(self.sampler.with_steps(number).timesteps(self.path, start=start)) <= learned

        if learned and not fits(num_steps):
            good = ", ".join(str(number) for number in range(1, len(learned) + 1) if fits(number))
            raise ValueError(
                f"{key}={num_steps} walks over timesteps that are not among module.timestep_list; give {good or 'another list'}"
            )
