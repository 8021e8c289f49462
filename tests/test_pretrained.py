"""The shipped models: small, complete, loadable by name, and good for what their cards say."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from color.hints import hint_map
from color.lab import grey_image, lightness, rgb_to_lab
from color.transfer import transfer_chroma_exact
from metrics.color import colorfulness
from metrics.delta_e import delta_e_2000
from runs.load import PRETRAINED, load_run
from tests.models import colored, colors, predicted

NAMES = ["autoencoder", "latent_diffusion", "colorize_controlnet", "diffusing_colors", "vividness_ranker"]
SEGMENTERS = ["unet_segmentation", "segdiff", "medsegdiff", "ddpm_seg"]
COLORIZERS = ["colorize_controlnet", "diffusing_colors"]


def photo(name):
    return torch.from_numpy(np.array(getattr(data, name)())).permute(2, 0, 1)


def test_all_weights_fit_into_96_mebibytes():
    files = [p for p in PRETRAINED.rglob("*") if p.is_file() and not any(q.is_symlink() for q in p.parents)]
    assert sum(p.stat().st_size for p in files) <= 96 * 2**20
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".yaml", ".md"}


@pytest.mark.parametrize("name", NAMES)
def test_every_model_has_a_card_with_data_licence_and_commands(name):
    card = (PRETRAINED / name / "README.md").read_text()
    for part in ("python train.py", "CC BY", "photos64", "Figures", "steps"):
        assert part in card


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_segmenter_has_a_card_with_data_licence_and_commands(name):
    card = (PRETRAINED / name / "README.md").read_text()
    for part in ("python train.py", "CC0", "nuclei", "Figures", "steps"):
        assert part in card


@pytest.mark.parametrize("name", SEGMENTERS)
def test_the_segmenters_find_bright_discs_on_a_dark_ground(name):
    module = load_run(name).module
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    mask = torch.zeros(128, 128, dtype=torch.bool)
    for row, column, radius in ((30, 34, 11), (70, 90, 13), (100, 30, 9), (36, 96, 10)):
        mask |= (rows - row) ** 2 + (columns - column) ** 2 < radius**2
    image = (20 + 60 * mask + 6 * torch.randn(128, 128, generator=generator)).clamp(0, 255).byte()
    batch = {"image": image.expand(1, 3, 128, 128), "index": torch.tensor([0]), "name": ["discs"]}
    settings = {"num_samples": 2, "steps": 5} if hasattr(module.Options(), "num_samples") else {}
    found = module.results(batch, module.Options(**settings))["mask"][0] == 1
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.8


@pytest.fixture(scope="module", params=COLORIZERS)
def colorizer(request):
    return load_run(request.param).module


@pytest.fixture(scope="module")
def diffusing():
    return load_run("diffusing_colors").module


@pytest.fixture(scope="module")
def ranker():
    return load_run("vividness_ranker").module.ranker


def photos_64():
    """Three photos that the models have not seen, (3, 3, 64, 64) in [0, 1]."""
    small = [photo(name)[None, :, :300, :300].float() / 255 for name in ("chelsea", "coffee", "astronaut")]
    return torch.cat([torch.nn.functional.interpolate(p, size=(64, 64), mode="area") for p in small])


def numbered(image):
    return {"image": image, "index": torch.arange(len(image)), "name": [str(n) for n in range(len(image))]}


def test_colours_a_photo_at_its_own_size_and_keeps_its_lightness(colorizer):
    coffee = photo("coffee")
    grey = (grey_image(lightness(coffee[None].float() / 255))[0] * 255).round().byte()
    (result,) = predicted(colorizer, grey)
    assert result.shape == coffee.shape
    lab, given = rgb_to_lab(result[None].float() / 255), rgb_to_lab(grey[None].float() / 255)
    assert (lab[:, 0] - given[:, 0]).abs().mean() <= 0.3
    assert lab[:, 1:].norm(dim=1).mean() > 5  # colour, not grey


def test_a_colour_word_moves_the_hue(colorizer):
    batch = numbered(photos_64()[:1].expand(4, -1, -1, -1))
    means = {}
    for word in ("blue", "yellow"):
        drawn = colored(colorizer, batch, [word] * 4)
        means[word] = rgb_to_lab(drawn)[:, 2].mean().item()
    assert means["yellow"] > means["blue"] + 5  # b* runs from blue to yellow


def test_predict_writes_the_same_pixels_twice(colorizer, tmp_path):
    grey = photo("astronaut")[:, ::4, ::4]
    first, second = (predicted(colorizer, grey, 3)[0] for _ in range(2))
    assert torch.equal(first, second)
    Image.fromarray(first.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_the_scale_of_the_bridge_raises_colourfulness_at_every_step(diffusing):
    batch = numbered(photos_64())
    candidates = diffusing.candidates(
        lightness(batch["image"]), colors(diffusing, batch), (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    )
    mean = [float(colorfulness(image).mean()) for image in candidates]
    assert mean == sorted(set(mean))


def test_hints_of_true_colours_bring_the_bridge_nearer_to_the_truth(diffusing):
    image = photos_64()
    given, truth = lightness(image), rgb_to_lab(image)
    source = diffusing.codec.encode(grey_image(given))
    known = torch.zeros(3, 1, 64, 64)
    known[:, :, 4::16, 4::16] = 1
    error = []
    for shown in (known * 0, known):
        told = diffusing.told([""] * 3, source, hint_map(truth[:, 1:], shown, size=(16, 16)))
        denoise = diffusing.guided(told, diffusing.Options(guidance=1.0))
        latent = diffusing.draw(denoise, source, generators=diffusing.generators([0, 1, 2], 0))
        result = rgb_to_lab(diffusing.candidates(given, latent, (1.0,))[0])
        error.append(float(delta_e_2000(result, truth).mean()))
    assert error[1] < 0.9 * error[0]


def test_the_ranker_prefers_the_true_saturation_to_half_and_double(ranker):
    image = photos_64()
    given = lightness(image)
    true, half, double = (
        ranker(transfer_chroma_exact(given, image, chroma_scale=s)).detach() for s in (1.0, 0.4, 2.5)
    )
    assert (true > half).all()
    assert (true > double).all()
