"""The supervised reference: its loss, void pixels, any size, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.segmenter import standardized
from lightning_modules.unet_segmentation import UnetSegmentation
from networks.segmentation_unets import PlainUnet, TimmUnet


def plain(classes: int = 2) -> PlainUnet:
    return PlainUnet(
        down_block_types=["DownBlock2D"] * 2,
        up_block_types=["UpBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        add_attention=False,
        out_channels=classes,
    )


def make(network=None, **settings) -> UnetSegmentation:
    torch.manual_seed(0)
    settings.setdefault("optimizer", lambda p: torch.optim.AdamW(p, lr=5e-3))
    classes = settings.get("num_classes", 2)
    return UnetSegmentation(network=network or plain(classes), **settings).eval()


def discs(count: int = 4, side: int = 32) -> dict:
    """Bright discs on a dark noisy ground, with their masks."""
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.rand(count, 2, 1, 1, generator=generator) * side
    mask = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < (side / 4) ** 2).long()
    noise = torch.rand(count, 3, side, side, generator=generator)
    image = (0.2 + 0.3 * mask[:, None] + 0.4 * noise).clamp(0, 1)
    return {
        "image": image,
        "mask": mask,
        "index": torch.arange(count),
        "name": [f"{n}.png" for n in range(count)],
    }


def test_the_loss_is_cross_entropy_and_soft_dice():
    module, batch = make(), discs()
    terms = module.losses(batch)
    logits = module.network(standardized(batch["image"])).double()
    torch.testing.assert_close(terms["cross_entropy"].double(), F.cross_entropy(logits, batch["mask"]))
    shares, truth = logits.softmax(1), F.one_hot(batch["mask"], 2).movedim(-1, 1)
    overlap, mass = (shares * truth).sum((2, 3)), (shares + truth).sum((2, 3))
    torch.testing.assert_close(terms["dice"].double(), (1 - 2 * overlap / mass).mean(), rtol=1e-4, atol=1e-5)


def test_void_pixels_count_nowhere():
    module, batch = make(num_classes=3, ignore_index=255), discs()
    batch["mask"][:, :, :5] = 255
    before = {k: v.item() for k, v in module.losses(batch).items()}
    logits = []
    module.network.register_forward_hook(lambda *a: logits.append(a[-1]) or a[-1])
    module.losses(batch)
    changed = logits[0].detach().clone()
    changed[..., :5] = torch.randn_like(changed[..., :5]) * 5
    module.network.forward = lambda image: changed
    assert {k: v.item() for k, v in module.losses(batch).items()} == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (30, 45), (7, 90)])
def test_a_photo_of_any_size_gets_a_mask_and_maps_of_its_size(size):
    photo = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    module = make()
    batch = {"image": photo, "index": torch.tensor([0]), "name": ["a.png"]}
    results = module.results(batch, module.Options(window=32))
    assert list(results) == ["mask", "probability", "uncertainty", "overlay"]
    assert results["mask"].dtype == torch.int64
    assert results["overlay"].shape == (1, 3, *size)
    assert {tuple(r.shape) for name, r in results.items() if name != "overlay"} == {(1, *size)}
    assert all(r.min() >= 0 and r.max() <= 1 for r in results.values())


def test_it_learns_discs(fit):
    module, batch = make(), discs()
    fit(module, batch, steps=60)
    found = module.eval().results(batch, module.Options())["mask"]
    overlap = 2 * (found * batch["mask"]).sum() / (found + batch["mask"]).sum()
    assert overlap > 0.85  # a mask of all foreground has 0.32


def test_a_timm_encoder_keeps_the_size_and_learns_in_all_its_parts():
    network = TimmUnet(encoder="resnet10t", out_channels=3, decoder_channels=(16, 16, 8, 8, 8))
    logits = network(torch.rand(2, 3, 64, 96))
    assert logits.shape == (2, 3, 64, 96)
    assert network.grid_px == 32
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())  # timm's residual branches begin at 0


def test_a_saved_network_is_the_same(tmp_path):
    network = TimmUnet(encoder="resnet10t", out_channels=3, decoder_channels=(16, 16, 8, 8, 8)).eval()
    network.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(TimmUnet.from_pretrained(tmp_path).eval()(image), network(image))
