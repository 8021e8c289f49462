"""Captions by a BLIP model from transformers, looked for on this machine first."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor, BlipForConditionalGeneration

from datamodules.annotations import annotated
from datamodules.decode import decode_image
from datamodules.image_files import file_states
from datamodules.photo_dataset import PhotoDataset

log = logging.getLogger(__name__)

MAX_NEW_TOKENS = 30


def blip_captions(dataset: PhotoDataset, *, model: str, cache_dir: str | None = None) -> list[str]:
    """Caption of every photo, by greedy decoding of the whole photo (not of its crop).

    `model` is a hub id or local folder. It is loaded when the first photo without a stored caption comes, so a filled
    cache needs no model.

    Raises:
        ValueError: If the model can't be had.
    """
    caption_of: Callable[[Tensor], str] | None = None

    def annotate(index: int) -> str:
        nonlocal caption_of
        if caption_of is None:
            log.info("captioning photos with %s; set datamodule.cache_dir to keep the captions", model)
            caption_of = load_captioner(model)
        return caption_of(decode_image(dataset.paths[index], dataset.transform.max_pixels, min_side_px=768))

    return annotated(
        dataset,
        annotate,
        settings=f"blip {_version(model)} {MAX_NEW_TOKENS}",
        cache_dir=cache_dir,
        unreadable="",
    )


def load_captioner(model: str) -> Callable[[Tensor], str]:
    """Function from a uint8 image (3, H, W) to its caption; on the GPU if there is one.

    Raises:
        ValueError: If the model is neither on this machine nor to be downloaded.
    """
    processor, network = _load(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(device).eval().requires_grad_(False)

    def caption(image: Tensor) -> str:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(device)
        with torch.inference_mode():
            tokens = network.generate(
                pixel_values=pixels, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, num_beams=1
            )
        return processor.decode(tokens[0], skip_special_tokens=True).strip()

    return caption


def _load(model: str) -> tuple[Any, Any]:
    for local_only in (True, False):
        where = {"local_files_only": local_only, "trust_remote_code": False}
        try:
            processor = AutoProcessor.from_pretrained(model, **where)
            return processor, BlipForConditionalGeneration.from_pretrained(
                model, use_safetensors=True, **where
            )
        except (OSError, ValueError, KeyError) as error:
            reason = error
    raise ValueError(
        f"the BLIP captioner {model!r} is not on this machine and cannot be downloaded "
        f"({str(reason).strip().partition(chr(10))[0]}); set datamodule.blip to a folder that holds one, or "
        "datamodule.caption=colors"
    ) from reason


def _version(model: str) -> str:
    """A local model with the state of its files; of a hub model the name has to do."""
    files = sorted(path for path in Path(model).glob("*") if path.is_file())
    return " ".join([model, *file_states(files)])
