"""A folder in Stable Diffusion 1.5's layout and class names at tiny size, written by diffusers' own pipeline."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.models import tiny_unet, tiny_vae

_MERGES = ("r e", "re d</w>", "b l", "bl u", "blu e</w>")
_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A real byte-pair tokenizer over all bytes and five merges, from the files that CLIP's repository has."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in _MERGES] + [_START, _END]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def clip_text_model(tokenizer: CLIPTokenizer, width: int = 16) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def save_sd_folder(
    folder: Path, *, vae: AutoencoderKL | None = None, halvings: int = 3
) -> StableDiffusionPipeline:
    """Writes the folder (an f8 codec of 4 blocks unless told otherwise) and returns the pipeline."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder / "raw_tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae or tiny_vae(halvings=halvings),
        text_encoder=clip_text_model(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(16),
        # The scheduler of Stable Diffusion 1.5.
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return pipeline
