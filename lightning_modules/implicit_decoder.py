"""Stage 1 at any size: an encoder and a decoder that is a function of position (Kim and Kim 2024, arXiv 2403.10255).

Shapes: B batch, Z latent channels, h/w latent cells, N side of the training images, P of the patches.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.codecs import downscale, overflows_in_half
from lightning_modules.any_size import SizeOptions, Strips, as_result, random_patches
from lightning_modules.autoencoder import Autoencoder
from lightning_modules.base import Batch, Results
from metrics.resolution import resize_bicubic
from networks.liif import LiifNetwork


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(SizeOptions):
    """As SizeOptions, at the input's own size unless told otherwise."""

    default_scale: ClassVar[float] = 1.0


class ImplicitAutoencoder(Autoencoder):
    """Learns a decoder of any size, on random patches of pictures of random sizes; cost and memory are those of the patches.

    Args:
        vae: its encoder makes the latents; a frozen one keeps its scale factor.
        decoder: of the unscaled latents, such as networks.implicit_decoder.ImplicitDecoder.
        train_encoder: learn the encoder too; then `vae`'s own decoder learns beside it (the term `plain`), which is what
            the implicit one is compared with.
        patch_px: P; sizes are uniform from P, or from the latent's where that is larger, to N.
        encoded_px: side to which training images are shrunk before they are encoded; None = as loaded. Below N the decoder
            learns sizes beyond the one that it was encoded at.
        discriminator: of patches; the last layer of the query balances it.
        settings: as Autoencoder.
    """

    Options = DecodingOptions

    def __init__(
        self,
        *,
        vae: AutoencoderKL | AutoencoderTiny,
        decoder: LiifNetwork,
        train_encoder: bool = False,
        patch_px: int = 32,
        encoded_px: int | None = None,
        discriminator: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(vae=vae, **settings)
        if encoded_px is not None and encoded_px % downscale(vae):
            raise ValueError(
                f"module.encoded_px={encoded_px} is no multiple of {downscale(vae)}, the side of a latent cell"
            )
        self.decoder, self.discriminator = decoder, discriminator
        self.trains_encoder, self.patch_px, self.encoded_px = train_encoder, patch_px, encoded_px
        learns = [vae, decoder] if train_encoder else [decoder]
        self.train_only(*learns, *([] if discriminator is None else [discriminator]))

    def compiled_networks(self) -> list[nn.Module]:
        parts: list[nn.Module] = [
            *self.decoder.called(),
            *([self.vae.encoder] if self.trains_encoder else []),
        ]
        return parts if self.discriminator is None else [*parts, self.discriminator]

    def full_precision_parts(self) -> list[nn.Module]:
        frozen_half = not self.trains_encoder and self.frozen_dtype() == "float16"
        return super().full_precision_parts() + (
            [self.vae] if frozen_half and overflows_in_half(self.vae) else []
        )

    def balanced_layer(self) -> Any:
        return self.decoder.query.layers[-1]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        if self.patch_px > min(batch["image"].shape[-2:]):
            raise ValueError(
                f"module.patch_px={self.patch_px} is more than datamodule.size_px; set it to at most that"
            )
        return super().losses(batch)

    def _encoded(self, image: Tensor) -> tuple[Tensor, Any]:
        with torch.set_grad_enabled(self.trains_encoder and torch.is_grad_enabled()):
            return super()._encoded(self._shrunk(image))

    def reconstruct(self, image: Tensor) -> Tensor:
        """As Autoencoder; of a training of smaller images too the image as it is."""
        return self.results({"image": image}, self.Options())["image"]

    def _shrunk(self, image: Tensor) -> Tensor:
        return image if self.encoded_px is None else resize_bicubic(image, (self.encoded_px, self.encoded_px))

    def compared(self, latent: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        smallest = max(self.patch_px, latent.shape[-1])
        sizes, windows, patches = random_patches(
            batch["image"], self.draws(batch), smallest=smallest, patch_px=self.patch_px
        )
        prepared = self.decoder.prepare(latent)
        return self.decoder.patches(prepared, sizes, windows).float(), patches

    def further_terms(self, latent: Tensor, batch: Batch) -> dict[str, Tensor]:
        if not self.trains_encoder:
            return {}
        image = self._shrunk(batch["image"])
        return {"plain": (super()._decoded(latent, image) - image).abs().mean()}

    def _decoded(self, latent: Tensor, like: Tensor) -> Tensor:
        return self.decoder(latent, (like.shape[-2], like.shape[-1])).float()

    def _set_scale(self) -> float:
        return super()._set_scale() if self.trains_encoder else float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def results(self, batch: Batch, options: DecodingOptions) -> Results:
        image = self.images(batch)
        own, grid = image.shape[-2:], self.cell_px()
        size_px = options.size_px(own)
        window = options.window(size_px)
        whole = [length + -length % grid for length in own]
        decoded = [size * padded / length for size, padded, length in zip(size_px, whole, own, strict=True)]
        if all(side == int(side) for side in decoded):  # edges are repeated up to the grid, and cut off again
            image = F.pad(image, (0, whole[1] - own[1], 0, whole[0] - own[0]), mode="replicate")
            size_px = int(decoded[0]), int(decoded[1])
        else:
            image = resize_bicubic(image, (whole[0], whole[1]))
        strips = Strips.of(self.decoder, super()._encoded(image)[0])
        return {"image": as_result(strips(size_px, window), window)}

    def exported(self) -> dict[str, Any]:
        return super().exported() | {"decoder": self.decoder}
