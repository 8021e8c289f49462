"""How a sample is drawn: diffusers' solvers behind one call.

Shapes: B batch, C latent channels, h/w latent cells.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffusion.objectives import GaussianObjective

# Trailing spacing starts at the last timestep, as a zero-terminal-SNR path needs (Lin et al. 2023, Sec. 3.3).
SOLVERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {"set_alpha_to_one": True}),
    "dpmpp": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
}

Denoise = Callable[[Tensor, Tensor], Tensor]


class Sampler:
    """Draws x_0 from noise with a diffusers solver.

    Args:
        solver: ddpm, ddim, dpmpp, unipc or euler.
        num_steps: network evaluations (without guidance's second branch).
        eta: share of fresh noise in DDIM: 0 deterministic, 1 as DDPM (Song et al. 2021, Eq. 16).

    Raises:
        ValueError: an unknown solver, fewer than one step, or eta with a solver that ignores it.

    Example:
        >>> from diffusion.paths import GaussianPath
        >>> objective = GaussianObjective(GaussianPath(), prediction="sample")
        >>> clean = torch.full((1, 1, 2, 2), 0.5)
        >>> drawn = Sampler(solver="ddim", num_steps=3)(lambda x, t: clean, torch.randn(1, 1, 2, 2), objective)
        >>> torch.allclose(drawn, clean, atol=1e-5)
        True
    """

    def __init__(self, *, solver: str = "ddim", num_steps: int = 20, eta: float = 0.0) -> None:
        if solver not in SOLVERS:
            raise ValueError(f"sampler.solver is '{solver}'; expected one of {', '.join(SOLVERS)}")
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps is {num_steps}; expected at least 1")
        if eta and solver != "ddim":
            raise ValueError(
                f"sampler.eta={eta} has no effect with solver '{solver}'; set sampler.solver=ddim"
            )
        self.solver = solver
        self.num_steps = num_steps
        self.eta = eta

    def with_steps(self, num_steps: int) -> "Sampler":
        """The same sampler with another number of steps."""
        return Sampler(solver=self.solver, num_steps=num_steps, eta=self.eta)

    def scheduler(self, objective: GaussianObjective) -> SchedulerMixin:
        """A fresh diffusers scheduler on the objective's path, as it is also exported."""
        cls, extra = SOLVERS[self.solver]
        config = {
            **objective.path.scheduler_config(objective.prediction),
            **extra,
            "timestep_spacing": "trailing",
        }
        return cls.from_config(config)

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        noise: Tensor,
        objective: GaussianObjective,
        *,
        generators: Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The sample x_0, float32 (B, C, h, w).

        Args:
            denoise: (x_t (B, C, h, w), timestep int64 (B,)) -> prediction (B, C, h, w) as the objective defines it.
            noise: standard normal start (B, C, h, w); float32.
            objective: names the prediction and its path.
            generators: one for each image, for the solvers that add noise (ddpm, ddim with eta > 0).

        Raises:
            ValueError: more steps than the path has.
        """
        if self.num_steps > objective.path.num_timesteps:
            raise ValueError(
                f"sampler.num_steps is {self.num_steps}, but the path has {objective.path.num_timesteps} timesteps; give "
                "that many or fewer"
            )
        scheduler = self.scheduler(objective)
        scheduler.set_timesteps(self.num_steps, device=noise.device)
        extra: dict[str, Any] = {"eta": self.eta} if self.solver == "ddim" else {}
        if self.solver in ("ddpm", "ddim", "euler", "dpmpp") and generators is not None:
            extra["generator"] = list(generators)
        sample = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep)
            pred = denoise(scaled, timestep.long().expand(len(noise)))
            sample = scheduler.step(pred.float(), timestep, sample, **extra, return_dict=False)[0]
        return sample
