"""Conditions made from a photo: what each shows, by pictures whose answer is known."""

import pytest
import torch

from color.conditions import NAMES, MadeCondition, boxes, masked
from color.lab import lightness


def made(text: str) -> MadeCondition:
    found = MadeCondition.parse(text)
    assert found is not None
    return found


def half(size: int = 32) -> torch.Tensor:
    """Black on the left, white on the right."""
    image = torch.zeros(1, 3, size, size)
    image[..., size // 2 :] = 1
    return image


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_is_a_picture_of_the_same_size_and_of_each_image_alone(name):
    image = torch.rand(3, 3, 24, 40)
    uniform = torch.rand(3, 4)
    found = made(name)(image, uniform=uniform)
    assert found.shape == image.shape
    assert found.dtype == torch.float32
    assert -1 <= found.min() <= found.max() <= 1
    alone = made(name)(image[1:2], uniform=uniform[1:2])
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=1e-5)
    tiny = made(name)(torch.rand(1, 3, 5, 4), uniform=uniform[:1])
    assert tiny.isfinite().all()


def test_edges_stand_where_the_picture_changes():
    for name, width in (("canny", 2), ("scribble", 6)):
        found = made(name)(half())[0, 0]
        assert set(found.unique().tolist()) == {0.0, 1.0}
        columns = found[8:24].mean(0).nonzero().flatten().tolist()
        assert 1 <= len(columns) <= width
        assert all(abs(column - 15.5) <= width / 2 + 0.5 for column in columns)
    soft = made("soft_edges")(half())[0, 0]
    assert soft.max() == 1
    assert soft[16].argmax() in (15, 16)
    assert soft[:, :8].max() < 0.01
    for name in ("canny", "scribble", "soft_edges"):
        assert made(name)(torch.full((1, 3, 16, 16), 0.4)).abs().max() < 1e-3


def test_amounts_matter():
    image = torch.rand(1, 3, 32, 32)
    assert made("canny:0.05")(image).sum() > made("canny:0.4")(image).sum()
    assert made("blur:8")(image).std() < made("blur:1")(image).std()
    blocks = image.unfold(2, 8, 8).unfold(3, 8, 8).mean((-2, -1))
    low = made("low:8")(image)
    # Between the centres of blocks it is a mixture, there the block itself.
    torch.testing.assert_close(low[..., 3:29:8, 3:29:8].mean(), blocks.mean(), rtol=0.05, atol=0.02)
    assert low.std() < image.std() / 3
    torch.testing.assert_close(lightness(made("grey")(image)), lightness(image), rtol=0, atol=2e-3)


def test_boxes_have_the_share_and_stay_inside():
    shares = boxes(torch.rand(500, 4), (40, 60), 0.5).float().flatten(1).mean(1)
    assert 0.05 < shares.min() < shares.max() <= 0.26
    whole = boxes(torch.tensor([[1.0, 1.0, 0.3, 0.3]]), (10, 10), 1.0)
    assert whole.all()
    image = torch.rand(1, 3, 10, 10)
    assert (masked(image, whole) == -1).all()
    region = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    region[..., :3] = True
    found = made("masked")(image, region=region)
    assert torch.equal(found[..., 3:], image[..., 3:])
    assert (found[..., :3] == -1).all()


def test_other_names_are_no_conditions_and_amounts_are_checked():
    assert MadeCondition.parse("source") is None
    for text in ("low:0", "low:", "low:x", "masked:2", "blur:inf"):
        with pytest.raises(
            ValueError, match=f"module.conds has {text}; expected a number above 0 behind the colon"
        ):
            MadeCondition.parse(text)
