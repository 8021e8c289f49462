"""How a sample is drawn on a bridge: from the source back to the clean tensor.

Shapes: B batch, C latent channels, h/w latent cells.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffusion.bridge_objectives import BridgeObjective
from diffusion.bridge_paths import BridgePath
from diffusion.choices import check_literal
from diffusion.samplers import AfterStep, Bounds, Denoise
from diffusion.seeding import randn

BridgeSolver = Literal["cold", "indi", "posterior", "ode"]


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
        >>> sampler = BridgeSampler(solver="cold", num_steps=3)
        >>> drawn = sampler(lambda x, t: clean, source, objective, source=source)
        >>> torch.allclose(drawn, clean, atol=1e-6)
        True
    """

    def __init__(self, *, solver: BridgeSolver = "cold", num_steps: int = 20, eta: float = 1.0) -> None:
        check_literal("sampler.solver", solver, BridgeSolver)
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

        The first is the one nearest to the level `start`.
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
        first: Tensor,
        objective: BridgeObjective,
        *,
        source: Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        after_step: AfterStep | None = None,
        start: float = 1.0,
        bounds: Bounds | None = None,
    ) -> Tensor:
        """The sample x_0, (B, C, h, w) in the dtype of `first`.

        Args:
            denoise: the network under its condition.
            first: x at the start (B, C, h, w): the source where start is 1; below, the mixture at that level without its
                noise, which is added here.
            objective: names the prediction and its path.
            source: y (B, C, h, w); None = `first`, where start is 1.
            generators: one for each image, for a path with noise; image i depends on its own alone.
            after_step: changes x after each step; keeps a region fixed, for example
                `lambda x, t: torch.where(mask, path.mix(known, source, path.level(t)), x)`.
            start: level m in (0, 1] to begin at: 1 is the source.
            bounds: the range of clean tensors; each clean estimate is clipped to it.

        Raises:
            ValueError: a solver that does not fit the path, a start without a source, or missing generators.
        """
        path = objective.path
        self.check(path)
        if path.noise_scale > 0 and generators is None:
            raise ValueError(
                f"a path with noise_scale={path.noise_scale} needs generators, one for each image; got None"
            )
        steps = self.timesteps(path, start=start)
        if source is None and start < 1:
            raise ValueError(f"start={start} begins on the way to the source; give source=, or start=1")
        far_end = first if source is None else source

        def with_noise(x: Tensor, std: float) -> Tensor:
            if std == 0 or generators is None:
                return x
            return x + std * randn(x.shape[1:], generators, dtype=x.dtype)

        sample = first if start == 1 else with_noise(first, path.std(path.level(steps[0])))
        for here, there in pairwise([*steps, -1]):
            timestep = torch.full((len(first),), here, device=first.device)
            pred = denoise(sample, timestep).to(first.dtype)
            clean = objective.to_clean(pred, sample, timestep, far_end)
            if bounds is not None:
                clean = clean.clamp(*bounds)
            level, lower = path.level(here), path.level(there)
            carry, std = self._carry_std(path, level, lower)
            mean = path.mix(clean, far_end, lower) + carry * (sample - path.mix(clean, far_end, level))
            sample = with_noise(mean, std)
            if after_step is not None:
                sample = after_step(sample, there)
        return sample

    def _carry_std(self, path: BridgePath, level: float, lower: float) -> tuple[float, float]:
        """The numbers c and std of one step."""
        if self.solver == "cold":
            return 1.0, 0.0
        if self.solver == "indi":
            return lower / level, 0.0
        return path.posterior(level, lower, eta=self.eta if self.solver == "posterior" else 0.0)


def keep_outside(path: BridgePath, known: Tensor, source: Tensor, inside: Tensor, noise: Tensor) -> AfterStep:
    """Holds what lies outside a region on the path from what is known there to the source.

    Args:
        path: the bridge.
        known: clean tensor (B, C, h, w), of which the outside counts.
        source: y (B, C, h, w).
        inside: (1 or B, 1, h, w), 1 in the region's cells and 0 outside.
        noise: (B, C, h, w), the same at every level.
    """

    def keep(x: Tensor, timestep: int) -> Tensor:
        level = path.level(timestep)
        return torch.lerp(path.mix(known, source, level) + path.std(level) * noise, x, inside)

    return keep
