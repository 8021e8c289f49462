import torch

from color.gamut import clip_chroma
from color.lab import lab_to_linear_rgb, lightness, rgb_to_lab


def random_lab(count: int = 20000, spread: float = 130.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    star = 100 * torch.rand(1, 1, 1, count, generator=generator)
    chroma = spread * (2 * torch.rand(1, 2, 1, count, generator=generator) - 1)
    return torch.cat([star, chroma], dim=1)


def test_lightness_is_kept_and_the_result_is_in_range():
    lab = random_lab()
    image = clip_chroma(lab)
    assert image.min() >= 0
    assert image.max() <= 1
    assert (100 * lightness(image) - lab[:, :1]).abs().max() < 0.05


def test_colours_inside_the_gamut_are_unchanged():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 64, 64, generator=generator)
    image[..., 0, :6] = torch.tensor([[1.0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 1, 1], [0, 0, 1, 0, 1, 0]])
    lab = rgb_to_lab(image)
    assert (clip_chroma(lab) - image).abs().max() < 1e-4


def test_scale_is_the_largest_that_fits_and_hue_is_kept():
    lab = random_lab(200).double()
    result = rgb_to_lab(clip_chroma(lab, num_bisections=20))
    # Brute force over 2000 scales, in float64 with the same tolerance.
    scales = torch.linspace(0, 1, 2001, dtype=torch.float64).view(-1, 1, 1, 1)
    candidates = torch.cat([lab[:, :1].expand(2001, -1, -1, -1), scales * lab[:, 1:]], dim=1)
    linear = lab_to_linear_rgb(candidates)
    inside = ((linear >= -1e-5) & (linear <= 1 + 1e-5)).all(1)
    largest = torch.where(inside, scales[:, 0], 0.0).amax(0)
    expected = largest * torch.hypot(lab[:, 1], lab[:, 2])[0]
    found = torch.hypot(result[:, 1], result[:, 2])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.15)
    chromatic = found > 5
    cosine = torch.cosine_similarity(lab[0, 1:], result[0, 1:], dim=0)
    assert cosine[chromatic].min() > 0.9999


def test_lightness_beyond_the_scale_is_clamped_to_it():
    lab = torch.tensor([[[[-5.0, 120.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(clip_chroma(lab)[0, :, 0], torch.tensor([[0.0, 1.0]] * 3), rtol=0, atol=1e-4)
