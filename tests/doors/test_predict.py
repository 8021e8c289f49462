"""predict.py on tiny models: any picture, any size, the same noise for the same number, L kept."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import predict as door
from color.lab import lightness
from datamodules.raster import Raster
from lightning_modules.base import TranslationModule
from lightning_modules.options import option
from runs.load import Run
from tests.doors.calls import predicted
from tests.runs.saved_runs import save_autoencoder, save_bridge, save_colorizer, save_latent_diffusion


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """On a base in Stable Diffusion's layout with CLIP's tokenizer."""
    return save_colorizer(tmp_path_factory.mktemp("run"))


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(skimage.data.astronaut()).resize((width, height))


def colored(run_dir, source, output, **settings) -> int:
    words = {"run": run_dir, "input": source, "output": output, "short_px": 16, "device": "cpu"}
    return predicted(**(words | settings))


def opened(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def error_of_lightness(result, given) -> float:
    stars = [lightness(torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] / 255.0) for p in (result, given)]
    return float((stars[0] - stars[1]).abs().mean() * 100)


def test_a_single_photo_is_no_folder_to_be_listed(run_dir, tmp_path, caplog):
    photo(40, 56).save(tmp_path / "a.png")
    assert colored(run_dir, tmp_path / "a.png", tmp_path / "out") == 0
    assert "cannot list" not in caplog.text


def test_any_size_and_aspect_keeps_its_size_and_its_lightness(run_dir, tmp_path):
    sizes = {"1x1": (1, 1), "2x3": (2, 3), "17x90": (17, 90), "90x17": (90, 17), "61x47": (61, 47)}
    (tmp_path / "in").mkdir()
    for name, (height, width) in sizes.items():
        photo(height, width).save(tmp_path / "in" / f"{name}.png")
    assert colored(run_dir, tmp_path / "in", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").iterdir())) == len(sizes)
    for name, (height, width) in sizes.items():
        result, given = opened(tmp_path / "out" / f"{name}.png"), opened(tmp_path / "in" / f"{name}.png")
        assert result.shape == (height, width, 3)
        assert error_of_lightness(result, given) <= (0.3 if height * width > 100 else 0.6)


def test_modes_and_rotation_are_handled(run_dir, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture = photo(24, 36)
    picture.convert("L").save(folder / "grey.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.full((24, 36), 30000, np.uint16)).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.save(folder / "rotated.jpg", exif=exif, quality=95)
    assert colored(run_dir, folder, tmp_path / "out") == 0
    shapes = {path.stem: opened(path).shape for path in (tmp_path / "out").iterdir()}
    assert shapes.pop("rotated") == (36, 24, 3)
    assert set(shapes.values()) == {(24, 36, 3)}
    grey = opened(folder / "grey.png")[..., None].repeat(3, -1)
    assert error_of_lightness(opened(tmp_path / "out" / "grey.png"), grey) <= 0.3
    assert np.ptp(opened(tmp_path / "out" / "grey.png").astype(int), axis=-1).max() > 0  # in colour


def test_noise_is_keyed_by_the_position_in_the_sorted_folder(run_dir, tmp_path):
    """The first photo of a folder gives the pixels it gives alone; the second has the noise of number 1."""
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        photo(32, 32).save(tmp_path / "in" / f"{name}.png")
    colored(run_dir, tmp_path / "in", tmp_path / "out")
    colored(run_dir, tmp_path / "in" / "b.png", tmp_path / "alone")
    first, second = (opened(tmp_path / "out" / f"{name}.png") for name in ("a", "b"))
    assert np.array_equal(opened(tmp_path / "alone" / "b.png"), first)
    assert not np.array_equal(first, second)
    colored(run_dir, tmp_path / "in", tmp_path / "again")
    assert np.array_equal(opened(tmp_path / "again" / "b.png"), second)
    colored(run_dir, tmp_path / "in", tmp_path / "seed", seed=1)
    assert not np.array_equal(opened(tmp_path / "seed" / "a.png"), first)


def test_more_samples_do_not_change_the_first(run_dir, tmp_path):
    photo(32, 32).save(tmp_path / "a.png")
    colored(run_dir, tmp_path / "a.png", tmp_path / "one", num_samples=1)
    colored(run_dir, tmp_path / "a.png", tmp_path / "three", num_samples=3)
    one = opened(tmp_path / "one" / "a.png").astype(int)
    three = [opened(tmp_path / "three" / f"a_{k}.png").astype(int) for k in range(3)]
    # Another batch size rounds the last bits otherwise.
    assert np.abs(three[0] - one).max() <= 1
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(three[1], three[2])


def test_prompt_and_guidance_reach_the_model(run_dir, tmp_path):
    photo(32, 32).save(tmp_path / "a.png")
    results = []
    for number, settings in enumerate(({}, {"prompt": "red"}, {"guidance": 4.0}, {"negative_prompt": "x"})):
        colored(run_dir, tmp_path / "a.png", tmp_path / str(number), **settings)
        results.append(opened(tmp_path / str(number) / "a.png").tobytes())
    assert len(set(results)) == 4


def test_an_unreadable_file_is_skipped_and_the_exit_code_is_1(run_dir, tmp_path, monkeypatch, caplog):
    (tmp_path / "in").mkdir()
    photo(24, 24).save(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "b.jpg").write_bytes((tmp_path / "in" / "a.jpg").read_bytes()[:300])
    photo(24, 24).save(tmp_path / "in" / "c.png")
    words = [
        f"run={run_dir}",
        f"input={tmp_path / 'in'}",
        f"output={tmp_path / 'out'}",
        "short_px=16",
        "device=cpu",
    ]
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    with pytest.raises(SystemExit) as caught:
        door.main()
    assert caught.value.code == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    assert "1 of 3 files could not be read" in caplog.text
    assert "b.jpg" in caplog.text


def test_files_that_differ_in_the_suffix_alone_stay_apart(run_dir, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    for name in ("a.png", "a.jpg", "b.v1.png"):
        photo(16, 16).save(folder / name)
    colored(run_dir, tmp_path / "in", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "deep").iterdir()) == ["a.png", "a_png.png", "b.v1.png"]


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("stem", ["n" * 251, "\u00e9" * 125, "z" * 248])
def test_a_name_as_long_as_a_file_may_have_is_cut_and_the_others_go_on(run_dir, tmp_path, stem, num_samples):
    (tmp_path / "in").mkdir()
    for name in (stem, f"{stem[:-1]}x", "a"):
        photo(16, 16).save(tmp_path / "in" / f"{name}.png")
    assert colored(run_dir, tmp_path / "in", tmp_path / "out", num_samples=num_samples) == 0
    written = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(written) == 3 * num_samples
    assert sum(name.startswith(stem[:100]) for name in written) == 2 * num_samples
    if num_samples == 1 and len(stem.encode()) <= 251:
        assert {path.name for path in (tmp_path / "in").iterdir()} == set(written)


def test_the_home_folder_is_where_paths_say(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run_dir)
    for name in ("a.png", "mask.png"):
        photo(16, 16).convert("L").save(tmp_path / name)
    words = {"input": "~/a.png", "output": "~/out", "run": "~/run", "mask": "~/mask.png"}
    assert predicted(short_px=16, device="cpu", **words) == 0
    assert (tmp_path / "out" / "a.png").is_file()
    assert not (tmp_path / "~").exists()


def test_results_are_compared_with_the_inputs_not_the_inputs_names(run_dir, tmp_path):
    photo(16, 16).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(ValueError, match="would overwrite the input a.png; give another folder"):
        colored(run_dir, tmp_path / "a.png", tmp_path)
    assert colored(run_dir, tmp_path / "a.png", tmp_path, num_samples=2) == 0
    assert colored(run_dir, tmp_path / "a.png", tmp_path, format="tiff") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "a_0.png", "a_1.png", "a.tiff"}
    with pytest.raises(ValueError, match="would overwrite the input a_0.png"):
        colored(run_dir, tmp_path, tmp_path, num_samples=2)
    assert (tmp_path / "a.png").read_bytes() == before


def test_results_within_the_input_folder_are_no_inputs(run_dir, tmp_path):
    photo(16, 16).save(tmp_path / "a.png")
    for _ in range(2):
        assert colored(run_dir, tmp_path, tmp_path / "out") == 0
    assert [p.relative_to(tmp_path).as_posix() for p in (tmp_path / "out").rglob("*.png")] == ["out/a.png"]


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        (
            {"output": "x.png"},
            ValueError,
            "output=x.png is the name of a file; give a folder .* such as output=x",
        ),
        ({"output": "x/y.tiff"}, ValueError, "is the name of a file; give a folder .* such as output=x/y"),
        ({"output": __file__}, ValueError, "is a file; give a folder for the results"),
        ({"output": f"{__file__}/out"}, ValueError, "is a file; give a folder for the results"),
        ({"num_samples": 0}, ValueError, "num_samples=0 asks for no result"),
        ({"steps": 0}, ValueError, "steps=0 is not a whole number of at least 1"),
        ({"steps": 5000}, ValueError, "num_steps is 5000, but the path has 1000 timesteps; give that many"),
        ({"guidance": float("nan")}, ValueError, "guidance=nan is not a number from 0; 1 is off"),
        ({"guidance": -1.0}, ValueError, "guidance=-1 is not a number from 0; 1 is off"),
        ({"max_pixels": 0}, ValueError, "max_pixels=0 refuses every photo; give at least 1"),
        ({"size": "12x12"}, ValueError, "ColorizeControlNet takes no size=; leave it out"),
        ({"short_px": 0}, ValueError, "short_px=0"),
        ({"format": "jpg"}, ValueError, "format=jpg is not png or tiff"),
        ({"stpes": 2}, ValueError, "ColorizeControlNet takes no stpes=; did you mean 'steps'"),
        ({"input": "nowhere.png"}, FileNotFoundError, "input=nowhere.png: no such file or folder"),
        ({"input": None}, ValueError, "ColorizeControlNet takes input=FILE_OR_DIR"),
        ({"run": "nobody"}, FileNotFoundError, "run=nobody: no such run folder"),
        ({"device": "cuda:77"}, ValueError, "device=cuda:77 is not available here; use device=cpu"),
    ],
)
def test_errors_are_one_sentence(run_dir, tmp_path, settings, kind, text):
    photo(8, 8).save(tmp_path / "a.png")
    words = {"run": run_dir, "input": tmp_path / "a.png", "output": tmp_path / "out", "device": "cpu"}
    with pytest.raises(kind, match=text) as caught:
        predicted(**(words | settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_named(run_dir, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="is empty"):
        colored(run_dir, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"guidance": 3}, "guidance=3 has no effect here, as it strengthens a prompt .*; give prompt="),
        ({"guidance": 3, "prompt": "a", "negative_prompt": "a"}, "guidance=3 has no effect here"),
        (
            {"guidance": 1, "prompt": "a", "negative_prompt": "b"},
            "negative_prompt= has no effect at guidance 1",
        ),
    ],
)
@pytest.mark.parametrize("save", [save_bridge, save_latent_diffusion])
def test_what_would_change_nothing_is_refused(tmp_path, save, words, text):
    photo(16, 16).save(tmp_path / "a.png")
    given = {"input": tmp_path} if save is save_bridge else {}
    with pytest.raises(ValueError, match=text):
        predicted(run=save(tmp_path / "x"), output=tmp_path / "out", device="cpu", **given, **words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "near"), [("17x40", "16x40"), ("1x5", "8x8")])
def test_a_size_off_the_grid_is_refused(tmp_path, size, near):
    with pytest.raises(ValueError, match=f"size={size} is not on the grid of 8 pixels .*; give size={near}"):
        predicted(run=save_latent_diffusion(tmp_path), output=tmp_path / "out", device="cpu", size=size)


def test_latent_diffusion_takes_a_prompt_alone(tmp_path):
    run_dir = save_latent_diffusion(tmp_path)
    words = {"run": run_dir, "output": tmp_path / "out", "prompt": "red", "device": "cpu"}
    assert predicted(**words, num_samples=2, size="16x40") == 0
    assert [opened(tmp_path / "out" / f"sample_{k}.png").shape for k in (0, 1)] == [(16, 40, 3)] * 2
    with pytest.raises(ValueError, match="LatentDiffusion takes no input=; leave it out"):
        predicted(**words, input=tmp_path)
    with pytest.raises(ValueError, match="size=12 is not HxW"):
        predicted(**words, size="12")


def test_an_autoencoder_gives_the_photo_back_at_its_size(tmp_path):
    run_dir = save_autoencoder(tmp_path)
    photo(21, 34).save(tmp_path / "a.png")
    assert colored(run_dir, tmp_path / "a.png", tmp_path / "out", short_px=None) == 0
    assert opened(tmp_path / "out" / "a.png").shape == (21, 34, 3)


class Segments(TranslationModule):
    """Real to the doors: three kinds of results, one of them in strips."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        level: float = option("what is bright", 0.5)
        num_samples: int = option("results for each input", 1)

    def results(self, batch, options):
        image = batch["image"].float().mean(1) / 255
        strips = (row[None, :, None].byte().numpy() for row in (image[0] * 255))
        size_px = (image.shape[-2], image.shape[-1])
        return {
            "mask": [(image > options.level).long()] * options.num_samples,
            "probability": image,
            "overlay": Raster(size_px=size_px, channels=1, strips=strips),
        }


@pytest.fixture
def segments(monkeypatch):
    module = Segments(optimizer=torch.optim.AdamW)
    monkeypatch.setattr("doors.predict.module_class", lambda run: Segments)
    monkeypatch.setattr("doors.predict.load_run", lambda run: Run(module, {}, Path(run)))


def test_every_kind_of_result_has_its_folder(segments, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    photo(20, 30).save(tmp_path / "in" / "deep" / "a.png")
    photo(20, 30).save(tmp_path / "in" / "b.png")
    assert predicted(run="x", input=tmp_path / "in", output=tmp_path / "out", level=0.4) == 0
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png"))
    assert written == [
        "b.png",
        "deep/a.png",
        "overlay/b.png",
        "overlay/deep/a.png",
        "probability/b.png",
        "probability/deep/a.png",
    ]
    grey = np.asarray(photo(20, 30)).mean(-1) / 255
    assert np.array_equal(opened(tmp_path / "out" / "b.png"), (grey > 0.4).astype(np.uint8))
    assert np.abs(opened(tmp_path / "out" / "probability" / "b.png") / 65535 - grey).max() < 1e-4
    assert opened(tmp_path / "out" / "overlay" / "b.png").dtype == np.uint8


def test_samples_are_numbered_and_tiff_is_a_format(segments, tmp_path):
    photo(20, 30).save(tmp_path / "a.png")
    predicted(run="x", input=tmp_path / "a.png", output=tmp_path / "out", num_samples=2, format="tiff")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_0.tiff",
        "a_1.tiff",
        "overlay",
        "probability",
    ]
    assert opened(tmp_path / "out" / "a_0.tiff").shape == (20, 30)


def test_neither_inputs_nor_results_are_overwritten(segments, tmp_path):
    (tmp_path / "in" / "overlay").mkdir(parents=True)
    photo(20, 30).save(tmp_path / "in" / "overlay" / "a.png")
    photo(20, 30).save(tmp_path / "in" / "z.png")
    with pytest.raises(ValueError, match="would overwrite the input overlay/a.png; give another folder"):
        predicted(run="x", input=tmp_path / "in", output=tmp_path / "in")
    (tmp_path / "in" / "a.png").write_bytes((tmp_path / "in" / "z.png").read_bytes())
    with pytest.raises(ValueError, match="would overwrite the result overlay/a.png"):
        predicted(run="x", input=tmp_path / "in", output=tmp_path / "out")
    with pytest.raises(ValueError, match="a.png is a file; give a folder for the results"):
        predicted(run="x", input=tmp_path / "in", output=tmp_path / "in" / "a.png")
