"""What a user edits: hints in their cells, a region, a start on the way, and a ranker's choice of the chroma."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from color.lab import grey_image, lightness, rgb_to_lab
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from diffusion.seeding import randn
from lightning_modules.chroma_choice import CHROMA_SCALES
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.diffusing_colors import DiffusingColors
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import colored, colors, numbered, predicted, tiny_parts, tiny_settings

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


HINT = "9,9,#a03020"


def drawn(
    module, image: torch.Tensor, region: torch.Tensor | None = None, numbers=IDS, **words
) -> torch.Tensor:
    """Colour latents of photos that may have colours, and of a region of them."""
    batch = {"image": image, "region": region, "size_px": tuple(image.shape[-2:])}
    with torch.no_grad():
        return module.draw_colors(batch, [""] * len(numbers), numbers, module.Options(**words))


def source_of(module, image: torch.Tensor) -> torch.Tensor:
    return module.codec.encode(grey_image(lightness(image)))


def saved(region: torch.Tensor, folder: Path) -> str:
    path = folder / "mask.png"
    Image.fromarray(region.numpy()).save(path)
    return str(path)


@pytest.mark.parametrize("make", [controlnet, bridge, lambda: bridge(1.0)])
def test_a_full_region_changes_nothing_and_all_outside_one_stays(make, tmp_path):
    module = make()
    region = torch.full((45, 70), 255, dtype=torch.uint8)
    (plain,) = predicted(module, photo(), 3, short_px=32)
    (whole,) = predicted(module, photo(), 3, short_px=32, mask=saved(region, tmp_path))
    assert torch.equal(whole, plain)
    region[:, :35] = 0
    (result,) = predicted(module, photo(), 3, short_px=32, mask=saved(region, tmp_path))
    assert torch.equal(result[..., :35], photo()[..., :35])
    assert not torch.equal(result[..., 35:], photo()[..., 35:])


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_a_bridge_fits_the_inside_of_a_region_to_the_photo_outside(noise_scale):
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    found, plain = drawn(module, image, region, steps=5), drawn(module, image, steps=5)
    assert torch.equal(found[..., :3], module.codec.encode(image)[..., :3])
    assert not torch.equal(found[..., 5:], plain[..., 5:])
    alone = drawn(module, image[1:2], region, IDS[1:2], steps=5)
    torch.testing.assert_close(alone, found[1:2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_a_region_of_a_grey_photo_is_drawn_as_without_one(noise_scale):
    """Grey latents around the region would take its colours in the decoder."""
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    image[:2] = grey_image(lightness(image[:2]))
    image[1, :, :, 20:] = astronaut_batch()["image"][1, :, :, 20:]  # what it has inside does not count
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    for start in (1.0, 0.5):
        found = drawn(module, image, region, steps=5, start=start)
        plain = drawn(module, image, steps=5, start=start)
        assert [torch.equal(*pair) for pair in zip(found, plain, strict=True)] == [True, True, False, False]


def test_a_region_of_a_grey_photo_is_that_of_the_whole_result_and_the_rest_the_photo(tmp_path):
    module, region = bridge(), torch.zeros(45, 70, dtype=torch.uint8)
    region[10:20, 33:40] = 255
    grey = photo()[:1].expand(3, -1, -1).contiguous()
    (plain,) = predicted(module, grey, 3, short_px=32)
    (found,) = predicted(module, grey, 3, short_px=32, mask=saved(region, tmp_path))
    assert torch.equal(found, torch.where(region > 0, plain, grey))
    assert not torch.equal(found, grey)


def test_outside_a_region_the_latents_are_those_of_the_path():
    module, image = bridge(1.0), astronaut_batch()["image"]
    own, source = module.codec.encode(image), source_of(module, image)
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:4, :4] = 255
    options = module.Options(seed=2)
    _, keep = module.edited_walk(image, source, region, IDS, options)
    noise = randn((4, 8, 8), module.generators(IDS, 2, "region"))
    expected = module.path.corrupt(own, noise, torch.full((4,), 299), source)
    found = keep(torch.randn_like(own), 299)
    torch.testing.assert_close(found[..., 2:, :], expected[..., 2:, :], rtol=1e-5, atol=1e-5)
    assert torch.equal(keep(torch.randn_like(own), -1)[..., 2:, :], own[..., 2:, :])


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
    source = source_of(module, image)
    faded = module.codec.encode(image)
    true = (faded - start * source) / (1 - start)
    module.parts.unet = KnowsTheTruth(true)
    found = drawn(module, image, start=start)
    assert torch.allclose(found, true, atol=1e-4 * float(true.abs().max()))
    assert torch.equal(module.parts.unet.seen[0], faded)


def test_true_colours_come_back_from_a_network_that_sees_nothing_missing():
    module, image = bridge(solver="indi"), astronaut_batch()["image"]
    true = module.codec.encode(image)
    source = source_of(module, image)
    for start in (0.2, 0.7, 1.0):
        module.parts.unet = KnowsTheTruth(true)
        found = drawn(module, image, start=start)
        assert torch.allclose(found, true, atol=1e-4 * float(true.abs().max()))
        assert torch.equal(module.parts.unet.seen[0], source if start == 1 else true)


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_several_samples_of_a_photo_encode_it_once(noise_scale, tmp_path):
    module, encoded = bridge(noise_scale, hint_prob=0.5), []
    encode = module.codec.encode
    module.codec.encode = lambda image: encoded.append(len(image)) or encode(image)
    mask = saved(torch.full((45, 70), 255, dtype=torch.uint8), tmp_path)
    words = {"num_samples": 3, "start": 0.5, "hints": HINT, "mask": mask, "short_px": 32}
    assert len(predicted(module, photo(), 3, **words)) == 3
    assert encoded == [1, 1]  # the grey photo and the photo itself


@pytest.mark.parametrize("noise_scale", [0.0, 1.0])
def test_from_grey_the_photos_colours_do_not_count_and_from_the_way_they_do(noise_scale):
    module, image = bridge(noise_scale), astronaut_batch()["image"]
    plain = drawn(module, grey_image(lightness(image)))
    # Latents of a photo and of its grey copy, up to the rounding of the copy's lightness.
    torch.testing.assert_close(drawn(module, image), plain, rtol=1e-2, atol=1e-2)
    first = drawn(module, image, start=0.5)
    assert (first - drawn(module, image.flip(1), start=0.5)).abs().max() > 1e-2
    region = torch.full((32, 32), 255, dtype=torch.uint8)
    assert torch.equal(drawn(module, image, region, start=0.5), first)


def test_with_a_region_the_walk_starts_faded_inside_and_on_the_path_outside():
    module, image = bridge(), astronaut_batch()["image"]
    own, source = module.codec.encode(image), source_of(module, image)
    region = torch.zeros(32, 32, dtype=torch.uint8)
    region[:, 16:] = 255
    first, _ = module.edited_walk(image, source, region, IDS, module.Options(start=0.5))
    assert torch.equal(first[..., 5:], own[..., 5:])
    torch.testing.assert_close(first[..., :3], ((own + source) / 2)[..., :3], rtol=1e-4, atol=1e-4)


def unet_inputs(module, picture: torch.Tensor, **words) -> list[torch.Tensor]:
    inputs: list[torch.Tensor] = []
    hook = module.parts.unet.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    predicted(module, picture, **words)
    hook.remove()
    return inputs


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
    hints = f"{point[0]},{point[1]},#a03020"
    inputs = unet_inputs(module, photo(*size_px), hints=hints, short_px=32, prompt="red")
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
    (plain,), (hinted,) = (predicted(module, photo(), short_px=32, hints=h) for h in (None, HINT))
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
    module, batch = bridge(), numbered(astronaut_batch(), IDS)
    candidates = module.candidates(lightness(batch["image"]), colors(module, batch), CHROMA_SCALES)
    assert candidates.shape == (len(CHROMA_SCALES), 4, 3, 32, 32)
    chroma = rgb_to_lab(candidates.flatten(0, 1))[:, 1:].norm(dim=1).mean((1, 2)).view(-1, 4)
    ranker = Wanted(float(chroma.mean()))
    best = torch.stack([ranker(images) for images in candidates]).argmax(0)
    assert len(set(best.tolist())) > 1
    found = colored(module, batch, chroma="auto", ranker_network=ranker)
    for row, k in enumerate(best.tolist()):
        assert torch.equal(found[row], colored(module, batch, chroma=CHROMA_SCALES[k])[row])
    chosen = [f"{name} x {CHROMA_SCALES[k]:g}" for name, k in zip(batch["name"], best.tolist(), strict=True)]
    assert f"chroma=auto: {', '.join(chosen)}" in caplog.messages


def test_a_ranker_chooses_for_each_drawn_result_of_a_photo(caplog):
    caplog.set_level("INFO", logger="lightning_modules")
    module, words = bridge(1.0), {"num_samples": 2, "short_px": 32}
    for ranker, scale in ((Wanted(0.0), CHROMA_SCALES[0]), (Wanted(1e3), CHROMA_SCALES[-1])):
        found = predicted(module, photo(), 3, "a.png", chroma="auto", ranker_network=ranker, **words)
        fixed = predicted(module, photo(), 3, chroma=scale, **words)
        assert all(torch.equal(*pair) for pair in zip(found, fixed, strict=True))
        assert f"chroma=auto: a.png x {scale:g}, a.png x {scale:g}" in caplog.messages


def test_evaluation_lets_the_ranker_choose_at_the_working_size():
    module, batch = bridge(), astronaut_batch()
    found, fixed = (
        dict(module.rows(batch, module.Options(short_px=16, **choice)))["no prompt"]["image"]
        for choice in (
            {"chroma": "auto", "ranker_network": Wanted(0.0)},
            {"chroma": CHROMA_SCALES[0]},
        )
    )
    assert torch.equal(found, fixed)


def test_several_samples_are_refused_where_they_would_be_the_same():
    def refused(module, **words) -> bool:
        options = module.Options(num_samples=2, **words)
        try:
            module.check_options(options, is_folder=False)
        except ValueError as error:
            assert "num_samples=2 would write the same picture 2 times" in str(error)  # noqa: PT017
            return True
        return False

    for noise_scale, steps, start in [
        (0.0, 3, 1.0),
        (1.0, 3, 1.0),
        (1.0, 1, 1.0),
        (1.0, 1, 0.5),
        (1.0, 1, 0.9999),
    ]:
        module, words = bridge(noise_scale), {"steps": steps, "start": start}
        first, second = predicted(module, photo(), 3, short_px=32, num_samples=2, **words)
        assert refused(module, **words) == torch.equal(first, second)
    assert not refused(controlnet())


@pytest.mark.parametrize(
    ("make", "words", "text"),
    [
        (
            bridge,
            {"hints": HINT},
            r"this one was trained with module.hint_prob=0; give a prompt=, or train with",
        ),
        (
            lambda: bridge(num_timesteps=1, solver="posterior"),
            {"start": 0.5},
            r"start=0.5 needs a walk of many steps, and this model goes from grey to colour in one",
        ),
    ],
)
def test_what_a_model_cannot_do_is_one_sentence(make, words, text):
    module = make()
    with pytest.raises(ValueError, match=text) as caught:
        module.check_options(module.Options(**words), is_folder=False)
    assert "\n" not in str(caught.value)


def test_figures_take_no_colours_of_the_truth():
    module = bridge()
    with pytest.raises(ValueError, match="start=0.5 begins at the photo's own colours"):
        module.rows(astronaut_batch(), module.Options(start=0.5))


@pytest.mark.parametrize("word", ["hints", "mask"])
def test_hints_and_masks_belong_to_one_photo(word):
    module = bridge(hint_prob=0.5)
    with pytest.raises(ValueError, match=f"{word}= belongs to one photo; leave it out, or give predict.py"):
        module.check_options(module.Options(**{word: HINT}), is_folder=True)
