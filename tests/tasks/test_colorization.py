import pytest
import torch

from color.lab import grey_image, lightness
from tasks.base import Scores
from tasks.colorization import Colorization

ALWAYS = {"psnr", "ssim", "delta_e2000", "lightness_error", "colorfulness", "colorfulness_difference"}


def images(seed: int = 0, size: tuple[int, int] = (40, 60)) -> torch.Tensor:
    return torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(seed))


def update(scores: Scores, pred: torch.Tensor, target: torch.Tensor) -> None:
    scores.update({"image": pred}, {"image": target})


def test_missing_weights_are_skipped_with_reason_and_remedy(empty_hub):
    metrics = Scores(Colorization(size_px=32))
    update(metrics, images(0), images(1))
    assert set(metrics.compute()) == ALWAYS
    assert set(metrics.skipped) == {"lpips", "fid"}
    for sentence in metrics.skipped.values():
        assert "are not in" in sentence
        assert "on a machine with network run" in sentence


def test_squeezenet_numbers_have_their_own_names(empty_hub, squeezenet_dir):
    protocol = Colorization(size_px=32, fid_backbone="squeezenet", weights_dir=str(squeezenet_dir))
    metrics = Scores(protocol)
    update(metrics, images(0), images(1))
    assert set(metrics.compute()) == ALWAYS | {"frechet_squeezenet", "feature_distance_squeezenet"}
    assert "fid" not in metrics.skipped


def test_a_missing_folder_of_weights_is_skipped_too(empty_hub):
    metrics = Scores(Colorization(fid_backbone="squeezenet", weights_dir="no/such/folder"))
    assert "no/such/folder holds no squeezenet1_1" in metrics.skipped["frechet_squeezenet"]
    assert "feature_distance_squeezenet" in metrics.skipped


def test_perfect_result_reaches_every_floor(empty_hub):
    metrics = Scores(Colorization())
    update(metrics, images(), images())
    result = {name: summary.mean for name, summary in metrics.compute().items()}
    assert result["psnr"] == 100
    assert result["ssim"] == pytest.approx(1)
    assert result["delta_e2000"] == result["lightness_error"] == result["colorfulness_difference"] == 0


def test_grey_result_has_no_colour_and_the_right_lightness(empty_hub):
    metrics = Scores(Colorization())
    update(metrics, grey_image(lightness(images())), images())
    result = metrics.compute()
    assert result["colorfulness"].mean == 0
    assert result["lightness_error"].mean < 0.3
    assert result["delta_e2000"].mean > 5
    assert result["delta_e2000"].count == 3


def test_a_single_picture_skips_the_set_distance(empty_hub, squeezenet_dir):
    protocol = Colorization(size_px=32, fid_backbone="squeezenet", weights_dir=str(squeezenet_dir))
    metrics = Scores(protocol)
    update(metrics, images(0)[:1], images(1)[:1])
    assert "frechet_squeezenet" not in metrics.compute()
    assert "expected at least 2" in metrics.skipped["frechet_squeezenet"]


def test_center_takes_the_middle_square_and_resize_the_whole():
    image = torch.zeros(1, 3, 20, 60)
    image[..., 20:40] = 1.0
    assert Colorization(size_px=16, crop="center").prepare(image).min() > 0.999
    assert Colorization(size_px=18, crop="resize").prepare(image).mean().item() == pytest.approx(
        1 / 3, abs=0.01
    )
    assert Colorization().prepare(image) is image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "middle"}, "crop='middle', expected one of center, resize"),
        ({"fid_reference": "val50k"}, "fid_reference='val50k', expected one of same"),
        ({"protocol": "val5k", "size_px": 128}, "is defined at 256"),
        ({"colorfulness_variant": "m3"}, "expected one of hasler, absolute"),
        ({"colorfulness_difference": "mean"}, "expected one of of_means, per_image"),
        ({"lpips_net": "resnet"}, "expected one of alex, vgg, squeeze"),
        ({"size_px": 8}, "expected at least 11"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Colorization(**arguments)


def test_named_protocols_set_size_and_crop_and_the_data_follow():
    assert Colorization().described()["size_px"] is None
    val50k = Colorization(protocol="val50k")
    assert (val50k.size_px, val50k.crop) == (256, "resize")
    data = {"root": "DIR", "size_px": 64, "eval_crop": "center"}
    assert Colorization().as_measured(data) == data
    assert val50k.as_measured(data) == {"root": "DIR", "size_px": 256, "eval_crop": "resize"}
    with pytest.raises(ValueError, match="squeezes whole photos"):
        val50k.as_measured({"size_px": 64})


def test_baselines_keep_the_lightness_and_take_the_mean_colour_of_the_train_split():
    photo = torch.full((3, 32, 32), 0.5)
    photo[0] += 0.1
    ab = Colorization().fit([{"image": photo}] * 3)
    rows = Colorization().baselines({"image": images()}, ab)
    assert list(rows) == ["grey", "mean colour"]
    for row in rows.values():
        assert (lightness(row["image"]) - lightness(images())).abs().max() < 1e-3
    flat = Colorization().baselines({"image": photo[None]}, ab)["mean colour"]
    torch.testing.assert_close(flat["image"], photo[None], atol=1e-3, rtol=0)
    assert list(Colorization().baselines({"image": images()})) == ["grey"]
