"""Each wrong command line ends in one sentence before torch is needed and leaves no run folder."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

A = "experiment=autoencoder"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "error: no experiment chosen; add experiment=NAME with one of: autoencoder"),
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


def test_help_names_experiments_and_groups(door, capsys) -> None:
    assert door("--help") == 0
    text = capsys.readouterr().out
    assert "autoencoder" in text
    assert "Stage 1" in text
    assert "builtin_photos, photos" in text
    assert text.count("python train.py") >= 4


def test_cfg_job_shows_the_config(door, capsys) -> None:
    assert door("experiment=autoencoder", "--cfg", "job") == 0
    text = capsys.readouterr().out
    assert "experiment_name: autoencoder" in text
    assert "hydra" not in text


def test_answers_without_a_training_import_nothing_heavy() -> None:
    root = Path(__file__).parents[2]
    code = (
        "import sys, runpy; sys.argv = ['train.py', 'experiment=autoencoder', '--cfg', 'job']; "
        "runpy.run_path('train.py', run_name='__main__'); "
        "assert not {'torch', 'lightning', 'diffusers', 'wandb'} & set(sys.modules)"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True)
    assert time.perf_counter() - start < 10  # 0.6 s on an idle machine; with torch 5 s and more
