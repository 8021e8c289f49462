"""Codecs: scale, range, the posterior, sized and differentiable decoding, strips, the identity of pixel space."""

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import nn
from torch.nn import functional as F

from diffusion.codecs import IdentityCodec, LatentCodec
from diffusion.implicit_codec import ImplicitCodec
from tests.models import tiny_vae


class PositionDecoder(nn.Module):
    """A local implicit image function (Chen et al. 2021, LIIF): the latent sampled at a pixel, and where it lies."""

    def __init__(self, num_channels: int = 4, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_channels + 2, width), nn.SiLU(), nn.Linear(width, 3))

    def prepare(self, latent):
        return latent

    def patches(self, latent, sizes, windows):
        each = zip(latent.split(1), sizes, windows, strict=True)
        return torch.cat([self.window(one, size, window) for one, size, window in each])

    def window(self, latent, size_px, window):
        top, left, height, width = window
        y = (torch.arange(top, top + height) * 2 + 1) / size_px[0] - 1
        x = (torch.arange(left, left + width) * 2 + 1) / size_px[1] - 1
        xy = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).expand(len(latent), -1, -1, -1)
        cells = F.grid_sample(latent, xy, padding_mode="border", align_corners=False)
        return self.layers(torch.cat([cells.permute(0, 2, 3, 1), xy], dim=-1)).permute(0, 3, 1, 2) + 0.5


CODECS = {
    "kl": lambda: LatentCodec(tiny_vae()),
    "tiny": lambda: LatentCodec(AutoencoderTiny()),
    "identity": lambda: IdentityCodec(4),
    "implicit": lambda: ImplicitCodec(tiny_vae(), PositionDecoder()),
}


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]()


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


def test_decode_equals_diffusers():
    vae = tiny_vae().eval()
    latent = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = vae.decode(latent / 0.7).sample / 2 + 0.5
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
    latent = codec.encode(torch.rand(1, 3, 32, 48))
    assert latent.shape[-2] == 32 // codec.downscale
    assert codec.latent_shape((32, 48)) == latent.shape[1:]


def test_identity_codec_round_trip():
    codec, image = IdentityCodec(), torch.rand(2, 3, 5, 7)
    torch.testing.assert_close(codec.decode(codec.encode(image)), image)
    assert torch.equal(codec.sample(codec.moments(image), torch.randn(2, 3, 5, 7)), codec.encode(image))
    assert codec.latent_shape((5, 7)) == (3, 5, 7)


def test_bounds_are_the_range_of_pixel_space_alone():
    ends = IdentityCodec().encode(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    assert IdentityCodec.bounds == tuple(ends.flatten().tolist())
    assert LatentCodec(tiny_vae()).bounds is None


# ---- decoding to a size


@pytest.mark.parametrize("size_px", [None, (40, 52), (9, 11)])
def test_decode_has_the_size_asked_for_and_its_gradient_reaches_the_latent_alone(codec, size_px):
    latent = torch.randn(2, 4, 4, 6, requires_grad=True)
    image = codec.decode(latent, size_px)
    assert image.shape[-2:] == (size_px or (4 * codec.downscale, 6 * codec.downscale))
    assert image.dtype == torch.float32
    weights = torch.linspace(-1, 1, image.shape[-1]) + torch.linspace(0, 2, image.shape[-2])[:, None]
    (image * weights).sum().backward()
    assert latent.grad is not None
    assert (latent.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in codec.parameters())


@pytest.mark.parametrize("name", ["kl", "identity", "implicit"])
def test_the_gradient_of_decode_is_the_difference_quotient(name):
    codec = CODECS[name]()
    latent = torch.randn(1, 4, 3, 3)
    direction = torch.randn(1, 4, 3, 3)
    weights = torch.randn_like(codec.decode(latent, (7, 8)))

    def loss(at):
        return (codec.decode(at, (7, 8)) * weights).double().sum()

    latent.requires_grad_()
    slope = (torch.autograd.grad(loss(latent), latent)[0] * direction).sum().item()
    with torch.no_grad():
        quotient = (loss(latent + 1e-2 * direction) - loss(latent - 1e-2 * direction)).item() / 2e-2
    assert slope == pytest.approx(quotient, rel=1e-2, abs=1e-2)


def test_another_size_is_the_decoded_picture_resampled():
    codec, latent = LatentCodec(tiny_vae()), torch.randn(1, 4, 8, 8)
    own = codec.decode(latent)
    assert torch.equal(codec.decode(latent, (32, 32)), own)
    expected = F.interpolate(own, (20, 50), mode="bicubic", antialias=True)
    torch.testing.assert_close(codec.decode(latent, (20, 50)), expected)


def test_a_picture_is_decode_clamped_and_without_gradient(codec):
    latent = (5 * torch.randn(2, 4, 4, 6)).requires_grad_()
    picture, decoded = codec.to_picture(latent, (33, 20)), codec.decode(latent, (33, 20)).detach()
    assert not picture.requires_grad
    assert decoded.min() < 0  # so that there is something to clamp
    torch.testing.assert_close(picture, decoded.clamp(0, 1))


@pytest.mark.parametrize("window", [None, (0, 0, 600, 12), (300, 3, 270, 5), (599, 11, 1, 1)])
def test_strips_joined_are_the_window_of_the_picture(codec, window):
    latent = torch.randn(1, 4, 4, 6, requires_grad=True)
    strips = list(codec.decode_strips(latent, (600, 12), window))
    top, left, height, width = window or (0, 0, 600, 12)
    assert [s.shape[-2] for s in strips] == [*[256] * (height // 256), *[height % 256] * (height % 256 > 0)]
    assert not any(strip.requires_grad for strip in strips)
    picture = codec.to_picture(latent, (600, 12))[..., top : top + height, left : left + width]
    torch.testing.assert_close(torch.cat(strips, dim=-2), picture, rtol=1e-5, atol=1e-5)


def test_patches_are_windows_of_each_picture_at_its_own_size(codec):
    latent = torch.randn(2, 4, 4, 6)
    sizes, windows = [(33, 20), (15, 41)], [(20, 3, 6, 9), (2, 30, 6, 9)]
    found = codec.patches(latent, sizes, windows)
    for row, (size, (top, left, height, width)) in enumerate(zip(sizes, windows, strict=True)):
        whole = codec.decode(latent[row : row + 1], size)
        expected = whole[0, :, top : top + height, left : left + width]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


def test_strips_have_the_latents_own_size_unless_told_another(codec):
    latent = torch.randn(1, 4, 4, 6)
    joined = torch.cat(list(codec.decode_strips(latent)), dim=-2)
    torch.testing.assert_close(joined, codec.to_picture(latent), rtol=1e-5, atol=1e-5)


def test_an_implicit_codec_never_asks_for_more_than_a_strip():
    asked, prepared = [], []

    class Noting(PositionDecoder):
        def prepare(self, latent):
            prepared.append(latent)
            return latent

        def window(self, latent, size_px, window):
            asked.append((size_px, window))
            return super().window(latent, size_px, window)

    codec = ImplicitCodec(tiny_vae(), Noting())
    strips = codec.decode_strips(torch.randn(1, 4, 4, 4), (10_000, 8), (100, 2, 9_000, 4))
    assert next(strips).shape == (1, 3, 256, 4)
    assert asked == [((10_000, 8), (100, 2, 256, 4))]  # the rest is decoded when it is taken
    assert len(list(strips)) == 35
    assert len(prepared) == 1  # what does not depend on the size is computed once


def test_an_implicit_decoder_keeps_its_weights_precision_under_autocast():
    codec, latent = ImplicitCodec(tiny_vae(), PositionDecoder()), torch.randn(1, 4, 4, 4)
    plain = codec.decode(latent, (9, 9))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(latent, (9, 9)), plain)
