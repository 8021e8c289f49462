"""Cached latents: the same training, the right file for the right weights, and no half-written one."""

import logging
import multiprocessing
import os
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.latent_cache import LatentCache, StoredMoments
from datamodules.photos import PhotosDataModule
from diffusion.codec import LatentCodec
from lightning_modules.colorize_controlnet import ColorizeControlNet
from tests.models import tiny_parts, tiny_settings, tiny_vae


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(6):
        # Left and right halves differ, so that a flip shows.
        picture = generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        picture[:, :12] //= 4
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


class _Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []
        self.had_moments: list[bool] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))
        self.had_moments.append("moments" in batch)


def data(photos: Path, **settings) -> PhotosDataModule:
    return PhotosDataModule(root=str(photos), size_px=16, batch_size=2, **settings)


def train(photos: Path, tmp_path: Path, callbacks: list[L.Callback], steps: int = 8, **settings) -> _Losses:
    torch.manual_seed(0)
    module = ColorizeControlNet(parts=tiny_parts(), **tiny_settings())
    losses = _Losses()
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        callbacks=[losses, *callbacks],
    )
    trainer.fit(module, datamodule=data(photos, **settings))
    return losses


def test_cached_training_equals_uncached_with_flips(photos, tmp_path):
    plain = train(photos, tmp_path, [])
    for _ in range(2):  # the file written, then the file found
        cached = train(photos, tmp_path, [LatentCache(folder=str(tmp_path / "cache"), batch_size=4)])
        assert all(cached.had_moments)
        np.testing.assert_allclose(cached.values, plain.values, rtol=0, atol=1e-6)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
    assert not any(plain.had_moments)


def test_stored_moments_are_the_codecs_for_both_directions(photos, tmp_path):
    torch.manual_seed(0)
    codec = LatentCodec(tiny_vae())
    dataset = built(photos)
    path = tmp_path / "latents.npy"
    LatentCache(folder=str(tmp_path), batch_size=4)._write(path, codec, dataset, torch.device("cpu"))
    stored = StoredMoments(path)
    for index in range(len(dataset)):
        image = dataset.load(index)[None]
        torch.testing.assert_close(stored.get(index, False), codec.moments(image)[0])
        torch.testing.assert_close(stored.get(index, True), codec.moments(image.flip(-1))[0])
    assert not torch.allclose(stored.get(0, False), stored.get(0, True).flip(-1), atol=1e-3)


def built(photos: Path, **settings):
    datamodule = data(photos, **settings)
    datamodule.setup("fit")
    return datamodule.train_dataset


def attach(folder: Path, codec: LatentCodec, dataset) -> Path:
    """What the trainer does before the first step."""
    trainer = type("_Trainer", (), {"datamodule": type("_Data", (), {"train_dataset": dataset})})
    module = type("_Module", (), {"codec": codec, "device": torch.device("cpu")})
    LatentCache(folder=str(folder)).on_fit_start(trainer, module)
    return dataset.moments.path


def test_other_weights_dtype_size_or_photos_have_other_files(photos, tmp_path):
    torch.manual_seed(0)
    vae = tiny_vae()
    dataset = built(photos)
    paths = [attach(tmp_path, LatentCodec(vae), dataset)]
    assert attach(tmp_path, LatentCodec(vae), built(photos)) == paths[0]
    paths.append(attach(tmp_path, LatentCodec(vae), built(photos, near_grey_min_chroma=None).subset([0, 1])))
    larger = PhotosDataModule(root=str(photos), size_px=24, batch_size=2)
    larger.setup("fit")
    paths.append(attach(tmp_path, LatentCodec(vae), larger.train_dataset))
    with torch.no_grad():
        next(vae.encoder.parameters()).view(-1)[0] += 1e-3
    paths.append(attach(tmp_path, LatentCodec(vae), dataset))
    paths.append(attach(tmp_path, LatentCodec(vae.to(torch.bfloat16)), dataset))
    assert len(set(paths)) == 5
    assert all(path.is_file() for path in paths)


def test_a_killed_writer_leaves_nothing_that_is_used(photos, tmp_path, monkeypatch):
    torch.manual_seed(0)
    codec, dataset = LatentCodec(tiny_vae()), built(photos)
    whole = attach(tmp_path / "whole", codec, dataset)
    folder = tmp_path / "killed"
    folder.mkdir()
    half = folder / whole.with_suffix(".12345.tmp").name  # as a writer killed by -9 leaves it
    half.write_bytes(whole.read_bytes()[:200])

    moments, calls = codec.moments, []

    def fails(image):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("stopped in the middle")
        return moments(image)

    monkeypatch.setattr(codec, "moments", fails)
    with pytest.raises(RuntimeError, match="stopped"):
        attach(folder, codec, dataset)
    assert not list(folder.glob("*.npy"))
    assert list(folder.glob("*.tmp")) == [half]
    monkeypatch.undo()
    again = attach(folder, codec, dataset)
    assert again.name == whole.name
    assert again.read_bytes() == whole.read_bytes()


def _attach_in_process(photos: Path, folder: Path, answers) -> None:
    torch.manual_seed(0)
    logging.getLogger("callbacks").setLevel(logging.INFO)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("callbacks").addHandler(handler)
    path = attach(folder, LatentCodec(tiny_vae()), built(photos))
    answers.put((os.getpid(), path.name, len(records), float(np.load(path).sum())))


def test_two_processes_at_once_write_one_file(photos, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    workers = [context.Process(target=_attach_in_process, args=(photos, tmp_path, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert found[0][1] == found[1][1]
    assert found[0][3] == found[1][3]
    assert sorted(num_written for _, _, num_written, _ in found) == [0, 1]
    assert len(list(tmp_path.glob("*.npy"))) == 1


def test_random_crops_and_methods_without_a_codec_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="set datamodule.crop=center or callbacks.latent_cache=null"):
        train(photos, tmp_path, [LatentCache(folder=str(tmp_path / "cache"))], crop="random")
    with pytest.raises(ValueError, match="needs a method with a frozen codec"):
        attach(tmp_path, None, built(photos))  # type: ignore[arg-type]
