"""Learns which saturation of a photo is the true one, from pairs of a photo and the same with its chroma scaled.

Shapes: B batch, H/W pixels.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from color.gamut import clip_chroma
from color.lab import lightness, rgb_to_lab
from color.transfer import transfer_chroma_exact
from lightning_modules.base import Batch, TranslationModule
from networks.vividness import VividnessRanker

# Scales nearer to 1 than this are no pair: even an eye cannot tell.
_MIN_LOG_SCALE = math.log(1.1)
# Random numbers of a pair: its scale, and three of the disturbance.
_NUM_RANDOM = 4
# Side in pixels of the cells whose mean colour a disturbed photo fades to, and the most its colour is raised after it.
_CELL_PX, _MAX_RAISE = 8, 2.0


class VividnessRanking(TranslationModule):
    """Trains a ranker by the logistic loss of pairs (Bradley and Terry 1952): -log sigmoid(score(true) - score(changed)).

    Args:
        ranker: scores images.
        max_scale: the chroma of a pair's other image is scaled by a factor between 1 / max_scale and max_scale,
            uniform in its logarithm; above 1.1.
        disturb_prob: probability that the hues of a training pair are turned and its colours flattened, of both images
            alike: a colorizer's colours are not the true ones, and their saturation is to be judged all the same.
        shared: as TranslationModule.
    """

    def __init__(
        self, *, ranker: VividnessRanker, max_scale: float = 4.0, disturb_prob: float = 0.5, **shared: Any
    ) -> None:
        super().__init__(**shared)
        if not 0 <= disturb_prob <= 1:
            raise ValueError(f"module.disturb_prob is {disturb_prob}; expected a probability in [0, 1]")
        if math.log(max(max_scale, 1e-9)) <= _MIN_LOG_SCALE:
            raise ValueError(f"module.max_scale is {max_scale}; expected above 1.1")
        self.ranker, self.max_scale, self.disturb_prob = ranker, max_scale, disturb_prob
        self.train_only(ranker)

    def scales(self, uniform: np.ndarray) -> Tensor:
        """Factors of chroma (B, 1, 1, 1) from numbers in [0, 1): half below 1 / 1.1, half above 1.1."""
        signed = 2 * uniform - 1
        widest = math.log(self.max_scale) - _MIN_LOG_SCALE
        logs = np.sign(signed + 1e-12) * (_MIN_LOG_SCALE + np.abs(signed) * widest)
        return torch.from_numpy(np.exp(logs)).float().to(self.device).view(-1, 1, 1, 1)

    def pair_scores(self, image: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B,) of the photos and of the photos with scaled chroma."""
        changed = transfer_chroma_exact(lightness(image), image, chroma_scale=scale)
        true, other = self.ranker(torch.cat([image, changed])).float().chunk(2)
        return true, other

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image, draws = self.images(batch), self.draws(batch)
        if not self.training:
            true, other = self.pair_scores(image, self.scales(draws.uniform("timestep")))
            self.log_mean("accuracy", (true > other).float().mean(), len(true))
            return {"ranking": F.softplus(other - true).mean()}
        uniform = draws.uniform("timestep", _NUM_RANDOM)
        chosen = np.flatnonzero(uniform[:, 1] < self.disturb_prob)
        if len(chosen):
            angle, flatness = torch.from_numpy(uniform[chosen, 2:]).float().to(self.device).unbind(1)
            image = image.clone()
            image[chosen] = disturbed(image[chosen], 2 * math.pi * angle, flatness).to(image.dtype)
        true, other = self.pair_scores(image, self.scales(uniform[:, 0]))
        return {"ranking": F.softplus(other - true).mean()}

    @torch.no_grad()
    def sample_panels(self, batch: Batch) -> dict[str, Tensor]:
        """Photos at several chroma scales, and the one that the ranker picks."""
        image = self.images(batch)
        given = lightness(image)
        scales = (0.25, 0.5, 1.0, 1.5, 2.0)
        candidates = [transfer_chroma_exact(given, image, chroma_scale=scale) for scale in scales]
        scores = torch.stack([self.ranker(candidate) for candidate in candidates])
        picked = torch.stack(candidates)[scores.argmax(0), torch.arange(len(image))]
        return {f"chroma x {s:g}": c for s, c in zip(scales, candidates, strict=True)} | {"picked": picked}

    def usage(self) -> str:
        return (
            "```\npython predict.py run=COLORIZER input=photo.jpg output=DIR chroma=auto ranker=FOLDER\n```"
        )

    def exported(self) -> dict[str, ModelMixin | SchedulerMixin]:
        return {"ranker": self.ranker}


def disturbed(image: Tensor, angle: Tensor, flatness: Tensor) -> Tensor:
    """Images with turned hues and flattened colours, of about the same mean chroma.

    Args:
        image: (B, 3, H, W) in [0, 1].
        angle: (B,) of the hues' turn, radians.
        flatness: (B,) in [0, 1]; 1 leaves each region of 8 x 8 pixels its mean colour alone.

    Returns:
        (B, 3, H, W) in [0, 1] with the same lightness.
    """
    lab = rgb_to_lab(image)
    ab = lab[:, 1:]
    height, width = image.shape[-2:]
    coarse = F.adaptive_avg_pool2d(ab, (max(1, height // _CELL_PX), max(1, width // _CELL_PX)))
    coarse = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    flat = torch.lerp(ab, coarse, flatness.view(-1, 1, 1, 1))
    before, after = (x.norm(dim=1).mean((1, 2)).view(-1, 1, 1, 1) for x in (ab, flat))
    a, b = (flat * (before / after.clamp_min(1e-3)).clamp_max(_MAX_RAISE)).chunk(2, dim=1)
    cos, sin = angle.cos().view(-1, 1, 1, 1), angle.sin().view(-1, 1, 1, 1)
    return clip_chroma(torch.cat([lab[:, :1], cos * a - sin * b, sin * a + cos * b], dim=1))
