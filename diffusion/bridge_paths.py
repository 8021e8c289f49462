"""How the clean tensor turns into the source on a bridge, as a function of the timestep.

Shapes: B batch, C channels, h/w cells; `timestep` int64 (B,), larger = nearer the source.
A level m in [0, 1] says how much of the source a tensor holds: 0 is the clean tensor, 1 the source.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from diffusion.choices import check_literal
from diffusion.paths import broadcast

Schedule = Literal["linear", "geometric", "cosine", "i2sb"]
_DECAY = 0.9


def _levels(schedule: str, u: Tensor, decay: float) -> Tensor:
    """The levels m at the shares u in [0, 1] of the path; 0 at 0 and exactly 1 at 1."""
    match schedule:
        case "linear":
            return u.clone()
        case "geometric":
            # decay^(100 u) leaves decay^100 of the clean tensor at the end; dividing by the last value removes it.
            return (1 - decay ** (100 * u)) / (1 - decay**100)
        case "cosine":
            return torch.sin(math.pi / 2 * u) ** 2
        case _:
            return _i2sb(u)


def _i2sb(u: Tensor) -> Tensor:
    """Integral of beta up to u over the whole: sqrt(beta) rises linearly and turns back halfway, as in I2SB's code."""
    low, rise = math.sqrt(1e-4), math.sqrt(3e-4) - math.sqrt(1e-4)

    def integral(v: Tensor) -> Tensor:
        return ((low + rise * v) ** 3 - low**3) / (3 * rise)

    share = integral(torch.minimum(u, 1 - u)) / (2 * integral(torch.tensor(0.5, dtype=u.dtype)))
    return torch.where(u <= 0.5, share, 1 - share)


class BridgePath(torch.nn.Module):
    """x_t = (1 - m_t) x_0 + m_t y + s_t eps, from the clean x_0 to the source y; s_t^2 = noise_scale^2 m_t (1 - m_t).

    m_t is the schedule at u = (t + 1) / T: timestep 0 is one step away from x_0, and timestep T - 1 is exactly y,
    where sampling starts. x_0 itself is no timestep; `level(-1)` is 0.

    Given x_0 and y, x is a Brownian bridge in the time m, whatever the schedule. So the published bridges differ in
    the schedule and in one number:

    - noise_scale = 0: the mixture of Cold Diffusion (Bansal et al. 2022), InDI without its small noise
      (Delbracio and Milanfar 2023) and Diffusing Colors (Zabari et al. 2023).
    - BBDM (Li et al. 2023), s_t^2 = 2 (m_t - m_t^2) max_var: noise_scale = sqrt(2 max_var). Its m is `linear` (0.001 to
      0.999) or a sine that is `cosine` here.
    - I2SB (Liu et al. 2023): with f^2 the integral of beta up to t and b^2 the rest, the coefficients b^2 / (f^2 + b^2)
      of x_0 and f^2 / (f^2 + b^2) of y, and the variance f^2 b^2 / (f^2 + b^2), are 1 - m_t, m_t and s_t^2 for
      m_t = f^2 / (f^2 + b^2) and noise_scale^2 = f^2 + b^2. Schedule `i2sb` has the symmetric beta of its
      code; noise_scale = 0.3756 its size (beta_max = 0.3 in 1000 steps).

    Args:
        num_timesteps: length T of the discrete path.
        schedule: of m: linear, geometric, cosine or i2sb.
        noise_scale: standard deviation of the noise is noise_scale / 2 at its largest, where m = 1/2; 0 = no noise.
        decay: of `geometric` alone: share of x_0 kept over each hundredth of the path, in (0, 1). With T = 100, 1 - m_t
            is decay^(t + 1) up to a shift of at most decay^100, which makes the end exact.

    Raises:
        ValueError: an unknown schedule, a value out of range, or timesteps that float32 cannot tell apart.

    Example:
        >>> path = BridgePath(num_timesteps=10)
        >>> clean, source = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
        >>> path.corrupt(clean, None, torch.tensor([4, 9]), source).mean((1, 2, 3))
        tensor([0.5000, 1.0000])
    """

    levels: Tensor
    stds: Tensor

    def __init__(
        self,
        *,
        num_timesteps: int = 1000,
        schedule: Schedule = "linear",
        noise_scale: float = 0.0,
        decay: float = _DECAY,
    ) -> None:
        super().__init__()
        check_literal("path.schedule", schedule, Schedule)
        if num_timesteps < 1:
            raise ValueError(f"path.num_timesteps is {num_timesteps}; expected at least 1")
        if not 0 <= noise_scale < math.inf:
            raise ValueError(
                f"path.noise_scale is {noise_scale}; expected a finite number that is 0 or larger"
            )
        if not 0 < decay < 1:
            raise ValueError(f"path.decay is {decay}; expected a share between 0 and 1, both excluded")
        if decay != _DECAY and schedule != "geometric":
            raise ValueError(
                f"path.decay={decay} has no effect with schedule '{schedule}'; set path.schedule=geometric"
            )
        self.num_timesteps = num_timesteps
        self.schedule = schedule
        self.noise_scale = noise_scale
        exact = _levels(schedule, torch.arange(1, num_timesteps + 1).double() / num_timesteps, decay)
        if (exact.float().diff(prepend=torch.zeros(1)) <= 0).any():
            raise ValueError(
                f"path.schedule '{schedule}' with num_timesteps={num_timesteps} and decay={decay} has timesteps that "
                "float32 cannot tell apart; set path.num_timesteps lower or path.decay nearer 1"
            )
        # Samplers take their coefficients from these in double precision; training gathers from the buffers.
        self._exact = [0.0, *exact.tolist()]
        self.register_buffer("levels", exact.float(), persistent=False)
        self.register_buffer("stds", (noise_scale * (exact * (1 - exact)).sqrt()).float(), persistent=False)

    def m_s(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """m_t and s_t, float32 (B,) each."""
        return self.levels[timestep], self.stds[timestep]

    def corrupt(
        self, clean: Tensor, noise: Tensor | None, timestep: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, h, w) from x_0, eps and y of the same shape; eps may be None on a path without noise."""
        assert source is not None
        m, s = (broadcast(value, clean) for value in self.m_s(timestep))
        mixed = (1 - m) * clean + m * source
        if self.noise_scale == 0:
            return mixed
        if noise is None:
            raise ValueError(f"a path with noise_scale={self.noise_scale} needs noise, got None")
        return mixed + s * noise

    def level(self, timestep: int) -> float:
        """m_t in double precision; timestep -1 is the clean tensor, m = 0."""
        return self._exact[timestep + 1]

    def std(self, level: float) -> float:
        """The noise's standard deviation s where m = level, in double precision."""
        return self.noise_scale * math.sqrt(level * (1 - level))

    def nearest(self, level: float) -> int:
        """The timestep whose m_t is nearest to a level; the lower one of two that are equally near.

        Of a level below 1 never the last one: x there is the source itself, and a walk would begin without any noise.
        """
        if level == 1:
            return self.num_timesteps - 1
        return min(range(max(1, self.num_timesteps - 1)), key=lambda t: abs(self.level(t) - level))

    @staticmethod
    def mix(clean: Tensor, source: Tensor, level: float) -> Tensor:
        """D(x_0, m) = (1 - m) x_0 + m y, the path without its noise."""
        return (1 - level) * clean + level * source

    def posterior(self, level: float, lower: float, *, eta: float = 1.0) -> tuple[float, float]:
        """The numbers c and std of q(x_s | x_t, x_0, y) = N(D(x_0, m_s) + c (x_t - D(x_0, m_t)), std^2), s < t.

        eta = 1: conditioning the Brownian bridge (covariance noise_scale^2 m_s (1 - m_t)) on x_t gives c = m_s / m_t and
        std^2 = noise_scale^2 m_s (m_t - m_s) / m_t. In that mean y cancels: it is (1 - c) x_0 + c x_t, InDI's step and I2SB's
        posterior; written with the variances it is BBDM's. eta < 1: std shrinks by eta, and c grows so that x_s keeps
        its variance, c^2 s_t^2 + std^2 = s_s^2, as in DDIM (Song et al. 2021); eta = 0 is one step of the probability flow of
        x_t given y. (BBDM's code scales std alone, which loses variance.)

        From the source, m_t = 1, nothing is known about eps: the result is N(D(x_0, m_s), s_s^2) for every eta.

        Args:
            level: m_t, above 0.
            lower: m_s in [0, m_t).
            eta: share of fresh noise in [0, 1].
        """
        ratio = lower / level
        if level == 1.0:
            return ratio, self.std(lower)
        fresh = ratio * (level - lower)
        carry = math.sqrt(ratio**2 + (1 - eta**2) * fresh / (level * (1 - level)))
        return carry, eta * self.noise_scale * math.sqrt(fresh)
