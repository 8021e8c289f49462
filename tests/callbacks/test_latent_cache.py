"""Cached latents: the same training, the right file for the right weights, and no half-written one."""

import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from callbacks.latent_cache import LatentCache
from datamodules.builtin import BuiltinUnpairedDataModule
from datamodules.builtin_blobs import BuiltinBlobsDataModule
from datamodules.moments_file import MomentsFile, sums_path
from datamodules.photos import PhotosDataModule
from diffusion.bridge_paths import BridgePath
from diffusion.bridge_samplers import BridgeSampler
from lightning_modules.colorize_controlnet import ColorizeControlNet
from lightning_modules.diffusing_colors import DiffusingColors
from tests.models import tiny_parts, tiny_settings


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
        self.had: list[set[str]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))
        self.had.append(set(batch.get("encodings", {})))


class _OtherSource(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        batch["encodings"]["source"] = batch["encodings"]["source"] + 0.5


def data(photos: Path, **settings) -> PhotosDataModule:
    return PhotosDataModule(root=str(photos), size_px=16, batch_size=2, **settings)


def diffusing_colors() -> DiffusingColors:
    sampler = BridgeSampler(num_steps=2)
    return DiffusingColors(parts=tiny_parts(), path=BridgePath(), **tiny_settings(sampler=sampler))


def method() -> ColorizeControlNet:
    return ColorizeControlNet(parts=tiny_parts(), **tiny_settings())


def train(
    photos: Path, tmp_path: Path, callbacks: list[L.Callback], steps: int = 8, make=None, **settings
) -> _Losses:
    torch.manual_seed(0)
    module = make() if make else method()
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
    for num_workers in (0, 1):  # the file written, then the file found
        cache = LatentCache(folder=str(tmp_path / "cache"), batch_size=4)
        cached = train(photos, tmp_path, [cache], num_workers=num_workers)
        assert all(names == {"image"} for names in cached.had)
        np.testing.assert_allclose(cached.values, plain.values, rtol=0, atol=1e-6)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # the data and its checksums
    assert not any(plain.had)


def test_the_source_of_a_bridge_is_cached_too(photos, tmp_path):
    plain = train(photos, tmp_path, [], make=diffusing_colors)
    for _ in range(2):
        cache = LatentCache(folder=str(tmp_path / "cache"), batch_size=4)
        cached = train(photos, tmp_path, [cache], make=diffusing_colors)
        assert all(names == {"image", "source"} for names in cached.had)
        np.testing.assert_allclose(cached.values, plain.values, rtol=0, atol=1e-6)
    other = train(photos, tmp_path, [cache, _OtherSource()], steps=1, make=diffusing_colors)
    assert abs(other.values[0] - plain.values[0]) > 1e-3  # a cache that nobody reads would give the same
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4  # photos, grey photos and the checksums of both


def test_stored_moments_are_the_codecs_for_both_directions(photos, tmp_path):
    module, dataset = method(), built(photos)
    codec, stored = module.codec, MomentsFile(attach(tmp_path, module, dataset))
    for index in range(len(dataset)):
        image = dataset.load(index)[None]
        torch.testing.assert_close(stored.get(index, False), codec.moments(image)[0])
        torch.testing.assert_close(stored.get(index, True), codec.moments(image.flip(-1))[0])
    assert not torch.allclose(stored.get(0, False), stored.get(0, True).flip(-1), atol=1e-3)


def built(photos: Path, **settings):
    datamodule = data(photos, **settings)
    datamodule.setup("fit")
    return datamodule.train_dataset


def attach(folder: Path, module: L.LightningModule, dataset) -> Path:
    """What the trainer does before the first step."""
    trainer = type("_Trainer", (), {"datamodule": type("_Data", (), {"train_dataset": dataset})})
    LatentCache(folder=str(folder), batch_size=4).on_fit_start(trainer, module)
    return dataset.encodings["image"].path


def test_other_weights_dtype_size_or_photos_have_other_files(photos, tmp_path):
    module, dataset = method(), built(photos)
    paths = [attach(tmp_path, module, dataset)]
    assert attach(tmp_path, method(), built(photos)) == paths[0]
    paths.append(attach(tmp_path, module, built(photos, near_grey_min_chroma=None).subset([0, 1])))
    larger = PhotosDataModule(root=str(photos), size_px=24, batch_size=2)
    larger.setup("fit")
    paths.append(attach(tmp_path, module, larger.train_dataset))
    with torch.no_grad():
        next(module.codec.vae.encoder.parameters()).view(-1)[0] += 1e-3
    paths.append(attach(tmp_path, module, dataset))
    module.codec.vae.to(torch.bfloat16)
    paths.append(attach(tmp_path, module, dataset))
    assert len(set(paths)) == 5
    assert all(path.is_file() for path in paths)


def test_the_scale_factor_may_change_and_the_settings_may_not(photos, tmp_path):
    module, dataset = method(), built(photos)
    codec, path = module.codec, attach(tmp_path, module, dataset)
    codec.vae.register_to_config(scaling_factor=0.123)  # moments are stored unscaled
    assert attach(tmp_path, module, dataset) == path
    noise = torch.randn(1, 4, 4, 4)
    cached, fresh = (
        codec.sample(dataset.encodings["image"].get(2, True)[None], noise),
        codec.encode(dataset.load(2, flip=True)[None], noise),
    )
    torch.testing.assert_close(cached, fresh)
    codec.vae.register_to_config(norm_num_groups=2)  # the same weights, another function
    assert attach(tmp_path, module, dataset) != path


def test_two_functions_of_one_name_have_two_files(photos, tmp_path):
    """Each method may call its own far end of the bridge "source"."""

    class _Twice(DiffusingColors):
        def twice(self, image):
            return 2 * self.codec.moments(image)

        def encodings(self):
            return super().encodings() | {"source": self.twice}

    dataset, paths = built(photos), []
    for kind in (DiffusingColors, _Twice):
        module = kind(
            parts=tiny_parts(), path=BridgePath(), **tiny_settings(sampler=BridgeSampler(num_steps=2))
        )
        paths.append((attach(tmp_path, module, dataset), dataset.encodings["source"].path))
    assert paths[0][0] == paths[1][0]
    assert paths[0][1] != paths[1][1]


def test_a_photo_that_was_exchanged_with_size_and_time_kept_has_another_file(photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(photos, folder)
    module, victim = method(), folder / "1.png"
    path = attach(tmp_path / "cache", module, built(folder))
    content, status = bytearray(victim.read_bytes()), victim.stat()
    content[-20] ^= 1
    victim.write_bytes(content)
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert attach(tmp_path / "cache", module, built(folder)) != path


def _attach_and_stop(photos: Path, folder: Path, started) -> None:
    module, calls = method(), []
    moments = module.codec.moments

    def slow(image):
        calls.append(1)
        if len(calls) == 2:  # the first chunk is in the temporary file's buffer, the lock is held
            started.put(1)
            time.sleep(600)
        return moments(image)

    module.codec.moments = slow  # type: ignore[method-assign]
    attach(folder, module, built(photos))


def test_a_killed_writer_leaves_nothing_that_is_used_and_its_rest_is_deleted(photos, tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    started = context.Queue()
    writer = context.Process(target=_attach_and_stop, args=(photos, tmp_path, started))
    writer.start()
    try:
        started.get(timeout=120)
        (half,) = tmp_path.glob("*.tmp")
        other = half.with_name(".latents-of_other_photos.npy.tmp")
        other.write_bytes(b"half")
    finally:
        writer.kill()
        writer.join(60)
    assert half.exists()
    assert not list(tmp_path.glob("*.npy"))

    module, dataset = method(), built(photos)
    with caplog.at_level(logging.INFO):
        path = attach(tmp_path, module, dataset)
    assert not list(tmp_path.glob("*.tmp"))
    assert f"deleted {half.name}, which a run that was killed has left" in caplog.text
    assert path.with_name(f".{path.name}.tmp") == half
    torch.testing.assert_close(
        MomentsFile(path).get(3, False), module.codec.moments(dataset.load(3)[None])[0]
    )


def test_a_writer_at_work_keeps_its_temporary_file(photos, tmp_path):
    other = tmp_path / ".latents-of_other_photos.crc32.npy.tmp"
    other.write_bytes(b"half")
    with FileLock(tmp_path / "latents-of_other_photos.npy.lock"):
        attach(tmp_path, method(), built(photos))
    assert other.exists()


def test_an_error_while_writing_leaves_no_file_and_names_a_full_disk(photos, tmp_path, monkeypatch):
    module, dataset = method(), built(photos)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ValueError) as caught:
            attach(tmp_path, module, dataset)
    assert re.fullmatch(
        r"the latent cache '.*latents-\w+.npy' needs 0 MiB, but its disk has 1 MiB free; delete old files there, set "
        "callbacks.latent_cache.folder to another disk, or callbacks.latent_cache=null",
        str(caught.value),
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            attach(tmp_path, module, dataset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


def flipped_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: flipped_byte(path, 3),
        lambda path: flipped_byte(path, 30),
        lambda path: flipped_byte(path, 3000),
        lambda path: sums_path(path).unlink(),
        lambda path: sums_path(path).write_bytes(b"?"),
        lambda path: flipped_byte(sums_path(path), -3),
    ],
    ids=["cut", "longer", "empty", "magic", "header", "entry", "no sums", "no array", "sum"],
)
def test_a_damaged_file_is_noticed_at_the_start_and_written_anew(photos, tmp_path, damage, caplog):
    module, dataset = method(), built(photos)
    path = attach(tmp_path, module, dataset)
    whole = path.read_bytes(), sums_path(path).read_bytes()
    damage(path)
    assert attach(tmp_path, module, dataset) == path
    assert (path.read_bytes(), sums_path(path).read_bytes()) == whole
    assert f"the latent cache {str(path)!r} is damaged and will be written anew: " in caplog.text
    caplog.clear()
    attach(tmp_path, module, dataset)
    assert "damaged" not in caplog.text


def test_an_entry_that_breaks_during_training_skips_its_photo_and_the_next_start_encodes_anew(
    photos, tmp_path, caplog
):
    """Also a file that gets shorter: mapped into memory it would end the process."""
    module, dataset = method(), built(photos)
    path = attach(tmp_path, module, dataset)
    whole = path.read_bytes()
    assert dataset[len(dataset) - 1]["index"] == len(dataset) - 1
    path.write_bytes(whole[: len(whole) // 2])  # the unflipped half
    flipped_byte(path, len(whole) // 2 - 5)
    item = dataset[len(dataset) - 1]
    assert item["index"] == 0
    assert item["skipped"] == (
        f"{str(path)!r}: the cached latent of photo {len(dataset) - 1} is damaged; the next start of a run encodes all anew"
    )
    attach(tmp_path, module, dataset)
    assert path.read_bytes() == whole


def test_an_unreadable_photo_has_no_latent_even_when_it_comes_back(photos, tmp_path, caplog):
    torch.manual_seed(0)
    folder = tmp_path / "copy"
    shutil.copytree(photos, folder)
    dataset = built(folder)
    content = dataset.paths[1].read_bytes()
    dataset.paths[1].write_bytes(b"broken")
    attach(tmp_path / "cache", method(), dataset)
    assert re.search(
        r"cannot read the image '.*png': .*; in training the next sample takes its place", caplog.text
    )
    dataset.paths[1].write_bytes(content)  # a disk that comes and goes
    item = dataset[1]
    assert item["index"] == 2
    assert "photo 1 could not be read when its latent was cached" in item["skipped"]
    assert torch.equal(item["encodings"]["image"], dataset[2]["encodings"]["image"])


def test_files_that_change_while_they_are_encoded_are_refused(photos, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(photos, folder)
    module, dataset = method(), built(folder)
    moments = module.codec.moments
    monkeypatch.setattr(
        module.codec, "moments", lambda image: (os.utime(folder / "1.png"), moments(image))[1]
    )
    with pytest.raises(
        ValueError, match="files changed while they were encoded, .*start again when nothing writes"
    ):
        attach(tmp_path / "cache", module, dataset)
    assert not list((tmp_path / "cache").glob("*.crc32.npy"))  # without it no run takes the file


def _attach_in_process(photos: Path, folder: Path, barrier, answers) -> None:
    torch.manual_seed(0)
    logging.getLogger("callbacks").setLevel(logging.INFO)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("callbacks").addHandler(handler)
    module, dataset = method(), built(photos)
    moments = module.codec.moments
    module.codec.moments = lambda image: (time.sleep(0.3), moments(image))[1]  # type: ignore[method-assign]
    barrier.wait(60)
    path = attach(folder, module, dataset)
    answers.put((path.name, records, float(dataset.encodings["image"].get(2, True).sum())))


def test_two_processes_at_once_write_one_file_and_one_waits(photos, tmp_path):
    context = multiprocessing.get_context("fork")
    answers, barrier = context.Queue(), context.Barrier(2)
    arguments = (photos, tmp_path, barrier, answers)
    workers = [context.Process(target=_attach_in_process, args=arguments) for _ in range(2)]
    try:
        for worker in workers:
            worker.start()
        found = [answers.get(timeout=120) for _ in workers]
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
    assert found[0][0] == found[1][0]
    assert found[0][2] == found[1][2]
    name = found[0][0]
    texts = sorted(records for _, records, _ in found)
    assert texts == [
        [f"another process is writing {name}; waiting for it"],
        [f"encoding 4 images and their mirror images (image) into {name}"],
    ]
    assert len(list(tmp_path.glob("*.npy"))) == 2  # the data and its checksums


def test_images_with_masks_are_cached_and_what_changes_is_refused(tmp_path):
    module, data = method(), BuiltinBlobsDataModule(size_px=16, num_images=8)
    data.setup("fit")
    attach(tmp_path, module, data.train_dataset)
    for key in (3, *((epoch, 3) for epoch in range(4))):  # mirrored in some epochs
        item = data.train_dataset[key]
        expected = module.codec.moments(item["image"][None])[0]
        torch.testing.assert_close(item["encodings"]["image"], expected)
    other = BuiltinBlobsDataModule(size_px=16, num_images=8, data_seed=1)
    other.setup("fit")
    assert attach(tmp_path, module, other.train_dataset) != data.train_dataset.encodings["image"].path
    for changing in (
        BuiltinBlobsDataModule(num_images=8, contrast=0.1),
        BuiltinUnpairedDataModule(size_px=16),
    ):
        changing.setup("fit")
        with pytest.raises(ValueError, match="several sizes cannot be cached; set datamodule.crop=center or"):
            attach(tmp_path, module, changing.train_dataset)


class _Nothing(ColorizeControlNet):
    def encodings(self):
        return {}


def test_random_crops_and_methods_without_a_codec_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match="set datamodule.crop=center or callbacks.latent_cache=null"):
        train(photos, tmp_path, [LatentCache(folder=str(tmp_path / "cache"))], crop="random")
    with pytest.raises(ValueError, match="needs a method with a frozen codec"):
        attach(tmp_path, _Nothing(parts=tiny_parts(), **tiny_settings()), built(photos))
