"""How the clean tensor is corrupted on the way to noise, as a function of the timestep.

Shapes: B batch, C channels, h/w cells; `timestep` int64 (B,), larger = noisier.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor


def broadcast(values: Tensor, like: Tensor) -> Tensor:
    """`values` (B,) with trailing axes of length one, to multiply `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


class GaussianPath(torch.nn.Module):
    """x_t = alpha_t x_0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1 (Ho et al. 2020, Eq. 4), over diffusers' schedules.

    Args:
        num_timesteps: length T of the discrete path.
        beta_schedule: a name that diffusers' DDPMScheduler knows: linear, scaled_linear, squaredcos_cap_v2.
        beta_start, beta_end: of the linear schedules.
        zero_terminal_snr: rescale the betas so that x_T is pure noise (Lin et al. 2023, Alg. 1).

    Example:
        >>> path = GaussianPath(num_timesteps=10)
        >>> clean, noise = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
        >>> path.corrupt(clean, noise, torch.tensor([0, 9])).shape
        torch.Size([2, 1, 4, 4])
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        *,
        num_timesteps: int = 1000,
        beta_schedule: str = "scaled_linear",
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        zero_terminal_snr: bool = False,
    ) -> None:
        super().__init__()
        self.num_timesteps, self.zero_terminal_snr = num_timesteps, zero_terminal_snr
        self._schedule = {
            "num_train_timesteps": num_timesteps,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "rescale_betas_zero_snr": zero_terminal_snr,
        }
        alphas_cumprod = DDPMScheduler(**self._schedule).alphas_cumprod.double()
        if zero_terminal_snr:
            # diffusers keeps the last value at 2^-24 for its solvers; the path itself ends at pure noise.
            alphas_cumprod[-1] = 0.0
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @classmethod
    def from_scheduler_config(cls, config: dict[str, Any]) -> "GaussianPath":
        """The path that a diffusers scheduler's config describes."""
        return cls(
            num_timesteps=config["num_train_timesteps"],
            beta_schedule=config["beta_schedule"],
            beta_start=config["beta_start"],
            beta_end=config["beta_end"],
            zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        )

    def scheduler_config(self, prediction_type: str) -> dict[str, Any]:
        """The arguments that make any diffusers scheduler walk this path."""
        return {**self._schedule, "prediction_type": prediction_type, "clip_sample": False}

    def alpha_sigma(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t, float32 (B,) each."""
        alpha_squared = self.alphas_cumprod[timestep]
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()

    def snr(self, timestep: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2, float32 (B,); 0 at the end of a zero-terminal-SNR path."""
        alpha_squared = self.alphas_cumprod[timestep]
        return alpha_squared / (1 - alpha_squared)

    def corrupt(
        self, clean: Tensor, noise: Tensor | None, timestep: Tensor, source: Tensor | None = None
    ) -> Tensor:
        """x_t (B, C, h, w) from x_0 and eps of the same shape; a Gaussian path has no source."""
        assert noise is not None
        alpha, sigma = self.alpha_sigma(timestep)
        return broadcast(alpha, clean) * clean + broadcast(sigma, clean) * noise
