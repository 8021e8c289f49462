"""What a user edits: hints in their cells, a region, a start on the way, and a ranker's choice of the chroma."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from color.hints import KnownColors
from color.lab import grey_image, lightness, rgb_to_lab
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.colorizer import CHROMA_SCALES
from lightning_modules.diffusing_colors import DiffusingColors
from lightning_modules.requests import DrawSettings, Edits, PredictRequest
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import tiny_parts, tiny_settings

IDS = [5, 6, 7, 8]


def bridge(noise_scale: float = 0.0, *, num_timesteps: int = 1000, solver: str | None = None, **settings):
    torch.manual_seed(0)
    solver = solver or ("posterior" if noise_scale else "cold")
    sampler = BridgeSampler(solver=solver, num_steps=min(3, num_timesteps))
    module = DiffusingColors(
        path=BridgePath(noise_scale=noise_scale, num_timesteps=num_timesteps),
        parts=tiny_parts(),
        **tiny_settings(sampler=sampler, **settings),
    ).eval()
    # The decoder of an untrained codec hardly shows colour: let the latents speak louder.
    module.parts.vae.register_to_config(scaling_factor=0.05)
    return module


def controlnet():
    torch.manual_seed(0)
    return ColorizeControlNet(parts=tiny_parts(), **tiny_settings()).eval()


def photo(height: int = 45, width: int = 70) -> torch.Tensor:
    return torch.randint(
        0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def predicted(module, edits: Edits, **settings) -> list[torch.Tensor]:
    return module.predict_photo(photo(), PredictRequest(number=3, short_px=32, edits=edits, **settings))


def one_pixel(x: int, y: int, size_px: tuple[int, int]) -> KnownColors:
    index, color = torch.tensor([y * size_px[1] + x]), torch.tensor([[160, 48, 32]], dtype=torch.uint8)
    return KnownColors(index, color, size_px)


@pytest.mark.parametrize("make", [controlnet, bridge, lambda: bridge(1.0)])
def test_a_full_region_changes_nothing_and_an_empty_one_gives_the_photo_back(make):
    module = make()
    whole = torch.full((45, 70), 255, dtype=torch.uint8)
    (plain,) = predicted(module, Edits())
    assert torch.equal(predicted(module, Edits(region=whole))[0], plain)
    assert torch.equal(predicted(module, Edits(region=torch.zeros_like(whole)))[0], photo())
    half = whole.clone()
    half[:, :35] = 0
    (result,) = predicted(module, Edits(region=half))
    assert torch.equal(result[..., :35], photo()[..., :35])
    assert not torch.equal(result[..., 35:], photo()[..., 35:])


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_a_bridge_fits_the_inside_of_a_region_to_the_photo_outside(noise_scale):
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    settings = DrawSettings(num_steps=5)
    found = module.draw_edited(image, [""] * 4, IDS, settings, Edits(region=region))
    plain = module.draw_edited(image, [""] * 4, IDS, settings, Edits())
    assert torch.equal(found[..., :3], module.codec.encode(image)[..., :3])
    assert not torch.equal(found[..., 5:], plain[..., 5:])
    alone = module.draw_edited(image[1:2], [""], IDS[1:2], settings, Edits(region=region))
    assert torch.allclose(alone, found[1:2], atol=1e-4)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_a_region_of_a_grey_photo_is_drawn_as_without_one(noise_scale):
    """Grey latents around the region would take its colours in the decoder."""
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    image[:2] = grey_image(lightness(image[:2]))
    image[1, :, :, 20:] = astronaut_batch()["image"][1, :, :, 20:]  # what it has inside does not count
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    for start in (1.0, 0.5):
        given = image, [""] * 4, IDS, DrawSettings(num_steps=5)
        found = module.draw_edited(*given, Edits(region=region, start=start))
        plain = module.draw_edited(*given, Edits(start=start))
        assert [torch.equal(*pair) for pair in zip(found, plain, strict=True)] == [True, True, False, False]


def test_a_region_of_a_grey_photo_is_that_of_the_whole_result_and_the_rest_the_photo():
    module, region = bridge(), torch.zeros(45, 70, dtype=torch.uint8)
    region[10:20, 33:40] = 255
    grey = photo()[:1].expand(3, -1, -1).contiguous()
    request = PredictRequest(number=3, short_px=32)
    (plain,) = module.predict_photo(grey, request)
    (found,) = module.predict_photo(grey, replace(request, edits=Edits(region=region)))
    assert torch.equal(found, torch.where(region > 0, plain, grey))
    assert not torch.equal(found, grey)


def test_outside_a_region_the_latents_are_those_of_the_path():
    path, shape = BridgePath(noise_scale=1.0), (2, 4, 8, 8)
    own, source, noise = (torch.randn(shape) for _ in range(3))
    module = bridge(1.0)
    keep = module.keep_outside(own, source, torch.zeros(1, 1, 8, 8), noise)
    t = torch.tensor([299, 299])
    expected = path.corrupt(own, source, noise, t)
    assert torch.allclose(keep(torch.randn(shape), path.level(299)), expected, atol=1e-6)
    assert torch.equal(keep(torch.randn(shape), 0.0), own)


class KnowsTheTruth(nn.Module):
    """The ideal U-Net of a walk to one clean latent: it predicts what is missing."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.seen: list[torch.Tensor] = []

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> SimpleNamespace:
        self.seen.append(noisy)
        return SimpleNamespace(sample=self.clean - noisy[:, : self.clean.shape[1]])


@pytest.mark.parametrize("solver", ["cold", "indi", "posterior"])
@pytest.mark.parametrize("start", [0.3, 0.6])
def test_colours_that_faded_to_the_start_come_back_with_an_ideal_network(solver, start):
    """The photo's latent is (1 - m) of the true one and m of the grey one."""
    module, image = bridge(solver=solver), astronaut_batch()["image"]
    source = module.codec.encode(module.source_image(image))
    faded = module.codec.encode(image)
    true = (faded - start * source) / (1 - start)
    module.parts.unet = KnowsTheTruth(true)
    found = module.draw_edited(image, [""] * 4, IDS, DrawSettings(), Edits(start=start))
    assert torch.allclose(found, true, atol=1e-5 * float(true.abs().max()))
    assert torch.equal(module.parts.unet.seen[0], faded)


def test_true_colours_come_back_from_a_network_that_sees_nothing_missing():
    module, image = bridge(solver="indi"), astronaut_batch()["image"]
    true = module.codec.encode(image)
    source = module.codec.encode(module.source_image(image))
    for start in (0.2, 0.7, 1.0):
        module.parts.unet = KnowsTheTruth(true)
        found = module.draw_edited(image, [""] * 4, IDS, DrawSettings(), Edits(start=start))
        assert torch.allclose(found, true, atol=1e-5 * float(true.abs().max()))
        assert torch.equal(module.parts.unet.seen[0], source if start == 1 else true)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_several_samples_of_a_photo_encode_it_once(noise_scale):
    module, encoded = bridge(noise_scale, hint_prob=0.5), []
    encode = module.codec.encode
    module.codec.encode = lambda image: encoded.append(len(image)) or encode(image)
    region = torch.full((45, 70), 255, dtype=torch.uint8)
    edits = Edits(region=region, start=0.5, hints=one_pixel(9, 9, (45, 70)))
    assert len(predicted(module, edits, num_samples=3)) == 3
    assert encoded == [1, 1]  # the grey photo and the photo itself


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_from_grey_the_photos_colours_do_not_count_and_from_the_way_they_do(noise_scale):
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    given = [""] * 4, IDS, DrawSettings()
    plain = module.draw_colors(lightness(image), *given)
    assert torch.equal(module.draw_edited(image, *given, Edits(start=1.0)), plain)
    first = module.draw_edited(image, *given, Edits(start=0.5))
    assert not torch.equal(first, module.draw_edited(image.flip(1), *given, Edits(start=0.5)))
    region = torch.full((32, 32), 255, dtype=torch.uint8)
    assert torch.equal(module.draw_edited(image, *given, Edits(start=0.5, region=region)), first)


def test_with_a_region_the_walk_starts_faded_inside_and_on_the_path_outside():
    module, image = bridge(), astronaut_batch()["image"]
    own, source = module.codec.encode(image), module.codec.encode(module.source_image(image))
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    walk = module.edited_walk(image, source, IDS, 0, Edits(start=0.5, region=region))
    assert torch.equal(walk["current"][..., 5:], own[..., 5:])
    assert torch.allclose(walk["current"][..., :3], ((own + source) / 2)[..., :3], atol=1e-5)


def unet_inputs(module, picture: torch.Tensor, edits: Edits, **request) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    hook = module.parts.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    module.predict_photo(picture, PredictRequest(number=0, edits=edits, **request))
    hook.remove()
    return seen


@pytest.mark.parametrize(
    ("size_px", "point", "cells", "cell"),
    [
        ((48, 96), (90, 10), (8, 16), (1, 15)),
        ((90, 45), (0, 89), (16, 8), (15, 0)),
        ((33, 50), (25, 16), (8, 12), (4, 6)),  # the working copy is 32 x 48
        ((320, 320), (159, 161), (8, 8), (4, 3)),
    ],
)
def test_a_hint_reaches_the_unet_in_its_cell_in_every_step(size_px, point, cells, cell):
    module = bridge(hint_prob=0.5)
    edits = Edits(hints=one_pixel(*point, size_px))
    inputs = unet_inputs(module, photo(*size_px), edits, short_px=32, prompt="red")
    assert len(inputs) == 3
    ab = rgb_to_lab(torch.tensor([160, 48, 32]).view(1, 3, 1, 1) / 255)[0, 1:, 0, 0]
    expected = torch.zeros(3, *cells)
    expected[:, cell[0], cell[1]] = torch.tensor([*(ab / 50), 1.0])
    for given in inputs:  # both branches of guidance know the hints
        assert torch.allclose(given[:, 4:], expected.expand(len(given), -1, -1, -1), atol=1e-6)


def test_a_hint_changes_the_result_of_a_model_that_learned_from_hints():
    module = bridge(hint_prob=0.5)
    with torch.no_grad():
        module.parts.unet.conv_in.weight[:, 4:].normal_()
    (plain,), (hinted,) = (predicted(module, Edits(hints=h)) for h in (None, one_pixel(9, 9, (45, 70))))
    assert not torch.equal(plain, hinted)


class Wanted(nn.Module):
    """Likes images whose mean chroma is near a number."""

    def __init__(self, chroma: float) -> None:
        super().__init__()
        self.chroma = chroma

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return -(rgb_to_lab(image)[:, 1:].norm(dim=1).mean((1, 2)) - self.chroma).abs()


def test_the_choice_is_the_arg_max_and_equals_the_fixed_scale(caplog):
    caplog.set_level("INFO", logger="lightning_modules")
    module, given = bridge(), lightness(astronaut_batch()["image"])
    candidates = module.candidates(given, module.draw_colors(given, [""] * 4, IDS))
    assert candidates.shape == (len(CHROMA_SCALES), 4, 3, 32, 32)
    chroma = rgb_to_lab(candidates.flatten(0, 1))[:, 1:].norm(dim=1).mean((1, 2)).view(-1, 4)
    ranker = Wanted(float(chroma.mean()))
    best = torch.stack([ranker(images) for images in candidates]).argmax(0)
    assert len(set(best.tolist())) > 1
    names = ["a", "b", "c", "d"]
    found = module.colorize(given, [""] * 4, IDS, DrawSettings(ranker=ranker), names)
    for row, k in enumerate(best.tolist()):
        fixed = module.colorize(given, [""] * 4, IDS, DrawSettings(chroma_scale=CHROMA_SCALES[k]))
        assert torch.equal(found[row], fixed[row])
    chosen = [f"{name} x {CHROMA_SCALES[k]:g}" for name, k in zip(names, best.tolist(), strict=True)]
    assert f"chroma=auto: {', '.join(chosen)}" in caplog.messages


def test_a_ranker_chooses_for_each_drawn_result_of_a_photo(caplog):
    caplog.set_level("INFO", logger="lightning_modules")
    module = bridge(1.0)
    for ranker, scale in ((Wanted(0.0), CHROMA_SCALES[0]), (Wanted(1e3), CHROMA_SCALES[-1])):
        found = predicted(module, Edits(), num_samples=2, name="a.png", draw=DrawSettings(ranker=ranker))
        fixed = predicted(module, Edits(), num_samples=2, draw=DrawSettings(chroma_scale=scale))
        assert all(torch.equal(*pair) for pair in zip(found, fixed, strict=True))
        assert f"chroma=auto: a.png x {scale:g}, a.png x {scale:g}" in caplog.messages


def test_evaluation_lets_the_ranker_choose_at_the_working_size():
    module, batch = bridge(), astronaut_batch()
    found, fixed = (
        module.evaluated_images(batch, DrawSettings(short_px=16, **choice))["no prompt"]
        for choice in ({"ranker": Wanted(0.0)}, {"chroma_scale": CHROMA_SCALES[0]})
    )
    assert torch.equal(found, fixed)


def test_only_noise_and_steps_give_different_results():
    def differs(noise_scale: float, num_steps: int, start: float) -> bool:
        module, edits = bridge(noise_scale), Edits(start=start)
        settings = DrawSettings(num_steps=num_steps)
        first, second = predicted(module, edits, num_samples=2, draw=settings)
        assert module.is_deterministic(settings, edits) == torch.equal(first, second)
        return not torch.equal(first, second)

    asked = [(0.0, 3, 1), (1.0, 3, 1), (1.0, 1, 1), (1.0, 1, 0.5), (1.0, 1, 0.9999)]
    assert [differs(*settings) for settings in asked] == [False, True, False, True, True]
    assert not controlnet().is_deterministic(DrawSettings(), Edits())


@pytest.mark.parametrize(
    ("make", "edits", "text"),
    [
        (
            controlnet,
            {"hints": True},
            "ColorizeControlNet takes no hints=; give a prompt=, or a run of diffusing_colors",
        ),
        (
            controlnet,
            {"start": 0.5},
            "ColorizeControlNet takes no start=, as it draws from noise; leave it out, or",
        ),
        (
            bridge,
            {"hints": True},
            r"this one was trained with module.hint_prob=0; give a prompt=, or train with",
        ),
        (
            lambda: bridge(num_timesteps=1, solver="posterior"),
            {"start": 0.5},
            r"start=0.5 needs a walk of many steps, and this model goes from grey to colour in one",
        ),
    ],
)
def test_what_a_model_cannot_do_is_one_sentence(make, edits, text):
    hints = one_pixel(0, 0, (45, 70)) if edits.get("hints") else None
    with pytest.raises(ValueError, match=text) as caught:
        predicted(make(), Edits(hints=hints, start=edits.get("start", 1.0)))
    assert "\n" not in str(caught.value)
