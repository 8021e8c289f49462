"""Which of several saturations of a photo looks right: a small learned ranker, and CLIP where it is at hand."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torchvision.transforms.functional import normalize
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from color.lab import rgb_to_lab

# A well coloured photo first, then photos with too little and too much colour.
_CLIP_TEXTS = [
    "a natural colour photo",
    "a black and white photo",
    "a washed out photo",
    "an oversaturated photo with garish colours",
]


class VividnessRanker(ModelMixin, ConfigMixin):
    """Scores how true the saturation of an image is; the higher of two scores of one photo is the likelier one.

    Learned from pairs of a photo and the same with its ab scaled; scores of different photos do not compare. Each stage
    of `channels` halves the side.

    Example:
        >>> VividnessRanker()(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    @register_to_config
    def __init__(self, channels: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            stages += [nn.Conv2d(after, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        # Means of the colours themselves too: normalisation inside the stages hides the absolute saturation.
        self.head = nn.Sequential(nn.Linear(channels[-1] + 4, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B,) of images (B, 3, H, W) in [0, 1]; sides of at least 16 pixels."""
        lab = rgb_to_lab(image) / torch.tensor([100.0, 50.0, 50.0], device=image.device).view(1, 3, 1, 1)
        chroma = lab[:, 1:].square().sum(1, keepdim=True).sqrt()
        moments = torch.cat([chroma.mean((2, 3)), chroma.flatten(2).std(-1), lab[:, 1:].mean((2, 3))], dim=1)
        features = self.stages(lab).mean((2, 3))
        # In low precision the scores, some tens large, would be rounded by more than they differ.
        with torch.autocast(image.device.type, enabled=False):
            return self.head(torch.cat([features, moments], dim=1).to(self.dtype)).squeeze(1)


@torch.no_grad()
def best_candidates(ranker: nn.Module, candidates: Tensor) -> Tensor:
    """Which of K candidates (K, B, 3, H, W) in [0, 1] of each photo a ranker scores highest: int64 (B,).

    The ranker gives images (B, 3, H, W) scores (B,); one of the K is scored at a time.
    """
    return torch.stack([ranker(images).float() for images in candidates]).argmax(0)


class ClipVividness(nn.Module):
    """Scores images by transformers' CLIPModel (Radford et al. 2021): how much nearer a photo is to one text than others."""

    texts: Tensor

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        tokens = tokenizer(_CLIP_TEXTS, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states = self.model.text_model(**tokens).pooler_output
            texts = F.normalize(self.model.text_projection(states), dim=-1)
        self.register_buffer("texts", texts, persistent=False)

    @classmethod
    def from_folder(cls, source: str) -> "ClipVividness":
        """CLIP from a local folder or a hub id; FileNotFoundError where there is none."""
        from transformers import CLIPModel, CLIPTokenizer

        try:
            model = CLIPModel.from_pretrained(source, use_safetensors=True)
            return cls(model, CLIPTokenizer.from_pretrained(source))
        except (OSError, ValueError) as error:
            where = "the folder lacks CLIP's files" if Path(source).is_dir() else "no such folder or hub id"
            raise FileNotFoundError(f"no CLIP model at {source}: {where}") from error

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Log probabilities (B,) of the text of a well coloured photo for images (B, 3, H, W) in [0, 1]."""
        side = self.model.config.vision_config.image_size
        resized = F.interpolate(image, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        pixels = normalize(resized, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        states = self.model.vision_model(pixel_values=pixels).pooler_output
        features = F.normalize(self.model.visual_projection(states), dim=-1)
        logits = self.model.logit_scale.exp() * features @ self.texts.T
        return logits.log_softmax(-1)[:, 0]
