"""How every method learns: what is trained and what is frozen, steps and their logs, turns, optimiser, checkpoints.

A method needs `train_only` and `turn` of this; the rest works by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion.seeding import keyed_integers, stream_number
from networks.content_hash import content_hash
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
        self.strict_loading = (
            False  # frozen weights are not in the checkpoint; on_load_checkpoint checks the rest
        )
        self._optimizer = optimizer
        self._lr_schedule = lr_schedule
        self._num_warmup_steps = num_warmup_steps
        self.seed = seed
        self._compile = compile
        self._frozen_dtype = frozen_dtype
        self._check_base = check_base
        self._trained: tuple[nn.Module, ...] = ()
        self._base_hash: str | None = None
        self._lr: float | None = None  # as configured, and of the checkpoint that the run resumes
        self._lr_before: float | None = None
        self.loss_terms: dict[str, Tensor] = {}  # of the last training step; guards name the bad one

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
        low = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
        is_auto = self._frozen_dtype == "auto"
        return low.get(str(self.trainer.precision), "float32") if is_auto else self._frozen_dtype

    def base_hash(self) -> str | None:
        """Content hash of the frozen weights as they were loaded; None where there are none."""
        if self._base_hash is None:
            # A codec and the parts name the same autoencoder; the later name is the one of earlier versions' checkpoints.
            names = {
                p: name.removeprefix("parts.") for name, p in self.named_parameters(remove_duplicate=False)
            }
            frozen = {name: p for p, name in names.items() if not p.requires_grad}
            self._base_hash = content_hash(frozen) if frozen else None
        return self._base_hash

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        terms = self.losses(batch)
        self.loss_terms = {name: term.detach() for name, term in terms.items()}
        loss = total(terms)
        self._log_training(loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_split(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_split(batch, "test")

    def split(self) -> str:
        """The split that is being evaluated, val or test, as the names of its figures begin."""
        trainer = self.attached_trainer()
        return "test" if trainer is not None and trainer.testing else "val"

    def attached_trainer(self) -> L.Trainer | None:
        """The trainer, where there is one."""
        try:
            return self.trainer
        except RuntimeError:  # in a notebook or a test
            return None

    def _log_split(self, batch: Batch, split: str) -> None:
        terms = self.losses(batch)
        size = len(batch["index"])
        self.log(f"{split}/loss", total(terms), batch_size=size, sync_dist=True, prog_bar=True)
        if len(terms) > 1:
            named = {f"{split}/{name}": term for name, term in terms.items()}
            self.log_dict(named, batch_size=size, sync_dist=True)

    def _log_training(self, loss: Tensor) -> None:
        """Logs `train/loss` and its terms; what the loggers record is the mean over all processes."""
        terms = self.loss_terms if len(self.loss_terms) > 1 else {}
        values = {**terms, "loss": loss.detach()}
        trainer = self.trainer
        step = trainer.global_step + 1
        # Lightning's sync_dist would make the processes wait for one another in every step.
        if trainer.world_size > 1 and trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0:
            stacked = torch.stack([v.float() for v in values.values()])
            values = dict(zip(values, trainer.strategy.reduce(stacked, reduce_op="mean"), strict=True))
        self.log("train/loss", values.pop("loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in values.items()})

    @contextmanager
    def turn(self, *players: nn.Module) -> Iterator[nn.Module]:
        """Inside, in `losses`, only one player's parameters require a gradient: they take turns by optimiser step.

        One optimiser serves them all, since it skips parameters without a gradient: this equals two optimisers that
        alternate, and accumulation, clipping, schedules, EMA and resume need to know nothing of it. In evaluation it is
        the first player's turn.

        Raises:
            ValueError: DDP that waits for the gradients of all parameters.
        """
        number = self.trainer.global_step % len(players) if self.training else 0
        parallel = self.trainer.strategy.model if self.training else None
        if isinstance(parallel, DistributedDataParallel) and not parallel.find_unused_parameters:
            raise ValueError(
                f"{type(self).__name__} trains its networks in turns, so some have no gradient in a step; set "
                "trainer.strategy=ddp_find_unused_parameters_true"
            )
        own = {id(p) for p in players[number].parameters()}
        waiting = [
            p for player in players for p in player.parameters() if p.requires_grad and id(p) not in own
        ]
        for parameter in waiting:
            parameter.requires_grad_(False)
        try:
            yield players[number]
        finally:
            for parameter in waiting:
                parameter.requires_grad_(True)

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
        if not before or self._lr is None or before == self._lr:
            return
        # A factor, so that the schedule, and what callbacks.spike_guard lowered, stay as they are.
        factor = self._lr / before
        for group in (group for optimizer in self.trainer.optimizers for group in optimizer.param_groups):
            group["lr"] *= factor
            group["initial_lr"] *= factor
        for config in self.trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]

    def batch_number(self) -> int:
        """The number of this training batch since the run began; resume continues it."""
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout inside networks draws from the global generator: key that one to the step as well.
        key = (self.seed, stream_number("network"), self.batch_number())
        torch.manual_seed(int(keyed_integers(*key, sample=[self.global_rank])[0] >> np.uint64(1)))

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # With duplicates: parts and codec both name the autoencoder.
        named = self.named_parameters(remove_duplicate=False)
        frozen = {name for name, p in named if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["module_class"] = type(self).__name__
        checkpoint["configured_lr"] = self._lr
        checkpoint["base_sha256"] = self.base_hash()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("module_class")
        if found is not None and found != type(self).__name__:
            raise ValueError(
                f"the checkpoint is of {found}, but this experiment is {type(self).__name__}; "
                "give a checkpoint of the same experiment"
            )
        self._lr_before = checkpoint.get("configured_lr")
        self._check_frozen(checkpoint.get("base_sha256"))
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

    def _check_frozen(self, trained_on: str | None) -> None:
        own = self.base_hash()
        if self._check_base and trained_on is not None and own is not None and trained_on != own:
            raise ValueError(
                f"the checkpoint was trained on a base with the content hash {trained_on[:12]}, but the frozen weights that "
                f"the config names have {own[:12]}; give the base it was trained on, or set module.check_base=false to go "
                "on with another"
            )


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms, in their order."""
    first, *others = terms.values()
    for term in others:
        first = first + term
    return first
