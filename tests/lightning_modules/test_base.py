"""What all methods share: checkpoints without frozen weights, refusals in one sentence, resuming after kill -9."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_modules.autoencoder import Autoencoder
from lightning_modules.base import TranslationModule
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.latent_diffusion import LatentDiffusion
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_vae
from tests.networks.sd_folder import save_sd_folder

ROOT = Path(__file__).parents[2]


def colorizer(**settings) -> ColorizeControlNet:
    torch.manual_seed(0)
    return ColorizeControlNet(parts=tiny_parts(), **tiny_settings(**settings))


def test_a_checkpoint_holds_the_trained_weights_alone(fit, tmp_path):
    module = colorizer()
    trainer = fit(module, photo_batch(), steps=2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert all(name.startswith("controlnet.") for name in checkpoint["state_dict"])
    restored = colorizer()
    restored.on_load_checkpoint(checkpoint)
    restored.load_state_dict(checkpoint["state_dict"], strict=restored.strict_loading)
    ours, theirs = module.state_dict(), restored.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def with_rate(rate: float) -> ColorizeControlNet:
    return colorizer(
        optimizer=lambda p: torch.optim.AdamW(p, lr=rate), lr_schedule="constant", num_warmup_steps=2
    )


def test_a_resumed_run_takes_a_changed_learning_rate_at_its_place_in_the_schedule(fit, tmp_path):
    trainer = fit(with_rate(1e-3), photo_batch(), steps=4)
    trainer.optimizers[0].param_groups[0]["initial_lr"] *= 0.5  # as a rollback leaves it
    trainer.lr_scheduler_configs[0].scheduler.base_lrs = [0.5e-3]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    rates = {}
    for rate in (1e-3, 1e-4):
        module = with_rate(rate)
        trainer = fit(module, photo_batch(), steps=8, ckpt_path=tmp_path / "a.ckpt")
        rates[rate] = [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
        rates[rate] += trainer.lr_scheduler_configs[0].scheduler.get_last_lr()
        assert trainer.global_step == 8
    assert rates[1e-3] == pytest.approx([0.5e-3] * 2)
    assert rates[1e-4] == pytest.approx([rate / 10 for rate in rates[1e-3]])


@pytest.mark.parametrize("other", [LatentDiffusion, Autoencoder])
def test_a_checkpoint_of_another_experiment_is_refused(other):
    torch.manual_seed(0)
    if other is Autoencoder:
        module = Autoencoder(vae=tiny_vae(), optimizer=torch.optim.AdamW)
    else:
        module = LatentDiffusion(parts=tiny_parts(), **tiny_settings())
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(
        ValueError, match=f"checkpoint is of {other.__name__}, but this experiment is Colorize"
    ):
        colorizer().on_load_checkpoint(checkpoint)


def test_a_checkpoint_of_another_size_is_refused_in_one_sentence():
    module = colorizer()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="0 weights missing and 2 of another name or shape .* config.yaml"):
        colorizer(cond_channels=[8, 32, 96]).on_load_checkpoint(_only_first_layer(checkpoint))
    del checkpoint["state_dict"]["controlnet.conv_in.weight"]
    with pytest.raises(ValueError, match=r"1 weights missing and 0 .* \(first: controlnet.conv_in.weight\)"):
        colorizer().on_load_checkpoint(checkpoint)


def _only_first_layer(checkpoint):
    """The checkpoint with the shapes of the narrower module in all but the condition's first layer."""
    narrow = colorizer(cond_channels=[8, 32, 96]).state_dict()
    first = "controlnet.controlnet_cond_embedding.conv_in."
    state = {k: v if k.startswith(first) else narrow[k] for k, v in checkpoint["state_dict"].items()}
    return checkpoint | {"state_dict": state}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_checkpoint_names_its_base_by_content_and_refuses_another(fit, precision):
    trainer = fit(module := colorizer(), photo_batch(), steps=1, precision=precision)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint()
    assert checkpoint["base_sha256"] == colorizer().base_hash()  # whatever precision it trained in
    colorizer().on_load_checkpoint(checkpoint)

    def on_another_base(**settings) -> ColorizeControlNet:
        other = colorizer(**settings)
        with torch.no_grad():
            other.parts.unet.conv_in.bias[0] += 1e-6
        return other

    with pytest.raises(
        ValueError, match=r"trained on a base with the content hash \w{12}, but .*module.check_base=false"
    ):
        on_another_base().on_load_checkpoint(checkpoint)
    on_another_base(check_base=False).on_load_checkpoint(checkpoint)
    assert module.base_hash() == checkpoint["base_sha256"]


def test_frozen_networks_stay_in_eval_mode():
    module = colorizer().train()
    assert module.controlnet.training
    assert not any(part.training for part in module.parts.modules())
    assert not module.eval().controlnet.training


def test_what_a_method_lacks_is_a_users_error():
    bare = TranslationModule(optimizer=torch.optim.AdamW)
    for call in (lambda: bare.results({}, None), bare.exported, lambda: bare.sample_panels({})):
        with pytest.raises(ValueError, match="TranslationModule"):
            call()


def _command(base: Path, *words: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "train.py"), "experiment=colorize_controlnet"),
        *("datamodule=builtin_photos", "datamodule.size_px=32", "datamodule.batch_size=4"),
        *(
            "trainer=cpu",
            "trainer.max_steps=40",
            "trainer.log_every_n_steps=1",
            "trainer.val_check_interval=20",
        ),
        *("trainer.limit_val_batches=1", "trainer.enable_progress_bar=false", "callbacks.samples=null"),
        *(
            "callbacks.last.every_n_steps=5",
            f"module.parts.source={base}",
            "module.num_warmup_steps=3",
            *words,
        ),
    ]


def _losses(run_dir: Path) -> dict[int, str]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_run_continues_bit_for_bit(tmp_path):
    """kill -9 of `python train.py` between two checkpoints; every later loss is that of the undisturbed run."""
    shipped = ROOT / "pretrained" / "latent_diffusion"
    base = shipped if (shipped / "unet").is_dir() else tmp_path / "base"
    if base != shipped:
        save_sd_folder(base)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    with open(tmp_path / "killed.log", "w") as log:
        process = subprocess.Popen(
            _command(base, f"run_dir={broken}"), cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline and process.poll() is None:
            if (broken / "metrics.csv").is_file() and max(_losses(broken), default=0) >= 12:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
    killed_at = max(_losses(broken))
    assert 12 <= killed_at < 39
    resume = [sys.executable, str(ROOT / "train.py"), f"resume={broken}"]
    for command in (resume, _command(base, f"run_dir={whole}")):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    expected, found = _losses(whole), _losses(broken)
    assert sorted(expected) == list(range(40))
    assert found == expected
