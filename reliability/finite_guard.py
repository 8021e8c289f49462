"""Stops a run whose loss or gradient is no longer finite, before it harms weights or checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from reliability.lightning_internals import loss_scaler
from reliability.step_callback import StepCallback


class NonFiniteError(ValueError):
    """A loss or gradient is NaN or infinite."""


def reading_is_free(device: torch.device) -> bool:
    """Whether the host can read a value without waiting for the device."""
    return device.type == "cpu"


class FiniteGuard(StepCallback):
    """Checks the loss and the norm of the gradient before each optimiser step.

    On CPU the check raises at once and the step does not happen. On an accelerator a check would wait for the device
    in each step, so a flag stays there: a bad gradient is set to zero, and the error is raised at the next reading,
    every n steps and before any checkpoint is written, so that no checkpoint holds weights from after the bad step.
    Weights that a huge update has made infinite are found before they are written, and at the end.
    With float16 the loss scaler deals with infinite gradients, and only the loss is checked. A module that adds several
    terms and keeps them in `loss_terms` (scalars by name) has the bad one named.

    Args:
        every_n_steps: optimiser steps between readings of the flag on an accelerator.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        super().__init__(every_n_steps)
        self._names: dict[int, list[str]] = {}  # of the samples, by step
        # bool (1 + T,), since the last optimiser step: the loss and each of its terms
        self._bad_loss: Tensor | None = None
        # int64 (2 + T,): step of the first bad update or -1, whether by its loss, and by which of its terms
        self._first: Tensor | None = None
        self._terms: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bad_loss = self._first = None
        self._terms, self._names = [], {}

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._names.setdefault(self.batch_start_step, []).extend(batch["name"])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes on the loss's device whether it and its terms are finite."""
        terms: dict[str, Tensor] = getattr(pl_module, "loss_terms", {})
        if list(terms) != self._terms:  # a term may start later
            self._read()
            self._terms, self._first, self._bad_loss = list(terms), None, None
        values = [loss.detach().float().sum(), *(term.detach().float().sum() for term in terms.values())]
        bad = ~torch.isfinite(torch.stack(values))
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Raises on CPU; elsewhere zeroes a bad gradient and keeps its step in the flag."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        bad_loss, self._bad_loss = self._bad_loss, None
        if not gradients or bad_loss is None:
            return
        device = gradients[0].device
        bad = bad_loss[0]
        if loss_scaler(trainer) is None:
            bad = bad | ~torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        if reading_is_free(device):
            if bad:
                raise self._error(self.batch_start_step, bad_loss.tolist(), "the step was not taken")
            return
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)
        step = torch.full((1,), self.batch_start_step, dtype=torch.int64, device=device)
        found = torch.cat([step, bad_loss.long()])
        if self._first is None:
            self._first = torch.full_like(found, -1)
        self._first = torch.where(bad & (self._first[0] < 0), found, self._first)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.is_due(trainer):
            self._read()
            self._names.clear()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Reads the flag, and refuses weights that a finite but huge update has made infinite.

        At the end too: nothing follows that would notice what the last update did.
        """
        self._read()
        trained = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        if trained and not torch.isfinite(torch.nn.utils.get_total_norm(trained)):
            raise NonFiniteError(
                f"The weights are not finite after step {trainer.global_step - 1}, and no checkpoint holds them; "
                "lower module.optimizer.lr."
            )

    on_train_end = on_save_checkpoint

    def _read(self) -> None:
        if self._first is None:
            return
        step, *bad_loss = self._first.tolist()
        if step >= 0:
            raise self._error(step, bad_loss, "its gradient was set to zero and no checkpoint holds it")

    def _error(self, step: int, bad_loss: list[int], consequence: str) -> NonFiniteError:
        terms = ", ".join(name for name, bad in zip(self._terms, bad_loss[1:], strict=False) if bad)
        loss = f"loss (term: {terms})" if terms else "loss"
        what = loss if bad_loss[0] else "gradient norm"
        return NonFiniteError(
            f"The {what} is not finite at step {step} (batch: {', '.join(self._names[step][:16])}); {consequence}. "
            "Look at these samples, or lower the learning rate, or set trainer.precision=32-true."
        )
