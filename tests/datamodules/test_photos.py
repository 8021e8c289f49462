import multiprocessing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor

from datamodules.builtin import BuiltinPhotosDataModule
from datamodules.photos import PhotosDataModule

Writer = Callable[..., Path]
Seen = list[tuple[str, float]]
CONF = Path(__file__).parents[2] / "conf" / "datamodule"


class Recorder(L.LightningModule):
    """Notes every training sample with a number that shows its augmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[Seen] = []
        self.fail_at: int | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if batch_idx == self.fail_at:
            raise RuntimeError("stop here")
        ramp = torch.arange(batch["image"][0].numel()).view_as(batch["image"][0])
        self.seen.append(
            [(name, float((im * ramp).sum())) for name, im in zip(batch["name"], batch["image"], strict=True)]
        )
        return self.weight.sum() * batch["image"].mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert batch["index"].dtype == torch.int64

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(Callback):
    """Writes a checkpoint from a hook, once a number of batches was seen there."""

    def __init__(self, hook: str, path: Path, *, after: int) -> None:
        self.path, self.after = path, after
        setattr(self, hook, self.save)

    def save(self, trainer: L.Trainer, module: Recorder, *_: object) -> None:
        if len(module.seen) == self.after:
            trainer.save_checkpoint(self.path)


def trainer_of(folder: Path, *callbacks: Callback, max_steps: int = 12, accumulate: int = 1) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
    )


def photos_of(root: Path, **options: Any) -> PhotosDataModule:
    return PhotosDataModule(
        **({"root": str(root), "size_px": 8, "batch_size": 3, "crop": "random", "seed": 5} | options)
    )


@pytest.fixture
def root(write_photos: Writer) -> Path:
    write_photos("set/val", 2, first=20)
    return write_photos("set/train", 10).parent


@pytest.mark.parametrize(
    ("hook", "after", "accumulate", "num_workers"),
    [
        ("on_train_batch_end", 1, 1, 0),
        ("on_train_batch_end", 5, 1, 2),
        ("on_train_batch_end", 8, 2, 0),
        ("on_train_batch_end", 8, 2, 2),
        ("on_validation_end", 4, 1, 0),
        ("on_validation_end", 8, 2, 0),
        ("on_exception", 7, 1, 0),
    ],
)
def test_a_resumed_run_continues_the_same_samples(
    tmp_path: Path, root: Path, hook: str, after: int, accumulate: int, num_workers: int
) -> None:
    options = {"max_steps": 12, "accumulate": accumulate}
    whole = Recorder()
    trainer_of(tmp_path, **options).fit(whole, photos_of(root))
    assert len(whole.seen) == 12 * accumulate

    first, path = Recorder(), tmp_path / "stop.ckpt"
    save = SaveAt(hook, path, after=after)
    if hook == "on_exception":
        first.fail_at = after
        with pytest.raises(RuntimeError, match="stop here"):
            trainer_of(tmp_path, save, **options).fit(first, photos_of(root, num_workers=num_workers))
    else:
        trainer_of(tmp_path, save, **options).fit(first, photos_of(root, num_workers=num_workers))
        assert first.seen == whole.seen

    rest = Recorder()
    trainer = trainer_of(tmp_path, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message="You're resuming from a checkpoint that ended before the epoch ended"
        )
        trainer.fit(rest, photos_of(root, num_workers=num_workers), ckpt_path=path, weights_only=True)
    assert rest.seen == whole.seen[after:]
    assert trainer.global_step == 12


def test_a_resumed_run_can_be_resumed_and_extended(tmp_path: Path, root: Path) -> None:
    whole = Recorder()
    trainer_of(tmp_path, max_steps=14).fit(whole, photos_of(root))
    seen: list[Seen] = []
    path: Path | None = None
    for max_steps in (3, 8, 14):
        module = Recorder()
        trainer = trainer_of(tmp_path, max_steps=max_steps)
        trainer.fit(module, photos_of(root), ckpt_path=path, weights_only=True if path else None)
        seen += module.seen
        path = tmp_path / f"{max_steps}.ckpt"
        trainer.save_checkpoint(path)
    assert seen == whole.seen


def test_loading_does_not_draw_from_the_global_generator(root: Path) -> None:
    datamodule = photos_of(root)
    datamodule.setup("validate")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(datamodule.val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 2}, "trained with global_batch_size=3 but this run has 2"),
        ({"seed": 6}, "trained with seed=5 but this run has 6"),
    ],
)
def test_resuming_another_order_is_refused(
    tmp_path: Path, root: Path, change: dict[str, int], message: str
) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.fit(Recorder(), photos_of(root))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path).fit(
            Recorder(), photos_of(root, **change), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_resuming_another_accumulation_is_refused(tmp_path: Path, root: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=3, accumulate=4)
    trainer.fit(Recorder(), photos_of(root))
    new, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
    trainer.save_checkpoint(new)
    message = "trained with accumulate_grad_batches=4 but this run has 1"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, max_steps=12).fit(Recorder(), photos_of(root), ckpt_path=new, weights_only=True)

    checkpoint = torch.load(new, weights_only=True)  # as written before the accumulation was noted
    del checkpoint["PhotosDataModule"]["accumulate_grad_batches"]
    torch.save(checkpoint, old)
    message = "has used 12 batches in 3 steps, but the whole run of 12 steps has 12, so none are left"
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, max_steps=12).fit(Recorder(), photos_of(root), ckpt_path=old, weights_only=True)
    rest = Recorder()
    trainer_of(tmp_path, max_steps=4, accumulate=4).fit(
        rest, photos_of(root), ckpt_path=old, weights_only=True
    )
    assert len(rest.seen) == 4


def test_resuming_with_other_photos_is_refused_but_testing_is_not(
    tmp_path: Path, root: Path, write_photos: Writer
) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.fit(Recorder(), photos_of(root))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    write_photos("set/train", 1, name="more")
    with pytest.raises(ValueError, match="trained with num_samples=10 but this run has 11"):
        trainer_of(tmp_path).fit(
            Recorder(), photos_of(root), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )
    trainer_of(tmp_path).validate(
        Recorder(), photos_of(root), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )


def test_resuming_with_another_kind_of_datamodule_is_refused(tmp_path: Path, root: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    trainer.fit(Recorder(), BuiltinPhotosDataModule(size_px=8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="holds no data position of this kind of datamodule"):
        trainer_of(tmp_path).fit(
            Recorder(), photos_of(root), ckpt_path=tmp_path / "a.ckpt", weights_only=True
        )


def test_a_fit_after_testing_a_checkpoint_starts_at_the_first_batch(tmp_path: Path, root: Path) -> None:
    first, second, datamodule = Recorder(), Recorder(), photos_of(root)
    trainer = trainer_of(tmp_path, max_steps=3)
    trainer.fit(first, datamodule)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trainer_of(tmp_path).validate(Recorder(), datamodule, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    trainer_of(tmp_path, max_steps=3).fit(second, datamodule)
    assert second.seen == first.seen


def test_a_file_that_breaks_does_not_stop_training(tmp_path: Path, root: Path) -> None:
    datamodule = photos_of(root, num_workers=2)
    datamodule.setup("fit")
    (root / "train" / "photo_3.png").write_bytes(b"broken")
    module = Recorder()
    trainer_of(tmp_path).fit(module, datamodule)
    assert len(module.seen) == 12
    assert (datamodule.skipped.num_read, datamodule.skipped.num_skipped) == (36, 4)


def test_max_steps_is_needed(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match="set trainer.max_steps above 0"):
        trainer_of(tmp_path, max_steps=-1).fit(Recorder(), photos_of(root))


def test_splits_names_and_stages(root: Path) -> None:
    datamodule = photos_of(root, caption="none", val_batch_size=1)
    datamodule.setup("validate")
    assert datamodule.train_dataset is None
    datamodule.setup("fit")
    datamodule.setup("test")
    assert datamodule.train_dataset.names[0] == "train/photo_0.png"
    assert [batch["name"] for batch in datamodule.val_dataloader()] == [
        ["val/photo_0.png"],
        ["val/photo_1.png"],
    ]
    assert len(datamodule.test_dataloader()) == len(datamodule.predict_dataloader()) == 2


def test_folder_captions(write_photos: Writer) -> None:
    write_photos("set/val/roses", 1)
    root = write_photos("set/train/roses", 2).parents[1]
    datamodule = photos_of(root, caption="folder")
    datamodule.setup("fit")
    assert datamodule.train_dataset[0]["caption"] == "a photo of a rose"
    with pytest.raises(ValueError, match="images of .* lie in none; sort them into folders"):
        photos_of(root / "train" / "roses", caption="folder").setup("fit")


def test_colour_captions_and_their_cache(write_photos: Writer, tmp_path: Path) -> None:
    write_photos("set/val/things", 1)
    root = write_photos("set/train/things", 3).parents[1]
    texts = []
    for _ in range(2):
        datamodule = photos_of(root, caption="folder_colors", cache_dir=str(tmp_path / "cache"))
        datamodule.setup("fit")
        texts.append([item.text() for item in datamodule.train_dataset.captions])
    assert texts[0] == texts[1]
    assert all(text.startswith("a photo of a thing, ") for text in texts[0])
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2  # train crops at random, val in the centre
    plain = photos_of(root, caption="colors")
    plain.setup("fit")
    assert [f"a photo of a thing, {item.text()}" for item in plain.train_dataset.captions] == texts[0]


def test_near_grey_photos_are_left_out_of_training_only(root: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        Image.new("RGB", (9, 9), (120, 121, 120)).save(root / split / "grey.png")
    datamodule = photos_of(root, near_grey_min_chroma=3.0)
    datamodule.setup("fit")
    assert "train/grey.png" not in datamodule.train_dataset.names
    assert "val/grey.png" in datamodule.val_dataset.names
    with pytest.raises(ValueError, match="every training photo .* lower datamodule.near_grey_min_chroma"):
        photos_of(root, near_grey_min_chroma=500.0).setup("fit")


def test_grey_phrases_are_stripped(root: Path) -> None:
    lines = [
        f'{{"file_name": "photo_{i}.png", "text": "a black and white photo of a cat"}}' for i in range(10)
    ]
    for split in ("train", "val"):
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    datamodule = photos_of(root, caption="metadata", strip_grey_phrases=True)
    datamodule.setup("fit")
    assert "black" not in datamodule.train_dataset[0]["caption"]
    assert "cat" in datamodule.train_dataset[0]["caption"]


def test_nothing_readable_is_fatal(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of the 1 images in the train split of .* can be read"):
        photos_of(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "middle"}, "datamodule.crop is 'middle'; expected one of center, random"),
        ({"caption": "colours"}, "datamodule.caption is 'colours'; expected one of none, metadata"),
        ({"image_cache": "disk"}, "datamodule.image_cache is 'disk'"),
        ({"batch_size": 0}, "datamodule.batch_size is 0; expected at least 1"),
        ({"seed": -1}, "datamodule.seed is -1"),
        ({"size_px": 0}, "size_px is 0; expected at least 1"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        photos_of(tmp_path, **options)


def test_the_config_states_every_argument_and_its_default() -> None:
    import inspect

    config = OmegaConf.to_container(OmegaConf.load(CONF / "photos.yaml"))
    parameters = inspect.signature(PhotosDataModule.__init__).parameters
    assert set(config) == (set(parameters) - {"self"}) | {"_target_"}
    for key, value in config.items():
        if key not in ("_target_", "root", "seed"):
            assert value == parameters[key].default, key


def test_metadata_and_memory_cache_with_a_random_crop(root: Path) -> None:
    modules = [photos_of(root, image_cache=cache) for cache in ("none", "memory")]
    for module in modules:
        module.setup("fit")
    items = [module.train_dataset[(2, 7)]["image"] for module in modules]
    assert torch.equal(*items)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_may_start_in_any_way(write_photos: Writer, tmp_path: Path, method: str) -> None:
    root, seen = write_photos("set", 12), []
    before = multiprocessing.get_start_method(allow_none=True)
    for start, num_workers in ((before, 0), (method, 2)):
        multiprocessing.set_start_method(start, force=True)
        try:
            data = PhotosDataModule(
                root=str(root), size_px=8, batch_size=4, crop="random", num_workers=num_workers
            )
            module = Recorder()
            trainer_of(tmp_path / str(num_workers), max_steps=4).fit(module, data)
        finally:
            multiprocessing.set_start_method(before, force=True)
        seen.append(module.seen)
    assert seen[0] == seen[1]
