"""export.py: a folder for plain diffusers, whole or not at all, in safetensors alone."""

import re
import runpy
import shutil

import numpy as np
import pytest
import skimage.data
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from doors.export import export, save_exported
from doors.options import ExportOptions
from lightning_modules.latent_diffusion import LatentDiffusion
from runs.load import load_run
from tests.doors.calls import predicted
from tests.models import tiny_parts, tiny_settings
from tests.runs.saved_runs import (
    save_autoencoder,
    save_bridge,
    save_colorizer,
    save_latent_diffusion,
    save_ranker,
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("run"))


def test_diffusers_loads_the_folder_with_the_runs_weights(run_dir, tmp_path):
    folder = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "a" / "out")))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(folder)
    saved = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in pipe.controlnet.state_dict().items():
        if name == "controlnet_cond_embedding.conv_in.weight":  # of a picture of three channels
            value = value[:, :1] + value[:, 1:2] + value[:, 2:]
        assert torch.equal(value, saved[f"controlnet.{name}"])
    assert (folder / "config.yaml").is_file()
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".yaml", ".jinja", ".md"}
    assert [path.name for path in folder.parent.iterdir()] == ["out"]  # no scratch folder is left


def test_weights_are_stored_in_the_given_dtype(run_dir, tmp_path):
    folder = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "half"), dtype="float16"))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert pipe.controlnet.dtype == pipe.unet.dtype == pipe.vae.dtype == torch.float16
    whole = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "whole")))
    weights = [f / "controlnet" / "diffusion_pytorch_model.safetensors" for f in (folder, whole)]
    assert weights[0].stat().st_size < 0.7 * weights[1].stat().st_size


def test_a_folder_with_content_is_refused_and_left_alone(run_dir, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not an empty folder; give a new one"):
        export(ExportOptions(run=str(run_dir), output=str(tmp_path)))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert (export(ExportOptions(run=str(run_dir), output=str(tmp_path / "empty"))) / "unet").is_dir()


def test_a_failure_leaves_no_folder(run_dir, tmp_path, monkeypatch):
    def fails(pipeline, parts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("doors.export.model_index", fails)
    with pytest.raises(OSError, match="No space left"):
        export(ExportOptions(run=str(run_dir), output=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_named(run_dir, tmp_path):
    with pytest.raises(ValueError, match="'fp16' is unknown; expected one of float32, bfloat16, float16"):
        export(ExportOptions(run=str(run_dir), output=str(tmp_path / "out"), dtype="fp16"))


def test_an_export_is_a_run(run_dir, tmp_path):
    """Its weights, base included, are the run's, bit for bit, wherever the folder is."""
    folder = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "out")))
    ours, theirs = load_run(str(run_dir)), load_run(str(folder))
    assert theirs.module.working_px == ours.module.working_px == 32
    states = [run.module.state_dict() for run in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_an_export_without_what_learns_is_named(run_dir, tmp_path):
    folder = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "out")))
    shutil.rmtree(folder / "vae")  # frozen: the base of the config serves
    load_run(str(folder))
    shutil.rmtree(folder / "controlnet")
    with pytest.raises(
        FileNotFoundError, match="has no folder controlnet with weights; export the run again"
    ):
        load_run(str(folder))


@pytest.mark.parametrize("settings", [{}, {"mid_control_only": True}])
def test_a_pil_picture_of_lightness_gives_what_the_run_draws(tmp_path, settings):
    """The stock pipeline takes PIL's picture, whose three channels are one, and predicts what our module does."""
    run_dir = save_colorizer(tmp_path)
    module = load_run(str(run_dir)).module
    for name, value in settings.items():
        setattr(module, name, value)
    with torch.no_grad():
        module.controlnet.controlnet_cond_embedding.conv_in.weight.mul_(20)  # so that the condition shows
    save_exported(module, tmp_path / "out")
    pipe = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "out").to("cpu")
    grey = Image.fromarray(skimage.data.astronaut()).convert("L").resize((32, 32))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    words = {"num_inference_steps": 2, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    theirs = pipe("red", image=grey, height=32, width=32, **words).images
    cond = torch.from_numpy(np.array(grey))[None, None] / 255

    @torch.no_grad()
    def drawn(cond):
        denoise = module.guided({"text": module.embed(["red"]), "cond": cond}, module.Options(guidance=1.0))
        return module.draw(denoise, noise, num_steps=2)

    ours = drawn(cond)
    effect = (drawn(cond * 0) - ours).abs().max()
    assert (theirs - ours).abs().max() < 0.02 * effect


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_three_channels_are_read_back_bit_for_bit(run_dir, tmp_path, dtype):
    module = load_run(str(run_dir)).module.to(dtype)
    save_exported(module, tmp_path)
    written = ControlNetModel.from_pretrained(tmp_path / "controlnet", torch_dtype=dtype)
    assert written.config.conditioning_channels == 3
    own = module.controlnet.state_dict()
    before = {name: value.clone() for name, value in own.items()}
    module.controlnet.load_state_dict(written.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.controlnet.state_dict().items())


SAVED = {
    "colorizer": save_colorizer,
    "bridge": save_bridge,
    "generator": save_latent_diffusion,
    "autoencoder": save_autoencoder,
}


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # the colours of an untrained model
@pytest.mark.parametrize("kind", SAVED)
def test_the_readme_of_an_export_says_how_to_use_it(tmp_path, monkeypatch, kind):
    folder = export(ExportOptions(run=str(SAVED[kind](tmp_path)), output=str(tmp_path / "out")))
    text = (folder / "README.md").read_text()
    assert ("No pipeline of diffusers" in text) == (not (folder / "model_index.json").exists())
    assert ("No pipeline of diffusers" in text) == (kind in ("bridge", "autoencoder"))
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.astronaut()).resize((40, 32)).save("photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1 + (kind == "colorizer")
    for code in blocks:
        (tmp_path / "lines.py").write_text(code)
        runpy.run_path("lines.py", {"FOLDER": str(folder)})
    assert (tmp_path / "coloured.png").exists() == (kind == "colorizer")
    words = {"run": folder, "output": tmp_path / "drawn", "device": "cpu"}
    assert predicted(**words, input=None if kind == "generator" else "photo.jpg") == 0


def test_what_makes_no_pictures_has_a_readme_too(tmp_path):
    text = (
        export(ExportOptions(run=str(save_ranker(tmp_path)), output=str(tmp_path / "out"))) / "README.md"
    ).read_text()
    assert "chroma=auto ranker=FOLDER" in text
    assert "python predict.py run=FOLDER" not in text


def test_a_model_without_a_text_encoder_is_no_pipeline(tmp_path):
    parts = tiny_parts(text=False)
    save_exported(LatentDiffusion(parts=parts, **tiny_settings()), tmp_path)
    assert not (tmp_path / "model_index.json").exists()
    assert "No pipeline of diffusers" in (tmp_path / "README.md").read_text()
