"""ControlNet for any condition: the identities of the paper, conditions by name, how they act at predict, export."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from color.conditions import MadeCondition
from diffusion.samplers import Sampler
from doors.export import save_exported
from lightning_modules.controlled import Control, Further
from lightning_modules.controlnet import ControlNet, runs_with_scales
from networks.latent_diffusion_parts import LatentDiffusionParts
from runs.load import load_exported
from tasks.base import Scores
from tasks.translation import Translation
from tests.lightning_modules.pictures import astronaut_batch, psnr
from tests.lightning_modules.test_translate import in_pixels, pair_batch
from tests.models import one_photo, photo_batch, predicted, rows, tiny_parts, tiny_settings
from tests.networks.sd_folder import save_sd_folder


def make(*conds: str, seed: int = 0, **settings: Any) -> ControlNet:
    torch.manual_seed(0)
    parts = settings.pop("parts", None) or tiny_parts()
    torch.manual_seed(seed)
    return ControlNet(conds=list(conds) or ["canny"], parts=parts, **tiny_settings(**settings)).eval()


def opened(module: ControlNet, seed: int = 1) -> ControlNet:
    """With weights in the zero convolutions."""
    torch.manual_seed(seed)
    for parameter in module.controlnet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("conds", [("canny",), ("source", "depth"), ("masked", "source", "low:8")])
def test_step_zero_equals_the_base_bit_for_bit(conds):
    module, batch = make(*conds), pair_batch()
    condition = module.condition(batch)
    assert condition["cond"].shape == (4, 3 * len(conds), 32, 32)
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.tensor([0, 10, 500, 999])
    with torch.no_grad():
        ours = module.denoise(noisy, timestep, condition)
        base = module.parts.unet(noisy, timestep, condition["text"]).sample
    assert torch.equal(ours, base)


def test_the_zero_convolutions_learn_at_the_first_step_and_what_is_before_them_does_not():
    """The gradient of a zero weight is its input, that of its input is zero (the authors' FAQ)."""
    module, batch = make(), photo_batch()
    module.log = lambda *_, **__: None
    module.losses(batch)["denoising"].backward()
    zero = [*module.controlnet.controlnet_down_blocks, module.controlnet.controlnet_mid_block]
    assert all(block.weight.grad.abs().max() > 0 for block in zero)
    inside = [
        p for name, p in module.controlnet.named_parameters() if not name.startswith("controlnet_down_blocks")
    ]
    inside = [p for p in inside if all(p is not q for block in zero for q in block.parameters())]
    assert all(p.grad is None or not p.grad.any() for p in inside)


def test_training_leaves_the_base_untouched(fit):
    module = make("source")
    before, control = (copy.deepcopy(part.state_dict()) for part in (module.parts, module.controlnet))
    trainer = fit(module, pair_batch(), steps=2)
    assert all(torch.equal(before[key], value) for key, value in module.parts.state_dict().items())
    assert any(not torch.equal(control[k], v) for k, v in module.controlnet.state_dict().items())
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.controlnet.parameters()}


def test_conditions_are_the_batchs_own_before_they_are_made():
    module, batch = make("canny", "depth"), pair_batch()
    expected = torch.cat([MadeCondition.parse("canny")(batch["image"]), batch["depth"]], dim=1)
    assert torch.equal(module.cond(batch), expected)
    assert module.inputs() == ("image", "depth")
    assert make("source", "depth").inputs() == ("source", "depth")
    with pytest.raises(
        ValueError,
        match="module.conds has depth, which is neither made from a photo .canny, .* nor in the data .image",
    ):
        module.cond(photo_batch())
    with pytest.raises(
        ValueError, match=r"module.conds is \['canny', 'canny'\]; expected one or more different"
    ):
        make("canny", "canny")
    with pytest.raises(
        ValueError, match="module.conds has scribble, which is made from the photo, and the data"
    ):
        make("scribble").cond(batch | {"scribble": batch["depth"]})


def test_boxes_of_masked_photos_are_drawn_in_training_and_fixed_in_evaluation(fit):
    module, batch = make("masked"), photo_batch()
    first = module.cond(batch)
    assert torch.equal(first, module.cond(batch))
    torch.testing.assert_close(module.cond(rows(batch, 2)), first[2:3])
    fit(module, batch, steps=1)
    assert not torch.equal(module.train().cond(batch), first)


def test_the_condition_changes_the_result_by_its_scale_start_and_end():
    module, batch = opened(make(sampler=Sampler(num_steps=4), guidance_scale=1.0)), photo_batch()

    def drawn(**words: Any) -> torch.Tensor:
        return module.results(batch, module.Options(**words))["image"]

    base = make(sampler=Sampler(num_steps=4), guidance_scale=1.0).results(batch, module.Options())["image"]
    torch.testing.assert_close(drawn(control_scale=0.0), base, rtol=1e-3, atol=1e-3)
    assert (drawn() - base).abs().max() > 1e-3
    assert torch.equal(drawn(control_scale=1.0), drawn())
    assert torch.equal(drawn(control_start=0.0, control_end=1.0), drawn())
    parts = [drawn(control_end=0.5), drawn(control_start=0.5), drawn(control_start=0.25, control_end=0.75)]
    assert all(
        (one - other).abs().max() > 1e-4 for one, other in zip(parts, [*parts[1:], drawn()], strict=True)
    )
    torch.testing.assert_close(drawn(control_end=0.2), base, rtol=1e-3, atol=1e-3)  # no whole step of four
    with pytest.raises(ValueError, match="control_start=0.5 and control_end=0.5 are no part of the steps"):
        module.Options(control_start=0.5, control_end=0.5)


def test_the_steps_in_which_it_acts_are_those_of_diffusers_pipeline():
    module, batch, seen = opened(make(guidance_scale=1.0)), photo_batch(), []
    module.controlnet.register_forward_pre_hook(lambda _, args: seen.append(int(args[1][0])))
    module.results(batch, module.Options(steps=7, control_start=0.2, control_end=0.8))
    timesteps = module.sampler.with_steps(7).scheduler(module.objective).timesteps.tolist()
    # The pipeline's line.
    keeps = [1.0 - float(i / 7 < 0.2 or (i + 1) / 7 > 0.8) for i in range(7)]
    assert seen == [timestep for timestep, keep in zip(timesteps, keeps, strict=True) if keep]
    assert len(seen) == 3


def test_guess_mode_scales_as_diffusers_does_and_needs_guidance():
    module, batch = opened(make(guidance_scale=2.0)), photo_batch()
    condition = module.condition(batch)
    noisy, timestep = torch.randn(4, 4, 8, 8), torch.full((4,), 500)
    with torch.no_grad():
        down, mid = module.controlnet(
            noisy, timestep, condition["text"], condition["cond"], guess_mode=True, return_dict=False
        )
        expected = module.parts.unet(
            noisy,
            timestep,
            condition["text"],
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        found = module.denoise(noisy, timestep, condition, Control(guess=True))
    torch.testing.assert_close(found, expected)
    module.check_options(module.Options(guess=True), is_folder=False)
    for words, settings in (({"guidance": 1.0}, {}), ({"guidance": 2.0}, {"guidance_drops": "prompt"})):
        other = make(**settings)
        with pytest.raises(
            ValueError, match="guess=true needs guidance whose negative branch lacks the condition"
        ):
            other.check_options(other.Options(guess=True, **words), is_folder=False)


def test_several_control_nets_add_up_as_in_diffusers():
    one, other, batch = opened(make()), opened(make("blur"), seed=2), photo_batch()
    conds = [module.cond(batch) for module in (one, other)]
    noisy, timestep, text = torch.randn(4, 4, 8, 8), torch.full((4,), 500), one.embed(batch["caption"])
    both = MultiControlNetModel([one.controlnet, other.controlnet])
    control = Control(scale=0.5, further=[Further(other.controlnet, conds[1], 2.0)])
    with torch.no_grad():
        down, mid = both(noisy, timestep, text, conds, [0.5, 2.0], return_dict=False)
        expected = one.parts.unet(
            noisy, timestep, text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        found = one.denoise(noisy, timestep, {"text": text, "cond": conds[0]}, control)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    options = one.prepare(
        one.Options(also=runs_with_scales("b@0"), guidance=1.0), lambda _: copy.deepcopy(other)
    )
    without = one.results(batch, one.Options(guidance=1.0))["image"]
    torch.testing.assert_close(one.results(batch, options)["image"], without, rtol=1e-3, atol=1e-3)
    options = one.prepare(one.Options(also=runs_with_scales("b"), guidance=1.0), lambda _: other)
    assert (one.results(batch, options)["image"] - without).abs().max() > 1e-3
    assert not hasattr(other, "parts")  # the base is in memory once


def test_a_further_run_acts_as_it_was_trained():
    """Its own scale, conditions of its own, and all of its residuals beside a module that uses the middle's alone."""
    one, batch = opened(make("canny", mid_control_only=True, guidance_drops="prompt")), pair_batch()
    other = opened(make("depth", cond_scale=0.3), seed=2)
    conds = [one.cond(batch), other.cond(batch)]
    noisy, timestep, text = torch.randn(4, 4, 8, 8), torch.full((4,), 500), one.embed(batch["caption"])
    with torch.no_grad():
        down, mid = other.controlnet(
            noisy, timestep, text, conds[1], conditioning_scale=0.3, return_dict=False
        )
        own = one.controlnet(noisy, timestep, text, conds[0], return_dict=False)[1]
        expected = one.parts.unet(
            noisy,
            timestep,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid + own,
        ).sample
    options = one.prepare(one.Options(also=runs_with_scales("b"), guidance=3.0), lambda _: other)
    assert one.given(options) == ("image", "depth")
    seen = []
    denoise = one.denoise
    one.denoise = lambda x, t, condition, control: seen.append(control) or denoise(x, t, condition, control)
    drawn = one.results(batch, options)["image"]  # guided: each image twice under the same condition
    assert drawn.shape == batch["image"].shape
    found = denoise(noisy, timestep, {"text": text, "cond": conds[0]}, seen[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="conds= names edges, but this model takes depth beside its input"):
        one.prepare(one.Options(also={"b": None}, conds={"edges": "a"}), lambda _: make("depth"))


def test_further_runs_that_do_not_fit_are_refused():
    module = make()
    assert runs_with_scales("a; b@0.5") == {"a": None, "b": 0.5}
    for text, message in (("a@x", "write also='RUN; RUN@SCALE'"), ("a; a@2", "names a twice")):
        with pytest.raises(ValueError, match=message):
            runs_with_scales(text)
    options = module.Options(also={"b": 1.0})
    base = tiny_parts()
    torch.nn.init.normal_(base.unet.conv_in.weight)
    with pytest.raises(
        ValueError, match="also= names b, which is no run of experiment=controlnet on the base of this"
    ):
        module.prepare(options, lambda _: make(parts=base))


def test_a_photo_or_its_ready_condition_gives_the_same_result():
    module = opened(make("scribble"))
    photo = (astronaut_batch(48)["image"][0] * 255).round().byte()
    drawn = predicted(module, photo, short_px=48)[0]
    assert drawn.shape == (3, 48, 48)
    lines = (MadeCondition.parse("scribble")(photo[None] / 255)[0] * 255).byte()
    torch.testing.assert_close(
        predicted(module, lines, short_px=48, ready=True)[0], drawn, rtol=1e-3, atol=1e-3
    )
    odd = predicted(module, torch.randint(0, 256, (3, 45, 70), dtype=torch.uint8), num_samples=2)
    assert [tuple(one.shape) for one in odd] == [(3, 45, 70)] * 2
    with pytest.raises(
        ValueError, match="ready=true is for a model of one condition that is made from a photo"
    ):
        make("source").check_options(module.Options(ready=True), is_folder=False)
    for other, words in ((module, {"also": {"a": None}}), (make("masked"), {})):
        with pytest.raises(ValueError, match="other than masked, and without also="):
            other.check_options(other.Options(ready=True, **words), is_folder=False)
    with pytest.raises(ValueError, match="ready=true takes drawn conditions, and here are photos"):
        next(module.rows(photo_batch(), module.Options(ready=True)))


def test_a_mask_is_filled_and_the_rest_stays(tmp_path: Path):
    module = opened(make("masked"))
    photo = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    mask = torch.zeros(40, 40, dtype=torch.uint8)
    mask[10:30, :20] = 255
    Image.fromarray(mask.numpy()).save(tmp_path / "mask.png")
    options = module.Options(mask=str(tmp_path / "mask.png"))
    module.check_options(options, is_folder=False)
    drawn = module.results(one_photo(photo), options)["image"][0]
    outside = mask == 0
    assert torch.equal(drawn[:, outside], photo[:, outside] / 255)
    assert (drawn[:, ~outside] - photo[:, ~outside] / 255).abs().mean() > 0.05
    for other, is_folder in ((make(), False), (module, True)):
        with pytest.raises(ValueError, match="mask= belongs to one photo and a model of masked photos"):
            other.check_options(options, is_folder=is_folder)


def test_thin_lines_of_a_mask_are_unknown_at_working_size():
    module = make("masked")
    photo = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
    region = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    region[..., 100:102] = True
    given, _ = module.at_working_size(one_photo(photo) | {"region": region}, module.Options(short_px=32))
    assert given["region"].sum() >= 32


def test_an_export_is_the_run_and_diffusers_pipeline_draws_with_it(tmp_path: Path):
    save_sd_folder(tmp_path / "base")
    parts = LatentDiffusionParts.from_folder(str(tmp_path / "base"))
    module, batch = opened(make("source", parts=parts)), pair_batch()
    save_exported(module, tmp_path / "one")
    other = make("source", parts=LatentDiffusionParts.from_folder(str(tmp_path / "base")))
    load_exported(other, tmp_path / "one")
    found = [m.results(batch, m.Options(guidance=1.0))["image"] for m in (module, other)]
    assert torch.equal(*found)
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "one")
    assert isinstance(pipeline.controlnet, ControlNetModel)
    picture = pipeline("", image=Image.new("RGB", (64, 64)), num_inference_steps=1).images[0]
    assert picture.size == (64, 64)
    save_exported(make("source", "canny"), tmp_path / "two")
    assert not (tmp_path / "two" / "model_index.json").exists()


def test_rows_say_how_far_the_result_has_its_condition():
    module, batch = opened(make("canny", "source", "low:4")), pair_batch()
    found = dict(module.rows(batch, module.Options()))
    scores = Scores(Translation(**module.protocol(module.Options())))
    scores.update(found["result"], batch)
    again = [
        (maker(found["result"]["image"]) - maker(batch["image"])).abs().mean()
        for maker in module.makers.values()
    ]
    assert scores.compute()["cond_error"].mean == pytest.approx(float(torch.stack(again).mean()), rel=1e-4)
    scores = Scores(Translation())
    scores.update({**found["result"], "cond_again": found["result"]["cond"]}, batch)
    assert scores.compute()["cond_error"].mean == 0
    assert "cond" not in dict(make("source").rows(batch, module.Options()))["result"]


def test_panels_show_the_conditions_first():
    module, batch = make("canny", "source"), pair_batch()
    assert list(module.sample_panels(batch)) == [
        "canny", "source", "result", "caption as prompt", "autoencoder's ceiling", "truth",
    ]  # fmt: skip


@pytest.mark.slow
def test_it_learns_from_an_ignorant_base_what_copying_the_condition_does_not_give(fit):
    """Four crops by heart, in pixels, from themselves with their colours exchanged; the base is untrained."""
    batch = astronaut_batch(16)
    batch["source"] = batch["image"].roll(1, dims=1)
    optimizer = lambda p: torch.optim.AdamW(p, lr=1e-2)  # noqa: E731
    module = make(
        "source",
        parts=in_pixels(),
        optimizer=optimizer,
        train_decoder=True,
        guidance_scale=1.0,
        sampler=Sampler(num_steps=8),
    )
    fit(module, batch, steps=250)
    result = module.eval().results(batch, module.Options())["image"]
    assert psnr(result, batch["image"]) > psnr(batch["source"], batch["image"]) + 3
