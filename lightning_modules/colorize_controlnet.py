"""Colorization in Lab with ControlNet (Zhang et al. 2023): lightness in, a colour latent out, the base frozen.

Shapes: B batch, H/W pixels, Z latent channels, h/w latent cells.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from color.lab import grey_image, lightness, rgb_to_lab
from color.transfer import transfer_chroma, transfer_chroma_exact, working_copy
from lightning_modules.latent import Condition, LatentModule
from lightning_modules.latent_diffusion import stable_diffusion_parts
from lightning_modules.requests import DrawSettings, PredictRequest
from metrics.delta_e import delta_e_2000
from networks.latent_diffusion_parts import write_model_index

GuidanceDrops = Literal["prompt", "cond", "both"]


class ColorizeControlNet(LatentModule):
    """Learns a ControlNet whose condition is lightness; samples are moved onto the input's own lightness.

    Args:
        cond_channels: widths of the condition's encoder, one halving between each two; None fits the codec.
        train_decoder: also train the base's decoder ("sd_locked=False" of the authors' code).
        mid_control_only: use the middle block's residual alone.
        guidance_drops: what the negative branch of guidance lacks. With empty prompts on both branches "prompt"
            leaves guidance without effect, so that "cond" or "both" is what a colorizer without prompts needs.
        cond_scale: multiplies the ControlNet's residuals.
        chroma_scale: multiplies the result's ab: 0 is grey, 1 as drawn.
        settings: as LatentModule.

    Raises:
        ValueError: an unknown `guidance_drops`, or widths that do not reach the latent's size.
    """

    def __init__(
        self,
        *,
        cond_channels: list[int] | None = None,
        train_decoder: bool = False,
        mid_control_only: bool = False,
        guidance_drops: GuidanceDrops = "both",
        cond_scale: float = 1.0,
        chroma_scale: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if guidance_drops not in ("prompt", "cond", "both"):
            raise ValueError(f"module.guidance_drops is '{guidance_drops}'; expected prompt, cond or both")
        halvings = self.codec.downscale.bit_length() - 1
        widths = cond_channels or [16, 32, 96, 256][: halvings + 1]
        if len(widths) != halvings + 1:
            raise ValueError(
                f"module.cond_channels has {len(widths)} widths, which halve {len(widths) - 1} times, but the codec "
                f"halves {halvings} times; give {halvings + 1} widths or null"
            )
        self.controlnet = ControlNetModel.from_unet(
            self.parts.unet, conditioning_channels=1, conditioning_embedding_out_channels=tuple(widths)
        )
        self.train_decoder = train_decoder
        self.mid_control_only = mid_control_only
        self.guidance_drops = guidance_drops
        self.cond_scale = cond_scale
        self.chroma_scale = chroma_scale
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        if not self.train_decoder:
            return [self.controlnet]
        unet = self.parts.unet
        return [self.controlnet, unet.up_blocks, unet.conv_norm_out, unet.conv_out]

    def condition(self, batch: dict[str, Any], captions: list[str]) -> Condition:
        return Condition(self.embed(captions), lightness(batch["image"]))

    def denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return self._denoise(noisy, timestep, condition, controlled=len(noisy))

    def denoise_both(
        self, noisy: Tensor, timestep: Tensor, condition: Condition, negative: Condition
    ) -> tuple[Tensor, Tensor]:
        if self.guidance_drops == "prompt":
            return super().denoise_both(noisy, timestep, condition, negative)
        both = replace(condition, context=_cat(condition.context, negative.context))
        pred = self._denoise(noisy.repeat(2, 1, 1, 1), timestep.repeat(2), both, controlled=len(noisy))
        first, second = pred.chunk(2)
        return first, second

    def negative(self, condition: Condition, prompt: str) -> Condition:
        no_text = condition.context is None
        if self.guidance_drops != "prompt" and (no_text or (self.guidance_drops == "cond" and not prompt)):
            return condition
        return super().negative(condition, prompt)

    def _denoise(self, noisy: Tensor, timestep: Tensor, condition: Condition, *, controlled: int) -> Tensor:
        """The base's prediction; the first `controlled` samples get the ControlNet's residuals, the others none."""
        context, cond = condition.context, condition.cond
        down, mid = self.controlnet(
            noisy[:controlled],
            timestep[:controlled],
            encoder_hidden_states=None if context is None else context[:controlled],
            controlnet_cond=cond,
            conditioning_scale=self.cond_scale,
            return_dict=False,
        )
        if self.mid_control_only:
            down = [residual * 0 for residual in down]  # in the graph still: DDP waits for every gradient
        dtype, others = self.parts.unet.dtype, len(noisy) - controlled
        return self.parts.unet(
            noisy.to(dtype),
            timestep,
            None if context is None else context.to(dtype),
            down_block_additional_residuals=[_pad(residual, others).to(dtype) for residual in down],
            mid_block_additional_residual=_pad(mid, others).to(dtype),
        ).sample

    @torch.no_grad()
    def colorize(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings | None = None
    ) -> Tensor:
        """Coloured images (B, 3, H, W) in [0, 1] that keep the given lightness.

        Args:
            given: lightness L*/100 (B, 1, H, W); H and W multiples of the model's grid.
            captions: B prompts, "" for none.
            sample_ids: B numbers that key the noise.
            settings: steps, guidance, negative prompt and seed.
        """
        condition = Condition(self.embed(captions), given)
        height, width = (side // self.codec.downscale for side in given.shape[-2:])
        latent = self.draw(condition, (self.codec.num_channels, height, width), sample_ids, settings)
        asked = settings.chroma_scale if settings is not None else None
        chroma_scale = self.chroma_scale if asked is None else asked
        return transfer_chroma_exact(given, self.codec.decode(latent), chroma_scale=chroma_scale)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Colours the split without prompts: CIEDE2000 to the truth, beside that of the grey photos."""
        super().test_step(batch, batch_idx)
        image, ids = batch["image"], batch["index"].tolist()
        given, truth = lightness(image), rgb_to_lab(image)
        result = self.colorize(given, [""] * len(ids), ids, DrawSettings(seed=self.seed))
        for name, compared in (("delta_e2000", result), ("grey_delta_e2000", grey_image(given))):
            error = delta_e_2000(rgb_to_lab(compared), truth).mean()
            self.log(f"test/{name}", error, batch_size=len(ids), sync_dist=True)

    @torch.no_grad()
    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        given, ids = lightness(batch["image"]), batch["index"].tolist()
        settings = DrawSettings(seed=self.seed)
        return {
            "input": grey_image(given),
            "result": self.colorize(given, [""] * len(ids), ids, settings),
            "result with prompt": self.colorize(given, batch["caption"], ids, settings),
            "truth": batch["image"],
        }

    @torch.no_grad()
    def colorize_at(
        self, given: Tensor, captions: list[str], sample_ids: list[int], settings: DrawSettings
    ) -> Tensor:
        """As `colorize` at the working size `settings.short_px`, its chroma carried up to the size of `given`."""
        short_px = settings.short_px
        if short_px is None or short_px == min(given.shape[-2:]):
            return self.colorize(given, captions, sample_ids, settings)
        photos = (grey_image(given) * 255).round().byte().cpu()
        small = torch.cat([working_copy(p, short_px=short_px, grid_px=self.grid_px()) for p in photos])
        drawn = self.colorize(lightness(small.to(given.device)), captions, sample_ids, settings).cpu()
        carried = [transfer_chroma(photo, colored) for photo, colored in zip(photos, drawn, strict=True)]
        return torch.stack(carried).to(given.device).float() / 255

    @torch.no_grad()
    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        image = batch["image"]
        given, ids = lightness(image), batch["index"].tolist()
        rows = {"no prompt": self.colorize_at(given, [""] * len(ids), ids, settings)}
        if any(batch["caption"]):
            rows["caption as prompt"] = self.colorize_at(given, batch["caption"], ids, settings)
        ceiling = transfer_chroma_exact(given, self.codec.decode(self.codec.encode(image)))
        return {**rows, "autoencoder's ceiling": ceiling, "grey": grey_image(given)}

    @torch.no_grad()
    def predict_photo(self, photo: Tensor, request: PredictRequest) -> list[Tensor]:
        """The photo in colour at its own size: chroma is drawn at the working size and carried up edge-aware."""
        small = working_copy(photo, short_px=request.short_px, grid_px=self.grid_px())
        given = lightness(small.to(self.device)).expand(request.num_samples, -1, -1, -1)
        captions = [request.prompt] * request.num_samples
        drawn = self.colorize(given, captions, request.sample_ids, request.draw).cpu()
        return [transfer_chroma(photo, colored) for colored in drawn]

    def export(self, folder: Path) -> None:
        scheduler = self.sampler.scheduler(self.objective)
        self.parts.save(folder, scheduler)
        self.controlnet.save_pretrained(folder / "controlnet")
        names = stable_diffusion_parts(self.parts, scheduler) | {
            "controlnet": ("diffusers", "ControlNetModel")
        }
        write_model_index(folder, "StableDiffusionControlNetPipeline", names)

    def load_export(self, folder: Path) -> None:
        if self.train_decoder:
            unet = type(self.parts.unet).from_pretrained(folder / "unet", use_safetensors=True)
            self.parts.unet.load_state_dict(unet.state_dict())
        controlnet = ControlNetModel.from_pretrained(folder / "controlnet", use_safetensors=True)
        self.controlnet.load_state_dict(controlnet.state_dict())


def _cat(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])


def _pad(residual: Tensor, count: int) -> Tensor:
    """The residual with `count` zero samples behind."""
    if count == 0:
        return residual
    return torch.cat([residual, residual.new_zeros(count, *residual.shape[1:])])
