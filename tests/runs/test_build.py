"""A config is data: hostile targets, wherever they come from, are refused by name and their payload does not run."""

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from doors.compare import with_datamodule
from runs.build import ALLOWED, OWN_FUNCTIONS, OWN_ROOMS, ROOT, build, check_targets, located, own_classes
from runs.config import load_config, override
from runs.load import load_run
from runs.schema import check_config
from tests.runs.conftest import TINY
from tests.runs.saved_runs import save_autoencoder

EMA = {"_target_": "callbacks.ema.EMA", "decay": 0.5}


def to(target: Any, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


def hostile(mark: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Nodes that would make `mark` if they were built as callbacks.x, and the config path that a refusal names."""
    shell, file = f"touch {mark}", str(mark.with_name("payload.pkl"))
    system = to("os.system", command=shell)
    targets = {
        # what Hydra 1.3.8 lets through
        "torch.load": to("torch.load", f=file, weights_only=False),
        "torch.hub": to("torch.hub.load", repo_or_dir=str(mark.parent), model="x", source="local"),
        "numpy": to("numpy.load", file=file, allow_pickle=True),
        "pathlib": to("pathlib.Path.touch", self=str(mark)),
        "mkdir": to("os.mkdir", path=str(mark)),
        "pip": to("pip.main", args=["--log", str(mark), "--version"]),
        # what it blocks
        "os": system,
        "subprocess": to("subprocess.run", args=["touch", str(mark)]),
        "eval": to("builtins.eval", source=f"open({str(mark)!r}, 'w')"),
        "pickle": to("pickle.load", file=file),
        "runpy": to("runpy.run_path", path_name=file),
        # what a file of ours has imported: Hydra walks attributes
        "our torch": to("reliability.checkpoints.torch.load", f=file, weights_only=False),
        "our os": to("reliability.checkpoint_io.os.mkdir", path=str(mark)),
        "our shutil": to("reliability.checkpoint_io.shutil.copyfile", src=file, dst=str(mark)),
        "our Path": to("datamodules.photos.Path.touch", self=str(mark)),
        "our yaml": to("callbacks.wandb_logger.yaml.unsafe_load", stream=f"!!python/object/new:os.mkdir [{mark}]"),
        "our import": to("networks.latent_diffusion_parts.UNet2DConditionModel.from_pretrained", path=file),
        # what our classes inherit, and what is no class
        "inherited": to("lightning_modules.autoencoder.Autoencoder.load_from_checkpoint", checkpoint_path=file),
        "function": to("networks.latent_diffusion_parts.to_dtype", name=str(mark.parent)),
        "private": to("reliability.checkpoint_io._keep", path=str(mark), kept=str(mark)),
        "globals": to("callbacks.ema.EMA.__init__.__globals__.clear"),
        "room": to("callbacks"),
        "file": to("callbacks.ema"),
        "allowed class's method": to("diffusers.AutoencoderKL.from_pretrained", path=file),
        # names that only look like ours
        "absolute": to(f"callbacks.{mark.parent}/evil.Evil"),
        "wide dot": to("callbacks\uff0eema.EMA", decay=0.5),
        "wide letter": to("callbacks.ema.\uff25MA", decay=0.5),
        "blank": to("callbacks.ema.EMA ", decay=0.5),
        "line": to("callbacks.ema.EMA\n", decay=0.5),
        "relative": to("..os.system", command=shell),
        "empty": to(""),
        "number": to(7),
        "null": to(None),
        "list": to(["os.system"], command=shell),
        "node": to(system),
        # ours, but no callback
        "role": to("datamodules.builtin.BuiltinPhotosDataModule", size_px=32),
    }  # fmt: skip
    hidden = {
        "interpolated": ("callbacks.x._target_", to("${oc.env:NO_SUCH_NAME,os.system}", command=shell)),
        "decoded": ("callbacks.x.decay", EMA | {"decay": f'${{oc.decode:"{{_target_: os.mkdir, path: {mark}}}"}}'}),
        "environment": ("callbacks.x.decay", EMA | {"decay": "${oc.env:HOME}"}),
        "nested": ("callbacks.x.decay._target_", EMA | {"decay": system}),
        "in lists": ("callbacks.x.decay[0][1]._target_", EMA | {"decay": [[1, system]]}),
        "partial": ("callbacks.x.decay._target_", EMA | {"decay": system | {"_partial_": True}}),
        "positional": ("callbacks.x._args_", EMA | {"_args_": [system]}),
        "not recursive": ("callbacks.x._recursive_", EMA | {"_recursive_": False}),
        "converted": ("callbacks.x._convert_", EMA | {"_convert_": "object"}),
        "partial word": ("callbacks.x._partial_", EMA | {"_partial_": "yes"}),
        "callable": ("callbacks.x._target_", to(Path.touch, self=str(mark))),
        "object": ("callbacks.x.decay", EMA | {"decay": Path(mark)}),
    }  # fmt: skip
    return {name: ("callbacks.x._target_", node) for name, node in targets.items()} | hidden


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that a payload would make, with a pickle that does so beside it."""
    mark = tmp_path / "ran"
    script = f"import os; os.mkdir({str(mark)!r})"
    mark.with_name("payload.pkl").write_bytes(b"cbuiltins\nexec\n(V" + script.encode() + b"\ntR.")
    return mark


def test_the_pickle_of_these_tests_is_a_real_payload(mark: Path) -> None:
    pickle.loads(mark.with_name("payload.pkl").read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("name", hostile(Path("/mark")))
def test_a_hostile_node_is_refused_with_its_path_and_does_not_run(name: str, mark: Path) -> None:
    where, node = hostile(mark)[name]
    with pytest.raises(ValueError, match=f"^{re.escape(where)} (is|are) ") as caught:
        build(node, "callbacks.x")
    assert len(str(caught.value)) < 700
    with pytest.raises(
        ValueError, match=f"^{re.escape(where)} (is|are) "
    ):  # the same before torch is imported
        check_config({"callbacks": {"x": node}})
    assert not mark.exists()


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            "torch.load",
            "module._target_ is 'torch.load', which is not among the classes this project builds; "
            "use a class of its own packages or one listed in runs/build.py",
        ),
        (
            "reliability.checkpoint_io.shutil.rmtree",
            "module._target_ is 'reliability.checkpoint_io.shutil.rmtree', which is no class that this project defines"
            "; did you mean 'reliability.checkpoint_io.AtomicCheckpointIO'?",
        ),
        (
            "callbacks.ema.EMA",
            "module._target_ is 'callbacks.ema.EMA', expected one that starts with lightning_modules.",
        ),
    ],
)
def test_refusals_say_what_was_found_and_what_is_possible(target: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_targets({"_target_": target}, "module")


def test_a_node_without_a_target_builds_nothing() -> None:
    with pytest.raises(ValueError, match="^module has no _target_, so there is nothing to build$"):
        build({"decay": 0.5}, "module")


@pytest.mark.parametrize("room", [room.rstrip(".") for room in OWN_ROOMS])
def test_every_class_of_a_room_is_found_and_nothing_else_that_its_files_hold(room: str) -> None:
    for path in sorted((ROOT / room).glob("[!_]*.py")):
        module = f"{room}.{path.stem}"
        allowed = set(own_classes(module))
        for name, value in vars(importlib.import_module(module)).items():
            found = located(f"{module}.{name}")
            is_ours = isinstance(value, type) and value.__module__.startswith(OWN_ROOMS) and name[0] != "_"
            assert found is (value if is_ours or f"{module}.{name}" in OWN_FUNCTIONS else None), name
            assert found is None or f"{module}.{name}" in allowed or value.__module__ != module


def test_nothing_outside_the_rooms_is_imported_to_judge_a_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for target in (
        "evil.Evil",
        "callbacks.evil.Evil",
        "callbacks.ema.evil.Evil",
        "callbacks...evil.Evil",
        "evil",
    ):
        assert located(target) is None
        with pytest.raises(ValueError, match="_target_ is "):
            check_targets({"_target_": target}, "")
    assert not (tmp_path / "ran").exists()


def test_the_lists_name_what_exists() -> None:
    for name in sorted(ALLOWED | OWN_FUNCTIONS):
        module, _, attribute = name.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute)), name


def test_every_config_of_the_project_is_built_from_the_lists() -> None:
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        targets = re.findall(r"_target_: *([\w.]+)", file.read_text(encoding="utf-8"))
        for target in targets:
            check_targets({"_target_": target}, str(file.relative_to(ROOT)))


@pytest.mark.parametrize(
    "word",
    [
        "+hydra.callbacks.x={_target_: os.mkdir, path: MARK}",
        "+hydra.callbacks.x._target_=os.mkdir",
        "++hydra.callbacks={x: {_target_: os.mkdir, path: MARK}}",
        "hydra={callbacks: {x: {_target_: os.mkdir, path: MARK}}}",
        "+module@hydra.callbacks.x=autoencoder",
        "hydra.sweeper._target_=os.system",
        "+hydra.sweeper.x={_target_: os.mkdir, path: MARK}",
        "hydra.sweeper.max_batch_size='${module.vae}'",
        "hydra.sweeper.params={+hydra.callbacks.x._target_: os.mkdir}",
        "+hydra.launcher.x={_target_: os.mkdir, path: MARK}",
        "hydra/launcher=joblib",
        "hydra.job_logging={version: 1}",
        "hydra.searchpath=[file://MARK]",
        "hydra.job.env_set={LD_PRELOAD: MARK}",
        "~hydra.callbacks",
    ],
)  # fmt: skip
def test_hydra_itself_builds_nothing_that_a_command_names(door, tmp_path: Path, word: str) -> None:
    mark = tmp_path / "ran"
    for arguments in ((), ("-m",)):
        message = door(*arguments, "experiment=autoencoder", word.replace("MARK", str(mark)))
        assert isinstance(message, str)
        assert "is refused: of Hydra's own settings a command may set hydra.run.dir, " in message
        assert word[:12] in message
    assert not mark.exists()


@pytest.mark.parametrize("flag", ["--experimental-rerun", "--experimental", "--config-dir", "-cp", "-cn"])
def test_other_configs_and_pickles_are_refused(door, mark: Path, flag: str) -> None:
    message = door("experiment=autoencoder", flag, str(mark.with_name("payload.pkl")))
    assert message.startswith("error: --")
    assert " is refused: it " in message
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("module._target_=os.system",),
        ("module.vae._target_=reliability.checkpoints.torch.load",),
        ("+module.vae.x={_target_: os.mkdir, path: MARK}",),
        ("+callbacks.x={_target_: reliability.checkpoint_io.os.mkdir, path: MARK}",),
        ("module._target_=${oc.env:NO_SUCH_NAME,os.system}",),
        ("trainer.plugins=[{_target_: reliability.checkpoint_io.os.mkdir, path: MARK}]",),
        ('run_dir="\\${oc.env:HOME}"',),
    ],
)
def test_a_command_line_reaches_only_our_classes(door, tmp_path: Path, words: tuple[str, ...]) -> None:
    mark = tmp_path / "ran"
    key = words[0].lstrip("+").partition("=")[0]
    message = door("experiment=autoencoder", *(word.replace("MARK", str(mark)) for word in words))
    assert re.match(rf"error: {re.escape(key)}(\[0\])?(\._target_)? is '", message), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("+datamodule.x={_target_: os.mkdir, path: MARK}",),
        (
            "datamodule=builtin_photos",
            "+datamodule.x={_target_: reliability.checkpoint_io.os.mkdir, path: MARK}",
        ),
        ("+callbacks.x={_target_: os.mkdir, path: MARK}",),
        ("datamodule._target_=os.system",),
    ],
)
def test_an_evaluation_reaches_only_our_classes(words: tuple[str, ...], tmp_path: Path, mark: Path) -> None:
    config = load_config(save_autoencoder(tmp_path))
    refusals = r"\._target_ is '|unknown key 'datamodule\._target_'|callbacks.x=.* has no effect here"
    with pytest.raises(ValueError, match=refusals):
        with_datamodule(config, [word.replace("MARK", str(mark)) for word in words])
    assert not mark.exists()


def test_a_launch_in_plain_order_still_works(door, tmp_path: Path) -> None:
    assert door("-m", *TINY, "debug=fast", f"hydra.sweep.dir={tmp_path}/mine", "hydra.verbose=false") == 0
    assert (tmp_path / "mine" / "0" / "status").is_file()


HOSTILE_YAML = {
    "tag": "seed: !!python/object/apply:os.mkdir [MARK]\n",
    "new": "seed: !!python/object/new:os.mkdir [MARK]\n",
    "name": "seed: !!python/name:os.system\n",
    "path": "seed: !!python/object/apply:pathlib.PosixPath [MARK]\n",
    "environment": "experiment_name: ${oc.env:HOME}\n",
    "decoded": "module: ${oc.decode:'{_target_: os.mkdir, path: MARK}'}\n",
    "escaped": "module: \\${oc.decode:'{_target_: os.mkdir, path: MARK}'}\n",
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_the_config_of_a_downloaded_run_is_only_read(name: str, tmp_path: Path) -> None:
    mark, config = tmp_path / "ran", tmp_path / "config.yaml"
    text = HOSTILE_YAML[name].replace("MARK", str(mark))
    config.write_text(
        f"run_dir: here\nmodule:\n  _target_: x\n{text}".replace("module:\n  _target_: x\nmodule", "module")
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for load in (load_config, lambda folder: load_run(str(folder))):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(config))}(:| cannot be read)") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["our torch", "our os", "inherited", "function", "allowed class's method"])
def test_a_downloaded_run_reaches_only_our_classes(name: str, tmp_path: Path, mark: Path) -> None:
    run_dir = save_autoencoder(tmp_path)
    config = OmegaConf.load(run_dir / "config.yaml")
    _, node = hostile(mark)[name]
    config.module.vae = node
    OmegaConf.save(config, run_dir / "config.yaml")
    with pytest.raises(
        ValueError, match=r"^module\.vae\._target_ is '"
    ):  # predict.py, evaluate.py, export.py
        load_run(str(run_dir))
    with pytest.raises(ValueError, match=r"^module\.vae\._target_ is '"):  # train.py resume=
        override(load_config(run_dir), [])
    assert not mark.exists()
