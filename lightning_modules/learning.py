"""How every method learns: what is trained and what is frozen, steps and their logs, optimiser, checkpoints.

A method needs `train_only` and `turn` of this; the rest works by itself.
"""

import functools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from diffusion.seeding import keyed_integers, stream_number
from lightning_modules.checkpoints import check_fit, frozen_hash, leave_out_frozen
from lightning_modules.turns import turn
from networks.latent_diffusion_parts import to_dtype

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = dict[str, Any]


class LearningModule(L.LightningModule):
    """Trains the networks that `train_only` names on the sum of its `losses`.

    Args:
        optimizer: makes the optimiser from the trainable parameters.
        lr_schedule: constant, linear, cosine, polynomial ... (diffusers' names); each starts with the warm-up.
        num_warmup_steps: optimiser steps of linear warm-up.
        seed: of all noise, timesteps and dropout.
        compile: run the trained networks through torch.compile (in place: the checkpoint's keys stay the same).
        frozen_dtype: of the frozen parts while training: float32, bfloat16, float16, or auto for the trainer's.
        check_base: refuse a checkpoint that was trained on other frozen weights; false takes any that fit in shape.
    """

    def __init__(
        self,
        *,
        optimizer: OptimizerFactory,
        lr_schedule: str = "constant",
        num_warmup_steps: int = 0,
        seed: int = 0,
        compile: bool = False,
        frozen_dtype: str = "auto",
        check_base: bool = True,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # a checkpoint has no frozen weights
        self._optimizer, self._lr_schedule, self._num_warmup_steps = optimizer, lr_schedule, num_warmup_steps
        self.seed = seed
        self._compile, self._frozen_dtype, self._check_base = compile, frozen_dtype, check_base
        self._trained: tuple[nn.Module, ...] = ()
        self._base_hash: str | None = None
        self._lr: float | None = None  # as configured, and of the checkpoint that the run resumes
        self._lr_before: float | None = None
        self.loss_terms: dict[str, Tensor] = {}  # of the last training step; guards name the bad one
        self.split = "val"  # that is evaluated: val or test

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The scalar terms of the loss by name, already weighted; in eval mode those of validation and test."""
        raise TypeError(f"{type(self).__name__} does not say its losses")

    # ---- frozen and trained

    def train_only(self, *networks: nn.Module) -> None:
        """States what learns: all else is frozen, in eval mode, out of optimiser and checkpoint, in low precision."""
        self._trained = networks
        self.requires_grad_(False)
        for network in networks:
            network.requires_grad_(True)
        self.train(self.training)

    def turn(self, *players: nn.Module) -> AbstractContextManager[nn.Module]:
        """Inside, in `losses`, one of the players learns: they take turns by optimiser step."""
        return turn(self, *players)

    def train(self, mode: bool = True) -> "LearningModule":
        """Puts the trained networks alone into train mode."""
        super().train(False)
        self.training = mode
        for network in self._trained:
            network.train(mode)
        return self

    def compiled_networks(self) -> list[nn.Module]:
        """The modules whose calls torch.compile replaces; a list of blocks is never called itself."""
        return [m for net in self._trained for m in (net if isinstance(net, nn.ModuleList) else [net])]

    def full_precision_parts(self) -> list[nn.Module]:
        """Frozen parts that stay in float32 whatever `frozen_dtype` says."""
        return []

    def configure_model(self) -> None:
        if self._compile:
            for network in self.compiled_networks():
                network.compile()

    def setup(self, stage: str) -> None:
        """Puts the frozen parts of a training into low precision: autocast would convert them anew in every step."""
        if stage != "fit":
            return
        self.base_hash()  # of the weights as they were loaded, before their precision changes
        dtype = to_dtype(self.frozen_dtype())
        kept = {id(p) for part in self.full_precision_parts() for p in part.parameters()}
        for parameter in self.parameters():
            if not parameter.requires_grad and id(parameter) not in kept:
                parameter.data = parameter.data.to(dtype)

    def frozen_dtype(self) -> str:
        """The precision of the frozen parts in this training, by name."""
        if self._frozen_dtype != "auto":
            return self._frozen_dtype
        low = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
        return low.get(str(self.trainer.precision), "float32")

    def base_hash(self) -> str | None:
        """Content hash of the frozen weights as they were loaded; None where there are none."""
        if self._base_hash is None:
            self._base_hash = frozen_hash(self)
        return self._base_hash

    # ---- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.losses(batch)
        self.loss_terms = {name: term.detach() for name, term in terms.items()}
        loss = functools.reduce(torch.add, terms.values())
        self._log_training(loss.detach())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, split: str) -> None:
        self.split = split
        terms = self.losses(batch)
        loss, size = functools.reduce(torch.add, terms.values()), len(batch["index"])
        self.log(f"{split}/loss", loss, batch_size=size, sync_dist=True, prog_bar=True)
        if len(terms) > 1:
            for name, term in terms.items():
                self.log_mean(name, term, size)

    def log_mean(self, name: str, value: Tensor, count: int) -> None:
        """Logs a mean over `count` samples of the split that is evaluated."""
        self.log(f"{self.split}/{name}", value, batch_size=count, sync_dist=True)

    def _log_training(self, loss: Tensor) -> None:
        """Logs `train/loss` and its terms; what the loggers record is the mean over all processes."""
        values = {"loss": loss} | (self.loss_terms if len(self.loss_terms) > 1 else {})
        trainer = self.trainer
        # Lightning's sync_dist would make the processes wait for one another in every step.
        every = trainer.log_every_n_steps
        if trainer.world_size > 1 and every and (trainer.global_step + 1) % every == 0:
            stacked = torch.stack([v.float() for v in values.values()])
            values = dict(zip(values, trainer.strategy.reduce(stacked, reduce_op="mean"), strict=True))
        for name, value in values.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")

    def batch_number(self) -> int:
        """The number of this training batch since the run began; resume continues it."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout inside networks draws from the global generator: key that one to the step as well.
        key = (self.seed, stream_number("network"), self.batch_number())
        torch.manual_seed(int(keyed_integers(*key, sample=[self.global_rank])[0]) >> 1)

    # ---- optimiser

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
        self.train()  # Lightning keeps the mode that a module comes in
        before, self._lr_before = self._lr_before, None
        # A factor, so that the schedule, and what callbacks.spike_guard lowered, stay as they are.
        factor = self._lr / before if before and self._lr is not None else 1.0
        for group in (group for optimizer in self.trainer.optimizers for group in optimizer.param_groups):
            group["lr"] *= factor
            group["initial_lr"] *= factor
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        leave_out_frozen(self, checkpoint)
        checkpoint |= {"configured_lr": self._lr, "base_sha256": self.base_hash()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_fit(self, checkpoint, base_hash=self.base_hash() if self._check_base else None)
        self._lr_before = checkpoint.get("configured_lr")
