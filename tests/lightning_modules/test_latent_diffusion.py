"""Stage 2: prompts and their dropout, what learns, deterministic validation, export, and that it learns."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffusion.seeding import randn
from doors.export import save_exported
from lightning_modules.latent_diffusion import LatentDiffusion
from networks.latent_diffusion_parts import LatentDiffusionParts
from runs.load import load_exported
from tests.lightning_modules.pictures import astronaut_batch
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_unet
from tests.networks.sd_folder import save_sd_folder


def make(*, text: bool = True, parts=None, **settings) -> LatentDiffusion:
    torch.manual_seed(0)
    return LatentDiffusion(parts=parts or tiny_parts(text=text), **tiny_settings(**settings)).eval()


def val_loss(module: LatentDiffusion, batch) -> float:
    logged = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    with torch.no_grad():
        module.validation_step(batch, 0)
    del module.log
    return logged["val/loss"]


@pytest.mark.parametrize("text", [True, False])
def test_it_trains_validates_and_draws_with_and_without_text(fit, text):
    module = make(text=text)
    before = {k: v.clone() for k, v in module.parts.state_dict().items()}
    fit(module, photo_batch(), steps=2)
    changed = {k.split(".")[0] for k, v in module.parts.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {"unet"}
    panels = module.eval().sample_panels(photo_batch())
    assert list(panels) == ["sample from caption", "autoencoder's ceiling"]
    assert all(p.shape == (4, 3, 32, 32) and p.min() >= 0 and p.max() <= 1 for p in panels.values())


@pytest.mark.parametrize("learns", [True, False])
def test_gradient_reaches_the_text_encoder_only_if_asked(fit, learns):
    module = make(train_text_encoder=learns)
    before = {k: v.clone() for k, v in module.parts.text_encoder.state_dict().items()}
    trainer = fit(module, photo_batch(), steps=2)
    after = module.parts.text_encoder.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before) == learns
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert all((id(p) in optimised) == learns for p in module.parts.text_encoder.parameters())
    assert all(p.grad is None or learns for p in module.parts.text_encoder.parameters())
    assert not any(p.requires_grad for p in module.parts.vae.parameters())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_prompts_are_dropped_at_the_given_share(fit, share):
    module, seen = make(prompt_dropout=share), []
    embed = module.embed
    module.embed = lambda captions: (seen.extend(captions), embed(captions))[1]
    fit(module, photo_batch(16, size_px=8), steps=25)
    assert len(seen) == 400
    dropped = seen.count("") / 400
    # Three standard deviations of a binomial share.
    assert abs(dropped - share) <= 3 * (share * (1 - share) / 400) ** 0.5
    assert set(seen) <= {"", "a photo of a tulip"}


def test_validation_repeats_itself_and_does_not_depend_on_the_batch(fit):
    module, batch = make(), photo_batch()
    first = val_loss(module, batch)
    torch.manual_seed(99)
    assert val_loss(module, batch) == first
    rows = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(4)]
    assert sum(val_loss(module, row) for row in rows) / 4 == pytest.approx(first, rel=1e-5)


def test_cached_moments_give_the_same_loss():
    module, batch = make(), photo_batch()
    with torch.no_grad():
        cached = batch | {"encodings": {"image": module.codec.moments(batch["image"])}}
    assert val_loss(module, cached) == pytest.approx(val_loss(module, batch), rel=1e-6)


def test_low_precision_of_frozen_parts_leaves_the_trained_ones(fit):
    module = make(frozen_dtype="bfloat16")
    fit(module, photo_batch(), steps=2)
    assert {p.dtype for p in module.parts.vae.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.parts.text_encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in module.parts.unet.parameters()} == {torch.float32}


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="prompt_dropout is 1.5; expected a probability"):
        make(prompt_dropout=1.5)
    with pytest.raises(ValueError, match="train_text_encoder=true, but the model has no text encoder"):
        make(text=False, train_text_encoder=True)
    with pytest.raises(ValueError, match="unconditional model .* set guidance_scale=1"):
        generated(make(text=False), [""], [0], guidance=2.0)


@pytest.mark.parametrize("word", ["prompt", "negative_prompt"])
def test_a_prompt_without_a_text_encoder_is_refused(word):
    module = make(text=False)
    module.check_options(module.Options(), is_folder=False)
    with pytest.raises(
        ValueError, match="LatentDiffusion has no text encoder here, so a prompt has no effect"
    ):
        module.check_options(module.Options(**{word: "red"}), is_folder=False)


def generated(module, prompts, numbers, side_px=32, **words):
    return module.generate(prompts, numbers, (side_px, side_px), module.Options(**words))


def test_a_prompt_alone_gives_pictures_on_the_models_grid():
    module, batch = make(), {"index": torch.tensor([0]), "name": ["sample"]}
    options = {"prompt": "red", "size": (30, 50)}
    three = module.results(batch, module.Options(**options, num_samples=3))["image"]
    assert [tuple(p.shape) for p in three] == [(1, 3, 32, 48)] * 3
    one = module.results(batch, module.Options(**options))["image"]
    torch.testing.assert_close(one, three[0], rtol=0, atol=1e-3)
    assert not torch.equal(three[0], three[1])


def test_without_an_autoencoder_it_trains_and_draws_pixels(fit):
    """The identity codec: latents are pixels, clean estimates are clipped to their range."""
    parts = LatentDiffusionParts(
        unet=tiny_unet(num_channels=3),
        vae=None,
        scheduler=tiny_parts().scheduler,
        text_encoder=tiny_parts().text_encoder,
    )
    module = make(parts=parts)
    batch = photo_batch(size_px=16)
    fit(module, batch, steps=2)
    drawn = generated(module.eval(), ["red"] * 2, [0, 1], side_px=16)
    assert drawn.shape == (2, 3, 16, 16)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    rows = dict(module.rows(batch, module.Options()))
    torch.testing.assert_close(rows["autoencoder's ceiling"]["image"], batch["image"])


@pytest.mark.parametrize(
    ("base", "solver", "guidance"),
    [("ours", "ddim", 2.5), ("ours", "unipc", 1.0), ("sd15", "ddim", 2.5), ("sd15", "dpmpp", 2.5)],
)
def test_plain_diffusers_draws_the_same_pixels_from_the_export(tmp_path, base, solver, guidance):
    from diffusion.samplers import Sampler

    parts = None
    if base == "sd15":
        save_sd_folder(tmp_path / "base")
        parts = LatentDiffusionParts.from_folder(str(tmp_path / "base"))
    module = make(parts=parts, sampler=Sampler(solver=solver, num_steps=4))
    save_exported(module, tmp_path / "export")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "export")
    pipe.set_progress_bar_config(disable=True)
    side = 8 * module.codec.downscale
    captions, ids = ["red", "a blue rose"], [3, 4]
    ours = generated(module, captions, ids, side, guidance=guidance, negative_prompt="grey")
    theirs = pipe(
        captions,
        negative_prompt=["grey"] * 2 if guidance > 1 else None,
        latents=randn((4, 8, 8), module.generators(ids, 0)),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=side,
        width=side,
        output_type="pt",
    ).images
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_loaded_export_is_the_same_model(tmp_path):
    module, other = make(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    other.parts.vae.register_to_config(scaling_factor=0.5)
    save_exported(module, tmp_path)
    load_exported(other, tmp_path)
    draw = [generated(m, ["red"], [0], guidance=2.0) for m in (module, other)]
    assert torch.equal(*draw)


def test_it_learns_more_than_predicting_zero(fit):
    """On two images; zero predicts every target with its own square, 1 for epsilon."""
    batch = astronaut_batch(count=2)
    module = make(
        parts=tiny_parts(prediction_type="epsilon", rescale_betas_zero_snr=False),
        prompt_dropout=0.0,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
    )
    losses = []
    evaluated = batch | {"image": batch["image"].repeat(32, 1, 1, 1), "caption": batch["caption"] * 32}
    evaluated["index"] = torch.arange(64)
    repeated = batch | {"image": batch["image"].repeat(4, 1, 1, 1), "caption": batch["caption"] * 4}
    repeated["index"] = torch.arange(8)
    losses.append(val_loss(module, evaluated))
    fit(module, repeated, steps=120)
    losses.append(val_loss(module.eval(), evaluated))
    assert losses[1] < 0.8 < 0.95 < losses[0]


LONG = "a photo of a tulip in a green field"  # the tiny encoder takes 31 bytes


@pytest.mark.parametrize("train_text_encoder", [True, False])
def test_a_caption_that_is_cut_is_said_once_in_training(fit, caplog, train_text_encoder):
    module = LatentDiffusion(parts=tiny_parts(), **tiny_settings(train_text_encoder=train_text_encoder))
    fit(module, photo_batch() | {"caption": ["short", LONG, LONG + "s", "short"]}, steps=3)
    (said,) = [record.getMessage() for record in caplog.records if "leaves out" in record.getMessage()]
    assert said == (
        "a caption, and perhaps others, is longer than the 32 tokens of the text encoder, which leaves out its end: 'ield'"
    )


@pytest.mark.parametrize("cached", [True, False])
def test_captions_in_the_text_cache_are_said_too(fit, caplog, tmp_path, cached):
    batch = photo_batch() | {"caption": [LONG] * 4}
    for _ in range(1 + cached):
        caplog.clear()
        settings = tiny_settings(text_cache_dir=str(tmp_path) if cached else None)
        fit(LatentDiffusion(parts=tiny_parts(), **settings), batch, steps=2)
        assert caplog.text.count("leaves out its end: 'ield'") == 1


@pytest.mark.parametrize("word", ["prompt", "negative_prompt"])
def test_a_prompt_that_is_cut_is_said_and_one_that_is_no_text_refused(caplog, word):
    module = LatentDiffusion(parts=tiny_parts(), **tiny_settings())
    module.check_options(module.Options(guidance=3.0, **{word: LONG[:31]}), is_folder=False)
    assert not caplog.text
    module.check_options(module.Options(guidance=3.0, **{word: LONG}), is_folder=False)
    assert f"{word}= is longer than the 32 tokens of the text encoder" in caplog.text
    with pytest.raises(ValueError, match=rf"^{word}='caf\\udce9' is no UTF-8 text"):
        module.Options(**{word: "caf\udce9"})
