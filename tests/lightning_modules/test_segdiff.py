"""SegDiff: the image is looked at once, samples depend on their key alone, few steps keep quality, and it learns."""

import pytest
import torch

from diffusion.objectives import GaussianObjective
from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler
from lightning_modules import windows
from lightning_modules.segdiff import SegDiff
from networks.segdiff import SegDiffNetwork
from tests.lightning_modules.test_unet_segmentation import discs
from tests.models import tiny_vae


def make(*, num_classes: int = 2, steps: int = 3, patch_px: int = 1, **settings) -> SegDiff:
    torch.manual_seed(0)
    network = SegDiffNetwork(
        mask_channels=1 if num_classes == 2 else num_classes,
        num_features=8,
        num_blocks=1,
        growth=4,
        patch_px=patch_px,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    settings.setdefault("optimizer", lambda p: torch.optim.AdamW(p, lr=5e-3))
    path = GaussianPath(num_timesteps=100, beta_schedule="linear", beta_start=1e-3, beta_end=0.2)
    return SegDiff(
        network=network, num_classes=num_classes, path=path, sampler=Sampler(num_steps=steps), **settings
    ).eval()


def test_the_image_is_encoded_once_however_many_steps_and_samples_follow():
    module, calls = make(), []
    encode = module.network.encode
    module.network.encode = lambda image: calls.append(1) or encode(image)
    module.results(discs(2), module.Options(num_samples=4, steps=5))
    assert calls == [1]


def test_encoding_once_equals_encoding_at_every_step():
    module, batch = make(), discs(2)
    options = module.Options(num_samples=2)
    once = module.results(batch, options)["probability"]
    image = module.images(batch)
    again = torch.cat([image, image])  # both samples are drawn together
    module.denoise = lambda x_t, timestep, _: module.network(
        x_t, timestep, module.condition(batch | {"image": again})
    )
    torch.testing.assert_close(module.results(batch, options)["probability"], once)


def test_a_sample_depends_on_its_key_alone():
    module, batch = make(), discs(3)
    whole = module.results(batch, module.Options(num_samples=2))
    more = module.results(batch, module.Options(num_samples=3))
    for first, again in zip(whole["samples"], more["samples"], strict=False):
        assert (first == again).float().mean() > 0.99
    alone = {k: v[1:2] for k, v in batch.items()}
    drawn = module.results(alone, module.Options(num_samples=2))["probability"]
    torch.testing.assert_close(drawn, whole["probability"][1:2], atol=1e-4, rtol=0)
    other = module.results(batch, module.Options(num_samples=2, seed=1))
    assert not torch.equal(other["probability"], whole["probability"])


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("patch_px", [1, 2])
def test_a_photo_of_any_size_gets_results_of_its_size(num_classes, patch_px):
    module = make(num_classes=num_classes, patch_px=patch_px)
    batch = {"image": torch.randint(0, 256, (1, 3, 30, 45), dtype=torch.uint8), "index": torch.tensor([0])}
    results = module.results(batch, module.Options(num_samples=2, window=16))
    assert list(results) == ["mask", "probability", "uncertainty", "overlay", "samples"]
    assert results["mask"].shape == (1, 30, 45)
    assert results["mask"].max() < num_classes
    maps = [results["probability"]] if num_classes == 2 else results["probability"]
    assert [tuple(p.shape) for p in maps] == [(1, 30, 45)] * (1 if num_classes == 2 else 4)
    assert len(results["samples"]) == 2


@pytest.mark.parametrize("pixels", [1, 16 * 16 * 5])
def test_samples_and_windows_drawn_together_are_those_drawn_alone(pixels, monkeypatch):
    module = make()
    batch = {"image": torch.randint(0, 256, (2, 3, 30, 45), dtype=torch.uint8), "index": torch.arange(2)}
    options = module.Options(num_samples=3, window=16)
    together = module.results(batch, options)["probability"]
    monkeypatch.setattr(windows, "_PIXELS_AT_ONCE", pixels)
    torch.testing.assert_close(module.results(batch, options)["probability"], together, atol=1e-4, rtol=0)


def test_windows_have_noise_of_their_own():
    module = make()
    batch = {"image": torch.full((1, 3, 16, 64), 128, dtype=torch.uint8), "index": torch.tensor([0])}
    found = module.results(batch, module.Options(num_samples=1, window=16, overlap=0.0))["probability"]
    parts = found.split(16, dim=-1)
    assert not any(torch.equal(parts[0], part) for part in parts[1:])


def test_what_is_diffused_is_the_mask_in_plus_and_minus_one():
    batch = discs(2)
    binary = make().clean(batch)
    assert binary.shape == (2, 1, 32, 32)
    assert torch.equal(binary[:, 0] > 0, batch["mask"] == 1)
    several = make(num_classes=4).clean(batch)
    assert several.shape == (2, 4, 32, 32)
    assert set(several.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(several.argmax(1), batch["mask"])


def test_it_learns_discs_and_few_steps_keep_the_quality(fit):
    module, batch = make(prediction="sample"), discs()
    fit(module, batch, steps=100)
    dice = {}
    for steps in (1, 2, 10):
        found = module.eval().results(batch, module.Options(num_samples=3, steps=steps))["mask"]
        dice[steps] = (2 * (found * batch["mask"]).sum() / (found + batch["mask"]).sum()).item()
    assert min(dice.values()) > 0.85, dice  # a mask of all foreground has 0.32


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mask_channels": 3}, "module.network.mask_channels is 3, but 2 classes need 1"),
        ({"image_patch_px": 4}, "patches of 4 pixels and the mask in cells of 1"),
    ],
)
def test_a_network_that_does_not_fit_the_masks_is_refused(settings, told):
    network = SegDiffNetwork(block_out_channels=(32,), num_blocks=1, layers_per_block=1, **settings)
    with pytest.raises(ValueError, match=told):
        SegDiff(network=network, path=make().path, sampler=Sampler(num_steps=3), optimizer=None)


def test_images_of_a_training_fit_the_coarsest_cells():
    assert make(patch_px=2).cell_px() == 4
    with pytest.raises(ValueError, match="num_classes is 1"):
        make(num_classes=1)


def test_a_saved_network_is_the_same(tmp_path):
    network = make(patch_px=2).network
    network.save_pretrained(tmp_path)
    again = SegDiffNetwork.from_pretrained(tmp_path).eval()
    image, x_t = torch.rand(1, 3, 16, 16), torch.randn(1, 1, 16, 16)
    assert torch.equal(
        again(x_t, torch.tensor([3]), again.encode(image)),
        network(x_t, torch.tensor([3]), network.encode(image)),
    )


def test_the_encoder_has_the_paper_s_number_of_parameters():
    # ESRGAN's dense blocks: five 3x3 convolutions of N + k G channels, in three blocks of three.
    features, growth, blocks = 64, 32, 2
    network = SegDiffNetwork(
        num_features=features, growth=growth, num_blocks=blocks, block_out_channels=(32,), layers_per_block=1
    )
    wide = [(features + growth * k, growth if k < 4 else features) for k in range(5)]
    expected = 3 * blocks * sum(9 * a * b + b for a, b in wide)
    assert sum(p.numel() for p in network.encoder_blocks.parameters()) == expected


@pytest.mark.parametrize("num_classes", [2, 4])
def test_masks_can_be_drawn_in_latents_whose_ceiling_is_a_row(num_classes, fit):
    torch.manual_seed(0)
    pictures = 1 if num_classes == 2 else 2
    network = SegDiffNetwork(
        mask_channels=4 * pictures,
        num_features=8,
        num_blocks=1,
        growth=4,
        image_patch_px=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=4,
    )
    module = SegDiff(
        network=network,
        num_classes=num_classes,
        autoencoder=tiny_vae(),
        path=GaussianPath(num_timesteps=100, beta_schedule="linear", beta_start=1e-3, beta_end=0.2),
        prediction="sample",
        sampler=Sampler(num_steps=1),
        optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3),
    )
    batch = discs(2)
    fit(module, batch, steps=2)
    assert all(p.requires_grad == name.startswith("network") for name, p in module.named_parameters())
    rows = dict(module.eval().rows(batch, module.Options(num_samples=2)))
    assert list(rows) == ["result", "autoencoder's ceiling"]
    assert all(row["mask"].shape == (2, 32, 32) for row in rows.values())
    assert module.encodings() == {}
    assert not module.one_sample
    odd = {
        "image": torch.rand(1, 3, 13, 18),
        "mask": torch.ones(1, 13, 18).long(),
        "index": torch.tensor([0]),
    }
    rows = dict(module.rows(odd, module.Options(num_samples=1)))
    assert all(row["mask"].shape == (1, 13, 18) for row in rows.values())


@pytest.mark.parametrize("latent", [False, True])
def test_void_pixels_do_not_count(latent):
    module, batch = make(ignore_index=255), discs(2)
    if latent:
        module.codec.downscale = 4
    batch["mask"][0, :, 30:] = 255
    valid = module.valid(batch)
    side = 8 if latent else 32
    assert valid.shape == (2, 1, side, side)
    assert valid[1].all()
    assert valid[0].sum() == side * (7 if latent else 30)


def test_the_loss_over_some_cells_is_their_mean():
    path = GaussianPath(num_timesteps=10)
    objective = GaussianObjective(path, prediction="sample")
    pred, clean, timestep = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([1, 5, 9])
    valid = (torch.rand(3, 1, 4, 4) > 0.5).float()
    valid[2] = 0
    found = objective.loss(pred, clean, clean, timestep, None, valid)
    chosen = valid.bool().expand_as(pred)
    for row in (0, 1):
        expected = (pred - clean)[row][chosen[row]].square().mean()
        torch.testing.assert_close(found[row], expected)
    assert found[2] == 0
