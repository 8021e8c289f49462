"""A tiny BLIP with random weights stands for the real one: the path through files, processor and decoding is the same."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from datamodules.blip import _version, load_captioner
from datamodules.photos import PhotosDataModule


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "red", "cat", "dog", "on", "grass", "a"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {
        "vocab_size": len(words),
        "bos_token_id": 5,
        "eos_token_id": 3,
        "pad_token_id": 0,
        "sep_token_id": 3,
    }
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**sizes, **ids, "encoder_hidden_size": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 16, "width": 16}),
        BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]"),
    )
    processor.save_pretrained(folder)
    return folder


def test_captions_of_a_local_model_are_kept_on_disk(
    captioner: Path, write_photos: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_photos("set", 6)

    def captions() -> list[str]:
        module = PhotosDataModule(
            root=str(root), size_px=8, caption="blip", blip=str(captioner), cache_dir=str(tmp_path / "cache")
        )
        module.setup("fit")
        return [caption.text() for caption in module.train_dataset.captions]

    first = captions()
    assert all(set(text.split()) <= {"red", "cat", "dog", "on", "grass", "a"} and text for text in first)

    def fail(model: str) -> None:
        raise AssertionError("the stored captions were not used")

    monkeypatch.setattr("datamodules.blip.load_captioner", fail)
    assert captions() == first


def test_a_model_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ValueError, match="the BLIP captioner .* cannot be downloaded .* set datamodule.blip to a folder"
    ):
        load_captioner(str(tmp_path / "nothing"))


def test_another_model_in_the_same_folder_has_captions_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"first")
    before = _version(str(tmp_path))
    assert before == _version(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert _version(str(tmp_path)) != before
    assert _version("hub/name").strip() == "hub/name"
