"""Parts of a latent diffusion model: folders in Stable Diffusion's layout, and what is no such folder."""

import time

import huggingface_hub.constants
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline

from networks.latent_diffusion_parts import LatentDiffusionParts, load_vae, to_dtype
from networks.text import TextEncoder
from networks.widened import widen_input
from tests.models import tiny_parts, tiny_unet, tiny_vae
from tests.networks.sd_folder import save_sd_folder


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    save_sd_folder(folder)
    return folder


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_stable_diffusion_folder_gives_its_weights_schedule_and_text(sd_folder):
    parts = LatentDiffusionParts.from_folder(str(sd_folder))
    pipeline = StableDiffusionPipeline.from_pretrained(sd_folder)
    assert equal(parts.unet, pipeline.unet)
    assert equal(parts.vae, pipeline.vae)
    assert type(parts.text_encoder.tokenizer).__name__.startswith("CLIPTokenizer")
    torch.testing.assert_close(parts.scheduler.alphas_cumprod, pipeline.scheduler.alphas_cumprod)
    assert parts.scheduler.config.prediction_type == "epsilon"
    with torch.no_grad():
        theirs = pipeline.encode_prompt(["a red rose", ""], "cpu", 1, do_classifier_free_guidance=False)[0]
        ours = parts.text_encoder(["a red rose", ""])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("text", [True, False])
def test_saved_parts_come_back_equal(tmp_path, text):
    parts = tiny_parts(text=text)
    parts.save(tmp_path)
    loaded = LatentDiffusionParts.from_folder(str(tmp_path))
    assert equal(parts, loaded)
    assert (loaded.text_encoder is None) == (not text)
    assert loaded.scheduler.config.rescale_betas_zero_snr
    assert loaded.vae.config.scaling_factor == parts.vae.config.scaling_factor
    assert not list(tmp_path.rglob("*.bin"))


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no unet/ folder; .* export.py") as caught:
        LatentDiffusionParts.from_folder(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "unet").mkdir()
    with pytest.raises(FileNotFoundError, match="cannot be loaded") as caught:
        LatentDiffusionParts.from_folder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("absent", ["tokenizer", "text_encoder", "vae", "scheduler"])
def test_a_folder_that_lacks_a_part_is_one_sentence(tmp_path, absent, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    tiny_parts().save(tmp_path)
    (tmp_path / absent).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="cannot be loaded|autoencoder") as caught:
        LatentDiffusionParts.from_folder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no-such-folder", "./no/such/folder"])
def test_a_wrong_hub_id_is_one_sentence_and_does_not_hang(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    for load in (LatentDiffusionParts.from_folder, load_vae):
        with pytest.raises(FileNotFoundError, match=f"no model '{name}'") as caught:
            load(name)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_load_vae_takes_both_classes_at_the_top_or_below_vae(tmp_path, sd_folder):
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    tiny.save_pretrained(tmp_path / "top")
    loaded = load_vae(str(tmp_path / "top"))
    assert isinstance(loaded, AutoencoderTiny)
    assert equal(tiny, loaded)
    assert isinstance(load_vae(str(sd_folder)), AutoencoderKL)
    assert isinstance(load_vae(str(sd_folder / "vae")), AutoencoderKL)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="holds a UNet2DModel; expected AutoencoderKL or AutoencoderTiny"):
        load_vae(str(tmp_path / "x"))


def test_widths_that_do_not_fit_are_named():
    scheduler = tiny_parts(text=False).scheduler
    with pytest.raises(ValueError, match="takes 4 latent channels but the autoencoder makes 2"):
        LatentDiffusionParts(unet=tiny_unet(), vae=tiny_vae(latent_channels=2), scheduler=scheduler)
    encoder = TextEncoder.byte_level(width=8, num_heads=2)
    with pytest.raises(ValueError, match="attends to width 16 but the text encoder has width 8"):
        LatentDiffusionParts(unet=tiny_unet(), vae=tiny_vae(), scheduler=scheduler, text_encoder=encoder)


def test_an_export_whose_unet_sees_more_than_latents_is_no_base(tmp_path):
    parts = tiny_parts()
    widen_input(parts.unet, 7)  # as DiffusingColors does for hints
    parts.save(tmp_path)
    with pytest.raises(ValueError) as caught:
        LatentDiffusionParts.from_folder(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} is no base: its U-Net takes 7 channels and the autoencoder makes 4, as in a run of diffusing_colors "
        "with module.hint_prob above 0 or module.sees_source=true; give the base of that run as module.parts.source, or "
        "train that run on with resume=RUN_DIR or ckpt_path=CHECKPOINT"
    )


def test_dtypes_by_name():
    assert to_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16"):
        to_dtype("fp16")
