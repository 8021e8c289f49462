"""Stage 1 at any size: frozen or joint, its patches, regions, use as a codec, and that it learns."""

import pytest
import torch

from diffusion.implicit_codec import ImplicitCodec
from lightning_modules.implicit_decoder import ImplicitAutoencoder
from metrics.resolution import resize_bicubic
from networks.discriminator import PatchDiscriminator
from networks.implicit_decoder import ImplicitDecoder
from networks.perceptual import FeatureDistance
from networks.squeezenet import SqueezeNetFeatures
from runs.load import load_run
from tests.lightning_modules.pictures import astronaut_batch, astronaut_crops, psnr
from tests.models import one_photo, photo_batch, tiny_vae


def make(vae=None, **settings) -> ImplicitAutoencoder:
    torch.manual_seed(0)
    decoder = ImplicitDecoder(4, (32, 32), 1, add_attention=False, norm_num_groups=4, widths=(32, 32))
    settings = {"patch_px": 16, "optimizer": lambda p: torch.optim.AdamW(p, lr=4e-3)} | settings
    return ImplicitAutoencoder(vae=vae or tiny_vae(), decoder=decoder, **settings)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("train_encoder", [False, True])
def test_what_learns_is_what_is_said(fit, train_encoder):
    module = make(train_encoder=train_encoder)
    vae, decoder = weights(module.vae), weights(module.decoder)
    fit(module, photo_batch(2, 32), steps=2)
    changed = {name: not torch.equal(vae[name], value) for name, value in module.vae.state_dict().items()}
    assert all(changed.values()) == any(changed.values()) == train_encoder
    assert any(not torch.equal(decoder[name], value) for name, value in module.decoder.state_dict().items())
    assert set(module.loss_terms) == {"l1", *(["kl", "plain"] if train_encoder else [])}
    assert train_encoder or module.vae.config.scaling_factor == 0.7  # a frozen autoencoder keeps its own


def test_perceptual_and_adversarial_terms_are_of_the_patches(fit):
    module = make(
        patch_px=32,
        perceptual=FeatureDistance(SqueezeNetFeatures()),
        discriminator=PatchDiscriminator(num_channels=8, num_layers=1),
    )
    seen = []
    module.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:]))
    fit(module, photo_batch(2, 48), steps=2)
    assert set(module.loss_terms) == {"l1", "perceptual", "adversarial", "discriminator"}
    assert set(seen) == {(32, 32)}


def test_the_cost_of_a_step_is_that_of_the_patches(monkeypatch):
    module, batch = make(encoded_px=32), photo_batch(2, 96)
    shapes = []
    patches = module.decoder.patches

    def noting(prepared, sizes, windows):
        shapes.append((sizes, windows, patches(prepared, sizes, windows).shape))
        return patches(prepared, sizes, windows)

    module.decoder.patches = noting
    module.train()
    monkeypatch.setattr(type(module), "batch_number", lambda self: 0)
    latent = module._encoded(batch["image"])[0]
    assert latent.shape == (2, 4, 8, 8)
    pred, target = module.compared(latent, batch)
    (sizes, windows, shape) = shapes[0]
    assert shape == pred.shape == target.shape == (2, 3, 16, 16)
    assert all(16 <= side <= 96 for size in sizes for side in size)
    for row, (size, (top, left, _, _)) in enumerate(zip(sizes, windows, strict=True)):
        whole = resize_bicubic(batch["image"][row : row + 1], size)[0]
        torch.testing.assert_close(target[row], whole[:, top : top + 16, left : left + 16])


@pytest.mark.parametrize(
    ("size", "scale"), [((32, 48), 1.0), ((30, 45), 2.0), ((33, 31), 1.7), ((32, 32), 0.1)]
)
def test_any_photo_at_any_scale(size, scale):
    module = make().eval()
    photo = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    whole = module.results(one_photo(photo), module.Options(scale=scale))["image"]
    expected = tuple(max(1, round(side * scale)) for side in size)
    assert whole.shape == (1, 3, *expected)
    if scale > 1:
        part = module.results(one_photo(photo), module.Options(scale=scale, crop=(5, 8, 20, 11)))["image"]
        torch.testing.assert_close(part, whole[..., 5:25, 8:19], rtol=1e-5, atol=1e-5)


def test_it_is_a_codec_whose_scale_factor_changes_nothing():
    module = make().eval()
    image = photo_batch(2, 32)["image"]
    codec = ImplicitCodec(module.vae, module.decoder)
    first = codec.to_picture(codec.encode(image), (50, 41))
    module.vae.register_to_config(scaling_factor=3.0)
    torch.testing.assert_close(codec.to_picture(codec.encode(image), (50, 41)), first, rtol=1e-4, atol=1e-5)
    joined = torch.cat(list(codec.decode_strips(codec.encode(image), (50, 41), (3, 2, 40, 30))), dim=-2)
    torch.testing.assert_close(joined, first[..., 3:43, 2:32], rtol=1e-4, atol=1e-5)


def test_a_side_that_cells_do_not_cover_is_refused():
    with pytest.raises(ValueError, match="module.encoded_px=30 is no multiple of 4"):
        make(encoded_px=30)
    with pytest.raises(ValueError, match="module.patch_px=16 is more than datamodule.size_px"):
        make().losses(photo_batch(1, 8))


@pytest.mark.slow
def test_it_learns_nearly_what_the_shipped_decoder_knows_of_four_crops(fit):
    """At scale 1, above bicubic interpolation of the picture at a quarter of its side, and near the plain decoder."""
    vae, image = load_run("autoencoder").module.vae, astronaut_crops()
    with torch.no_grad():
        plain = vae.decode(vae.encode(image * 2 - 1).latent_dist.mean).sample / 2 + 0.5
    module = make(vae=vae)
    fit(module, astronaut_batch(), steps=150)
    ours = module.eval().results({"image": image, "index": torch.arange(4)}, module.Options())["image"]
    coarse = resize_bicubic(resize_bicubic(image, (8, 8)), (32, 32))
    assert psnr(ours, image) > psnr(coarse, image) + 0.3
    assert psnr(ours, image) > psnr(plain, image) - 2
