"""The way back from a run folder, a checkpoint or a shipped name to a module with its weights."""

import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir

from doors.export import save_exported
from runs import load
from runs.choices import CONF
from runs.config import override, resolved
from runs.load import load_run, locate, resolve_shipped_paths
from tests.runs.saved_runs import colorizer_node, save_autoencoder, save_colorizer, save_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("run"), sd=False)


def trained(module):
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def test_folder_and_checkpoint_give_the_saved_weights_in_eval_mode(run_dir):
    saved = torch.load(run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for source in (run_dir, run_dir / "checkpoints" / "best.ckpt"):
        run = load_run(str(source))
        assert not run.module.training
        assert run.config["experiment_name"] == "tiny"
        assert locate(str(source)) == run_dir / "checkpoints" / "best.ckpt"
        assert trained(run.module).keys() == saved.keys()
        assert all(torch.equal(p, saved[name]) for name, p in trained(run.module).items())


def test_the_average_is_taken_where_the_run_kept_one(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    path = copy / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    average = {name: value + 1 for name, value in checkpoint["state_dict"].items()}
    checkpoint["callbacks"] = {"EMA": {"average": average, "num_updates": 1}}
    torch.save(checkpoint, path)
    assert all(torch.equal(p, average[name]) for name, p in trained(load_run(str(copy)).module).items())


def test_best_comes_before_last(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run") / "checkpoints"
    shutil.copy(copy / "best.ckpt", copy / "last.ckpt")
    assert locate(str(copy.parent)).name == "best.ckpt"
    (copy / "best.ckpt").unlink()
    assert locate(str(copy.parent)).name == "last.ckpt"


def test_a_shipped_model_is_found_by_name_from_any_folder(run_dir, tmp_path, monkeypatch):
    shipped = tmp_path / "pretrained" / "tiny_colorizer"
    run = load_run(str(run_dir))
    save_exported(run.module, shipped)
    shutil.copy(run_dir / "config.yaml", shipped)
    monkeypatch.setattr(load, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(run_dir)
    again = load_run("tiny_colorizer")
    ours, theirs = trained(run.module), trained(again.module)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert locate(str(shipped)) == shipped


def test_wrong_names_are_one_sentence(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(load, "PRETRAINED", tmp_path)
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="run=colorise: no such run .* shipped models are: shipped"):
        load_run("colorise")
    (tmp_path / "empty" / "x").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match="holds no checkpoints/best.ckpt or last.ckpt, .*; train it first"
    ):
        load_run(str(tmp_path / "empty" / "x"))
    (tmp_path / "photo.png").write_bytes(b"no checkpoint")
    with pytest.raises(
        FileNotFoundError, match="config.yaml is missing; run= takes the folder that train.py"
    ):
        load_run(str(tmp_path / "photo.png"))


def test_damaged_files_are_one_sentence(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    path = copy / "checkpoints" / "best.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read: it is damaged") as caught:
        load_run(str(copy))
    assert "\n" not in str(caught.value)
    (copy / "config.yaml").write_text("module: [")
    with pytest.raises(ValueError, match="config.yaml cannot be read"):
        load_run(str(copy))
    for text, key in (("", "module"), ("[1]", "module"), ("module: {}", "seed")):
        (copy / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"config.yaml is not the config of a run: it has no {key}$"):
            load_run(str(copy))


def test_a_checkpoint_of_another_experiment_is_refused(run_dir, tmp_path):
    other = save_autoencoder(tmp_path)
    shutil.copy(run_dir / "checkpoints" / "best.ckpt", other / "checkpoints" / "best.ckpt")
    with pytest.raises(
        ValueError, match="checkpoint is of ColorizeControlNet, but this experiment is Autoenc"
    ):
        load_run(str(other))


def test_an_autoencoder_keeps_its_scale_factor(tmp_path):
    run_dir = save_autoencoder(tmp_path)
    path = run_dir / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"scaling_factor": 1.25}, path)
    assert load_run(str(run_dir)).module.vae.config.scaling_factor == 1.25


def test_shipped_paths_work_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    node = {"a": ["pretrained/no_such_model"], "b": "elsewhere/x", "c": 3}
    assert resolve_shipped_paths(node) == {
        "a": [str(load.REPOSITORY / "pretrained/no_such_model")],
        "b": "elsewhere/x",
        "c": 3,
    }
    (tmp_path / "pretrained" / "no_such_model").mkdir(parents=True)
    assert resolve_shipped_paths(node) == node


def test_what_exists_at_the_start_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_base").mkdir()
    (tmp_path / "photos").mkdir()
    words = [
        "experiment=colorize_controlnet",
        "datamodule=photos",
        "datamodule.root=photos",
        "callbacks=cached",
    ]
    for source, saved in (
        ("my_base", str(tmp_path / "my_base")),
        ("./my_base", str(tmp_path / "my_base")),
        ("some_hub_name", "some_hub_name"),
        ("pretrained/latent_diffusion", "pretrained/latent_diffusion"),
    ):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = resolved(compose("train", [*words, f"module.parts.source={source}"]))
        assert config["module"]["parts"]["source"] == saved
        assert config["datamodule"]["root"] == str(tmp_path / "photos")
        assert config["callbacks"]["latent_cache"]["folder"] == str(tmp_path / ".cache/latents")
    changed = override({**config, "ckpt_path": None}, ["module.parts.source=my_base"])
    assert changed["module"]["parts"]["source"] == str(tmp_path / "my_base")


def test_a_base_inside_the_run_folder_moves_with_it(run_dir, tmp_path):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(run_dir.parent / "base", copy / "base")
    text = (copy / "config.yaml").read_text()
    text = text.replace(str(run_dir.parent / "base"), str(copy / "base"))
    (copy / "config.yaml").write_text(text.replace(f"run_dir: {run_dir}", f"run_dir: {copy}"))
    moved = copy.rename(tmp_path / "moved")
    assert load_run(str(moved)).config["module"]["parts"]["source"] == str(moved / "base")


def test_a_missing_base_is_named(tmp_path, run_dir):
    copy = shutil.copytree(run_dir, tmp_path / "run")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("/base", "/lost"))
    with pytest.raises(FileNotFoundError, match="no model '.*/lost'"):
        load_run(str(copy))


def test_targets_outside_the_project_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not among the classes this project builds"):
        save_run(tmp_path, colorizer_node(tmp_path) | {"_target_": "os.system"})
