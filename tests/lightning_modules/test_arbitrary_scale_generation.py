"""Generation at any size: one content at all sizes, the aspect of the result, evaluation."""

import pytest
import torch

from diffusion.implicit_codec import ImplicitCodec
from lightning_modules.arbitrary_scale_generation import ArbitraryScaleGeneration
from tests.lightning_modules.any_size_models import decoder
from tests.models import photo_batch, tiny_parts, tiny_settings

NOTHING = {"index": torch.tensor([0]), "name": ["sample"]}


def make(**further) -> ArbitraryScaleGeneration:
    module = ArbitraryScaleGeneration(
        parts=tiny_parts(), **tiny_settings(decoder=decoder(), **further)
    ).eval()
    module.working_px = 32
    return module


def drawn(module, **words) -> torch.Tensor:
    return module.results(NOTHING, module.Options(**words))["image"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({}, (32, 32)),
        ({"scale": 2.7}, (86, 86)),
        ({"size": (50, 100)}, (50, 100)),
        ({"size": (5, 7)}, (5, 7)),
    ],
)
def test_any_size(words, expected):
    assert drawn(make(), **words).shape == (1, 3, *expected)


def test_all_sizes_show_one_latent_and_a_region_is_a_slice(monkeypatch):
    module, latents = make(), []
    inner = module.draw_latents
    monkeypatch.setattr(module, "draw_latents", lambda *a: latents.append(inner(*a)) or latents[-1])
    whole = drawn(module, size=(90, 90))
    drawn(module, scale=1.0)
    part = drawn(module, size=(90, 90), crop=(11, 30, 40, 20))
    assert all(torch.equal(latents[0], other) for other in latents)
    torch.testing.assert_close(part, whole[..., 11:51, 30:50], rtol=1e-4, atol=1e-5)
    assert module.drawn_px((50, 100)) == (32, 64)


def test_sample_pictures_of_a_training_have_the_latents_of_its_photos():
    module = make()
    module.working_px = None  # as in a training, which loads no run
    assert module.drawn_px((32, 32)) == (32, 32)
    rows = dict(module.rows(photo_batch(2, 32), module.Options()))
    assert rows["sample from caption"]["image"].shape == (2, 3, 32, 32)
    assert [other.shape[-1] for other in rows["sample from caption"]["other_sizes"]] == [16, 24]
    for words in ({"scale": 2.0}, {"crop": (0, 0, 5, 5)}):
        with pytest.raises(ValueError, match="scale= and crop= have no effect here; set size="):
            next(module.rows(photo_batch(2, 32), module.Options(**words)))


def test_it_decodes_with_the_decoder_and_learns_the_unet_alone():
    module = make()
    assert isinstance(module.codec, ImplicitCodec)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("parts.unet") for name in trained)
    assert "decoder" in module.exported()


def test_evaluation_draws_pictures_as_large_as_the_photos():
    module = make()
    rows = dict(module.rows(photo_batch(2, 64), module.Options()))
    assert all(row["image"].shape == (2, 3, 64, 64) for row in rows.values())
