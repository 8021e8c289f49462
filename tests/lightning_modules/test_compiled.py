"""Checkpoints do not show how a run computed: compiled or not, in which precision, they hold the same and load anywhere."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_modules.autoencoder import Autoencoder
from lightning_modules.base import TranslationModule
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.latent_diffusion import LatentDiffusion
from reliability.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from tests.models import photo_batch, tiny_parts, tiny_settings, tiny_vae

Build = Callable[[bool], TranslationModule]

HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on the CPU")


def autoencoder(compiled: bool) -> TranslationModule:
    torch.manual_seed(0)
    return Autoencoder(vae=tiny_vae(halvings=1), optimizer=tiny_settings()["optimizer"], compile=compiled)


def latent_diffusion(compiled: bool) -> TranslationModule:
    return LatentDiffusion(parts=tiny_parts(), train_text_encoder=True, compile=compiled, **tiny_settings())


def colorizer(compiled: bool) -> TranslationModule:
    parts = tiny_parts()
    torch.manual_seed(1)
    return ColorizeControlNet(parts=parts, compile=compiled, **tiny_settings())


@pytest.fixture(params=[autoencoder, latent_diffusion, colorizer])
def build(request: pytest.FixtureRequest) -> Build:
    return request.param


def trained(
    build: Build,
    folder: Path,
    *,
    num_steps: int,
    compiled: bool = False,
    precision: str = "32-true",
    start: Path | None = None,
) -> Path:
    """The checkpoint after `num_steps`, from the beginning or from another checkpoint."""
    module, batch = build(compiled), photo_batch(2)
    trainer: Any = L.Trainer(
        max_steps=num_steps,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
    )
    loader = torch.utils.data.DataLoader([batch] * 8, batch_size=None)
    trainer.fit(module, loader, ckpt_path=start, weights_only=True)
    assert {network._compiled_call_impl is not None for network in module.compiled_networks()} == {compiled}
    path = folder / f"{len(list(folder.glob('*.ckpt')))}.ckpt"
    trainer.save_checkpoint(path)
    return path


def assert_close(found: Path, expected: Path, atol: float) -> None:
    """The same names and types, and weights that agree up to the order of sums."""
    ours, theirs = read_checkpoint(found), read_checkpoint(expected)
    assert ours["global_step"] == theirs["global_step"]
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    for key, value in theirs["state_dict"].items():
        assert "_orig_mod" not in key
        wanted = torch.float64 if key == "latent_square" else torch.float32
        assert ours["state_dict"][key].dtype == value.dtype == wanted
        assert torch.allclose(ours["state_dict"][key], value, rtol=0, atol=atol), key
    moments = (c["optimizer_states"][0]["state"] for c in (ours, theirs))
    assert next(moments).keys() == next(moments).keys()


# Adam's first steps move each weight by the learning rate, 1e-3, whatever the gradient: where bfloat16 turns the sign
# of a tiny gradient, two runs are 2e-3 further apart after each step. Lightning takes bfloat16 for 16-mixed on a CPU.
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_run_goes_on_in_another_precision(build: Build, tmp_path: Path, precision: str) -> None:
    plain = trained(build, tmp_path, num_steps=2)
    other = trained(build, tmp_path, num_steps=2, precision=precision)
    assert_close(other, plain, atol=4.1e-3)
    on = trained(build, tmp_path, num_steps=3, start=other)
    back = trained(build, tmp_path, num_steps=3, precision=precision, start=plain)
    assert_close(on, back, atol=6.1e-3)


def assert_continue_each_other(build: Build, folder: Path, atol: float) -> None:
    """A compiled run goes on from a plain one's checkpoint, and a plain one from the compiled one's."""
    first = trained(build, folder, num_steps=2)
    compiled = trained(build, folder, num_steps=4, compiled=True, start=first)
    plain = trained(build, folder, num_steps=4, start=first)
    assert_close(compiled, plain, atol=atol)
    on = trained(build, folder, num_steps=6, start=compiled)
    assert_close(on, trained(build, folder, num_steps=6, start=plain), atol=3 * atol)


def test_compiling_changes_no_name_in_a_checkpoint(build: Build, tmp_path: Path) -> None:
    """The networks are those of torch.compile, but run without the minute that it takes for each of them."""
    with torch.compiler.set_stance("force_eager"):
        assert_continue_each_other(build, tmp_path, atol=0.0)


# Latent diffusion would take a minute more, for a U-Net built of the same blocks as the ControlNet.
@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compiled_build", [autoencoder, colorizer])
def test_a_compiled_run_and_a_plain_one_continue_each_other(
    compiled_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "kernels"))
    assert_continue_each_other(compiled_build, tmp_path, atol=1e-4)
    assert list((tmp_path / "kernels").rglob("*.so")), "nothing was compiled"
