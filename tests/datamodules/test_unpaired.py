"""Two domains: their orders, counts and splits, exact resume, and what may be wrong with the folders."""

import inspect
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf

from datamodules.builtin import PHOTOS, BuiltinUnpairedDataModule
from datamodules.check import main as check
from datamodules.image_files import hash_split
from datamodules.loader_workers import Reading
from datamodules.unpaired import UnpairedDataModule, domain_images
from datamodules.watched_loader import LoaderError
from tests.datamodules.test_photos import SaveAt, trainer_of

Writer = Callable[..., Path]
CONF = Path(__file__).parents[2] / "conf" / "datamodule"
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


class Recorder(L.LightningModule):
    """Notes the names and pixels of both domains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[tuple[str, float, str, float]]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        ramp = torch.arange(batch["image_a"][0].numel()).view_as(batch["image_a"][0])
        sums = ([float((image * ramp).sum()) for image in batch[key]] for key in ("image_a", "image_b"))
        one, two = sums
        self.seen.append(list(zip(batch["name"], one, batch["name_b"], two, strict=True)))
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        assert len(batch["image_a"]) == len(batch["image_b"]) == len(batch["index"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def root(write_photos: Writer) -> Path:
    write_photos("set/trainA", 12, name="a")
    write_photos("set/trainB", 7, first=30, name="b")
    write_photos("set/testA", 2, first=50, name="ta")
    return write_photos("set/testB", 3, first=60, name="tb").parent


def unpaired_of(root: Path, **options: Any) -> UnpairedDataModule:
    defaults = {"size_px": 8, "batch_size": 3, "crop": "random", "seed": 5, "num_workers": 0}
    return UnpairedDataModule(root=str(root), **(defaults | options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_continues_the_same_samples(tmp_path: Path, root: Path, num_workers: int) -> None:
    whole, first, rest = Recorder(), Recorder(), Recorder()
    trainer_of(tmp_path).fit(whole, unpaired_of(root))
    save = SaveAt("on_train_batch_end", tmp_path / "a.ckpt", after=5)
    trainer_of(tmp_path, save).fit(first, unpaired_of(root, num_workers=num_workers))
    assert first.seen == whole.seen
    data = unpaired_of(root, num_workers=num_workers)
    trainer_of(tmp_path).fit(rest, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert rest.seen == whole.seen[5:]


def test_partners_change_and_both_domains_are_seen_evenly(root: Path) -> None:
    data = unpaired_of(root, crop="center", flip_prob=0.0)
    data.setup("fit")
    dataset = data.train_dataset
    num_a, num_b = len(dataset.a), len(dataset.b)
    assert len(dataset) == max(num_a, num_b) == num_a
    partners = []
    for epoch in range(4):
        items = [dataset[(epoch, index)] for index in range(len(dataset))]
        assert [item["name"] for item in items] == dataset.a.names
        partners.append([item["name_b"] for item in items])
        counts = {partners[-1].count(name) for name in dataset.b.names}
        assert counts <= {num_a // num_b, num_a // num_b + 1}
        assert all(
            torch.equal(item["image_b"], dataset.b.load(dataset.b.names.index(item["name_b"])))
            for item in items
        )
    assert len({tuple(names) for names in partners}) == 4
    same = unpaired_of(root, crop="center", flip_prob=0.0)
    same.setup("fit")
    assert [same.train_dataset[(2, i)]["name_b"] for i in range(num_a)] == partners[2]


def test_the_domains_are_flipped_and_cropped_for_themselves(root: Path) -> None:
    data = unpaired_of(root, flip_prob=0.5, crop="center")
    data.setup("fit")
    dataset, flips = data.train_dataset, []
    for epoch in range(80):
        item = dataset[(epoch, 0)]
        partner = dataset.b.names.index(item["name_b"])
        flips.append(
            (
                torch.equal(item["image_a"], dataset.a.load(0, flip=True)),
                torch.equal(item["image_b"], dataset.b.load(partner, flip=True)),
            )
        )
    counts = [flips.count(pair) for pair in ((False, False), (False, True), (True, False), (True, True))]
    assert min(counts) > 8


def test_splits(root: Path, write_photos: Writer) -> None:
    write_photos("large/trainA", 60)
    large = write_photos("large/trainB", 60, name="b").parent
    for domain in "AB":
        splits = {s: domain_images(large, s, domain) for s in ("train", "val", "test")}
        assert sum(map(len, splits.values())) == len(set().union(*splits.values())) == 60
        assert all(hash_split(path.name) == "test" for path in splits["test"])
    assert [path.parent.name for path in domain_images(root, "test", "A")] == ["testA"] * 2
    val, train = domain_images(root, "val", "A"), domain_images(root, "train", "A")
    assert len(val) + len(train) == 12
    assert val
    write_photos("set/valA", 1)
    assert [path.parent.name for path in domain_images(root, "val", "A")] == ["valA"]
    assert len(domain_images(root, "train", "A")) == 12


def test_evaluation_is_in_order_and_repeats_the_smaller_domain(root: Path) -> None:
    data = unpaired_of(root, val_batch_size=2)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [batch["name"] for batch in batches] == [["testA/ta_0.png", "testA/ta_1.png"], ["testA/ta_0.png"]]
    assert [name for batch in batches for name in batch["name_b"]] == [f"testB/tb_{n}.png" for n in range(3)]
    assert batches[0]["image_a"].shape == batches[0]["image_b"].shape == (2, 3, 8, 8)
    assert batches[0]["index"].tolist() == [0, 1]
    assert "image" not in batches[0]


def test_broken_files_are_skipped_and_replaced(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    domain_images(root, "train", "B")[2].write_bytes(b"broken")
    data = unpaired_of(root)
    data.setup("fit")
    assert "skipped 1 of 6 images that cannot be read" in caplog.text
    dataset = data.train_dataset
    broken = dataset.files(4, 2)[1]
    broken.unlink()
    item = dataset[(2, 4)]
    assert str(broken) in item["skipped"]
    assert item["index"] != 4


def test_a_worker_names_both_files(root: Path) -> None:
    data = unpaired_of(root, num_workers=1)
    data.setup("fit")
    batches = iter(data.val_dataloader())
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    with pytest.raises(LoaderError, match="loader worker 0 .* was killed by SIGKILL"):
        list(batches)
    a, b = data.val_dataset.a.paths[0], data.val_dataset.b.paths[0]
    batches._loader.table.reading = lambda _: Reading(epoch=None, index=0, busy_s=2.0)
    assert batches._doing(0) == f"while reading sample 0, {str(a)!r} and {str(b)!r}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: shutil.rmtree(r / "trainB"),
            r"'.*set' has no folder trainB/; datamodule=unpaired takes trainA/",
        ),
        (lambda r: shutil.rmtree(r), r"the image folder '.*trainA' does not exist; set datamodule.root"),
        (
            lambda r: [p.unlink() for p in (r / "trainB").iterdir()],
            r"the image folder '.*trainB' is empty; put images",
        ),
        (
            lambda r: [p.write_bytes(b"") for p in (r / "trainA").iterdir()],
            r"none of the \d+ images in the train split of domain A of '.*set' can be read; replace them",
        ),
    ],
    ids=["no folder", "no root", "no file", "all broken"],
)
def test_wrong_folders_are_one_sentence(root: Path, change: Callable[[Path], object], message: str) -> None:
    change(root)
    with pytest.raises((OSError, ValueError), match=message) as caught:
        unpaired_of(root).setup("fit")
    assert "\n" not in str(caught.value)


def test_the_checking_tool_knows_domains(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check([f"root={root}"]) == 0
    assert capsys.readouterr().out == "24 images, 0 broken\n"
    shutil.rmtree(root / "testB")
    assert check([f"root={root}"]) == 2
    assert "testB' does not exist" in capsys.readouterr().err


def test_the_built_in_domains_share_no_pixel_and_b_is_negative() -> None:
    data = BuiltinUnpairedDataModule(size_px=16)
    data.setup("fit")
    data.setup("test")
    for dataset in (data.train_dataset, data.val_dataset, data.test_dataset):
        for domain in (dataset.a, dataset.b):
            assert {path.name for path in domain.paths} == set(PHOTOS)
        boxes = [{tuple(name.rsplit("_", 3)) for name in domain.names} for domain in (dataset.a, dataset.b)]
        for stem in {box[0] for box in boxes[0]}:
            bottom = max(int(top) + int(side) for s, top, _, side in boxes[0] if s == stem)
            assert bottom <= min(int(top) for s, top, _, _ in boxes[1] if s == stem)
    space = [i for i, path in enumerate(data.train_dataset.b.paths) if path.name.startswith("hubble")]
    assert torch.stack([data.train_dataset.b.load(i) for i in space]).mean() > 0.7  # the sky is white
    item = data.train_dataset[(0, 3)]
    assert set(item) == {"image_a", "image_b", "name_b", "name", "index", "skipped"}


@pytest.mark.parametrize("kind", [UnpairedDataModule, BuiltinUnpairedDataModule])
def test_the_config_states_every_argument_and_its_default(kind: type) -> None:
    name = "unpaired" if kind is UnpairedDataModule else "builtin_unpaired"
    config = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    parameters = inspect.signature(kind.__init__).parameters
    assert set(config) == (set(parameters) - {"self"}) | {"_target_"}
    for key, value in config.items():
        if key not in ("_target_", "root", "seed"):
            assert value == parameters[key].default, key


def test_a_real_pack() -> None:
    root = SHARED / "unpaired" / "daisy2sunflower"
    if not root.is_dir():
        pytest.skip("shared/data/unpaired is not at hand")
    data = UnpairedDataModule(root=str(root), size_px=32, batch_size=58)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert len(batches) == 1
    colors = [batches[0][key].mean((0, 2, 3)) for key in ("image_a", "image_b")]
    assert colors[1][0] - colors[1][2] > colors[0][0] - colors[0][2]  # sunflowers are more yellow
