"""ControlNet colorization: the identities of the paper, the frozen base, guidance, export."""

import copy

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from color.lab import lightness, rgb_to_lab
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.latent import DrawSettings
from tests.models import photo_batch, tiny_parts, tiny_settings


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
    condition = module.condition(batch, batch["caption"])
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        ours = module.denoise(noisy, timestep, condition)
        base = module.parts.unet(noisy, timestep, condition.context).sample
    assert torch.equal(ours, base)


def test_condition_changes_the_prediction_once_the_zero_convolutions_open():
    module, batch = make(), photo_batch()
    open_zero_convolutions(module)
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.full((4,), 500)
    condition = module.condition(batch, batch["caption"])
    other = module.condition({"image": 1 - batch["image"]}, batch["caption"])
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
    batch = photo_batch()
    given, ids, empty = lightness(batch["image"]), [0, 1, 2, 3], [""] * 4
    drawn = {}
    for drops in ("prompt", "cond", "both"):
        module = make(guidance_drops=drops)
        open_zero_convolutions(module)
        drawn[drops] = [
            module.colorize(given, empty, ids, DrawSettings(guidance_scale=scale)) for scale in (1.0, 3.0)
        ]
    assert torch.allclose(*drawn["prompt"], atol=1e-5)
    assert (drawn["cond"][0] - drawn["cond"][1]).abs().max() > 1e-3
    assert torch.allclose(drawn["cond"][1], drawn["both"][1], atol=1e-5)


def test_lightness_of_the_input_is_kept():
    module, batch = make(), photo_batch()
    given = lightness(batch["image"])
    result = module.colorize(given, [""] * 4, [0, 1, 2, 3])
    assert (rgb_to_lab(result)[:, :1] / 100 - given).abs().mean() * 100 < 0.05


def test_a_sample_does_not_depend_on_its_batch():
    module, batch = make(), photo_batch()
    open_zero_convolutions(module)
    given = lightness(batch["image"])
    together = module.colorize(given, [""] * 4, [5, 6, 7, 8])
    alone = module.colorize(given[2:3], [""], [7])
    assert torch.allclose(together[2:3], alone, atol=1e-5)


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
    module.export(tmp_path)
    pipe = StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    batch = photo_batch(2)
    given = lightness(batch["image"])
    captions = ["red", "a blue rose"]
    settings = DrawSettings(num_steps=3, guidance_scale=2.5, negative_prompt="grey")
    condition = module.condition(batch, captions)
    noise_ids = [3, 4]
    latent = module.draw(condition, (4, 8, 8), noise_ids, settings)
    ours = module.codec.decode(latent)
    start = module.start_noise((4, 8, 8), noise_ids, settings.seed)[0]
    theirs = pipe(
        captions,
        image=given,
        negative_prompt=["grey"] * 2,
        latents=start,
        num_inference_steps=3,
        guidance_scale=2.5,
        output_type="pt",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)
