"""export.py: a folder for plain diffusers, whole or not at all, in safetensors alone."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline

from doors.export import export
from doors.options import ExportOptions
from runs.load import load_run
from tests.runs.saved_runs import save_colorizer


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("run"))


def test_diffusers_loads_the_folder_with_the_runs_weights(run_dir, tmp_path):
    folder = export(ExportOptions(run=str(run_dir), output=str(tmp_path / "a" / "out")))
    pipe = StableDiffusionControlNetPipeline.from_pretrained(folder)
    saved = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, value in pipe.controlnet.state_dict().items():
        assert torch.equal(value, saved[f"controlnet.{name}"])
    assert (folder / "config.yaml").is_file()
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert ".safetensors" in suffixes
    assert suffixes <= {".safetensors", ".json", ".txt", ".yaml", ".jinja"}
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
