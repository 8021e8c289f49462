"""hints=, mask= and start= as users write them: what is read, what reaches the model, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decode import decode_image
from lightning_modules.color_edits import read_hints, read_region
from lightning_modules.walk_options import WalkOptions
from runs.load import load_run
from tests.doors import calls
from tests.runs.saved_runs import save_autoencoder, save_bridge, save_colorizer

SIZE_PX = (20, 30)  # the photo's (H, W)


@pytest.fixture(scope="module")
def bridge_dir(tmp_path_factory):
    return save_bridge(tmp_path_factory.mktemp("bridge"))


@pytest.fixture(scope="module")
def colorizer_dir(tmp_path_factory):
    return save_colorizer(tmp_path_factory.mktemp("colorizer"), sd=False)


@pytest.fixture
def photo_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE_PX, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def strokes(path, size_px=SIZE_PX) -> str:
    """Row 3, columns 5 to 7: red opaque, green a little more than half, blue a little less."""
    layer = np.zeros((*size_px, 4), np.uint8)
    layer[3, 5], layer[3, 6], layer[3, 7] = (200, 0, 0, 255), (0, 200, 0, 128), (0, 0, 200, 127)
    Image.fromarray(layer).save(path)
    return str(path)


def predicted(run_dir, photo_file, **settings) -> int:
    words = {"run": run_dir, "input": photo_file, "short_px": 16, "device": "cpu"}
    return calls.predicted(**(words | {"output": photo_file.parent / "out"} | settings))


def pixels_of(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_points_are_pixels_or_discs():
    known = read_hints("29,0,#A03020; 2, 5 ,1,#2040c0", SIZE_PX)
    places = [(int(i) // 30, int(i) % 30) for i in known.index]
    assert places == [(0, 29), (4, 2), (5, 1), (5, 2), (5, 3), (6, 2)]
    assert known.color.tolist() == [[0xA0, 0x30, 0x20], *[[0x20, 0x40, 0xC0]] * 5]
    assert known.size_px == SIZE_PX


def test_a_disc_ends_at_the_photos_edge():
    known = read_hints("0,19,2,#ffffff", SIZE_PX)
    places = {(int(i) // 30, int(i) % 30) for i in known.index}
    assert places == {(17, 0), (18, 0), (18, 1), (19, 0), (19, 1), (19, 2)}
    assert len(read_hints("3,3,999999,#ffffff", SIZE_PX).index) == 600


def test_a_text_of_many_points_is_longer_than_a_file_name_and_still_points():
    text = "; ".join(f"{x},7,1,#a03020" for x in range(30))
    assert len(text) > 255
    assert sorted(set(read_hints(text, SIZE_PX).index.tolist())) == list(range(180, 270))
    with pytest.raises(FileNotFoundError, match="no such file; give a PNG"):
        read_hints("a" * 300, SIZE_PX)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_region("a" * 300, SIZE_PX)


def test_pixels_at_least_half_opaque_are_hints(tmp_path):
    known = read_hints(strokes(tmp_path / "strokes.png"), SIZE_PX)
    assert known.index.tolist() == [95, 96]
    assert known.color.tolist() == [[200, 0, 0], [0, 200, 0]]


def test_a_palette_with_a_transparent_colour_will_do(tmp_path):
    picture = Image.new("P", (30, 20), 0)
    picture.putpalette([0, 0, 0, 9, 200, 30])
    picture.putpixel((4, 2), 1)
    picture.save(tmp_path / "palette.png", transparency=0)
    known = read_hints(str(tmp_path / "palette.png"), SIZE_PX)
    assert known.index.tolist() == [64]
    assert known.color.tolist() == [[9, 200, 30]]


def test_a_mask_is_read_as_grey(tmp_path):
    values = np.arange(600, dtype=np.float64).reshape(SIZE_PX) / 3
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "mask.png")
    region = read_region(str(tmp_path / "mask.png"), SIZE_PX)
    assert region.dtype == torch.uint8
    assert np.array_equal(region.numpy(), values.astype(np.uint8))


@pytest.mark.parametrize(
    ("mode", "white"), [("1", 1), ("L", 255), ("LA", (255, 255)), ("RGBA", (255,) * 4), ("I;16", 65535)]
)
def test_a_mask_of_any_mode_without_transparent_pixels_will_do(tmp_path, mode, white):
    picture = Image.new(mode, (30, 20))
    if mode in ("LA", "RGBA"):
        picture.putalpha(255)
    picture.putpixel((4, 2), white)
    picture.save(tmp_path / "mask.png")
    region = read_region(str(tmp_path / "mask.png"), SIZE_PX)
    assert region.shape == SIZE_PX
    assert (int(region.sum()), int(region[2, 4])) == (255, 255)


def test_a_white_mask_is_worth_a_warning(tmp_path, caplog):
    Image.new("L", (30, 20), 255).save(tmp_path / "mask.png")
    read_region(str(tmp_path / "mask.png"), SIZE_PX)
    assert "is white everywhere, so all of the photo is coloured" in caplog.text


def test_hints_of_a_rotated_photo_are_in_upright_pixels(bridge_dir, tmp_path):
    """Stored 96 x 48, shown 48 x 96: the lower right corner of what is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((48, 96, 3), np.uint8)).save(tmp_path / "rotated.jpg", exif=exif)
    photo = decode_image(tmp_path / "rotated.jpg", 10_000)
    module = load_run(str(bridge_dir)).module
    seen = []
    module.parts.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batch = {"image": photo[None], "index": torch.tensor([0]), "name": ["rotated.jpg"]}
    module.results(batch, WalkOptions(hints="47,95,#a03020", short_px=16))
    known = seen[0][0, 6]
    assert known.shape == (8, 4)
    assert known.nonzero().tolist() == [[7, 3]]


def test_hints_mask_and_start_change_what_they_should(bridge_dir, photo_file):
    folder = photo_file.parent
    mask = np.zeros(SIZE_PX, np.uint8)
    mask[:, 15:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    words = {
        "plain": {},
        "hints": {"hints": strokes(folder / "strokes.png")},
        "points": {"hints": "5,3,#c80000; 6,3,#00c800"},
        "mask": {"mask": str(folder / "mask.png")},
        "start": {"start": 0.5},
    }
    for name, settings in words.items():
        assert predicted(bridge_dir, photo_file, output=str(folder / name), **settings) == 0
    results = {name: pixels_of(folder / name / "photo.png") for name in words}
    assert np.array_equal(results["hints"], results["points"])
    assert np.array_equal(results["mask"][:, :15], pixels_of(photo_file)[:, :15])
    assert not np.array_equal(results["mask"][:, 15:], pixels_of(photo_file)[:, 15:])
    assert len({results[name].tobytes() for name in ("plain", "hints", "mask", "start")}) == 4


def test_a_region_of_any_colorizer(colorizer_dir, photo_file):
    folder = photo_file.parent
    mask = np.zeros(SIZE_PX, np.uint8)
    mask[5, 8] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    assert predicted(colorizer_dir, photo_file, mask=str(folder / "mask.png")) == 0
    differs = (pixels_of(folder / "out" / "photo.png") != pixels_of(photo_file)).any(-1)
    assert np.argwhere(differs).tolist() == [[5, 8]]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("nowhere.png", FileNotFoundError, "hints=nowhere.png: no such file; give a PNG with transparency, or points such"),
        ("5,5,red#", ValueError, "hints=: '5,5,red#' is no point; write x,y,#rrggbb or x,y,radius,#rrggbb"),
        ("5,5,#ff0000; 5,#00ff00", ValueError, "hints=: '5,#00ff00' is no point"),
        ("5,5,#ff00", ValueError, "is no point"),
        ("5,5,-2,#ff0000", ValueError, "is no point"),
        (";#", ValueError, "is no point"),
        ("30,5,#ff0000", ValueError, "the point 30,5 lies outside the photo of 30x20 pixels; x goes from 0 to 29 and y from 0 to 19"),
        ("0,0,#ff0000; 3,-1,#ff0000", ValueError, "the point 3,-1 lies outside"),
    ],
)  # fmt: skip
def test_wrong_points_are_one_sentence(text, kind, message):
    with pytest.raises(kind) as caught:
        read_hints(text, SIZE_PX)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def broken_files(folder) -> None:
    strokes(folder / "small.png", (10, 30))
    Image.new("RGB", (30, 20), (200, 0, 0)).save(folder / "opaque.png")
    Image.new("RGBA", (30, 20), (200, 0, 0, 0)).save(folder / "empty.png")
    Image.new("RGBA", (30, 20), (200, 0, 0, 255)).save(folder / "painted.png")
    Image.new("L", (20, 30), 255).save(folder / "turned.png")
    Image.new("L", (30, 20), 0).save(folder / "black.png")
    Image.new("L", (30, 20), 1).save(folder / "ones.png")
    Image.fromarray(np.full(SIZE_PX, 255, np.uint16)).save(folder / "deep.png")
    Image.new("RGBA", (30, 20), (255, 255, 255, 254)).save(folder / "layer.png")
    Image.new("LA", (30, 20), (255, 0)).save(folder / "shades.png")
    Image.new("P", (30, 20), 0).save(folder / "palette.png", transparency=0)
    (folder / "cut.png").write_bytes((folder / "opaque.png").read_bytes()[:40])


READERS = {"hints": read_hints, "mask": read_region}


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        ({"hints": "small.png"}, ValueError, "hints=small.png is 30x10 pixels, but the photo is 30x20 (width x height,"),
        ({"hints": "opaque.png"}, ValueError, "hints=opaque.png: it has no transparency; expected strokes on a transparent"),
        ({"hints": "empty.png"}, ValueError, "hints=empty.png has no opaque pixels; expected strokes on a transparent layer"),
        ({"hints": "painted.png"}, ValueError, "hints=painted.png has only opaque pixels; expected strokes on a transparent "
         "layer over the photo: save that layer alone"),
        ({"hints": "cut.png"}, ValueError, "hints=cut.png: "),
        ({"mask": "turned.png"}, ValueError, "mask=turned.png is 20x30 pixels, but the photo is 30x20"),
        ({"mask": "opaque.png"}, ValueError, "mask=opaque.png is in colour; expected an opaque grey picture of the photo's size: white"),
        ({"mask": "black.png"}, ValueError, "mask=black.png goes up to 0 where white is 255, so that hardly anything would be"),
        ({"mask": "ones.png"}, ValueError, "mask=ones.png goes up to 1 where white is 255, so that hardly anything would be coloured; "
         "expected an opaque grey picture of the photo's size: white (255, in 16 bits 65535) = change here, black = keep what"),
        ({"mask": "deep.png"}, ValueError, "mask=deep.png goes up to 1 where white is 255"),
        ({"mask": "layer.png"}, ValueError, "mask=layer.png has transparent pixels, which say neither colour nor keep; "
         "expected an opaque grey picture"),
        ({"mask": "shades.png"}, ValueError, "mask=shades.png has transparent pixels"),
        ({"mask": "palette.png"}, ValueError, "mask=palette.png has transparent pixels"),
        ({"mask": "nowhere.png"}, FileNotFoundError, "mask=nowhere.png: no such file"),
        ({"mask": "cut.png"}, ValueError, "expected an opaque grey picture of the photo's size"),
    ],
)  # fmt: skip
def test_wrong_files_are_one_sentence(tmp_path, monkeypatch, words, kind, message):
    monkeypatch.chdir(tmp_path)
    broken_files(tmp_path)
    ((name, file),) = words.items()
    with pytest.raises(kind) as caught:
        READERS[name](file, SIZE_PX)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.0}, "start is 0.0; expected a level in (0, 1], where 1 is the source"),
        ({"start": 1.5}, "start is 1.5; expected a level"),
        ({"start": float("nan")}, "start is nan; expected a level"),
        ({"hints": "1,1"}, "hints=1,1: no such file"),
        ({"num_samples": 2}, "num_samples=2 would write the same picture 2 times"),
        ({"hints": "30,0,#ffffff"}, "the point 30,0 lies outside the photo"),
    ],
)
def test_the_door_refuses_in_one_sentence(bridge_dir, photo_file, settings, message):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        predicted(bridge_dir, photo_file, **settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["hints", "mask"])
def test_a_folder_has_no_hints_and_no_mask(bridge_dir, photo_file, name):
    with pytest.raises(ValueError, match=f"{name}= belongs to one photo; leave it out, or give predict.py"):
        predicted(bridge_dir, photo_file, input=str(photo_file.parent), **{name: "1,1,#ffffff"})


def test_models_refuse_what_they_cannot_do(colorizer_dir, photo_file, tmp_path):
    plain = save_autoencoder(tmp_path / "autoencoder")
    single = save_bridge(tmp_path / "single", hint_prob=0.0)
    for run_dir, settings, message in (
        (colorizer_dir, {"hints": "1,1,#ffffff"}, "ColorizeControlNet takes no hints="),
        (colorizer_dir, {"start": 0.5}, "ColorizeControlNet takes no start="),
        (single, {"hints": "1,1,#ffffff"}, "this one was trained with module.hint_prob=0"),
        (plain, {"hints": "1,1,#ffffff"}, "Autoencoder takes no hints="),
        (plain, {"start": 0.5}, "Autoencoder takes no start="),
        (plain, {"mask": "mask.png"}, "Autoencoder takes no mask="),
        (plain, {"chroma": "0.5"}, "Autoencoder takes no chroma="),
        (plain, {"prompt": "red"}, "Autoencoder takes no prompt=; leave it out"),
        (plain, {"short_px": 16}, "Autoencoder takes no short_px=; leave it out"),
        (plain, {"steps": 5}, "Autoencoder takes no steps=; leave it out"),
        (single, {"size": "8x8"}, "DiffusingColors takes no size=; leave it out"),
        (plain, {"num_samples": 2}, "Autoencoder takes no num_samples="),
    ):
        with pytest.raises(ValueError) as caught:
            predicted(run_dir, photo_file, **({"short_px": None} | settings))
        assert message in str(caught.value)


def test_a_noisy_bridge_gives_different_results(photo_file, tmp_path):
    noisy = save_bridge(tmp_path / "noisy", noise_scale=1.0)
    assert predicted(noisy, photo_file, num_samples=2) == 0
    first, second = (pixels_of(photo_file.parent / "out" / f"photo_{k}.png") for k in (0, 1))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="num_samples=2 would write the same picture 2 times"):
        predicted(noisy, photo_file, num_samples=2, steps=1)
