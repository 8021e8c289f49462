"""What every method shares: optimiser, schedule, frozen parts, seeded steps, checkpoints without frozen weights."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from diffusion.seeding import Stream, generators, keyed_integers
from lightning_modules.requests import DrawSettings, Edits, PredictRequest

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class TranslationModule(L.LightningModule):
    """Base of all methods.

    Args:
        optimizer: makes the optimiser from the trainable parameters.
        lr_schedule: constant, linear, cosine, polynomial ... (diffusers' names); each starts with the warm-up.
        num_warmup_steps: optimiser steps of linear warm-up.
        seed: of all noise, timesteps and dropout.
        compile: run the trained networks through torch.compile (in place: the checkpoint's keys stay the same).
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        lr_schedule: str = "constant",
        num_warmup_steps: int = 0,
        seed: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.strict_loading = (
            False  # frozen weights are not in the checkpoint; on_load_checkpoint checks the rest
        )
        self._optimizer = optimizer
        self._lr_schedule = lr_schedule
        self._num_warmup_steps = num_warmup_steps
        self.seed = seed
        self._compile = compile
        self._lr: float | None = None  # as configured, and of the checkpoint that the run resumes
        self._lr_before: float | None = None
        self.loss_terms: dict[
            str, Tensor
        ] = {}  # of the last step, where the loss is a sum; guards name the bad one

    # ---- what a method answers

    def trained_networks(self) -> list[nn.Module]:
        """The networks that learn; all else stays frozen and in eval mode."""
        raise TypeError(f"{type(self).__name__} does not name its trained networks")

    def compiled_networks(self) -> list[nn.Module]:
        """The modules whose calls torch.compile replaces; a list of blocks is never called itself."""
        return [
            m for net in self.trained_networks() for m in (net if isinstance(net, nn.ModuleList) else [net])
        ]

    def sample_panels(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] to look at, by column name in order."""
        raise ValueError(f"{type(self).__name__} draws no sample pictures; set callbacks.samples=null")

    def evaluated_images(self, batch: dict[str, Any], settings: DrawSettings) -> dict[str, Tensor]:
        """What evaluation compares with batch["image"]: images (B, 3, H, W) in [0, 1] by row name, ours first."""
        raise ValueError(f"{type(self).__name__} has no evaluation")

    def predict_photo(self, photo: Tensor, request: PredictRequest) -> list[Tensor]:
        """Results uint8 (3, H', W') for one photo uint8 (3, H, W), `request.num_samples` of them."""
        raise ValueError(f"{type(self).__name__} has no prediction")

    @property
    def door_options(self) -> frozenset[str]:
        """The options of predict.py and evaluate.py about drawing that change this method's results."""
        return frozenset()

    def is_deterministic(self, settings: DrawSettings, edits: Edits) -> bool:
        """Whether a photo and prompt have a single result, whatever the seed."""
        return False

    def export(self, folder: Path) -> None:
        """Writes what plain diffusers loads into an existing folder."""
        raise ValueError(f"{type(self).__name__} has no export")

    def load_export(self, folder: Path) -> None:
        """Takes the trained weights from a folder that `export` wrote."""
        raise ValueError(f"{type(self).__name__} has no export to load")

    # ---- frozen and trained

    def freeze_all_but_trained(self) -> None:
        """Sets requires_grad and the train mode of every part from `trained_networks`."""
        self.requires_grad_(False)
        for network in self.trained_networks():
            network.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TranslationModule":
        """Puts the trained networks alone into train mode: frozen ones stay in eval."""
        super().train(False)
        self.training = mode
        for network in self.trained_networks():
            network.train(mode)
        return self

    def configure_model(self) -> None:
        if self._compile:
            for network in self.compiled_networks():
                network.compile()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._optimizer([p for p in self.parameters() if p.requires_grad])
        self._lr = optimizer.defaults.get("lr")
        schedule = get_scheduler(
            # diffusers' plain "constant" would ignore the warm-up.
            "constant_with_warmup" if self._lr_schedule == "constant" else self._lr_schedule,
            optimizer,
            num_warmup_steps=self._num_warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Applies a learning rate that was changed since the checkpoint: its optimiser state brings the old one along."""
        before, self._lr_before = self._lr_before, None
        if not before or self._lr is None or before == self._lr:
            return
        # A factor, so that the schedule, and what callbacks.spike_guard lowered, stay as they are.
        factor = self._lr / before
        for group in (group for optimizer in self.trainer.optimizers for group in optimizer.param_groups):
            group["lr"] *= factor
            group["initial_lr"] *= factor
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]

    # ---- randomness

    def batch_positions(self, batch_size: int) -> np.ndarray:
        """(B,) the positions of this rank's samples in the global batch."""
        return np.arange(batch_size) + self.global_rank * batch_size

    def batch_number(self) -> int:
        """The number of this training batch since the run began; resume continues it."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def step_key(self, stream: Stream) -> tuple[int, int, int]:
        """The key of one stream's randomness in this training step."""
        return (self.seed, int(stream), self.batch_number())

    def step_generators(self, stream: Stream, batch_size: int) -> list[torch.Generator]:
        """One generator for each sample of this training step, on the module's device."""
        return generators(*self.step_key(stream), sample=self.batch_positions(batch_size), device=self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout inside networks draws from the global generator: key that one to the step as well.
        key = keyed_integers(*self.step_key(Stream.NETWORK), sample=[self.global_rank])
        torch.manual_seed(int(key[0] >> np.uint64(1)))

    # ---- logs

    def log_training(self, loss: Tensor) -> None:
        """Logs `train/loss` and the `loss_terms`; what the loggers record is the mean over all processes."""
        values = {**self.loss_terms, "loss": loss.detach()}
        trainer = self.trainer
        step = trainer.fit_loop.epoch_loop._batches_that_stepped + 1
        # Lightning's sync_dist would make the processes wait for one another in every step.
        if trainer.world_size > 1 and trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
            means = trainer.strategy.reduce(
                torch.stack([v.float() for v in values.values()]), reduce_op="mean"
            )
            values = dict(zip(values, means, strict=True))
        self.log("train/loss", values.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in values.items()})

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # With duplicates: parts and codec both name the autoencoder.
        named = self.named_parameters(remove_duplicate=False)
        frozen = {name for name, p in named if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["module_class"] = type(self).__name__
        checkpoint["configured_lr"] = self._lr

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("module_class")
        if found is not None and found != type(self).__name__:
            raise ValueError(
                f"the checkpoint is of {found}, but this experiment is {type(self).__name__}; "
                "give a checkpoint of the same experiment"
            )
        self._lr_before = checkpoint.get("configured_lr")
        wanted = {name for name, p in self.named_parameters() if p.requires_grad}
        given = checkpoint["state_dict"]
        own = self.state_dict()
        missing = sorted(wanted - given.keys())
        unlike = sorted(k for k, v in given.items() if k not in own or own[k].shape != v.shape)
        if missing or unlike:
            raise ValueError(
                f"the checkpoint does not fit this {type(self).__name__}: {len(missing)} weights missing and "
                f"{len(unlike)} of another name or shape (first: {(missing + unlike)[0]}); "
                "use the config.yaml of the run that wrote it"
            )
