"""Masks as pictures of a codec, three classes a picture."""

import pytest
import torch

from diffusion.codecs import IdentityCodec, LatentCodec
from diffusion.mask_codec import MaskCodec
from tests.models import tiny_vae


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 11])
def test_through_a_codec_without_loss_classes_come_back(num_classes):
    codec = MaskCodec(IdentityCodec(3), num_classes)
    shares = torch.rand(2, num_classes, 6, 7)
    latent = codec.encode(shares)
    assert latent.shape == (2, *codec.latent_shape((6, 7)))
    torch.testing.assert_close(codec.decode(latent), shares)
    assert codec.bounds == (-1, 1)


def test_each_picture_is_encoded_as_its_own():
    torch.manual_seed(0)
    pictures = LatentCodec(tiny_vae())
    codec = MaskCodec(pictures, 6)
    shares = torch.rand(2, 6, 16, 16)
    expected = torch.cat([pictures.encode(part) for part in shares.split(3, dim=1)], dim=1)
    torch.testing.assert_close(codec.encode(shares), expected)
    assert codec.scale_factor == pictures.scale_factor
    assert codec.num_channels == 8


def test_one_class_is_grey_and_comes_back_as_the_mean_of_colours():
    torch.manual_seed(0)
    pictures = LatentCodec(tiny_vae())
    codec, shares = MaskCodec(pictures, 1), torch.rand(2, 1, 16, 16)
    latent = codec.encode(shares)
    torch.testing.assert_close(latent, pictures.encode(shares.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(codec.decode(latent), pictures.decode(latent).mean(1, keepdim=True))
