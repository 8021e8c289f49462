"""MedSegDiff: its parts by their equations, what is computed once, the anchor that never leaks, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.paths import GaussianPath
from diffusion.samplers import Sampler
from lightning_modules import windows
from lightning_modules.medsegdiff import MedSegDiff
from networks.medsegdiff import AttentiveFusion, FourierParser, MedSegDiffNetwork
from networks.medsegdiff_v2 import MedSegDiffV2Network, SpectrumSpaceBlock, UncertainSpatialAttention
from tests.lightning_modules.test_unet_segmentation import discs

SMALL = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4}
VERSIONS = {
    "v1": lambda **k: MedSegDiffNetwork(**SMALL | {"fusion_levels": (1,)} | k),
    "v1 with anchor": lambda **k: MedSegDiffNetwork(
        **SMALL | {"fusion_levels": (1,), "anchor_classes": 2} | k
    ),
    "v1 without fusion": lambda **k: MedSegDiffNetwork(**SMALL | {"fusion_levels": ()} | k),
    "v1 summed": lambda **k: MedSegDiffNetwork(**SMALL | {"parse": False, "attend": False} | k),
    "v2": lambda **k: MedSegDiffV2Network(**SMALL | k),
    "v2 plain": lambda **k: MedSegDiffV2Network(
        **SMALL | {"spatial_attention": False, "num_semantic_blocks": 0} | k
    ),
}


def make(version: str = "v1", **settings) -> MedSegDiff:
    torch.manual_seed(0)
    network = VERSIONS[version]()
    settings.setdefault("optimizer", lambda p: torch.optim.AdamW(p, lr=5e-3))
    settings.setdefault("anchor_weight", 1.0 if network.anchor is not None else 0.0)
    path = GaussianPath(num_timesteps=100, beta_schedule="linear", beta_start=1e-3, beta_end=0.2)
    return MedSegDiff(
        network=network, path=path, sampler=Sampler(num_steps=3), prediction="sample", **settings
    ).eval()


def training_losses(module: MedSegDiff, batch: dict) -> dict:
    module.train()
    module.batch_number = lambda: 0
    return module.losses(batch)


# ---- the parts


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 5), (12, 30)])
def test_a_parser_weighs_each_frequency_by_its_map(size):
    parser = FourierParser(2, num_frequencies=5)
    with torch.no_grad():
        # The map is the frequency itself, down and across, which is linear and so exact between its points.
        rows = torch.linspace(-0.5, 0.5, 9)[:, None].expand(9, 5)
        columns = torch.linspace(0, 0.5, 5)[None].expand(9, 5)
        parser.weight.copy_(torch.stack([rows.abs() * 0 + 1.5, 2 * columns + 0 * rows]))
    features = torch.randn(3, 2, *size)
    spectrum = torch.fft.rfft2(features.double())
    weight = torch.stack(
        [
            torch.full(spectrum.shape[-2:], 1.5, dtype=torch.float64),
            2 * torch.fft.rfftfreq(size[1], dtype=torch.float64).expand(spectrum.shape[-2:]),
        ]
    )
    expected = torch.fft.irfft2(spectrum * weight, size)
    torch.testing.assert_close(parser(features).double(), expected, atol=1e-5, rtol=1e-4)


def test_a_parser_reads_down_from_minus_to_plus_nyquist():
    parser = FourierParser(1, num_frequencies=5)
    with torch.no_grad():
        parser.weight.copy_((torch.linspace(-0.5, 0.5, 9) >= 0)[None, :, None].float().expand(1, 9, 5))
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = {sign: torch.cos(2 * torch.pi * (columns + sign * rows) * 4 / 16)[None, None] for sign in (1, -1)}
    torch.testing.assert_close(parser(waves[1]), waves[1], atol=1e-5, rtol=0)
    assert parser(waves[-1]).abs().max() < 1e-5


def test_attentive_fusion_is_the_paper_s_equation():
    fusion = AttentiveFusion(6)
    image, mask = torch.randn(2, 2, 6, 5, 7)
    norm = lambda x: F.layer_norm(x.movedim(1, -1), (6,), eps=1e-6).movedim(-1, 1)  # noqa: E731
    torch.testing.assert_close(fusion(image, mask), norm(image) * norm(mask) * image, atol=1e-4, rtol=1e-4)
    added = AttentiveFusion(6, parse=False, attend=False)
    assert torch.equal(added(image, mask), image + mask)


def test_spatial_attention_is_the_paper_s_equation():
    attention = UncertainSpatialAttention(3, 4)
    anchor, features = torch.randn(2, 3, 9, 8), torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(attention.kernel.sum((-1, -2)), torch.ones(3, 1))
    padded = F.pad(anchor, (2, 2, 2, 2))
    patches = padded.unfold(2, 5, 1).unfold(3, 5, 1)
    blurred = (patches * attention.kernel[:, 0][None, :, None, None]).sum((-1, -2))
    gate = torch.sigmoid(attention.gate(torch.maximum(blurred, anchor)))
    torch.testing.assert_close(attention(anchor, features), features * (1 + gate))


def test_a_spectrum_block_begins_as_the_identity_and_depends_on_the_timestep_once_trained():
    torch.manual_seed(0)
    block = SpectrumSpaceBlock(8, 16)
    asked, known, time = torch.randn(2, 8, 5, 6), torch.randn(2, 8, 5, 6), torch.randn(2, 16)
    assert torch.equal(block(asked, known, time), asked)
    torch.nn.init.normal_(block.out.weight)
    torch.nn.init.normal_(block.band_pass.weight)
    found = block(asked, known, time)
    assert not torch.allclose(found, block(asked, known, time + 1), atol=1e-3)
    assert not torch.allclose(found, block(asked, torch.randn_like(known), time), atol=1e-3)


# ---- the networks


@pytest.mark.parametrize("version", VERSIONS)
def test_every_part_learns_and_any_size_will_do(version):
    module = make(version)
    batch = discs(2, side=24)
    batch = {k: v[..., :20] if k in ("image", "mask") else v for k, v in batch.items()}
    sum(training_losses(module, batch).values()).backward()
    missing = {name for name, p in module.network.named_parameters() if p.grad is None}
    # The image's encoder has no timestep, and its last level's block is summed before the middle.
    assert all("time_emb" in name for name in missing), missing


@pytest.mark.parametrize("version", VERSIONS)
def test_the_image_alone_is_looked_at_once(version):
    module, calls = make(version), []
    encode = module.network.encode
    module.network.encode = lambda image: calls.append(1) or encode(image)
    module.results(discs(2), module.Options(num_samples=3, steps=4))
    assert calls == [1]


def test_what_the_condition_holds_does_not_depend_on_the_noisy_mask():
    network = VERSIONS["v1"]()
    blocks = []
    for number, block in enumerate(network.image_blocks):
        block.register_forward_pre_hook(lambda *_, n=number: blocks.append(n))
    condition = network.encode(torch.rand(1, 3, 16, 16))
    assert blocks == [0, 1]  # fused at level 1, so level 2 waits for the mask
    network(torch.randn(1, 1, 16, 16), torch.tensor([5]), condition)
    assert blocks == [0, 1, 2]


def test_the_anchor_reaches_the_loss_but_not_the_mask():
    module, batch = make("v1 with anchor"), discs(2)
    before = module.results(batch, module.Options(num_samples=1))["probability"]
    with torch.no_grad():
        module.network.anchor.conv_out.weight.mul_(0).add_(1.0)
    assert torch.equal(module.results(batch, module.Options(num_samples=1))["probability"], before)
    # Detached: the denoising teaches the anchor nothing.
    losses = training_losses(module, batch)
    assert set(losses) == {"denoising", "anchor"}
    losses["denoising"].backward()
    assert all(p.grad is None for p in module.network.anchor.parameters())


def test_the_anchor_learns_from_multiples_of_its_step_alone():
    module, batch = make("v2", anchor_every=10), discs(4)
    every = training_losses(make("v2", anchor_every=1), batch)["anchor"]
    module.timesteps = lambda _: torch.tensor([3, 17, 99, 41])
    assert training_losses(module, batch)["anchor"] == 0
    module.timesteps = lambda _: torch.tensor([30, 0, 50, 90])
    torch.testing.assert_close(training_losses(module, batch)["anchor"], every)


def test_an_anchor_loss_without_an_anchor_is_refused():
    with pytest.raises(ValueError, match="anchor_weight=2.0, but the network has no anchor"):
        make("v1", anchor_weight=2.0)
    with pytest.raises(ValueError, match="anchor_weight=0.0, but the network has an anchor"):
        make("v1 with anchor", anchor_weight=0.0)
    with pytest.raises(ValueError, match="anchor_classes is 2, but 3 classes need 3"):
        MedSegDiff(
            network=VERSIONS["v2"](mask_channels=3),
            num_classes=3,
            path=make().path,
            sampler=Sampler(num_steps=3),
            optimizer=None,
        )
    with pytest.raises(ValueError, match="anchor_every is 0"):
        make("v2", anchor_every=0)
    with pytest.raises(ValueError, match="fusion_levels has 3; these 3 levels are 0 to 2"):
        MedSegDiffNetwork(**SMALL, fusion_levels=(3,))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_it_learns_discs(fit, version):
    module, batch = make(version), discs()
    fit(module, batch, steps=80)
    found = module.eval().results(batch, module.Options(num_samples=3, steps=3))["mask"]
    overlap = (2 * (found * batch["mask"]).sum() / (found + batch["mask"]).sum()).item()
    assert overlap > 0.8, overlap  # a mask of all foreground has 0.32


@pytest.mark.parametrize("version", ["v1 with anchor", "v2"])
def test_a_saved_network_is_the_same(tmp_path, version):
    network = VERSIONS[version]().eval()
    network.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    image, x_t, timestep = torch.rand(1, 3, 16, 16), torch.randn(1, 1, 16, 16), torch.tensor([3])
    torch.testing.assert_close(
        again(x_t, timestep, again.encode(image)), network(x_t, timestep, network.encode(image))
    )


@pytest.mark.parametrize("version", ["v1 with anchor", "v2"])
def test_samples_and_windows_drawn_together_are_those_drawn_alone(version, monkeypatch):
    module = make(version)
    batch = {"image": torch.randint(0, 256, (2, 3, 30, 45), dtype=torch.uint8), "index": torch.arange(2)}
    options = module.Options(num_samples=2, window=32)
    together = module.results(batch, options)["probability"]
    monkeypatch.setattr(windows, "_PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(module.results(batch, options)["probability"], together, atol=1e-4, rtol=0)
