"""Sample pictures: the grid, fixed images, EMA weights, and no trace in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.ema import EMA
from callbacks.samples import CAPTION_PX, GAP_PX, MIN_CELL_PX, SamplePictures, picture_grid


def test_the_grid_has_images_in_rows_and_panels_in_columns():
    panels = {
        "input": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 64, 64),
        "result": torch.tensor([0.25, 2.0]).reshape(2, 1, 1, 1).expand(2, 3, 128, 128),
    }
    grid = np.asarray(picture_grid(panels))
    assert grid.shape == (CAPTION_PX + 2 * (128 + GAP_PX), GAP_PX + 2 * (128 + GAP_PX), 3)
    tops = [CAPTION_PX + 60, CAPTION_PX + GAP_PX + 128 + 60]
    lefts = [GAP_PX + 60, 2 * GAP_PX + 128 + 60]
    assert [[grid[y, x, 0] for x in lefts] for y in tops] == [[0, 64], [255, 255]]
    assert (grid[:CAPTION_PX] < 128).any()  # the captions
    assert MIN_CELL_PX == 128


def record(module, ema=None):
    """Makes sample_panels note what it sees."""
    seen = []
    panels = module.sample_panels

    def sample_panels(batch):
        torch.rand(3)
        weight = module.net.weight.detach().clone()
        seen.append((batch["name"], weight, module.net.training, torch.is_grad_enabled()))
        if ema is not None:
            assert torch.equal(weight, ema.average["net.weight"])
        return panels(batch)

    module.sample_panels = sample_panels
    return seen


@pytest.mark.parametrize(("every_n_steps", "steps"), [(None, [10, 20]), (5, [5, 10, 15, 20])])
def test_pictures_show_the_first_validation_images_with_ema_weights(
    fit, tiny, tmp_path, every_n_steps, steps
):
    module, plain, ema = tiny(), tiny(), EMA(0.9, warmup=False)
    seen = record(module, ema)
    fit(module, [SamplePictures(every_n_steps, num_images=3), ema])
    fit(plain, [])
    files = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert files == [f"step_{step:08d}.png" for step in steps]
    assert all(entry[0] == ["photo0", "photo1", "photo2"] for entry in seen)
    assert all(entry[2:] == (False, False) for entry in seen)
    assert module.net.training
    assert module.losses == plain.losses
    assert Image.open(tmp_path / "samples" / files[0]).size[1] == CAPTION_PX + 3 * (128 + GAP_PX)


def test_the_random_state_is_untouched(fit, tiny):
    torch.manual_seed(3)
    module = tiny()
    trainer = fit(module, [], max_steps=1, limit_val_batches=1)
    state = torch.random.get_rng_state()
    record(module)
    SamplePictures(num_images=2).draw(trainer, module)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_without_validation_data_draws_nothing(fit, tiny, tmp_path):
    fit(tiny(), [SamplePictures(5)], limit_val_batches=0, max_steps=5)
    assert len(list(tmp_path.glob("samples/*"))) <= 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_images is 0"):
        SamplePictures(num_images=0)
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        SamplePictures(every_n_steps=0)
