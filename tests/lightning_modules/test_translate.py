"""Translation from pairs: losses by hand, walks, conditions, the perceptual crop, any size, and that they learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from color.classes import painted
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from diffusion.samplers import Sampler
from doors.export import save_exported
from lightning_modules.translate_bridge import TranslateBridge
from lightning_modules.translate_concat import TranslateConcat
from lightning_modules.translation import Translator
from lightning_modules.translation_options import cond_places
from networks.latent_diffusion_parts import LatentDiffusionParts
from networks.perceptual import FeatureDistance
from runs.load import load_exported
from tasks.translation import Translation
from tests.lightning_modules.pictures import astronaut_batch, psnr
from tests.lightning_modules.test_diffusing_colors import At
from tests.models import one_photo, photo_batch, predicted, rows, tiny_parts, tiny_settings, tiny_unet


def pair_batch(size: int = 4, size_px: int = 32) -> dict[str, Any]:
    batch = photo_batch(size, size_px)
    source = torch.rand(size, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    return batch | {"source": source, "depth": 1 - source}


def bridge(noise_scale: float = 0.0, **settings: Any) -> TranslateBridge:
    torch.manual_seed(0)
    solver = {"solver": "posterior" if noise_scale else "indi", "num_steps": 2} | settings.pop("solver", {})
    path = BridgePath(noise_scale=noise_scale, **settings.pop("path", {}))
    parts = settings.pop("parts", None) or tiny_parts()
    return TranslateBridge(
        path=path, parts=parts, **tiny_settings(sampler=BridgeSampler(**solver), **settings)
    ).eval()


def concat(**settings: Any) -> TranslateConcat:
    torch.manual_seed(0)
    return TranslateConcat(
        parts=settings.pop("parts", None) or tiny_parts(), **tiny_settings(**settings)
    ).eval()


def opened(module: Translator) -> Translator:
    """With weights in its further input channels, which start at zero."""
    with torch.no_grad():
        module.parts.unet.conv_in.weight[:, module.codec.num_channels :].normal_()
    return module


@pytest.mark.parametrize("noise_scale", [0.0, 2.0])
def test_the_bridges_loss_is_the_squared_error_of_the_difference(noise_scale, monkeypatch):
    module, batch = bridge(noise_scale, prediction="difference"), pair_batch()
    clean, source = (module.codec.encode(batch[key]) for key in ("image", "source"))
    timestep = torch.tensor([0, 249, 499, 999])
    m = (timestep + 1).view(-1, 1, 1, 1) / 1000
    noise = torch.randn_like(clean)
    x_t = (1 - m) * clean + m * source + noise_scale * (m * (1 - m)).sqrt() * noise
    pred = module.parts.unet(x_t, timestep, module.embed(batch["caption"])).sample
    monkeypatch.setattr(module, "draws", lambda batch: At(noise, timestep.numpy() / 1000 + 1e-6))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    found = module.losses(batch)
    expected = (pred - (source - clean)).square().mean()
    torch.testing.assert_close(found["denoising"], expected, rtol=1e-4, atol=0)
    assert list(found) == ["denoising"]


def test_one_step_of_the_bridge_is_the_prediction_at_the_source():
    module, batch = bridge(prediction="difference"), pair_batch()
    source = module.codec.encode(batch["source"])
    pred = module.parts.unet(source, torch.full((4,), 999), module.embed([""] * 4)).sample
    found = module.results(batch, module.Options(steps=1))["image"]
    torch.testing.assert_close(found, module.codec.to_picture(source - pred), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_listed_timesteps_are_those_of_few_steps_and_come_evenly(num_steps):
    module = bridge(timestep_list=[249, 499, 749, 999])
    uniform = np.linspace(0, 1, 4000, endpoint=False)
    found = module.timesteps(uniform)
    assert [int((found == t).sum()) for t in (249, 499, 749, 999)] == [1000] * 4
    assert torch.equal(module.train().timesteps(uniform), found)
    walked = BridgeSampler(num_steps=num_steps).timesteps(module.path)
    assert set(walked) <= set(found.tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"timestep_list": [499, 999], "solver": {"num_steps": 3}},
            r"module.sampler.num_steps=3 walks over timesteps that are not among module.timestep_list; give 1, 2",
        ),
        (
            {"noise_scale": 1.0, "solver": {"solver": "ode"}},
            r"module.sampler \(solver ode, eta 1\) misses the distribution of a path with noise",
        ),
        ({"timestep_list": [1000]}, r"module.timestep_list is \[1000\]; expected timesteps from 0 to 999"),
        (
            {"timestep_list": [1], "source_prob": 0.5},
            "module.source_prob=0.5 has no effect beside module.timestep",
        ),
        ({"crop_px": 3}, "module.crop_px is 3, less than a latent cell; set it to 4 or more"),
        ({"weighting": "snr"}, "module.weighting has no effect on a bridge"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        bridge(**settings)


@pytest.mark.parametrize("make", [bridge, concat])
def test_what_stands_beside_changes_nothing_before_training_and_something_after(make):
    module, batch = make(conds=["depth"]), pair_batch()
    other = batch | {"depth": batch["source"]}
    options = module.Options(seed=3)
    first = module.results(batch, options)["image"]
    assert torch.equal(first, module.results(other, options)["image"])
    opened(module)
    assert (
        module.results(batch, options)["image"] - module.results(other, options)["image"]
    ).abs().max() > 1e-3
    assert (module.results(batch, options)["image"] - first).abs().max() > 1e-3


def test_concat_tells_the_source_to_the_network_and_starts_from_noise(monkeypatch):
    module, batch, seen = opened(concat()), pair_batch(), []
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    module.parts.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.losses(batch)
    assert torch.equal(seen[0][:, 4:], module.codec.encode(batch["source"]))
    images = [module.results(batch, module.Options(seed=seed))["image"] for seed in (0, 1)]
    assert not torch.equal(*images)
    alone = module.results(rows(batch, 2), module.Options())["image"]
    torch.testing.assert_close(alone, images[0][2:3], rtol=1e-3, atol=1e-3)


def test_seeds_change_a_noisy_bridge_alone():
    batch = pair_batch()
    for noise_scale in (0.0, 1.0):
        module = bridge(noise_scale)
        first, second = (module.results(batch, module.Options(seed=seed))["image"] for seed in (0, 1))
        assert torch.equal(first, second) == (noise_scale == 0)
    with pytest.raises(ValueError, match="num_samples=2 would write the same picture 2 times"):
        bridge().check_options(bridge().Options(num_samples=2), is_folder=False)


def test_each_picture_is_encoded_once_in_a_step(monkeypatch):
    module, batch, encoded = bridge(sees_source=True, conds=["depth"]), pair_batch(), []
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    moments = module.codec.moments
    monkeypatch.setattr(module.codec, "moments", lambda image: encoded.append(1) or moments(image))
    module.losses(batch)
    assert len(encoded) == 3  # target, source, depth
    assert "encodings" not in batch


class Levels(torch.nn.Module):
    """A backbone whose features are the picture and its halved copy."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [image, F.avg_pool2d(image, 2)]


def test_the_perceptual_term_compares_the_same_crop_of_estimate_and_target(monkeypatch):
    module = bridge(
        perceptual=FeatureDistance(Levels()), perceptual_weight=3.0, crop_px=16, prediction="sample"
    )
    batch, seen = pair_batch(), []
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    # A network that is right: its estimate is the target's latent.
    monkeypatch.setattr(module, "denoise", lambda *_: module.codec.encode(batch["image"]))
    perceptual = module.perceptual.forward
    monkeypatch.setattr(
        module.perceptual, "forward", lambda one, other: seen.append((one, other)) or perceptual(one, other)
    )
    terms = module.losses(batch)
    assert list(terms) == ["denoising", "perceptual"]
    (decoded, target), *_ = seen
    assert decoded.shape == target.shape == (4, 3, 16, 16)
    torch.testing.assert_close(terms["perceptual"], 3 * perceptual(decoded, target).mean())
    latent = module.codec.encode(batch["image"])
    for number in range(4):
        places = [
            (top, left)
            for top in range(0, 17, 4)
            for left in range(0, 17, 4)
            if torch.equal(batch["image"][number, :, top : top + 16, left : left + 16], target[number])
        ]
        ((top, left),) = places
        cells = latent[number : number + 1, :, top // 4 : top // 4 + 4, left // 4 : left // 4 + 4]
        torch.testing.assert_close(decoded[number], module.codec.decode(cells)[0], rtol=1e-3, atol=1e-3)


def test_the_perceptual_term_teaches_the_network_and_is_no_part_of_the_run(fit, tmp_path):
    module, batch = bridge(perceptual=FeatureDistance(Levels()), crop_px=16), pair_batch()
    trainer = fit(module, batch, steps=1)
    assert list(module.loss_terms) == ["denoising", "perceptual"]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert not any(key.startswith("perceptual") for key in checkpoint["state_dict"])
    bridge().on_load_checkpoint(checkpoint)  # a run is used without it


def test_a_photo_of_any_size_is_translated_at_its_own():
    photo = torch.randint(0, 256, (3, 45, 70), dtype=torch.uint8)
    for module in (bridge(), concat()):
        (result,) = predicted(module, photo, short_px=32)
        assert result.shape == (3, 45, 70)
        assert 0 <= result.min() <= result.max() <= 1
    results = predicted(concat(), photo, num_samples=2)
    assert [tuple(r.shape) for r in results] == [(3, 45, 70)] * 2
    assert not torch.equal(*results)


def test_predicted_photos_are_what_evaluation_draws():
    """Of a picture on the grid: the same source, number and seed."""
    module = concat()
    photo = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    batch = {
        "image": torch.rand(1, 3, 32, 48),
        "source": photo[None] / 255,
        "index": torch.tensor([5]),
        "name": ["a"],
    }
    evaluated = module.results(batch, module.Options())["image"][0]
    torch.testing.assert_close(predicted(module, photo, 5)[0], evaluated, rtol=1e-3, atol=1e-3)


def test_further_conditions_come_from_files(tmp_path: Path):
    module = opened(concat(conds=["depth"]))
    photo = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    (tmp_path / "depth").mkdir()
    Image.fromarray((255 - photo[0]).numpy()).save(tmp_path / "depth" / "photo.tif")
    words = f"depth={tmp_path / 'depth'}"

    def drawn(photo: torch.Tensor, name: str, **places: str) -> torch.Tensor:
        options = module.prepare(module.Options(conds=places), load=None)
        return module.results(one_photo(photo, name=name), options)["image"]

    folder = str(tmp_path / "depth")
    by_folder = drawn(photo, "photo.png", **cond_places(words))
    assert torch.equal(by_folder, drawn(photo, "photo.png", depth=f"{folder}/photo.tif"))
    assert torch.equal(by_folder, drawn(photo, "depth/photo.jpg", depth=str(tmp_path)))
    for name, places, text in (
        ("photo.png", {}, "this model also takes depth; give conds='depth=FILE_OR_DIR'"),
        ("a/photo.png", {"depth": folder}, "holds no picture called a/photo"),
    ):
        with pytest.raises(FileNotFoundError, match=text):
            drawn(photo, name, **places)
    with pytest.raises(ValueError, match="has 32x32 pixels, but its input 40x40; save both at one size"):
        drawn(F.pad(photo, (0, 8, 0, 8)), "photo.png", depth=folder)
    with pytest.raises(ValueError, match="conds= names edges, but this model takes depth beside its input"):
        drawn(photo, "photo.png", edges="a")
    for text in ("depth", "depth=a; depth=b", "=a"):
        with pytest.raises(ValueError, match="which is no new condition; write conds='NAME=FILE_OR_DIR"):
            cond_places(text)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_class_ids_of_any_file_are_painted_as_in_training(mode: str, tmp_path: Path):
    ids = (torch.arange(4) % 2 if mode == "1" else torch.arange(4)).repeat_interleave(8).expand(32, -1).byte()
    array = ids.numpy() * 255 if mode == "1" else ids.numpy().astype("uint16" if mode == "I;16" else "uint8")
    picture = Image.fromarray(array)
    if mode == "P":
        picture.putpalette([7, 7, 7, 250, 0, 0, 1, 2, 3, 9, 9, 9])
    picture = picture.convert("1") if mode == "1" else picture
    picture.save(tmp_path / "a.png")
    module = opened(concat(conds=["seg"]))
    module.trained_on({"size_px": None, "class_maps": ["source", "seg"]})
    read = module.read_input(tmp_path / "a.png", 10_000)
    assert torch.equal(read, painted(ids))
    options = module.prepare(module.Options(conds={"seg": str(tmp_path)}), load=None)
    given, _ = module.at_working_size(one_photo(read, name="a.png"), options)
    assert torch.equal(given["seg"], given["source"])
    given, _ = module.at_working_size(one_photo(read, name="a.png"), replace(options, short_px=16))
    assert len(given["seg"].flatten(2).unique(dim=2)[0].T) == len(
        ids.unique()
    )  # no colour between two classes


def test_the_inputs_of_reversed_pairs_are_known_by_their_folders():
    module = concat()
    module.trained_on({"size_px": 32, "class_maps": ["target"], "reverse": True})
    assert (module.class_maps, module.working_px) == (("source",), 32)
    module.trained_on({"class_maps": ["target"]})
    assert module.class_maps == ("image",)


def test_rows_of_evaluation_and_what_they_are_measured_against():
    module, batch = concat(), pair_batch()
    options = module.Options(num_samples=2)
    found = dict(module.rows(batch, options))
    assert list(found) == ["result", "caption as prompt", "autoencoder's ceiling"]
    assert len(found["result"]["image"]) == 2  # several samples have a diversity
    task = Translation(**module.protocol(options))
    assert torch.equal(task.truth(batch), batch["image"])
    assert torch.equal(task.baselines(batch)["input"]["image"], batch["source"])
    assert set(task.arguments(found["result"], batch)) == {"pred", "image", "target", "samples"}
    assert list(module.sample_panels(batch)) == ["source", *found, "truth"]
    with pytest.raises(ValueError, match="protocol.direction=b_to_a has no effect on pairs"):
        Translation(direction="b_to_a").target_image(batch)
    with pytest.raises(
        ValueError, match="TranslateConcat needs data with source, and these have image, caption"
    ):
        module.results(photo_batch(), module.Options())


@pytest.mark.parametrize("make", [bridge, concat])
def test_an_export_is_the_run(make, tmp_path):
    module, batch = opened(make(conds=["depth"])), pair_batch()
    save_exported(module, tmp_path)
    other = make(conds=["depth"])
    load_exported(other, tmp_path)
    assert torch.equal(
        other.results(batch, other.Options())["image"], module.results(batch, module.Options())["image"]
    )


def in_pixels() -> LatentDiffusionParts:
    torch.manual_seed(0)
    return LatentDiffusionParts(unet=tiny_unet(None, 3), vae=None, scheduler=tiny_parts(text=False).scheduler)


LEARNED = {
    "regression": lambda **s: bridge(
        path={"num_timesteps": 1}, solver={"num_steps": 1}, prediction="sample", **s
    ),
    "bridge": lambda **s: bridge(prediction="difference", timestep_list=[499, 999], **s),
    "noisy bridge": lambda **s: bridge(0.2, prediction="difference", sees_source=True, **s),
    "concat": lambda **s: concat(sampler=Sampler(num_steps=8), **s),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNED)
def test_it_learns_what_copying_the_source_does_not_give(fit, kind):
    """Four crops by heart, in pixels, from themselves with their colours exchanged.

    Not from their negatives: half the way between the two is grey, whatever the picture.
    """
    batch = astronaut_batch(16)
    batch["source"] = batch["image"].roll(1, dims=1)
    module = LEARNED[kind](parts=in_pixels(), optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    fit(module, batch, steps=150)
    result = module.eval().results(batch, module.Options())["image"]
    assert psnr(result, batch["image"]) > psnr(batch["source"], batch["image"]) + 3
