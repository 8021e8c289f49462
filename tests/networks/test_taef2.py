"""The tiny autoencoders of SD 3's and FLUX.2's latents: the known quality, as codecs, and a round trip of their files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.codecs import LatentCodec
from networks.latent_diffusion_parts import load_vae
from networks.taef2 import Taef2

SHARED = Path(__file__).parents[2].parent / "shared"


# Mean PSNR on every fourth Kodak photo, as measured with the official code's layout.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "channels", "expected"), [("taesd3", 16, 27.36), ("taef2", 32, 28.82)])
def test_real_codecs_have_their_known_quality(name, channels, expected):
    photos = sorted((SHARED / "data/sr_test/kodak24").glob("*.png"))[::4]
    if not photos or not (SHARED / "weights" / name).is_dir():
        pytest.skip("the shared weights and photos are not at hand")
    codec = LatentCodec(load_vae(str(SHARED / "weights" / name)).float())
    assert (codec.num_channels, codec.downscale) == (channels, 8)
    values = []
    for file in photos:
        picture = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy())
        image = picture.permute(2, 0, 1)[None] / 255
        values.append(-10 * (codec.to_picture(codec.encode(image)) - image).square().mean().log10())
    assert float(torch.stack(values).mean()) == pytest.approx(expected, abs=0.05)


def test_its_files_come_back(tmp_path: Path):
    torch.manual_seed(0)
    vae = Taef2().eval()
    vae.save_pretrained(tmp_path / "vae")
    again = load_vae(str(tmp_path))
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        assert torch.equal(again.encode(image).latents, vae.encode(image).latents)
        assert again.decode(vae.encode(image).latents).sample.shape == image.shape
