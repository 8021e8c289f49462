"""Stage 1 of latent diffusion: the autoencoder (Rombach et al. 2022, Sec. 3.1)."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from diffusion.seeding import Stream, randn
from lightning_modules.base import TranslationModule
from lightning_modules.requests import DrawSettings, Edits, PredictRequest


class Autoencoder(TranslationModule):
    """Trains an AutoencoderKL with L1 + perceptual + KL terms and an optional patch discriminator.

    Args:
        vae: diffusers' AutoencoderKL, from scratch or pretrained.
        perceptual: distance (image, reference) -> (B,), or None.
        discriminator: image -> logits, or None.
        perceptual_weight: of the perceptual term.
        kl_weight: of the KL term, per image and summed over the latent (nats).
        adversarial_weight: times the adaptive weight (Esser et al. 2021, Eq. 7).
        adversarial_start_step: the optimiser step at which the discriminator joins.
        optimizer, lr_schedule, ...: as TranslationModule.

    Example:
        >>> from diffusers import AutoencoderKL
        >>> module = Autoencoder(vae=AutoencoderKL(), optimizer=torch.optim.AdamW)
        >>> panels = module.sample_panels({"image": torch.rand(1, 3, 16, 16)})
        >>> list(panels)
        ['input', 'reconstruction']
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        perceptual: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        perceptual_weight: float = 1.0,
        kl_weight: float = 1e-6,
        adversarial_weight: float = 0.5,
        adversarial_start_step: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.vae: AutoencoderKL = vae
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.perceptual_weight = perceptual_weight
        self.kl_weight = kl_weight
        self.adversarial_weight = adversarial_weight
        self.adversarial_start_step = adversarial_start_step
        self._latent_square_sum, self._latent_count = 0.0, 0
        self._train_square: Tensor | None = None
        self._earlier_square: tuple[int, Tensor | None] | None = (
            None  # number of the last batch, mean before it
        )
        self._has_validated = False
        self.freeze_all_but_trained()

    def trained_networks(self) -> list[nn.Module]:
        return [self.vae] if self.discriminator is None else [self.vae, self.discriminator]

    def compiled_networks(self) -> list[nn.Module]:
        inner = [self.vae.encoder, self.vae.decoder]
        return inner if self.discriminator is None else [*inner, self.discriminator]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        image = batch["image"]
        posterior = self.vae.encode(image * 2 - 1).latent_dist
        self._follow_latent_square(posterior.mean.detach())
        noise = randn(posterior.mean.shape[1:], self.step_generators(Stream.POSTERIOR, len(image)))
        reconstruction = self.vae.decode(posterior.mean + posterior.std * noise).sample.float() / 2 + 0.5
        terms = self.reconstruction_terms(reconstruction, image)
        kl = self.kl_weight * posterior.kl().mean()
        loss = sum(terms.values()) + kl
        if self.discriminator is not None and self.global_step >= self.adversarial_start_step:
            adversarial = self.adversarial_terms(
                reconstruction, image, torch.stack(list(terms.values())).sum()
            )
            loss = loss + sum(adversarial.values())
            terms |= adversarial
        elif self.discriminator is not None:
            # Still in the graph: DDP waits for every trained parameter's gradient.
            loss = loss + 0 * sum(p.sum() for p in self.discriminator.parameters())
        self.loss_terms = {name: term.detach() for name, term in (terms | {"kl": kl}).items()}
        self.log_training(loss)
        return loss

    def _follow_latent_square(self, mean: Tensor) -> None:
        """Running mean square of the training latents: the scale factor of a run that never validated."""
        self._earlier_square = (self.batch_number(), self._train_square)
        square = mean.float().square().mean()
        self._train_square = square if self._train_square is None else self._train_square.lerp(square, 0.02)

    def _complete_train_square(self) -> Tensor | None:
        """The running mean without a batch that was interrupted: a resumed run repeats that batch."""
        if self._earlier_square is not None and self._earlier_square[0] == self.batch_number():
            return self._earlier_square[1]
        return self._train_square

    def reconstruction_terms(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """The weighted terms that compare the reconstruction with the image, scalars by name."""
        terms = {"l1": (reconstruction - image).abs().mean()}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual_weight * self.perceptual(reconstruction, image).mean()
        return terms

    def adversarial_terms(
        self, reconstruction: Tensor, image: Tensor, reconstruction_loss: Tensor
    ) -> dict[str, Tensor]:
        """Hinge terms of both players for one joint backward pass.

        The autoencoder's term sees a detached copy of the discriminator and the discriminator's term a detached
        reconstruction, so that one optimiser serves both.
        """
        assert self.discriminator is not None
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fool = -functional_call(self.discriminator, fixed, (reconstruction,)).mean()
        last = self.vae.decoder.conv_out.weight
        pull = torch.autograd.grad(reconstruction_loss, last, retain_graph=True)[0].norm()
        push = torch.autograd.grad(fool, last, retain_graph=True)[0].norm()
        adaptive = (pull / (push + 1e-4)).clamp(0, 1e4).detach()
        real, fake = self.discriminator(image), self.discriminator(reconstruction.detach())
        discriminate = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return {"adversarial": self.adversarial_weight * adaptive * fool, "discriminator": discriminate}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        image = batch["image"]
        mean = self.vae.encode(image * 2 - 1).latent_dist.mean
        reconstruction = (self.vae.decode(mean).sample.float() / 2 + 0.5).clamp(0, 1)
        loss = sum(self.reconstruction_terms(reconstruction, image).values())
        self._latent_square_sum += float(mean.float().square().sum())
        self._latent_count += mean.numel()
        psnr = -10 * (reconstruction - image).square().flatten(1).mean(1).clamp(min=1e-10).log10()
        self.log("val/loss", loss, batch_size=len(image), sync_dist=True, prog_bar=True)
        self.log("val/psnr", psnr.mean(), batch_size=len(image), sync_dist=True)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        image = batch["image"]
        error = (self.reconstruct(image) - image).square().flatten(1).mean(1)
        self.log("test/psnr", (-10 * error.log10()).mean(), batch_size=len(image), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        # The scale factor of Rombach et al. 2022 (App. G), one over the latents' root mean square.
        if self._latent_count:
            scale = (self._latent_count / max(self._latent_square_sum, 1e-12)) ** 0.5
            self.vae.register_to_config(scaling_factor=scale)
            self._has_validated = True
            self.log("val/latent_scale", scale, sync_dist=True)
        self._latent_square_sum, self._latent_count = 0.0, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        train_square = self._complete_train_square()
        if not self._has_validated and train_square is not None:
            self.vae.register_to_config(scaling_factor=float(train_square) ** -0.5)
        checkpoint["scaling_factor"] = float(self.vae.config.scaling_factor)
        checkpoint["scale_was_measured"] = self._has_validated
        if train_square is not None:
            checkpoint["train_square"] = float(train_square)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.vae.register_to_config(scaling_factor=checkpoint["scaling_factor"])
        self._has_validated = checkpoint.get("scale_was_measured", True)
        if "train_square" in checkpoint:
            self._train_square = torch.tensor(checkpoint["train_square"], device=self.device)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) in [0, 1] through the latent mean and back; H and W on the codec's grid."""
        mean = self.vae.encode(image * 2 - 1).latent_dist.mean
        return (self.vae.decode(mean).sample.float() / 2 + 0.5).clamp(0, 1)

    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"input": batch["image"], "reconstruction": self.reconstruct(batch["image"])}

    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        return {"reconstruction": self.reconstruct(batch["image"])}

    def predict_photo(self, photo: Tensor, request: PredictRequest) -> list[Tensor]:
        """The photo's reconstruction at its own size; its edges are repeated up to the codec's grid."""
        grid = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = photo.shape[-2:]
        image = photo[None].to(self.device).float() / 255
        padded = F.pad(image, (0, -width % grid, 0, -height % grid), mode="replicate")
        result = self.reconstruct(padded)[0, :, :height, :width]
        return [(result * 255).round().to(torch.uint8).cpu()] * request.num_samples

    def is_deterministic(self, settings: DrawSettings, edits: Edits) -> bool:
        return True

    def export(self, folder: Path) -> None:
        self.vae.save_pretrained(folder / "vae", variant=None)

    def load_export(self, folder: Path) -> None:
        loaded = type(self.vae).from_pretrained(folder / "vae", use_safetensors=True)
        self.vae.load_state_dict(loaded.state_dict())
        self.vae.register_to_config(scaling_factor=loaded.config.scaling_factor)
