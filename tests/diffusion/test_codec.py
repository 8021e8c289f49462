"""Codecs: scale, range, the posterior, and the identity of pixel space."""

import pytest
import torch
from diffusers import AutoencoderTiny

from diffusion.codec import IdentityCodec, LatentCodec
from tests.models import tiny_vae


def test_latent_is_diffusers_mean_times_the_stored_scale():
    vae = tiny_vae().eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = vae.encode(image * 2 - 1).latent_dist.mean * 0.7
    latent = LatentCodec(vae).encode(image)
    assert latent.shape == (2, 4, 8, 8)
    torch.testing.assert_close(latent, expected)


def test_posterior_noise_scales_with_its_standard_deviation():
    codec = LatentCodec(tiny_vae())
    moments = torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 2.0).log() * 2], dim=1)
    noise = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(codec.sample(moments, noise), 2.0 * noise * 0.7)


def test_decode_equals_diffusers_and_stays_in_range():
    vae = tiny_vae().eval()
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = (vae.decode(latent / 0.7).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(LatentCodec(vae).decode(latent), expected)


def test_the_tiny_autoencoder_has_no_posterior_noise():
    codec = LatentCodec(AutoencoderTiny())
    image = torch.rand(1, 3, 16, 16)
    assert codec.downscale == 8
    torch.testing.assert_close(
        codec.encode(image, torch.randn(1, 4, 2, 2)), codec.encode(image), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("halvings", [0, 2, 3])
def test_downscale_is_what_encode_does(halvings):
    codec = LatentCodec(tiny_vae(halvings=halvings))
    assert codec.encode(torch.rand(1, 3, 32, 32)).shape[-1] == 32 // codec.downscale


def test_identity_codec_round_trip():
    codec, image = IdentityCodec(), torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(codec.decode(codec.encode(image)), image)
    assert torch.equal(codec.sample(codec.moments(image), torch.randn(2, 3, 5, 7)), codec.encode(image))
