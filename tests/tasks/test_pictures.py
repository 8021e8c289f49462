"""Reconstruction, generation, upscaling and translation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.base import Scores
from tasks.generation import Generation
from tasks.reconstruction import Reconstruction
from tasks.translation import Translation
from tasks.upscaling import Upscaling

ZERO = 1.0  # rounding of the distance of equal sets; between images(0) and images(1) it is 17,000
SQUEEZENET = {"frechet_squeezenet", "kernel_squeezenet"}


def images(seed: int, size: tuple[int, int] = (48, 64)) -> torch.Tensor:
    return torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(seed))


def measured(task, results, batch):
    scores = Scores(task)
    scores.update(results, batch)
    return scores.compute(), scores.skipped


def test_a_perfect_reconstruction_reaches_every_floor(empty_hub, squeezenet_dir):
    task = Reconstruction(fid_backbone="squeezenet", weights_dir=str(squeezenet_dir))
    found, skipped = measured(task, {"image": images(0)}, {"image": images(0)})
    assert set(found) == {"psnr", "ssim", "frechet_squeezenet"}
    assert set(skipped) == {"lpips"}
    assert found["psnr"].mean == 100
    assert found["ssim"].mean == pytest.approx(1)
    assert abs(found["frechet_squeezenet"].mean) < ZERO
    assert task.truth({"image": images(0)}).equal(images(0))
    assert task.baselines({"image": images(0)}) == {}


def test_generated_pictures_are_compared_as_a_set_alone(empty_hub, squeezenet_dir):
    task = Generation(fid_backbone="squeezenet", weights_dir=str(squeezenet_dir))
    found, skipped = measured(task, {"image": images(0).flip(0)}, {"image": images(0)})
    assert set(found) == SQUEEZENET
    assert set(skipped) == {"self_ssim"}
    several = {"image": images(0), "other_sizes": [images(0)]}
    assert measured(task, several, {"image": images(0)})[0]["self_ssim"].mean == pytest.approx(1)
    assert abs(found["frechet_squeezenet"].mean) < ZERO  # the order of a set does not matter
    assert found["frechet_squeezenet"].interval is None
    assert task.truth({"image": images(0)}) is None
    found, skipped = measured(Generation(), {"image": images(0)}, {"image": images(0)})
    assert found == {}
    assert set(skipped) == {"fid", "kid", "self_ssim"}


def test_columns_name_the_backbone():
    task = Generation(fid_backbone="resnet18.a1_in1k")
    keys = list(task.metrics())
    assert keys == ["frechet_resnet18.a1_in1k", "kernel_resnet18.a1_in1k", "self_ssim"]
    assert [task.column(key).better for key in keys] == ["lower", "lower", "higher"]
    assert task.column("fid").title == "FID"
    assert task.column("something").better is None


@pytest.mark.parametrize("build", [Reconstruction, Generation, Upscaling, Translation])
def test_titles_and_keys_of_columns_are_unique(build):
    assert len({column.key for column in build.columns}) == len(build.columns)
    assert len({column.title for column in build.columns}) == len(build.columns)


def test_upscaling_measures_inside_the_border_and_against_the_small_picture(empty_hub):
    task, batch = Upscaling(scale=2.5), {"image": images(0)}
    assert task.border_px == 3
    assert task.low(batch).shape == (4, 3, 19, 26)
    pred = images(0)
    pred[..., :3, :] = pred[..., -3:, :] = 0
    pred[..., :3] = pred[..., -3:] = 0
    found, skipped = measured(task, {"image": pred}, batch)
    assert found["psnr"].mean == found["psnr_y"].mean == 100
    assert found["ssim_y"].mean == pytest.approx(1)
    assert 10 < found["lr_psnr"].mean < 60
    assert set(skipped) == {"lpips", "self_ssim"}
    assert "other_sizes" in skipped["self_ssim"]
    found, _ = measured(task, {"image": images(0), "other_sizes": [task.low(batch)]}, batch)
    assert found["self_ssim"].mean == pytest.approx(1)
    assert found["lr_psnr"].mean == 100


def test_bicubic_is_the_baseline_and_a_given_small_picture_is_taken(empty_hub):
    batch = {"image": images(0), "low": images(1, (12, 16))}
    row = Upscaling().baselines(batch)["bicubic"]
    assert row["image"].shape == batch["image"].shape
    found, _ = measured(Upscaling(), row, batch)
    assert found["lr_psnr"].mean > found["psnr"].mean + 3


def test_bicubic_on_set5_is_what_it_is_known_to_be(empty_hub):
    folder = Path(__file__).parents[2].parent / "shared" / "data" / "sr_test" / "set5"
    if not folder.is_dir():
        pytest.skip("the shared folder of super-resolution test pictures is not at hand")
    scores = Scores(Upscaling())
    for file in sorted(folder.glob("*.png")):
        picture = torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy())
        height, width = (side - side % 4 for side in picture.shape[:2])
        batch = {"image": picture.permute(2, 0, 1)[None, :, :height, :width] / 255.0}
        scores.update(Upscaling().baselines(batch)["bicubic"], batch)
    found = scores.compute()
    # 28.42 and 0.8104 in the field's tables, with MATLAB's bicubic.
    assert found["psnr_y"].mean == pytest.approx(28.42, abs=0.05)
    assert found["ssim_y"].mean == pytest.approx(0.8104, abs=2e-3)
    assert scores.compute()["psnr_y"].count == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"scale": 0.0}, "expected more than 0"), ({"border_px": -1}, "expected 0 or more")],
)
def test_wrong_options_of_upscaling_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Upscaling(**fields)


def test_a_border_that_leaves_nothing_is_named(empty_hub):
    with pytest.raises(ValueError, match="nothing inside a border of 24"):
        measured(Upscaling(border_px=24), {"image": images(0)}, {"image": images(0)})


def test_translation_compares_with_the_target_domain_as_a_set(empty_hub, squeezenet_dir):
    task = Translation(fid_backbone="squeezenet", weights_dir=str(squeezenet_dir))
    batch = {"image_a": images(0), "image_b": images(1)}
    found, skipped = measured(task, {"image": images(1).flip(0)}, batch)
    assert set(found) == SQUEEZENET
    assert abs(found["frechet_squeezenet"].mean) < ZERO
    assert "no cycle" in skipped["cycle_psnr"]
    assert task.truth(batch) is None
    found, _ = measured(task, {"image": images(1), "cycle": images(0)}, batch)
    assert found["cycle_psnr"].mean == 100


def test_the_direction_says_what_is_input_and_target():
    batch = {"image_a": images(0), "image_b": images(1)}
    back = Translation(direction="b_to_a", paired=True)
    assert back.input_image(batch).equal(images(1))
    assert back.truth(batch).equal(images(0))
    assert back.baselines(batch)["input"]["image"].equal(images(1))
    with pytest.raises(ValueError, match="expected one of a_to_b, b_to_a"):
        Translation(direction="both")


def test_pairs_have_a_truth_and_samples_a_diversity(shared_weights):
    task = Translation(paired=True, weights_dir=str(shared_weights))
    batch = {"image_a": images(0), "image_b": images(1)}
    found, skipped = measured(task, {"image": [images(1), images(2)], "cycle": images(0)}, batch)
    assert {"psnr", "ssim", "lpips", "diversity", "content_distance", "cycle_psnr"} <= set(found)
    assert found["psnr"].mean == 100
    assert found["lpips"].mean == 0
    assert found["diversity"].mean > 0
    found, skipped = measured(task, {"image": images(1)}, batch)
    assert "no samples" in skipped["diversity"]


def test_8_bit_and_grey_pictures_are_taken_as_they_are(empty_hub):
    grey = torch.rand(4, 1, 48, 64)
    found, _ = measured(
        Reconstruction(), {"image": (grey * 255).round().byte()}, {"image": grey.expand(-1, 3, -1, -1)}
    )
    assert found["psnr"].mean == 100
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        measured(Reconstruction(), {"image": torch.rand(4, 2, 48, 64)}, {"image": images(0)})
