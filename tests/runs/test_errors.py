"""Each wrong command line ends in one sentence before torch is needed and leaves no run folder."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runs.cli import run_door

A = "experiment=autoencoder"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "error: no experiment chosen; add experiment=NAME with one of: alignment"),
        (
            ("experiment=autoencode",),
            "error: there is no experiment 'autoencode'; did you mean 'autoencoder'?",
        ),
        ((A, "trainer=gpuu"), "error: there is no trainer 'gpuu'; did you mean 'gpu'?"),
        (
            ("autoencoder",),
            "error: cannot read 'autoencoder'; write key=value, for example experiment=autoencoder",
        ),
        (
            (A, "trainer.max_step=2"),
            "error: unknown key 'trainer.max_step'; did you mean 'trainer.max_steps'",
        ),
        ((A, "max_steps=2"), "error: unknown key 'max_steps'; did you mean 'trainer.max_steps'?"),
        (
            (A, "module.optimizer.lrr=1"),
            "error: unknown key 'module.optimizer.lrr'; did you mean 'module.optimizer.lr'?",
        ),
        (
            (A, "trainer.fast_dev_run=1"),
            "error: trainer.fast_dev_run is not set by this config; add it with a plus sign",
        ),
        ((A, "+typo=1"), "error: unknown key 'typo'; choices: callbacks, ckpt_path"),
        ((A, "+module.typo=1"), "error: unknown key 'module.typo': Autoencoder takes no 'typo'"),
        ((A, "+module.vae.in_chanels=3"), "AutoencoderKL takes no 'in_chanels'; did you mean 'in_channels'"),
        ((A, "+trainer.typo=1"), "error: unknown key 'trainer.typo': Trainer takes no 'typo'"),
        ((A, "trainer.max_steps=fast"), "error: trainer.max_steps is 'fast', expected int"),
        ((A, "trainer.max_steps=1e4"), "error: trainer.max_steps is 10000.0, expected int; write 10000"),
        ((A, "module.kl_weight=null"), "error: module.kl_weight is null, expected float"),
        ((A, "seed=one"), "error: seed is 'one', expected int"),
        ((A, "run_dir=2030"), "error: run_dir is 2030, expected str"),
        ((A, "run_dir=1e5"), "error: run_dir is 100000.0, expected str; for text write \"run_dir='1e5'\""),
        (
            (A, "ckpt_path=[a]"),
            "error: ckpt_path is ['a'], expected null or str; for text write \"ckpt_path='[a]'\"",
        ),
        (
            (A, "datamodule=photos", "datamodule.root=a,b"),
            "'datamodule.root=a,b' has several values; add -m for a sweep, or for text write \"datamodule.root='a,b'\"",
        ),
        (
            (A, "experiment_name=a (1)"),
            "error: cannot read 'experiment_name=a (1)'; for text write \"experiment_name='a (1)'\"",
        ),
        ((A, "resume="), "error: resume is empty, perhaps from a shell variable that is not set"),
        ((A, "run_dir= "), "error: run_dir is empty"),
        ((A, "ckpt_path="), "error: ckpt_path is empty"),
        ((A, "datamodule=photos", "datamodule.root="), "error: datamodule.root is empty"),
        (
            (A, "datamodule=photos", "datamodule.root=/", "datamodule.cache_dir="),
            "datamodule.cache_dir is empty",
        ),
        ((A, "callbacks.last.folder="), "error: callbacks.last.folder is empty"),
        (("experiment=colorize_controlnet", "module.parts.source="), "error: module.parts.source is empty"),
        (("-m", A, "hydra.sweep.dir="), "error: hydra.sweep.dir= is empty"),
        ((A, "datamodule=photos"), "error: datamodule.root has no value; set it with datamodule.root=VALUE"),
        (
            (A, "module._target_=os.system"),
            "error: module._target_ is 'os.system', which is not among the classes",
        ),
        (
            (A, "module._target_=lightning_modules.autoencoder.Autoencode"),
            "which is no class that this project defines; did you mean 'lightning_modules.autoencoder.Autoencoder'?",
        ),
        ((A, "ckpt_path=nothing.ckpt"), "error: ckpt_path=nothing.ckpt is no checkpoint file"),
        (
            (A, "trainer.max_steps=-1"),
            "error: trainer.max_steps is -1, expected a whole number of at least 1: order,",
        ),
        ((A, "trainer.max_steps=0"), "error: trainer.max_steps is 0, expected a whole number of at least 1"),
        ((A, "~trainer.max_steps"), "error: trainer.max_steps is -1, expected a whole number of at least 1"),
        (
            (A, "trainer.max_epochs=3"),
            "error: trainer.max_epochs is 3, expected -1, as a run counts optimiser steps",
        ),
        ((A, "+trainer.min_epochs=1"), "error: trainer.min_epochs is 1, expected null, as a run counts"),
        (
            (A, "trainer.check_val_every_n_epoch=5"),
            "error: trainer.check_val_every_n_epoch is 5, expected null",
        ),
        ((A, "trainer.precision=bf16-true"), "is 'bf16-true', expected 32-true, bf16-mixed or 16-mixed"),
        ((A, "trainer.precision=16-true"), "is '16-true', expected 32-true, bf16-mixed or 16-mixed"),
        (
            (A, "trainer.val_check_interval=0"),
            "error: trainer.val_check_interval is 0, expected training batches",
        ),
        ((A, "trainer.val_check_interval=-1"), "error: trainer.val_check_interval is -1, expected training"),
        (
            (A, "trainer.val_check_interval=0.5"),
            "error: trainer.val_check_interval is 0.5, expected training",
        ),
        ((A, "trainer.accumulate_grad_batches=0"), "error: trainer.accumulate_grad_batches is 0, expected a"),
        (
            (A, "trainer.accumulate_grad_batches=null"),
            "error: trainer.accumulate_grad_batches is null, expected a",
        ),
        (
            (A, "trainer.log_every_n_steps=0"),
            "error: trainer.log_every_n_steps is 0, expected a whole number",
        ),
        (
            (A, "+trainer.limit_train_batches=0"),
            "error: trainer.limit_train_batches is 0, expected more than 0",
        ),
        ((A, "+trainer.max_time=60"), "error: trainer.max_time is 60, expected DAYS:HOURS:MINUTES:SECONDS"),
        ((A, "+trainer.strategy=ddp_spawn"), "error: trainer.strategy is 'ddp_spawn', expected ddp"),
        (
            (A, "+trainer.logger=false"),
            "error: trainer.logger is False, expected no value, as it has no effect here",
        ),
        (
            (A, "seed=18446744073709551616"),
            "error: seed is 18446744073709551616, expected a whole number from 0",
        ),
        ((A, "seed=4294967296"), "error: seed is 4294967296, expected a whole number from 0 to 4294967295"),
        ((A, "seed=-1"), "error: seed is -1, expected a whole number from 0 to 4294967295"),
        (
            (A, "datamodule.seed=18446744073709551616"),
            "error: datamodule.seed is 18446744073709551616, expected",
        ),
        (
            (A, "~logger"),
            "has no logger, and a run needs one; instead of ~logger choose one: logger= csv, none",
        ),
        (
            (A, "~callbacks"),
            "has no callbacks, and a run needs one; instead of ~callbacks choose one: callbacks= ",
        ),
        (
            (A, "~trainer"),
            "error: the config has no trainer, and a run needs one; instead of ~trainer choose",
        ),
        ((A, "~seed"), "error: the config has no seed, and a run needs one; leave out ~seed"),
        (("resume=nothing",), "error: nothing is no run folder: it has no config.yaml"),
        (("-m", "resume=nothing"), "error: resume=RUN_DIR continues one run; leave out -m"),
        (("-m", A, "seed=1,2", "trainer.devices=2"), "error: a sweep (-m) trains each job in one process"),
    ],
)
def test_one_sentence(door, capfd, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    message = door(*arguments)
    assert isinstance(message, str)
    assert sentence in message
    assert "\n" not in message
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not list(tmp_path.rglob("config.yaml"))


def test_the_documented_errors_are_those_of_the_doors(door) -> None:
    commands = [
        ("experiment=autoencode",),
        (A, "trainer.max_step=2"),
        (A, "trainer.max_steps=fast"),
        (A, "datamodule=photos"),
        (A, "trainer.precision=bf16-true"),
        (A, "module._target_=os.system"),
        (A, "module.vae._target_=reliability.checkpoints.torch.load"),
        (A, "module._target_=callbacks.ema.EMA"),
    ]
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    documented = [line for line in page.splitlines() if line.startswith("error: ")]
    assert documented == [door(*words) for words in commands]


def test_help_names_experiments_and_groups(door, capsys) -> None:
    assert door("--help") == 0
    text = capsys.readouterr().out
    assert "autoencoder" in text
    assert "Stage 1" in text
    assert "builtin_pairs, builtin_photos, builtin_unpaired, masks, pairs, photos" in text
    assert text.count("python train.py") >= 4


def test_cfg_job_shows_the_config(door, capsys) -> None:
    assert door("experiment=autoencoder", "--cfg", "job") == 0
    text = capsys.readouterr().out
    assert "experiment_name: autoencoder" in text
    assert "hydra" not in text


HEAVY = ("torch", "lightning", "diffusers", "transformers", "torchvision", "wandb", "numpy", "PIL", "pandas")
ANSWERS = {
    "--help": "None",
    "experiment=autoencoder --cfg job": "None",
    "experiment=autoencoder +typo=1": "error: unknown key 'typo'",
    "experiment=autoencoder module.optimizr.lr=1": "error: unknown key 'module.optimizr.lr'",
    "experiment=autoencoder seed=one": "error: seed is 'one', expected int",
    "experiment=autoencoder module.vae.in_chanels=3": "error: unknown key 'module.vae.in_chanels'",
    "experiment=autoencoder module._target_=os.system": "error: module._target_ is 'os.system'",
    "experiment=autoencoder +hydra.callbacks.x._target_=os.system": "error: '+hydra.callbacks.x._target_=os.system'",
    "resume=nothing": "error: nothing is no run folder",
}


def test_questions_and_mistakes_are_answered_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = """
import importlib, io, json, os, shlex, sys
from contextlib import redirect_stdout
sys.path.insert(0, ROOT)
answers = {}
for words in QUESTIONS:
    sys.argv = ["train.py", *shlex.split(words)]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    import train
    try:
        with redirect_stdout(io.StringIO()):
            importlib.reload(train).run_door(train.main)
        answers[words] = "None"
    except SystemExit as end:
        answers[words] = str(end.code)
print(json.dumps({"answers": answers, "modules": sorted({m.partition(".")[0] for m in sys.modules})}))
"""
    root = Path(__file__).parents[2]
    code = code.replace("ROOT", repr(str(root))).replace("QUESTIONS", repr(list(ANSWERS)))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not set(HEAVY) & set(found["modules"])
    for words, answer in ANSWERS.items():
        assert found["answers"][words].startswith(answer), words
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize("words", [("--help",), (A, "--cfg", "job"), (A, "module.optimizr.lr=1")])
def test_an_answer_costs_little(words: tuple[str, ...]) -> None:
    root = Path(__file__).parents[2]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=root, check=False, capture_output=True, timeout=120
    )
    assert done.returncode == ("optimizr" in words[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Seconds of computing, whatever else the machine does: 0.4 and 0.5; with torch 5 and more.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_broken_pipe_of_a_training_is_a_failure(capsys) -> None:
    def main() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit) as end:
        run_door(main)
    assert end.value.code == "error: Broken pipe"
