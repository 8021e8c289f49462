"""Signatures read from source text against those of the imported objects."""

import ast
import inspect

import pytest

from runs.signatures import kinds, signature


@pytest.mark.parametrize(
    "target",
    [
        "diffusers.AutoencoderKL",
        "diffusers.UNet2DConditionModel",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "torch.optim.AdamW",
        "callbacks.ema.EMA",
        "datamodules.photos.PhotosDataModule",
        "networks.squeezenet.SqueezeNetFeatures.from_file",
    ],
)
def test_the_text_names_the_same_arguments_as_the_imported_object(target: str) -> None:
    from hydra.utils import get_object

    wanted = [n for n in inspect.signature(get_object(target)).parameters if n not in ("self", "kwargs")]
    found = signature(target)
    assert found is not None
    assert sorted(found.arguments) == sorted(wanted)


def test_keyword_arguments_are_followed_into_the_base_class() -> None:
    found = signature("lightning_modules.autoencoder.Autoencoder")
    assert found is not None
    assert not found.open
    assert {"vae", "kl_weight", "lr_schedule", "optimizer", "seed"} <= found.arguments.keys()


def test_a_target_without_source_is_unknown() -> None:
    assert signature("lightning_modules.autoencoder.Nothing") is None
    assert signature("nowhere.Nothing") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int", {"int"}),
        ("float | None", {"float", "None"}),
        ("Optional[Union[int, str]]", {"int", "str", "None"}),
        ("list[int]", {"container"}),
        ("'bool'", {"bool"}),
        ("Path", {"any"}),
    ],
)
def test_kinds_of_annotations(text: str, expected: set[str]) -> None:
    assert kinds(ast.parse(text, mode="eval").body) == expected
