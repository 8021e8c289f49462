"""The demo's page is complete, readable without a server, and honest about what is missing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from color.lab import lightness
from runs.config import override
from runs.demo import COLUMNS, page_text, save_photos, shown, training_command, write_page

FIGURES = {
    "fresh run": {"delta_e2000": 9.876, "psnr": 23.0},
    "grey (baseline)": {"delta_e2000": 12.3456, "psnr": 21.5},
}


def photos() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        for name, size in (("wide", (5, 9)), ("tall", (8, 4)))
    }


def fill(folder: Path) -> None:
    save_photos(photos(), folder)
    for column in ("fresh", "shipped", "vivid"):
        (folder / column).mkdir()
        for picture in (folder / "truth").iterdir():
            (folder / column / picture.name).write_bytes(picture.read_bytes())


def test_the_grey_photos_have_the_size_and_lightness_of_the_true_ones(tmp_path: Path) -> None:
    save_photos(photos(), tmp_path)
    for name, photo in photos().items():
        grey = torch.from_numpy(np.array(Image.open(tmp_path / "before" / f"{name}.png"))).permute(2, 0, 1)
        assert grey.shape == photo.shape
        assert torch.equal(grey[0], grey[1])
        assert torch.equal(grey[1], grey[2])
        gap = lightness(grey[None].float() / 255) - lightness(photo[None].float() / 255)
        assert gap.abs().max() < 0.005  # half a grey level


def test_every_link_of_the_page_is_a_file_beside_it(tmp_path: Path) -> None:
    fill(tmp_path)
    page = write_page(tmp_path, list(photos()), FIGURES, "python train.py experiment=colorize_controlnet")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.read_text(encoding="utf-8"))
    assert len(links) == 2 * len(COLUMNS) * len(photos())
    assert all((tmp_path / link).is_file() for link in links)
    assert "://" not in page.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_shows_names_and_figures() -> None:
    text = page_text(["a<b"], FIGURES, "python train.py 'x&y'")
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert open_tags == []
    assert "a&lt;b" in text
    assert "x&amp;y" in text
    for title in (*COLUMNS.values(), *FIGURES, "9.88", "12.35", "CIEDE2000"):
        assert title in text
    assert "colourfulness difference" not in text  # no run has it


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "shipped" / "tall.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no shipped/tall\.png"):
        write_page(tmp_path, list(photos()), FIGURES, "")


def test_a_second_demo_keeps_no_picture_of_the_first(tmp_path: Path) -> None:
    fill(tmp_path)
    save_photos({"other": torch.zeros(3, 4, 4, dtype=torch.uint8)}, tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["other.png", "other.png"]


def test_the_training_command_is_a_valid_config(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from runs.choices import CONF
    from runs.config import resolved

    command = training_command(7, tmp_path / "run", ["trainer.accelerator=cpu"])
    assert shown(command).startswith("python train.py experiment=colorize_controlnet callbacks=cached")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolved(compose("train", command[2:]))
    assert config["trainer"]["max_steps"] == 7
    assert config["module"]["num_warmup_steps"] == 7
    assert override(config, [])["run_dir"] == str(tmp_path / "run")
