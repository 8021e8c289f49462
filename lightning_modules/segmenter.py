"""What the methods of segmentation share: classes as channels, large images by windows, samples as one result.

Shapes: B batch, C image channels, K classes, S samples, H/W pixels.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from kornia.losses import dice_loss
from torch import Tensor
from torch.nn import functional as F

from diffusion.choices import check_literal
from lightning_modules.base import Results, TranslationModule
from lightning_modules.options import SamplingOptions, option
from lightning_modules.windows import WindowOptions
from tasks.segmentation import Segmentation

# No pixel has it.
NO_VOID = -100

Fusion = Literal["mean", "majority", "staple"]
Uncertainty = Literal["entropy", "disagreement"]


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(WindowOptions, SamplingOptions):
    """Sampling of several masks and how they become one."""

    num_samples: int = option("masks that are drawn for each image", 5)
    fusion: str = option("mean of the samples' probabilities, majority of their classes, or staple", "mean")

    def __post_init__(self) -> None:
        SamplingOptions.__post_init__(self)
        WindowOptions.__post_init__(self)
        check_literal("fusion", self.fusion, Fusion)


class Segmenter(TranslationModule):
    """What learns the classes of pixels: it knows how many there are, and refuses data of other classes.

    Args:
        num_classes: K, with the background.
        ignore_index: id of void pixels, which count nowhere; None = there are none.
        shared: as TranslationModule.
    """

    task = Segmentation

    def __init__(self, *, num_classes: int = 2, ignore_index: int | None = None, **shared: Any) -> None:
        super().__init__(**shared)
        if num_classes < 2:
            raise ValueError(
                f"module.num_classes is {num_classes}; expected at least 2, the background included"
            )
        self.num_classes, self.void = num_classes, ignore_index

    @property
    def ignore_index(self) -> int:
        """Id of void pixels, or one that no pixel has."""
        return NO_VOID if self.void is None else self.void

    def setup(self, stage: str) -> None:
        """Before a training, refuses data of other classes than the model's, and images of sizes of their own."""
        datamodule = getattr(self.trainer, "datamodule", None)
        classes = getattr(getattr(datamodule, "train_dataset", None), "classes", None)
        if stage == "fit" and classes is not None:
            if len(classes.names) != self.num_classes:
                raise ValueError(
                    f"the data have {len(classes.names)} classes, the background included, and module.num_classes is "
                    f"{self.num_classes}; set module.num_classes={len(classes.names)}"
                )
            if classes.ignore_index is not None and classes.ignore_index != self.void:
                raise ValueError(
                    f"void pixels of the data have the id {classes.ignore_index}, and module.ignore_index is {self.void}; "
                    f"set module.ignore_index={classes.ignore_index}"
                )
            if getattr(datamodule, "size_px", 0) is None:
                raise ValueError(
                    "datamodule.size_px=null gives images of several sizes, which no batch holds; set a size for training"
                )
        super().setup(stage)

    def protocol(self, options: Any) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def check_channels(self, name: str, found: int, expected: int) -> None:
        """Raises a ValueError for a network of other channels than the classes need."""
        if found != expected:
            raise ValueError(
                f"module.network.{name} is {found}, but {self.num_classes} classes need {expected}; set "
                f"module.network.{name}={expected}"
            )


def standardized(image: Tensor) -> Tensor:
    """Each image (B, C, H, W) with mean 0 and standard deviation 1 over all its values, as nnU-Net does; a flat one is 0."""
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    return (image - mean) / image.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)


def one_hot(mask: Tensor, num_classes: int) -> Tensor:
    """Class ids (B, H, W) as channels float32 (B, K, H, W) of 0 and 1; ids outside the classes (void) are 0 in all."""
    return (mask[:, None] == torch.arange(num_classes, device=mask.device)[:, None, None]).float()


def segmentation_loss(logits: Tensor, mask: Tensor, ignore_index: int = NO_VOID) -> tuple[Tensor, Tensor]:
    """Cross-entropy and soft Dice, scalars, of logits (B, K, H, W) and class ids (B, H, W); void pixels count nowhere.

    The two losses of nnU-Net (Isensee et al. 2021), but that Dice is the mean over each image and all classes, the
    background too.
    """
    cross_entropy = F.cross_entropy(logits, mask, ignore_index=ignore_index, reduction="sum")
    cross_entropy = cross_entropy / (mask != ignore_index).sum().clamp_min(1)  # 0 where all is void
    return cross_entropy, dice_loss(logits, mask, average="macro", ignore_index=ignore_index)


def segmentation_results(
    samples: Tensor, image: Tensor, fusion: str = "mean", *, uncertainty: Uncertainty = "entropy"
) -> Results:
    """Mask, probability, uncertainty and an overlay on the image (B, 3, H, W) in [0, 1] of class probabilities (S, B, K, H, W), and the samples' own masks if S > 1.

    The probability is of class 1 where there are two, else one map of each class. The uncertainty is the entropy of the mean
    probabilities, whatever the fusion, or the samples' disagreement, their Jensen-Shannon divergence: the entropy of their mean less the mean
    of their entropies; both over the largest entropy, log K.
    """
    given, masks, num_classes = samples, samples.argmax(2), samples.shape[2]
    if fusion == "majority":
        samples = torch.stack([one_hot(mask, num_classes) for mask in masks])
    probability = staple(masks, num_classes) if fusion == "staple" else samples.mean(0)
    probability = probability / probability.sum(1, keepdim=True).clamp_min(1e-6)
    entropy = _entropy(given.mean(0))
    if uncertainty == "disagreement":
        entropy = entropy - torch.stack([_entropy(sample) for sample in given]).mean(0)
    results: dict[str, Tensor | list[Tensor]] = {
        "mask": probability.argmax(1),
        "probability": probability[:, 1] if num_classes == 2 else list(probability.unbind(1)),
        "uncertainty": (entropy / math.log(num_classes)).clamp(0, 1),
    }
    overlay = Segmentation(num_classes=num_classes).picture({"mask": probability.argmax(1)}, {"image": image})
    return results | {"overlay": overlay} | ({"samples": list(masks)} if len(masks) > 1 else {})


def staple(masks: Tensor, num_classes: int) -> Tensor:
    """Probabilities (B, K, H, W) of the truth behind masks (S, B, H, W) that err at rates of their own (Warfield et al. 2004).

    SimpleITK's expectation maximisation, class by class against all others.
    """
    import SimpleITK

    found = torch.zeros(masks.shape[1], num_classes, *masks.shape[2:])
    for row, drawn in enumerate(masks.unbind(1)):
        for number in drawn.unique().tolist():
            if (drawn == number).all():  # SimpleITK would divide by zero
                found[row, number] = 1
                continue
            votes = [SimpleITK.GetImageFromArray(mask) for mask in (drawn == number).byte().cpu().numpy()]
            found[row, number] = torch.from_numpy(SimpleITK.GetArrayFromImage(SimpleITK.STAPLE(votes, 1.0)))
    return found.to(masks.device)


def _entropy(probability: Tensor) -> Tensor:
    """Of class probabilities (B, K, H, W), in nats (B, H, W)."""
    return torch.special.entr(probability).sum(1)
