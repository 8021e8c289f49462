"""The Gaussian path against diffusers and its closed forms."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from diffusion.paths import GaussianPath


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_equals_diffusers_add_noise(schedule):
    path = GaussianPath(beta_schedule=schedule)
    reference = DDPMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
    clean, noise = torch.randn(2, 5, 3, 4, 4)
    timestep = torch.tensor([0, 1, 250, 998, 999])
    expected = reference.add_noise(clean, noise, timestep)
    torch.testing.assert_close(path.corrupt(clean, noise, timestep), expected, rtol=1e-5, atol=1e-6)


def test_variance_is_preserved():
    alpha, sigma = GaussianPath().alpha_sigma(torch.arange(1000))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000), rtol=1e-6, atol=1e-6)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    plain, rescaled = GaussianPath(), GaussianPath(zero_terminal_snr=True)
    clean, noise = torch.randn(2, 1, 3, 4, 4)
    last = torch.tensor([999])
    assert torch.equal(rescaled.corrupt(clean, noise, last), noise)
    assert rescaled.snr(last).item() == 0.0
    assert plain.snr(last).item() > 1e-3
    torch.testing.assert_close(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0])


def test_path_of_a_saved_scheduler_is_the_same_path(tmp_path):
    DDIMScheduler(beta_schedule="linear", beta_end=0.015, rescale_betas_zero_snr=True).save_pretrained(
        tmp_path
    )
    path = GaussianPath.from_scheduler_config(dict(DDIMScheduler.from_pretrained(tmp_path).config))
    expected = GaussianPath(beta_schedule="linear", beta_start=0.0001, beta_end=0.015, zero_terminal_snr=True)
    assert torch.equal(path.alphas_cumprod, expected.alphas_cumprod)
