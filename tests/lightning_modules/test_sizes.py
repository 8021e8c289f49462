"""Image sizes that an autoencoder's cells do not cover: refused before the first step, whatever the data and the method."""

import lightning as L
import pytest
import torch

from datamodules.builtin import BuiltinPhotosDataModule, BuiltinUnpairedDataModule
from datamodules.builtin_blobs import BuiltinBlobsDataModule
from diffusion.codecs import IdentityCodec, LatentCodec
from lightning_modules.diffusion import DiffusionModule
from tests.models import tiny_parts, tiny_settings, tiny_vae
from tests.runs.conftest import door  # noqa: F401

MESSAGE = (
    "an image of 70x70 pixels does not fit .* set datamodule.size_px to a multiple of 4, such as 68 or 72"
)


class Bare(DiffusionModule):
    """Of no task, so that it takes any data."""

    def losses(self, batch):
        raise AssertionError("a step was begun")


@pytest.mark.parametrize("data", [BuiltinPhotosDataModule, BuiltinBlobsDataModule, BuiltinUnpairedDataModule])
@pytest.mark.parametrize("codec", [LatentCodec(tiny_vae()), IdentityCodec()])
def test_a_size_that_cells_do_not_cover_is_refused_before_the_first_step(tmp_path, data, codec):
    module = Bare(codec=codec, path=None, objective=None, **tiny_settings())
    module.layer = torch.nn.Linear(1, 1)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    expected = ValueError if isinstance(codec, LatentCodec) else AssertionError
    with pytest.raises(expected, match=MESSAGE if expected is ValueError else "a step was begun"):
        trainer.fit(module, datamodule=data(size_px=70, batch_size=2))


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=autoencoder"],
        ["experiment=latent_diffusion"],
        ["experiment=colorize_controlnet"],
        ["experiment=diffusing_colors"],
        ["experiment=colorize_regression", "callbacks=cached", "callbacks.latent_cache.folder=latents"],
    ],
)
def test_every_experiment_says_so(door, tmp_path, words):  # noqa: F811
    words += ["datamodule.size_px=70", "trainer=cpu", "trainer.max_steps=1", "logger=none", "run_dir=run"]
    message = door(*words)
    assert "an image of 70x70 pixels does not fit" in message
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize("size", [(70, 64), (64, 70), (2, 2)])
def test_the_codec_loses_no_edge(size):
    codec = LatentCodec(tiny_parts().vae)
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels does not fit"):
        codec.moments(torch.rand(1, 3, *size))
