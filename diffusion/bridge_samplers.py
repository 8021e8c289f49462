"""How a sample is drawn on a bridge: from the source back to the clean tensor.

Shapes: B batch, C latent channels, h/w latent cells.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from diffusion.bridge_objectives import BridgeObjective
from diffusion.bridge_paths import BridgePath
from diffusion.samplers import Denoise
from diffusion.seeding import randn

BridgeSolver = Literal["cold", "indi", "posterior", "ode"]
# x after a step and its level m -> x to go on with.
AfterStep = Callable[[Tensor, float], Tensor]


class BridgeSampler:
    """Draws x_0 from the source y: every solver is x_s = D(x0_hat, m_s) + c (x_t - D(x0_hat, m_t)) + std z, m_s < m_t.

    D(x_0, m) = (1 - m) x_0 + m y; x0_hat is what the prediction at x_t stands for. The solvers differ in c, the share of
    the distance from the predicted path that they carry on, and in std:

    | solver | c | std | path |
    |---|---|---|---|
    | cold | 1 | 0 | without noise; Cold Diffusion's improved step (Bansal et al. 2022) |
    | indi | m_s / m_t | 0 | without noise; the step of InDI, x_s = (1 - c) x0_hat + c x_t (Delbracio and Milanfar 2023) |
    | posterior | as BridgePath.posterior, eta = 1: m_s / m_t | as there | BBDM's and I2SB's reverse step |
    | ode | as posterior with eta = 0: s_s / s_t | 0, except from the source | probability flow of x_t given y |

    `cold` ends on y + sum_k (m_k - m_(k+1)) (x0_hat_k - y), for linear m a plain mean over predictions: steady, and a
    bad prediction stays in it. `indi` ends on its last prediction alone. Without noise `posterior` is `indi`. As the noise
    vanishes `ode` has the limit c = sqrt(m_s (1 - m_s) / (m_t (1 - m_t))); for the exact denoiser of the vanishing
    noise it moves with the velocity y - x0_hat, as `cold` does.

    With noise, `ode` takes one draw of noise per image, in its first step: y alone fixes one result and has no
    diversity. It is the flow of x_t *given y*, so the network has to see y; so has `posterior` with eta < 1. At
    eta = 1 y cancels, and a network that sees x_t alone is enough.

    Args:
        solver: cold, indi, posterior or ode.
        num_steps: network evaluations (without guidance's second branch); a start on the way takes as many, or
            one for each timestep that is left.
        eta: share of fresh noise of `posterior`, in [0, 1].

    Raises:
        ValueError: an unknown solver, fewer than one step, or eta out of range or with a solver that ignores it.

    Example:
        >>> objective = BridgeObjective(BridgePath(), prediction="sample")
        >>> clean, source = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> drawn = BridgeSampler(solver="cold", num_steps=3)(lambda x, t: clean, source, objective)
        >>> torch.allclose(drawn, clean, atol=1e-6)
        True
    """

    def __init__(self, *, solver: BridgeSolver = "cold", num_steps: int = 20, eta: float = 1.0) -> None:
        if solver not in get_args(BridgeSolver):
            raise ValueError(
                f"sampler.solver is '{solver}'; expected one of {', '.join(get_args(BridgeSolver))}"
            )
        if num_steps < 1:
            raise ValueError(f"sampler.num_steps is {num_steps}; expected at least 1")
        if not 0 <= eta <= 1:
            raise ValueError(f"sampler.eta is {eta}; expected a share in [0, 1]")
        if eta != 1 and solver != "posterior":
            raise ValueError(
                f"sampler.eta={eta} has no effect with solver '{solver}'; set sampler.solver=posterior"
            )
        self.solver: BridgeSolver = solver
        self.num_steps = num_steps
        self.eta = eta

    def with_steps(self, num_steps: int) -> "BridgeSampler":
        """The same sampler with another number of steps."""
        return BridgeSampler(solver=self.solver, num_steps=num_steps, eta=self.eta)

    def check(self, path: BridgePath) -> None:
        """Raises a ValueError where this sampler cannot walk the path, so that a method can ask before it trains."""
        if self.num_steps > path.num_timesteps:
            raise ValueError(
                f"sampler.num_steps is {self.num_steps}, but the path has {path.num_timesteps} timesteps; set "
                f"sampler.num_steps={path.num_timesteps} or fewer"
            )
        if path.noise_scale > 0 and self.solver in ("cold", "indi"):
            raise ValueError(
                f"sampler.solver '{self.solver}' walks without noise, but the path has noise_scale={path.noise_scale}; set "
                "sampler.solver=posterior or ode, or path.noise_scale=0"
            )

    def timesteps(self, path: BridgePath, *, start: float = 1.0) -> list[int]:
        """The timesteps of the network evaluations, falling, evenly spaced; the last step leads from there to x_0.

        Args:
            path: the bridge.
            start: level m in (0, 1] to begin at; the nearest timestep is taken.
        """
        if not 0 < start <= 1:
            raise ValueError(
                f"start is {start}; expected a level in (0, 1], where 1 is the source and 0 the clean image"
            )
        num_left = path.nearest(start) + 1
        num_steps = min(self.num_steps, num_left)
        return [num_left * k // num_steps - 1 for k in range(num_steps, 0, -1)]

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        source: Tensor,
        objective: BridgeObjective,
        *,
        start: float = 1.0,
        current: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        after_step: AfterStep | None = None,
    ) -> Tensor:
        """The sample x_0, (B, C, h, w) in the source's dtype.

        Args:
            denoise: (x_t (B, C, h, w), timestep int64 (B,)) -> prediction (B, C, h, w) as the objective defines it.
            source: y (B, C, h, w); float32.
            objective: names the prediction and its path.
            start: level m in (0, 1] to begin at: 1 is the source, less is an image that has part of its colour.
            current: the noise-free mixture at `start` (B, C, h, w), needed where start < 1; the path's noise is added here.
            generators: one for each image, for a path with noise; image i depends on its own alone.
            after_step: (x, its level m) -> x, after every step, m = 0 after the last; keeps a region fixed, for example
                `lambda x, m: torch.where(mask, path.mix(known, source, m), x)`.

        Raises:
            ValueError: a solver that does not fit the path, a start without what it needs, or missing generators.
        """
        path = objective.path
        self.check(path)
        if path.noise_scale > 0 and generators is None:
            raise ValueError(
                f"a path with noise_scale={path.noise_scale} needs generators, one for each image; got None"
            )
        steps = self.timesteps(path, start=start)
        if current is None and start < 1:
            raise ValueError(
                f"start={start} begins between the source and the clean image and needs the image at that point; "
                "give current=, or start=1"
            )

        def with_noise(x: Tensor, std: float) -> Tensor:
            if std == 0 or generators is None:
                return x
            return x + std * randn(x.shape[1:], generators, dtype=x.dtype)

        sample = source if current is None else with_noise(current, path.std(path.level(steps[0])))
        for here, there in pairwise([*steps, -1]):
            timestep = torch.full((len(source),), here, device=source.device)
            pred = denoise(sample, timestep).to(source.dtype)
            clean = objective.to_clean(pred, sample, source, timestep)
            level, lower = path.level(here), path.level(there)
            carry, std = self._carry_std(path, level, lower)
            mean = path.mix(clean, source, lower) + carry * (sample - path.mix(clean, source, level))
            sample = with_noise(mean, std)
            if after_step is not None:
                sample = after_step(sample, lower)
        return sample

    def _carry_std(self, path: BridgePath, level: float, lower: float) -> tuple[float, float]:
        """The numbers c and std of one step."""
        if self.solver == "cold":
            return 1.0, 0.0
        if self.solver == "indi":
            return lower / level, 0.0
        return path.posterior(level, lower, eta=self.eta if self.solver == "posterior" else 0.0)
