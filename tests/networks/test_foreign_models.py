"""Models of others: every variant of the weights is taken, and what is no Stable Diffusion 1.x or 2.x is named."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

from lightning_modules.latent_diffusion import LatentDiffusion
from networks.foreign_models import ForeignModelError
from networks.latent_diffusion_parts import LatentDiffusionParts, load_vae
from tests.models import tiny_settings, tiny_unet, tiny_vae
from tests.networks.sd_folder import save_sd_folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    return folder, save_sd_folder(folder)


@pytest.fixture
def base(made, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made[0], tmp_path / "base"))


@pytest.mark.parametrize("shard", ["10GB", "30KB"])
@pytest.mark.parametrize("parts", [["unet", "vae", "text_encoder"], ["vae"]])
def test_a_variant_is_taken_where_there_are_no_plain_weights(made, base, parts, shard):
    pipeline = made[1]
    for name in parts:
        for file in base.glob(f"{name}/*.safetensors"):
            file.unlink()
        part = copy.deepcopy(getattr(pipeline, name)).half()
        part.save_pretrained(base / name, variant="fp16", max_shard_size=shard)
    loaded = LatentDiffusionParts.from_folder(str(base))
    for name in ("unet", "vae", "text_encoder"):
        ours = getattr(loaded, name)
        ours, theirs = (
            (ours.model if name == "text_encoder" else ours).state_dict(),
            getattr(pipeline, name).state_dict(),
        )
        assert all(
            torch.equal(ours[key], theirs[key].half().float() if name in parts else theirs[key])
            for key in ours
        )
        assert {value.dtype for key, value in ours.items() if value.is_floating_point()} == {torch.float32}
    assert load_vae(str(base / "vae")).dtype == torch.float32


def test_plain_weights_come_before_a_variant(made, base):
    half = tiny_unet(16).half()
    half.save_pretrained(base / "unet", variant="fp16")
    assert torch.equal(
        LatentDiffusionParts.from_folder(str(base)).unet.conv_in.weight, made[1].unet.conv_in.weight
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {}),
        ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("UniPCMultistepScheduler", {}),
        ("LCMScheduler", {}),
    ],
)
def test_schedulers_of_betas_are_taken(base, name, settings):
    scheduler = getattr(diffusers, name)(**{"beta_schedule": "scaled_linear"} | settings)
    scheduler.save_pretrained(base / "scheduler")
    module = LatentDiffusion(parts=LatentDiffusionParts.from_folder(str(base)), **tiny_settings())
    given = scheduler.alphas_cumprod
    torch.testing.assert_close(module.path.alphas_cumprod[:-1], given[:-1], atol=1e-6, rtol=1e-4)
    assert module.objective.prediction == scheduler.config.prediction_type


def scheduler(name: str, **settings) -> Callable[[Path], None]:
    return lambda base: getattr(diffusers, name)(**settings).save_pretrained(base / "scheduler")


def unet(**changes) -> Callable[[Path], None]:
    config = {key: value for key, value in tiny_unet(16).config.items() if not key.startswith("_")}
    return lambda base: UNet2DConditionModel.from_config(config | changes).save_pretrained(base / "unet")


def with_t5(base: Path) -> None:
    settings = {"vocab_size": 10, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    shutil.rmtree(base / "text_encoder")
    T5EncoderModel(T5Config(**settings)).save_pretrained(base / "text_encoder")


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            scheduler("FlowMatchEulerDiscreteScheduler"),
            "its FlowMatchEulerDiscreteScheduler has beta_schedule=None",
        ),
        (scheduler("EDMEulerScheduler"), "its EDMEulerScheduler has beta_schedule=None"),
        (
            scheduler("EulerDiscreteScheduler", timestep_type="continuous"),
            "has timestep_type=continuous, expected discrete",
        ),
        (
            scheduler("DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction"),
            "has prediction_type=flow_prediction, expected epsilon or v_prediction or sample",
        ),
        (scheduler("DDIMScheduler", trained_betas=[0.1, 0.2]), "has trained_betas="),
        (unet(**XL), "its U-Net takes further inputs (addition_embed_type=text_time)"),
        (unet(num_class_embeds=4), "its U-Net takes further inputs (num_class_embeds=4)"),
        (unet(in_channels=9), "its U-Net takes 9 channels and the autoencoder makes 4"),
        (unet(in_channels=8, out_channels=8), "its U-Net takes 8 channels and the autoencoder makes 4"),
        (unet(cross_attention_dim=24), "its U-Net attends to width 24, but its text encoder has width 16"),
        (with_t5, "its text encoder is a t5, expected a clip_text_model"),
    ],
)
def test_another_kind_of_model_is_named(base, change, fault):
    change(base)
    index = json.loads((base / "model_index.json").read_text()) | {"_class_name": "StrangePipeline"}
    (base / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ForeignModelError) as caught:
        LatentDiffusionParts.from_folder(str(base))
    message = str(caught.value)
    assert message.startswith(f"{base} (StrangePipeline) is no base: its ")
    assert fault in message
    assert message.endswith("or a run of your own by python export.py run=RUN_DIR output=DIR")
    assert "\n" not in message
    assert "module.parts.unet" not in message


def test_a_transformer_is_named(base):
    (base / "unet").rename(base / "transformer")
    with pytest.raises(FileNotFoundError, match=r"holds no unet/ folder \(only .*transformer/, vae/\)"):
        LatentDiffusionParts.from_folder(str(base))


@pytest.mark.parametrize("load", [LatentDiffusionParts.from_folder, load_vae])
@pytest.mark.parametrize("folder", [True, False])
def test_a_single_file_is_to_be_converted(tmp_path, load, folder):
    file = tmp_path / "v1-5-pruned.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ForeignModelError) as caught:
        load(str(tmp_path if folder else file))
    assert str(caught.value).startswith(f"{file} is a single file, but a model here is a folder")
    assert f"D.from_single_file('{file}').save_pretrained('NEW_DIR')" in str(caught.value)
    kind = "AutoencoderKL" if load is load_vae else "StableDiffusionPipeline"
    assert hasattr(getattr(diffusers, kind), "from_single_file")
    assert f"import {kind} as D" in str(caught.value)


def test_an_autoencoder_at_the_top_of_a_folder_is_no_single_file(tmp_path):
    tiny_vae().half().save_pretrained(tmp_path, variant="fp16")
    assert load_vae(str(tmp_path)).dtype == torch.float32
