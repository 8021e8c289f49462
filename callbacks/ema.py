"""Exponential moving average over the trainable parameters alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from reliability.step_callback import StepCallback


class EMA(StepCallback):
    """Keeps the average `a <- d a + (1 - d) p` of the parameters and uses it in validation, test and prediction.

    Frozen parts have no average, so neither memory nor checkpoint grows with a frozen base. The average is kept in
    float32 (float64 for float64 parameters) on the parameters' device and moves after each optimiser step, not after
    each micro-batch. With warm-up the decay after n steps is min(decay, (1 + n) / (10 + n)), so that the random
    start is forgotten early. Checkpoints always hold the raw weights in `state_dict` and the average in this
    callback's state, also when they are written while the average is swapped in: Lightning's own callback exchanges
    the two when validation raises.

    Args:
        decay: d in [0, 1) per optimiser step.
        warmup: whether the decay grows with the step as above.
        update_every_n_steps: optimiser steps between updates; the decay is raised to this power, which keeps the
            averaging length.

    Attributes:
        average: the averages by parameter name; empty before the first fit.
        num_updates: of the averages, so far.

    Raises:
        ValueError: if decay lies outside [0, 1).
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True, update_every_n_steps: int = 1) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"callbacks.ema.decay is {decay}; expected 0 <= decay < 1")
        super().__init__(update_every_n_steps)
        self.decay = decay
        self.warmup = warmup
        self.update_every_n_steps = update_every_n_steps
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None

    def decay_at(self, num_updates: int) -> float:
        """Decay of the update that follows `num_updates` earlier ones."""
        num_steps = num_updates * self.update_every_n_steps
        decay = min(self.decay, (1 + num_steps) / (10 + num_steps)) if self.warmup else self.decay
        return decay**self.update_every_n_steps

    @contextmanager
    def applied(self, module: LightningModule) -> Iterator[None]:
        """Runs the block with the averages in place of the parameters; inside a validation it changes nothing."""
        already = self._raw is not None
        try:
            if not already:
                self._swap_in(module)
            yield
        finally:
            if not already:
                self._restore(module)

    @torch.no_grad()
    def update(self, module: LightningModule) -> None:
        """Moves the average one update toward the parameters, in place."""
        parameters = dict(module.named_parameters())
        averages = list(self.average.values())
        values = [parameters[name].detach().to(average) for name, average in self.average.items()]
        torch._foreach_lerp_(averages, values, 1.0 - self.decay_at(self.num_updates))
        self.num_updates += 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the average at the parameters, or checks that a restored one belongs to them."""
        trainable = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if self.average and self.average.keys() != trainable.keys():
            odd = sorted(self.average.keys() ^ trainable.keys())
            raise ValueError(
                f"The checkpoint's EMA does not fit this model: {len(odd)} trainable parameters differ, the first is "
                f"{odd[0]}; resume with the network and the trainable parts of the saved run."
            )
        start = self.average or trainable
        self.average = {name: _as_average(start[name], trainable[name]) for name in trainable}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.is_due(trainer):
            self.update(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the raw parameters back before the checkpoint callbacks, which Lightning calls last, see them."""
        self._restore(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes raw parameters to `state_dict` even if the averages are in place."""
        for name, raw in (self._raw or {}).items():
            if name in checkpoint["state_dict"]:
                checkpoint["state_dict"][name] = raw

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors by parameter name and the number of updates."""
        return {"average": dict(self.average), "num_updates": self.num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a saved average; `on_fit_start` moves it to the parameters' device."""
        self.average = dict(state_dict["average"])
        self.num_updates = int(state_dict["num_updates"])

    @torch.inference_mode(False)
    @torch.no_grad()
    def _swap_in(self, module: LightningModule) -> None:
        if self._raw is not None or not self.average:
            return
        parameters = dict(module.named_parameters())
        self._raw = {name: parameters[name].detach().clone() for name in self.average}
        for name, average in self.average.items():
            parameters[name].detach().copy_(average)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _restore(self, module: LightningModule) -> None:
        if self._raw is None:
            return
        parameters = dict(module.named_parameters())
        for name, raw in self._raw.items():
            parameters[name].detach().copy_(raw)
        self._raw = None


def average_from_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The EMA's parameters by name that a Lightning checkpoint holds; empty if it was trained without EMA."""
    for key, state in checkpoint.get("callbacks", {}).items():
        if key.split("{")[0] == EMA.__qualname__:
            return dict(state["average"])
    return {}


def _as_average(value: Tensor, parameter: Tensor) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return value.detach().to(device=parameter.device, dtype=dtype, copy=True)
