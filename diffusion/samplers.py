"""How a sample is drawn: diffusers' solvers behind one call.

Shapes: B batch, C latent channels, h/w latent cells.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from diffusion.choices import check_literal
from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath

Solver = Literal["ddpm", "ddim", "dpmpp", "unipc", "euler"]
_SOLVERS: dict[str, type[SchedulerMixin]] = {
    "ddpm": diffusers.DDPMScheduler,
    "ddim": diffusers.DDIMScheduler,
    "dpmpp": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
# Said by the path, the objective and the bounds.
_NO_OPTIONS = {"self", *GaussianPath().scheduler_config(""), "trained_betas", "clip_sample_range"}

# (x_t (B, C, h, w), timestep int64 (B,)) -> prediction (B, C, h, w) as the objective defines it.
Denoise = Callable[[Tensor, Tensor], Tensor]
# (x after a step, the timestep it stands at, -1 after the last step) -> x to go on with.
AfterStep = Callable[[Tensor, int], Tensor]
Bounds = tuple[float, float]


class Sampler:
    """Draws x_0 from noise with a diffusers solver.

    Args:
        solver: ddpm, ddim, dpmpp, unipc or euler.
        num_steps: network evaluations (without guidance's second branch).
        eta: share of fresh noise in DDIM: 0 deterministic, 1 as DDPM (Song et al. 2021, Eq. 16).
        scheduler_options: further arguments of the solver's diffusers scheduler, such as {"use_karras_sigmas": True}.

    Raises:
        ValueError: an unknown solver or scheduler option, fewer than one step, or eta with a solver that ignores it.

    Example:
        >>> objective = GaussianObjective(GaussianPath(), prediction="sample")
        >>> clean = torch.full((1, 1, 2, 2), 0.5)
        >>> drawn = Sampler(solver="ddim", num_steps=3)(lambda x, t: clean, torch.randn(1, 1, 2, 2), objective)
        >>> torch.allclose(drawn, clean, atol=1e-5)
        True
    """

    def __init__(
        self,
        *,
        solver: Solver = "ddim",
        num_steps: int = 20,
        eta: float = 0.0,
        scheduler_options: dict[str, Any] | None = None,
    ) -> None:
        check_literal("sampler.solver", solver, Solver)
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps is {num_steps}; expected at least 1")
        if eta and solver != "ddim":
            raise ValueError(
                f"sampler.eta={eta} has no effect with solver '{solver}'; set sampler.solver=ddim"
            )
        self.solver, self.num_steps, self.eta = solver, num_steps, eta
        self.scheduler_options = dict(scheduler_options or {})
        known = inspect.signature(_SOLVERS[solver].__init__).parameters.keys() - _NO_OPTIONS
        if unknown := self.scheduler_options.keys() - known:
            raise ValueError(
                f"sampler.scheduler_options has {', '.join(sorted(unknown))}, but solver '{solver}' takes "
                f"{', '.join(sorted(known))}"
            )

    def with_steps(self, num_steps: int) -> "Sampler":
        """The same sampler with another number of steps."""
        return Sampler(**(vars(self) | {"num_steps": num_steps}))

    def scheduler(self, objective: GaussianObjective) -> SchedulerMixin:
        """A fresh diffusers scheduler on the objective's path, with the timesteps of the network evaluations."""
        length = objective.path.num_timesteps
        if self.num_steps > length:
            raise ValueError(
                f"sampler.num_steps is {self.num_steps}, but the path has {length} timesteps; give that many or fewer"
            )
        # Trailing spacing starts at the last timestep, as a zero-terminal-SNR path needs (Lin et al. 2023, Sec. 3.3).
        config = objective.path.scheduler_config(objective.prediction) | {"timestep_spacing": "trailing"}
        scheduler = _SOLVERS[self.solver].from_config(config | self.scheduler_options)
        scheduler.set_timesteps(self.num_steps)
        # To the given number: rounding in diffusers' trailing spacing can add a timestep -1 (29 of 100, 61 of 1000).
        scheduler.timesteps = scheduler.timesteps[: self.num_steps]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[: self.num_steps], scheduler.sigmas[-1:]])
            scheduler.set_begin_index(0)
        return scheduler

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        first: Tensor,
        objective: GaussianObjective,
        *,
        source: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        after_step: AfterStep | None = None,
        bounds: Bounds | None = None,
    ) -> Tensor:
        """The sample x_0, float32 (B, C, h, w).

        Args:
            denoise: the network under its condition.
            first: standard normal noise (B, C, h, w), float32.
            objective: names the prediction and its path.
            source: none on a Gaussian path.
            generators: one for each image, for the solvers that add noise (ddpm, ddim with eta > 0).
            after_step: changes x, in the path's own scale, after each step.
            bounds: the range of clean tensors; each clean estimate is clipped to it, without which few steps fail in
                pixel space.

        Raises:
            ValueError: more steps than the path has.
        """
        scheduler = self.scheduler(objective)
        if bounds is not None:
            # The solver walks by the clipped estimate itself, whatever the network predicts.
            scheduler.register_to_config(prediction_type="sample")
        offered = {"eta": self.eta, "generator": list(generators) if generators else None}
        extra = {k: v for k, v in offered.items() if k in inspect.signature(scheduler.step).parameters}
        timesteps = [*scheduler.timesteps.long().tolist(), -1]
        scales = [1.0] * len(timesteps)
        if self.solver == "euler":  # which walks x_0 + sigma eps, the path's x times this
            scales = (scheduler.sigmas**2 + 1).sqrt().tolist()
        sample = first * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(sample, timestep)
            here = torch.full((len(first),), timesteps[index], device=first.device)
            pred = denoise(scaled, here).float()
            if bounds is not None:
                pred = objective.to_clean(pred, scaled, here).clamp(*bounds)
            sample = scheduler.step(pred, timestep, sample, **extra, return_dict=False)[0]
            if after_step is not None:
                scale = scales[index + 1]
                changed = after_step(sample / scale, timesteps[index + 1]) * scale
                if self.solver == "unipc" and not torch.equal(changed, sample):
                    scheduler.last_sample = None  # its corrector would go back to before the change
                sample = changed
        return sample
