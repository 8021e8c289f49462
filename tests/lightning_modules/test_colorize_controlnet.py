"""ControlNet colorization: the identities of the paper, the frozen base, guidance, export."""

import copy

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from color.lab import grey_image, lightness, rgb_to_lab
from diffusion.samplers import Sampler
from diffusion.seeding import randn
from doors.export import save_exported
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.colorize_controlnet import ColorizeControlNet
from metrics.delta_e import delta_e_2000
from networks.latent_diffusion_parts import LatentDiffusionParts
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import (
    colored,
    colors,
    numbered,
    photo_batch,
    rows,
    tiny_parts,
    tiny_settings,
    tiny_vae,
)
from tests.networks.sd_folder import save_sd_folder


def make(**settings):
    torch.manual_seed(0)
    return ColorizeControlNet(
        parts=settings.pop("parts", None) or tiny_parts(), **tiny_settings(**settings)
    ).eval()


def open_zero_convolutions(module: ColorizeControlNet) -> None:
    torch.manual_seed(1)
    for parameter in module.controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("mid_control_only", [False, True])
def test_step_zero_equals_the_base_bit_for_bit(mid_control_only):
    module, batch = make(mid_control_only=mid_control_only), photo_batch()
    condition = module.condition(batch)
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        ours = module.denoise(noisy, timestep, condition)
        base = module.parts.unet(noisy, timestep, condition["text"]).sample
    assert torch.equal(ours, base)


def test_condition_changes_the_prediction_once_the_zero_convolutions_open():
    module, batch = make(), photo_batch()
    open_zero_convolutions(module)
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.full((4,), 500)
    condition = module.condition(batch)
    other = module.condition(batch | {"image": 1 - batch["image"]})
    with torch.no_grad():
        difference = module.denoise(noisy, timestep, condition) - module.denoise(noisy, timestep, other)
    assert difference.abs().max() > 1e-3


def test_training_leaves_the_base_untouched_and_out_of_the_optimiser(fit):
    module = make()
    before = copy.deepcopy(module.parts.state_dict())
    control = copy.deepcopy(module.controlnet.state_dict())
    trainer = fit(module, photo_batch(), steps=3)
    after = module.parts.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(control[k], v) for k, v in module.controlnet.state_dict().items())
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.controlnet.parameters()}
    assert not any(p.training for p in module.parts.modules())


def test_unlocked_decoder_trains_the_up_blocks_alone(fit):
    module = make(train_decoder=True)
    before = copy.deepcopy(module.parts.unet.state_dict())
    fit(module, photo_batch(), steps=2)
    changed = {k for k, v in module.parts.unet.state_dict().items() if not torch.equal(before[k], v)}
    assert changed
    assert all(k.startswith(("up_blocks", "conv_norm_out", "conv_out")) for k in changed)


def test_guidance_without_prompts_acts_when_the_negative_branch_lacks_the_condition():
    batch, drawn = photo_batch(), {}
    for drops in ("prompt", "cond", "both"):
        module = make(guidance_drops=drops)
        open_zero_convolutions(module)
        drawn[drops] = [colors(module, batch, guidance=scale) for scale in (1.0, 3.0)]
    # Latents: gamut clipping would multiply the last bits, which differ between processors.
    torch.testing.assert_close(*drawn["prompt"], rtol=1e-3, atol=1e-3)
    assert (drawn["cond"][0] - drawn["cond"][1]).abs().max() > 1e-2
    torch.testing.assert_close(drawn["cond"][1], drawn["both"][1], rtol=1e-3, atol=1e-3)


def test_lightness_of_the_input_is_kept():
    module, batch = make(), photo_batch()
    given = lightness(batch["image"])
    assert (rgb_to_lab(colored(module, batch))[:, :1] / 100 - given).abs().mean() * 100 < 0.05


def test_a_sample_does_not_depend_on_its_batch():
    module, batch = make(), numbered(photo_batch(), [5, 6, 7, 8])
    open_zero_convolutions(module)
    together, alone = colors(module, batch), colors(module, rows(batch, 2))
    torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"guidance_drops": "text"}, "guidance_drops"),
        ({"cond_channels": [8, 8]}, "cond_channels has 2 widths"),
    ],
)
def test_bad_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        make(**settings)


def test_plain_diffusers_draws_the_same_pixels_from_the_export(tmp_path):
    """Stable Diffusion's class names, its pipeline, its guidance with the condition on both branches."""
    module = make(guidance_drops="prompt")
    open_zero_convolutions(module)
    save_exported(module, tmp_path)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    batch = numbered(photo_batch(2), [3, 4])
    given = lightness(batch["image"])
    captions = ["red", "a blue rose"]
    latent = colors(module, batch, captions, steps=3, guidance=2.5, negative_prompt="grey")
    ours = module.codec.to_picture(latent)
    start = randn((4, 8, 8), module.generators([3, 4], 0))
    theirs = pipe(
        captions,
        image=given.expand(-1, 3, -1, -1),
        negative_prompt=["grey"] * 2,
        latents=start,
        num_inference_steps=3,
        guidance_scale=2.5,
        output_type="pt",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_guided_samples_do_not_depend_on_their_batch():
    batch = numbered(photo_batch(), [5, 6, 7, 8])
    for drops in ("prompt", "both"):
        module = make(guidance_drops=drops)
        open_zero_convolutions(module)
        words = {"guidance": 2.0, "seed": 3}
        together = colors(module, batch, ["red", "", "blue", "red"], **words)
        alone = colors(module, rows(batch, 2), ["blue"], **words)
        torch.testing.assert_close(together[2:3], alone, rtol=1e-3, atol=1e-3)
        other = colors(module, numbered(rows(batch, 2), [8]), ["blue"], **words)
        assert (other - alone).abs().max() > 1e-1


def test_a_stable_diffusion_folder_serves_as_base_and_exports_its_pixels(tmp_path, fit):
    """Class names, f8 codec of four blocks, CLIP's tokenizer and the scheduler of Stable Diffusion 1.5."""
    save_sd_folder(tmp_path / "base")
    module = make(parts=LatentDiffusionParts.from_folder(str(tmp_path / "base")), guidance_drops="prompt")
    assert module.codec.downscale == 8
    before = copy.deepcopy(module.parts.state_dict())
    fit(module, photo_batch(), steps=2)
    assert all(torch.equal(before[key], value) for key, value in module.parts.state_dict().items())
    open_zero_convolutions(module.eval())

    save_exported(module, tmp_path / "export")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "export")
    pipe.set_progress_bar_config(disable=True)
    batch, captions = numbered(photo_batch(2, size_px=64), [1, 2]), ["red", "a blue rose"]
    given = lightness(batch["image"])
    ours = module.codec.to_picture(colors(module, batch, captions, steps=3, guidance=2.0))
    theirs = pipe(
        captions,
        image=given.expand(-1, 3, -1, -1),
        latents=randn((4, 8, 8), module.generators([1, 2], 0)),
        num_inference_steps=3,
        guidance_scale=2.0,
        output_type="pt",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_learns_colours_that_beat_grey(fit):
    """Four crops by heart: a tiny codec first, then the ControlNet with the decoder of its random base."""
    batch = astronaut_batch()
    image, given = batch["image"], lightness(batch["image"])
    torch.manual_seed(0)
    vae = tiny_vae()
    stage_one = Autoencoder(vae=vae, optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3))
    fit(stage_one, batch, steps=150)
    with torch.no_grad():
        latents = vae.eval().encode(image * 2 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=float(latents.square().mean() ** -0.5))
    parts = tiny_parts()
    parts.vae = vae
    module = make(
        parts=parts,
        train_decoder=True,
        sampler=Sampler(num_steps=10),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    fit(module, batch, steps=150)
    result = colored(module.eval(), batch, batch["caption"])
    truth = rgb_to_lab(image)
    ours, grey = (delta_e_2000(rgb_to_lab(i), truth).mean() for i in (result, grey_image(given)))
    assert ours < grey - 1
