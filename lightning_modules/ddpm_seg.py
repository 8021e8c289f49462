"""DDPM-Seg: pixels classified by what a trained diffusion model knows of them (Baranchuk et al. 2022, arXiv 2112.03126)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffusion.choices import check_literal
from diffusion.codecs import Codec, IdentityCodec, LatentCodec
from diffusion.paths import GaussianPath
from diffusion.seeding import generators, randn, stream_number
from lightning_modules.base import Batch, Results
from lightning_modules.options import option
from lightning_modules.segmenter import Fusion, Segmenter, segmentation_results
from lightning_modules.windows import Place, WindowOptions, by_windows
from networks.latent_diffusion_parts import LatentDiffusionParts
from networks.pixel_mlps import PixelMlps

# The first layer of ten members is 1280 channels wide at the size of the image.
_SHARE = 16


@dataclass(frozen=True, kw_only=True)
class VotingOptions(WindowOptions):
    """Windows, and how the members of an ensemble become one."""

    fusion: str = option(
        "mean of the members' probabilities, majority of their classes as in the paper, or staple", "mean"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_literal("fusion", self.fusion, Fusion)


class DdpmSeg(Segmenter):
    """Learns an ensemble of pixel classifiers on features of a frozen, unconditional diffusion model.

    Args:
        parts: of the diffusion model, from a run of experiment=latent_diffusion without text; of pixels or of latents.
        blocks: residual blocks of the U-Net's decoder whose output is read, 0 = the first after the middle.
        timesteps: at which it is read, of noise that all images share.
        num_members: M classifiers.
        widths: of their layers.
        num_pixels: drawn of each image for each member in a step.
        keep_features: keep the features of each training image in memory, for data that are the same in each epoch.
        shared: as Segmenter; void pixels are never drawn.

    Raises:
        ValueError: a model that takes text, a block or timestep that it lacks, or sizes out of range.
    """

    Options = VotingOptions

    def __init__(
        self,
        *,
        parts: LatentDiffusionParts,
        blocks: Sequence[int] = (2, 3, 4),
        timesteps: Sequence[int] = (50, 150, 250),
        num_members: int = 10,
        widths: Sequence[int] = (128, 32),
        num_pixels: int = 256,
        keep_features: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if parts.text_encoder is not None:
            raise ValueError(
                "module.parts holds a model that takes text; give an unconditional one (experiment=latent_diffusion "
                "with module.parts.text_encoder=null)"
            )
        if num_pixels < 1 or num_members < 1 or len(widths) != 2:
            raise ValueError(
                f"module.num_pixels={num_pixels}, num_members={num_members}, widths={list(widths)}; expected at least 1 pixel, "
                "1 member and the widths of two layers"
            )
        self.parts = parts
        self.codec: Codec = (
            IdentityCodec(parts.unet.config.in_channels) if parts.vae is None else LatentCodec(parts.vae)
        )
        self.path = GaussianPath.from_scheduler_config(dict(parts.scheduler.config))
        self.timesteps, self.num_pixels, self.keep_features = list(timesteps), num_pixels, keep_features
        decoder = decoder_blocks(parts.unet)
        for name, found, count in (
            ("blocks", blocks, len(decoder)),
            ("timesteps", timesteps, self.path.num_timesteps),
        ):
            if not found or not all(0 <= number < count for number in found):
                raise ValueError(f"module.{name} is {list(found)}; this model has 0 to {count - 1}")
        self._read = [decoder[number] for number in sorted(set(blocks))]  # as the network runs them
        channels = [block.conv2.out_channels for block in self._read] * len(self.timesteps)
        self.mlps = PixelMlps(channels, self.num_classes, num_members, (widths[0], widths[1]))
        self._kept: dict[int, list[Tensor]] = {}
        self.train_only(self.mlps)

    @torch.no_grad()
    def features(self, image: Tensor) -> list[Tensor]:
        """Maps (B, C, h, w) at their own sizes of images (B, 3, H, W) in [0, 1]: those of each block, timestep by timestep."""
        clean = self.codec.encode(image)
        generator = generators(self.seed, stream_number("features"), sample=[0], device=self.device)
        noise = randn(clean.shape[1:], generator).expand_as(clean)
        maps: list[Tensor] = []
        hooks = [block.register_forward_hook(lambda *args: maps.append(args[-1])) for block in self._read]
        try:
            for timestep in self.timesteps:
                here = torch.full((len(clean),), timestep, device=self.device)
                x_t = self.path.corrupt(clean, noise, here)
                self.parts.unet(x_t.to(self.parts.unet.dtype), here, None)
        finally:
            for hook in hooks:
                hook.remove()
        return maps

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        maps, mask = self._features(batch), batch["mask"]
        height, width = mask.shape[-2:]
        num_members, count = self.mlps.num_members, self.num_pixels
        drawn = (
            torch.from_numpy(self.draws(batch).uniform("pixels", num_members * count)).float().to(self.device)
        )
        # Of the pixels that count, in random order: void ones are never drawn.
        valid = (mask != self.ignore_index).flatten(1)
        num_valid = valid.sum(1, keepdim=True)
        ranks = (drawn * num_valid).long().minimum((num_valid - 1).clamp_min(0))  # float32 rounds up to 1
        order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        flat = order.gather(1, ranks)
        target = rearrange(mask.flatten(1).gather(1, flat), "b (m p) -> m b p", m=num_members)
        places = torch.stack([(flat % width + 0.5) / width, (flat // width + 0.5) / height], dim=-1).float()
        logits = self.mlps.at_pixels(maps, rearrange(places, "b (m p) xy -> m b p xy", m=num_members))
        error = F.cross_entropy(
            rearrange(logits.float(), "m b k p -> (m b) k p"),
            rearrange(target, "m b p -> (m b) p"),
            ignore_index=self.ignore_index,
            reduction="sum",
        )
        return {"cross_entropy": error / (target != self.ignore_index).sum().clamp_min(1)}  # all may be void

    def _features(self, batch: Batch) -> list[Tensor]:
        """The maps of a batch; in training those that are kept are read from memory."""
        if not (self.training and self.keep_features):
            return self.features(self.images(batch))
        index = batch["index"].tolist()
        if missing := [row for row, number in enumerate(index) if number not in self._kept]:
            found = self.features(self.images(batch)[missing])
            for place, row in enumerate(missing):
                self._kept[index[row]] = [features[place].half() for features in found]
        return [
            torch.stack(maps).float() for maps in zip(*(self._kept[number] for number in index), strict=True)
        ]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        transform = getattr(getattr(self.trainer.datamodule, "train_dataset", None), "transform", None)
        if (
            self.keep_features
            and transform is not None
            and not (transform.deterministic and transform.flip_prob == 0)
        ):
            raise ValueError(
                "module.keep_features=true keeps one set of features of each image, but the data change from epoch to epoch; "
                "set datamodule.crop=center, datamodule.flip_prob=0 and no brightness or contrast, or "
                "module.keep_features=false"
            )

    @torch.no_grad()
    def results(self, batch: Batch, options: VotingOptions) -> Results:
        image = self.images(batch)

        def members(parts: Tensor, _: list[Place]) -> Tensor:
            size_px = (parts.shape[-2], parts.shape[-1])
            return self.mlps(self.features(parts), size_px).float().softmax(2)

        drawn = by_windows(
            members,
            image,
            window=options.window or self.working_px or max(image.shape[-2:]),
            overlap=options.overlap,
            grid_px=self.cell_px(),
            share=_SHARE,
        )
        results = dict(segmentation_results(drawn, image, options.fusion, uncertainty="disagreement"))
        results.pop("samples", None)  # members are no samples of the mask
        return results

    def cell_px(self) -> int:
        return self.codec.downscale * 2 ** (len(self.parts.unet.config.block_out_channels) - 1)

    def exported(self) -> dict[str, Any]:
        return {"mlps": self.mlps}


def decoder_blocks(unet: Any) -> list[Any]:
    """The residual blocks of a diffusers U-Net's decoder, from the coarsest level on."""
    return [block for level in unet.up_blocks for block in level.resnets]
