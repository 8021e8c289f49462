"""What the methods on Stable Diffusion's layout share: its parts, prompts and their dropout, guidance.

Shapes: B batch, Z latent channels, h/w latent cells, N tokens, D text width.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from lightning_utilities.core.apply_func import apply_to_collections
from torch import Tensor, nn

from diffusion.codecs import Codec, IdentityCodec, LatentCodec, overflows_in_half
from diffusion.guidance import guide
from diffusion.implicit_codec import ImplicitCodec
from diffusion.objectives import GaussianObjective, Weighting
from diffusion.paths import GaussianPath
from diffusion.samplers import Denoise
from lightning_modules.base import Batch
from lightning_modules.diffusion import DiffusionModule
from lightning_modules.options import PromptOptions
from networks.latent_diffusion_parts import LatentDiffusionParts
from networks.text_cache import TextCache
from networks.widened import widen_input

log = logging.getLogger(__name__)


class StableDiffusion(DiffusionModule):
    """A diffusion module on the parts of a latent diffusion model; the condition is a dict with the text states `text`
    and perhaps `beside` (B, Z', h, w), what the U-Net sees beside x_t in further input channels (see `widen`).

    Path and objective are those that the parts' scheduler describes, unless a method gives others.

    Args:
        parts: the model; without an autoencoder it works on pixels.
        weighting, gamma: as GaussianObjective.
        prompt_dropout: probability in [0, 1] that a training prompt is replaced by the empty one.
        guidance_scale: of classifier-free guidance; 1 turns it off.
        guidance_rescale: in [0, 1], against over-saturation.
        decoder: of any size on the autoencoder's latents (networks.implicit_decoder); None = the autoencoder's own.
        text_cache_dir: folder for the states of a frozen text encoder; None keeps them in memory alone.
        settings: as DiffusionModule and TranslationModule.
    """

    Options: ClassVar[type] = PromptOptions

    def __init__(
        self,
        *,
        parts: LatentDiffusionParts,
        weighting: Weighting = "uniform",
        gamma: float = 5.0,
        prompt_dropout: float = 0.1,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        decoder: nn.Module | None = None,
        text_cache_dir: str | None = None,
        **settings: Any,
    ) -> None:
        if not 0 <= prompt_dropout <= 1:
            raise ValueError(f"module.prompt_dropout is {prompt_dropout}; expected a probability in [0, 1]")
        if "path" not in settings:
            config = dict(parts.scheduler.config)
            path = GaussianPath.from_scheduler_config(config)
            prediction = config["prediction_type"]
            objective = GaussianObjective(path, prediction=prediction, weighting=weighting, gamma=gamma)
            settings |= {"path": path, "objective": objective}
        codec: Codec = IdentityCodec(parts.unet.config.in_channels)
        if parts.vae is not None:
            codec = LatentCodec(parts.vae) if decoder is None else ImplicitCodec(parts.vae, decoder)
        super().__init__(codec=codec, **settings)
        self.parts, self.prompt_dropout = parts, prompt_dropout
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self._text_cache_dir = text_cache_dir
        self._text_cache: TextCache | None = None
        self._caption_was_cut = False

    def check_options(self, options: Any, *, is_folder: bool) -> None:
        if self.parts.text_encoder is None and (options.prompt or options.negative_prompt):
            raise ValueError(
                f"{type(self).__name__} has no text encoder here, so a prompt has no effect; leave it out"
            )
        scale = self.guidance_scale if options.guidance is None else options.guidance
        if options.negative_prompt and scale == 1:
            raise ValueError(
                "negative_prompt= has no effect at guidance 1, which is off; set guidance= to another number, or leave it out"
            )
        for name in ("prompt", "negative_prompt"):
            self._is_cut(f"{name}=", [getattr(options, name)])

    def guides_by_text(self) -> bool:
        """Whether the two branches of guidance differ in their texts alone."""
        return True

    def check_without_captions(self, options: Any) -> None:
        is_set = options.guidance not in (None, 1)
        if is_set and self.guides_by_text() and options.prompt == options.negative_prompt:
            raise ValueError(
                f"guidance={options.guidance:g} has no effect here, as it strengthens a prompt and there is none that differs "
                "from negative_prompt; give prompt=, or leave guidance out"
            )

    def condition(self, batch: Batch) -> dict[str, Any]:
        return {"text": self.embed(self.prompts(batch))}

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: dict[str, Any]) -> Tensor:
        beside = condition.get("beside")
        given = x_t if beside is None else torch.cat([x_t, beside], dim=1)
        return self.parts.unet(given, timestep, condition["text"]).sample

    def widen(self, num_extra: int) -> None:
        """Gives the U-Net further input channels, which start at zero weight."""
        widen_input(self.parts.unet, self.codec.num_channels + num_extra)

    def prompts(self, batch: Batch) -> list[str]:
        """The captions; in training some are dropped, so that the model also learns to go without."""
        if not self.training:
            return self.captions(batch)
        dropped = self.draws(batch).uniform("dropout") < self.prompt_dropout
        return ["" if drop else text for text, drop in zip(self.captions(batch), dropped, strict=True)]

    def captions(self, batch: Batch) -> list[str]:
        """The caption of each image, "" where the data have none; the first that the text encoder cuts is logged."""
        texts = batch.get("caption") or [""] * len(batch["index"])
        self._caption_was_cut = self._caption_was_cut or self._is_cut("a caption, and perhaps others,", texts)
        return texts

    def _is_cut(self, what: str, texts: Sequence[str]) -> bool:
        """Whether one of the texts is longer than the text encoder takes; a warning says what is left out."""
        encoder = self.parts.text_encoder
        for text in texts if encoder is not None else ():
            if encoder is not None and (left_out := encoder.left_out(text)):
                log.warning(
                    "%s is longer than the %d tokens of the text encoder, which leaves out its end: %r",
                    what,
                    encoder.num_tokens,
                    left_out,
                )
                return True
        return False

    def embed(self, prompts: list[str]) -> Tensor | None:
        """Text states (B, N, D), or None for an unconditional model."""
        encoder = self.parts.text_encoder
        if encoder is None or encoder in self._trained:
            return None if encoder is None else encoder(prompts)
        if self._text_cache is None:
            self._text_cache = TextCache(encoder, folder=self._text_cache_dir)
        return self._text_cache(prompts).float()  # the trained networks stay in float32

    def negative(self, condition: dict[str, Any], prompt: str) -> dict[str, Any]:
        """The condition that guidance pushes away from."""
        if condition["text"] is None:
            raise ValueError(
                "guidance on an unconditional model has nothing to push away from; set guidance_scale=1"
            )
        return condition | {"text": self.embed([prompt] * len(condition["text"]))}

    def guided(
        self, condition: dict[str, Any], options: PromptOptions, network: Callable[..., Tensor] | None = None
    ) -> Denoise:
        """The network under a condition, with the guidance that the options or the module ask for; None = `denoise`."""
        network = network or self.denoise
        scale = self.guidance_scale if options.guidance is None else options.guidance
        if scale == 1.0:
            return lambda x_t, timestep: network(x_t, timestep, condition)
        both = stacked(condition, self.negative(condition, options.negative_prompt))

        def denoise(x_t: Tensor, timestep: Tensor) -> Tensor:
            pred, away = network(torch.cat([x_t, x_t]), torch.cat([timestep] * 2), both).chunk(2)
            return guide(pred.float(), away.float(), scale=scale, rescale=self.guidance_rescale)

        return denoise

    def grid_px(self) -> int:
        """Sides of an image that the networks take are multiples of this many pixels."""
        return self.codec.downscale * 2 ** (len(self.parts.unet.config.block_out_channels) - 1)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._text_cache = None  # its encoder may be in another precision now

    def full_precision_parts(self) -> list[nn.Module]:
        decoder = getattr(
            self.codec, "decoder", None
        )  # of any size: bfloat16 does not tell its pixels' places apart
        vae = (
            self.parts.vae if self.frozen_dtype() == "float16" and overflows_in_half(self.parts.vae) else None
        )
        return [part for part in (vae, decoder) if part is not None]

    def exported(self) -> dict[str, Any]:
        make = getattr(self.sampler, "scheduler", None)  # no scheduler of diffusers walks a bridge
        scheduler = self.parts.scheduler if make is None else make(self.objective)
        return self.parts.named() | {"scheduler": scheduler}


def stacked(first: Any, second: Any) -> Any:
    """Two conditions as one of twice the batch."""
    return apply_to_collections(first, second, Tensor, lambda one, other: torch.cat([one, other]))
