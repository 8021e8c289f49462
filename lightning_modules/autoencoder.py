"""Stage 1 of latent diffusion: the autoencoder (Rombach et al. 2022, Sec. 3.1)."""

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ModelMixin, SchedulerMixin
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffusion.codecs import downscale
from lightning_modules.base import Batch, Results, TranslationModule
from tasks.reconstruction import Reconstruction

# Share by which the running mean square of the training latents follows each batch.
_FOLLOW = 0.02


class Autoencoder(TranslationModule):
    """Trains an autoencoder with L1 + perceptual + KL terms and an optional patch discriminator.

    Args:
        vae: with `encode` and `decode` as diffusers' autoencoders have them; the KL term is left out where there is no
            posterior. From scratch or pretrained.
        perceptual: distance (image, reference) -> (B,), or None.
        discriminator: image -> logits, or None.
        perceptual_weight: of the perceptual term.
        kl_weight: of the KL term, per image and summed over the latent (nats).
        adversarial_weight: times the adaptive weight (Esser et al. 2021, Eq. 7).
        adversarial_start_step: the optimiser step at which the discriminator joins.
        last_layer: name inside `vae` of the layer whose gradients balance the adversarial term.
        shared: as TranslationModule.

    Example:
        >>> from diffusers import AutoencoderKL
        >>> module = Autoencoder(vae=AutoencoderKL(), optimizer=torch.optim.AdamW)
        >>> module.reconstruct(torch.rand(1, 3, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """

    task = Reconstruction
    latent_square: Tensor
    trains_encoder = True

    def __init__(
        self,
        *,
        vae: AutoencoderKL | AutoencoderTiny,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        adversarial_weight: float = 0.5,
        adversarial_start_step: int = 0,
        last_layer: str = "decoder.conv_out",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.vae: Any = vae
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.kl_weight = kl_weight
        self.discriminator = discriminator
        self.adversarial_weight, self.adversarial_start_step = adversarial_weight, adversarial_start_step
        if discriminator is not None and last_layer not in dict(vae.named_modules()):
            raise ValueError(f"module.last_layer={last_layer} is no layer of {type(vae).__name__}")
        self._last_layer = last_layer
        # Mean square of the latents: of the last validation, and before the first one a running mean over training.
        self.register_buffer("latent_square", torch.tensor(math.nan, dtype=torch.float64))
        self._has_validated = False
        self._validated_square, self._validated_count = 0.0, 0
        self._batch_square: Tensor | None = None
        self.train_only(vae, *([] if discriminator is None else [discriminator]))

    def compiled_networks(self) -> list[nn.Module]:
        inner = [self.vae.encoder, self.vae.decoder]
        return inner if self.discriminator is None else [*inner, self.discriminator]

    def full_precision_parts(self) -> list[nn.Module]:
        return [] if self.perceptual is None else [self.perceptual]

    def cell_px(self) -> int:
        return downscale(self.vae)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"]
        mean, posterior = self._encoded(image)
        if not self.training:
            reconstruction = self._decoded(mean, image).clamp(0, 1)
            self._validated_square += float(mean.float().square().sum())
            self._validated_count += mean.numel()
            error = (reconstruction - image).square().flatten(1).mean(1).clamp(min=1e-10)
            self.log_mean("psnr", (-10 * error.log10()).mean(), len(image))
            return self.reconstruction_terms(reconstruction, image)
        self._batch_square = mean.detach().double().square().mean()
        latent = mean
        if posterior is not None:
            latent = mean + posterior.std * self.draws(batch).normal("posterior", mean.shape[1:])
        reconstruction, reference = self.compared(latent, batch)
        terms = self.reconstruction_terms(reconstruction, reference)
        compared = torch.stack(list(terms.values())).sum()
        if posterior is not None and self.trains_encoder:
            terms["kl"] = self.kl_weight * posterior.kl().mean()
        terms |= self.further_terms(latent, batch)
        return terms | self.adversarial_terms(reconstruction, reference, compared)

    def further_terms(self, latent: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Further scalar terms of latents (B, Z, h, w), unscaled, by name and weighted."""
        return {}

    def compared(self, latent: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is decoded of latents (B, Z, h, w), unscaled, and what it should be; pictures of one shape."""
        return self._decoded(latent, batch["image"]), batch["image"]

    def balanced_layer(self) -> Any:
        """The layer whose gradients balance the adversarial term."""
        return self.vae.get_submodule(self._last_layer)

    def _encoded(self, image: Tensor) -> tuple[Tensor, Any]:
        """The latent mean (B, Z, h, w), unscaled, and the posterior where there is one."""
        encoded = self.vae.encode(image * 2 - 1)
        posterior = getattr(encoded, "latent_dist", None)
        return (encoded.latents, None) if posterior is None else (posterior.mean, posterior)

    def _decoded(self, latent: Tensor, like: Tensor) -> Tensor:
        """The picture of latents (B, Z, h, w), unscaled, as large as `like`."""
        return self.vae.decode(latent).sample.float() / 2 + 0.5

    def on_after_backward(self) -> None:
        """Follows the latents: the scale factor of a run that never validated. An interrupted batch comes again."""
        if not self._has_validated and self._batch_square is not None:
            followed = self.latent_square.lerp(self._batch_square, _FOLLOW)
            self.latent_square = torch.where(self.latent_square.isnan(), self._batch_square, followed)

    def reconstruction_terms(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """The weighted terms that compare the reconstruction with the image, scalars by name."""
        terms = {"l1": (reconstruction - image).abs().mean()}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, image).mean()
        return terms

    def adversarial_terms(self, reconstruction: Tensor, image: Tensor, compared: Tensor) -> dict[str, Tensor]:
        """Hinge terms of both players for one joint backward pass, once the discriminator has joined.

        The autoencoder's term sees a detached copy of the discriminator and the discriminator's term a detached
        reconstruction, so that one optimiser serves both.
        """
        if self.discriminator is None:
            return {}
        if self.global_step < self.adversarial_start_step:
            # Still in the graph: DDP waits for every trained parameter's gradient.
            return {
                "discriminator": torch.stack([0 * p.sum() for p in self.discriminator.parameters()]).sum()
            }
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fool = -functional_call(self.discriminator, fixed, (reconstruction,)).mean()
        last = self.balanced_layer().weight
        pull = torch.autograd.grad(compared, last, retain_graph=True)[0].norm()
        push = torch.autograd.grad(fool, last, retain_graph=True)[0].norm()
        adaptive = (pull / (push + 1e-4)).clamp(0, 1e4).detach()
        real, fake = self.discriminator(image), self.discriminator(reconstruction.detach())
        discriminate = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return {"adversarial": self.adversarial_weight * adaptive * fool, "discriminator": discriminate}

    def on_validation_epoch_end(self) -> None:
        if self._validated_count:
            self.latent_square.fill_(max(self._validated_square / self._validated_count, 1e-12))
            self._has_validated = True
            self.log("val/latent_scale", self._set_scale(), sync_dist=True)
        self._validated_square, self._validated_count = 0.0, 0

    def _set_scale(self) -> float:
        """The scale factor of Rombach et al. 2022 (App. G), one over the latents' root mean square."""
        scale = float(self.latent_square) ** -0.5
        self.vae.register_to_config(scaling_factor=scale)
        return scale

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if not self.latent_square.isnan():
            self._set_scale()
        checkpoint["scaling_factor"] = float(self.vae.config.scaling_factor)
        checkpoint["scale_was_measured"] = self._has_validated

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.vae.register_to_config(scaling_factor=checkpoint["scaling_factor"])
        self._has_validated = checkpoint.get("scale_was_measured", True)
        # Earlier versions kept it beside the weights, or the scale factor alone.
        square = checkpoint.get("train_square", checkpoint["scaling_factor"] ** -2)
        checkpoint["state_dict"].setdefault("latent_square", torch.tensor(square, dtype=torch.float64))

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] through the latent mean and back; its edges are repeated up to the codec's grid."""
        grid = self.cell_px()
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % grid, 0, -height % grid), mode="replicate")
        return self._decoded(self._encoded(padded)[0], padded).clamp(0, 1)[..., :height, :width]

    def results(self, batch: Batch, options: Any) -> Results:
        return {"image": self.reconstruct(self.images(batch))}

    def exported(self) -> dict[str, ModelMixin | SchedulerMixin]:
        return {"vae": self.vae}
