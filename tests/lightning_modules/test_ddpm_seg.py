"""DDPM-Seg: the first layer commutes with upsampling, pixels are drawn and read where they lie, and it learns."""

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.ddpm_seg import DdpmSeg, decoder_blocks
from networks.latent_diffusion_parts import LatentDiffusionParts
from networks.pixel_mlps import PixelMlps
from tests.lightning_modules.test_unet_segmentation import discs
from tests.models import tiny_parts, tiny_unet

CHANNELS = (6, 4, 3)


def maps(batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, c, side, side + 2) for c, side in zip(CHANNELS, (4, 8, 16), strict=True)]


def mlps(**settings) -> PixelMlps:
    torch.manual_seed(0)
    found = PixelMlps(CHANNELS, num_classes=3, num_members=4, widths=(16, 8), **settings)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.normal_(std=0.5)
    return found.eval()


def make(*, latent: bool = False, **settings) -> DdpmSeg:
    torch.manual_seed(0)
    pixels = LatentDiffusionParts(
        unet=tiny_unet(None, num_channels=3), vae=None, scheduler=tiny_parts(text=False).scheduler
    )
    settings.setdefault("optimizer", lambda p: torch.optim.Adam(p, lr=1e-2))
    settings = {"blocks": (0, 1, 2, 3), "num_members": 3, "widths": (16, 8), "num_pixels": 64} | settings
    return DdpmSeg(parts=tiny_parts(text=False) if latent else pixels, **settings).eval()


# ---- the ensemble


def test_the_first_layer_before_upsampling_equals_the_paper_s_order():
    network, features, size = mlps(), maps(), (23, 31)
    stack = torch.cat([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in features], dim=1)
    weight = torch.cat([layer.weight for layer in network.first], dim=1)
    hidden = F.conv2d(stack, weight, network.bias)
    expected = network.rest(hidden).unflatten(1, (4, 3)).movedim(1, 0)
    torch.testing.assert_close(network(features, size), expected, atol=1e-4, rtol=1e-4)


def test_each_member_is_a_network_of_its_own():
    network, features = mlps(), maps()
    before = network(features, (8, 8))
    with torch.no_grad():
        for layer in [*network.first, network.rest[2]]:
            layer.weight[layer.weight.shape[0] // 4 :] = 0  # all but the first member's
    after = network(features, (8, 8))
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1:], before[1:])


def test_pixels_are_read_where_upsampling_puts_them():
    network, features, (height, width) = mlps(), maps(), (24, 20)
    rows, columns = torch.randint(0, height, (4, 2, 50)), torch.randint(0, width, (4, 2, 50))
    places = torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], dim=-1)
    found = network.at_pixels(features, places)
    dense = network(features, (height, width))
    expected = torch.stack(
        [torch.stack([dense[m, b, :, rows[m, b], columns[m, b]] for b in range(2)]) for m in range(4)]
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_native_maps_take_a_twentieth_of_the_paper_s_stack():
    # guided-diffusion's U-Net at 256 px: the widths and sizes of the paper's five blocks.
    native = sum(c * side**2 for c, side in [(1024, 32), (512, 32), (512, 32), (512, 64), (256, 128)])
    assert 2816 * 256**2 / native > 20


# ---- the module


@pytest.mark.parametrize("latent", [False, True])
def test_features_come_at_their_own_sizes_and_from_shared_noise(latent):
    module = make(latent=latent, blocks=(0, 3), timesteps=(10, 500, 900))
    image = torch.rand(3, 3, 32, 32)
    found = module.features(image)
    assert [m.shape[-1] for m in found] == ([4, 8] if latent else [16, 32]) * 3
    torch.testing.assert_close(
        module.features(image[1:2])[4], found[4][1:2], atol=1e-4, rtol=1e-4
    )  # whatever else is in the batch
    assert [m.shape[1] for m in found] == [layer.in_channels for layer in module.mlps.first]


def test_the_diffusion_model_is_frozen_and_the_classifiers_learn():
    module = make()
    learns = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert learns == {"mlps"}


def test_void_pixels_are_never_drawn():
    module, batch = make(ignore_index=255), discs(2)
    module.train()
    module.batch_number = lambda: 0
    batch["mask"][:, 3:] = 255
    seen = []
    at_pixels = module.mlps.at_pixels
    module.mlps.at_pixels = lambda maps, places: seen.append(places) or at_pixels(maps, places)
    module.losses(batch)
    rows = (seen[0][..., 1] * 32).floor()
    assert rows.max() <= 2
    assert len(rows.unique()) == 3


def test_kept_features_are_computed_once_and_are_the_same():
    module, batch = make(keep_features=True), discs(3)
    module.train()
    module.batch_number = lambda: 0
    first = module.losses(batch)["cross_entropy"]
    calls = []
    features = module.features
    module.features = lambda image: calls.append(len(image)) or features(image)
    again = module.losses(batch)["cross_entropy"]
    assert calls == []
    torch.testing.assert_close(
        again, first, atol=1e-2, rtol=1e-2
    )  # kept in half precision, batch norm moves on


@pytest.mark.parametrize("size", [(32, 32), (30, 45)])
def test_a_photo_of_any_size_gets_a_mask_and_the_members_disagreement(size):
    module = make(num_classes=3)
    batch = {"image": torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), "index": torch.tensor([0])}
    results = module.results(batch, module.Options(window=32))
    assert list(results) == ["mask", "probability", "uncertainty", "overlay"]
    assert results["mask"].shape == results["uncertainty"].shape == (1, *size)


def test_it_learns_discs(fit):
    module, batch = make(blocks=(1, 2, 3), timesteps=(20, 100)), discs()
    fit(module, batch, steps=60)
    found = module.eval().results(batch, module.Options())["mask"]
    overlap = (2 * (found * batch["mask"]).sum() / (found + batch["mask"]).sum()).item()
    assert overlap > 0.6, overlap  # a mask of all foreground has 0.32; the diffusion model is untrained


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"blocks": (9,)}, r"module.blocks is \[9\]; this model has 0 to 3"),
        ({"timesteps": ()}, "module.timesteps"),
    ],
)
def test_a_block_or_timestep_that_the_model_lacks_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        make(**settings)


def test_blocks_in_any_order_are_read_as_the_network_runs_them():
    one, other = make(blocks=(3, 1)), make(blocks=(1, 3))
    batch = discs(1)
    assert [f.shape for f in one.features(one.images(batch))] == [
        f.shape for f in other.features(other.images(batch))
    ]
    torch.testing.assert_close(
        one.results(batch, one.Options())["probability"], other.results(batch, other.Options())["probability"]
    )


def test_a_batch_that_is_void_everywhere_costs_nothing():
    module, batch = make(ignore_index=255), discs(2)
    module.train()
    module.batch_number = lambda: 0
    assert module.losses(batch | {"mask": torch.full_like(batch["mask"], 255)})["cross_entropy"] == 0


def test_places_are_read_in_float32_under_autocast():
    module = make()
    maps = [
        torch.arange(64.0).expand(1, 1, 1, 64).repeat(1, c, 1, 1) for c in module.mlps.config.feature_channels
    ]
    x = torch.tensor([40.5, 41.5, 62.5]) / 64
    places = torch.stack([x, torch.full_like(x, 0.5)], dim=-1).expand(module.mlps.num_members, 1, 3, 2)
    whole = module.mlps(maps, (1, 64))
    for number, column in enumerate((40, 41, 62)):
        found = module.mlps.at_pixels([m.bfloat16() for m in maps], places)[..., number]
        torch.testing.assert_close(found, whole[..., 0, column], atol=2e-2, rtol=2e-2)


def test_a_model_with_text_is_refused():
    with pytest.raises(ValueError, match="takes text"):
        DdpmSeg(parts=tiny_parts(), optimizer=torch.optim.Adam)


def test_the_decoder_s_blocks_are_counted_from_the_middle():
    unet = tiny_unet(None)
    assert decoder_blocks(unet) == [*unet.up_blocks[0].resnets, *unet.up_blocks[1].resnets]
