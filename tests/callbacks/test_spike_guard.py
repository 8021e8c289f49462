"""A jump of the loss costs one step, many cost a way back, and too many end the run."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from callbacks.ema import EMA
from callbacks.spike_guard import SpikeError, SpikeGuard
from reliability.checkpoints import LastCheckpoint
from tests.callbacks.conftest import loader

OPTIONS = {"limit_val_batches": 0, "max_steps": 40}


def spiking(module, steps):
    """Multiplies the loss of some batches by 1e4."""
    step = module.training_step

    def training_step(batch, batch_idx):
        loss = step(batch, batch_idx)
        return loss * 1e4 if batch_idx in steps else loss

    module.training_step = training_step
    module.seen = []
    module.on_train_batch_end = lambda *_: module.seen.append(module.net.weight.detach().clone())
    return module


def guard(**settings) -> SpikeGuard:
    return SpikeGuard(**({"window": 30} | settings))


def test_one_spike_is_skipped_counted_and_logged(fit, tiny, caplog):
    module, spikes = spiking(tiny(), {25}), guard()
    trainer = fit(module, [spikes], train_loader=loader(40), **OPTIONS)
    assert torch.equal(module.seen[25], module.seen[24])  # neither weights nor moments moved
    assert not torch.equal(module.seen[26], module.seen[25])
    assert (spikes.num_skipped, spikes.num_rollbacks) == (1, 0)
    assert float(trainer.callback_metrics["spikes/skipped"]) == 1
    assert "step 25 is skipped: its loss" in caplog.text
    assert "10 times the median of the last 25 steps (batch: photo50, photo51)" in caplog.text
    state = trainer.optimizers[0].state[module.net.weight]
    assert int(state["step"]) == 39  # AdamW itself saw one step less


def test_a_run_without_spikes_is_unchanged(fit, tiny):
    guarded, plain = tiny(), tiny()
    fit(guarded, [guard()], train_loader=loader(40), **OPTIONS)
    fit(plain, [], train_loader=loader(40), **OPTIONS)
    assert torch.equal(guarded.net.weight, plain.net.weight)


def test_accumulated_losses_count_as_one_step(fit, tiny):
    module, spikes = spiking(tiny(), {50}), guard()
    fit(
        module,
        [spikes],
        train_loader=loader(80),
        accumulate_grad_batches=2,
        limit_val_batches=0,
        max_steps=40,
    )
    assert torch.equal(module.seen[51], module.seen[49])
    assert spikes.num_skipped == 1


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_message_has_the_mean_loss_of_the_step(fit, tiny, caplog, accumulate, scaled):
    module, first = spiking(tiny(), {25 * accumulate}), 25 * accumulate
    plugins = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=512.0))]
    options = {"plugins": plugins} if scaled else {}
    fit(
        module,
        [guard()],
        train_loader=loader(40 * accumulate),
        accumulate_grad_batches=accumulate,
        **(OPTIONS | options),
    )
    losses = [loss for _, loss in module.losses[first : first + accumulate]]
    shown = float(re.search(r"step 25 is skipped: its loss (\S+) is", caplog.text)[1])
    assert shown == pytest.approx((losses[0] * 1e4 + sum(losses[1:])) / accumulate, rel=1e-3)


def test_three_spikes_bring_back_the_checkpoint_from_before_at_a_lower_rate(fit, tiny, tmp_path, caplog):
    module, spikes, ema = spiking(tiny(), {26, 28, 31}), guard(), EMA(0.9)
    caplog.set_level(logging.WARNING)
    callbacks = [ema, spikes, LastCheckpoint(10)]
    trainer = fit(module, callbacks, train_loader=loader(40), **(OPTIONS | {"max_steps": 32}))
    early, average = tiny(), EMA(0.9)
    fit(early, [average], train_loader=loader(40), folder=tmp_path / "early", **(OPTIONS | {"max_steps": 20}))
    assert not torch.equal(module.seen[30], early.net.weight)
    assert torch.equal(module.net.weight, early.net.weight)  # the way back comes at the end of the batch
    for name, value in average.average.items():
        assert torch.equal(ema.average[name], value)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)
    assert trainer.global_step == 32
    assert spikes.num_rollbacks == 1
    assert (
        "3 of the last 30 steps had a spike in the loss: weights, optimiser and average are those of step 20"
        in (caplog.text)
    )


def test_too_many_ways_back_end_the_run(fit, tiny):
    spikes = guard(max_rollbacks=1, max_skips=2)
    with pytest.raises(SpikeError, match=r"2 of the last 30 steps .* at step 33, after 1 rollbacks; look at"):
        fit(
            spiking(tiny(), {25, 27, 31, 33}),
            [spikes, LastCheckpoint(10)],
            train_loader=loader(40),
            **OPTIONS,
        )
    assert spikes.num_rollbacks == 1


def test_without_an_earlier_checkpoint_the_run_ends(fit, tiny, tmp_path):
    with pytest.raises(SpikeError, match=r"checkpoints holds no checkpoint from before the first of them"):
        fit(spiking(tiny(), {25, 27}), [guard(max_skips=2)], train_loader=loader(40), **OPTIONS)


def test_a_resumed_run_decides_as_the_whole_one(fit, tiny, tmp_path):
    whole = spiking(tiny(), {26, 34})
    fit(whole, [guard()], train_loader=loader(40), folder=tmp_path / "whole", **OPTIONS)
    fit(
        spiking(tiny(), {26}),
        [guard(), LastCheckpoint(30)],
        train_loader=loader(40),
        **(OPTIONS | {"max_steps": 30}),
    )
    resumed, spikes = spiking(tiny(), {34}), guard()
    last = tmp_path / "checkpoints" / "last.ckpt"
    fit(resumed, [spikes, LastCheckpoint(30)], ckpt_path=last, train_loader=loader(40), **OPTIONS)
    assert spikes.num_skipped == 2
    assert torch.equal(resumed.net.weight, whole.net.weight)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"factor": 1.0}, "factor is 1.0; expected above 1"),
        ({"window": 3}, "window is 3; expected at least 20"),
        ({"lr_factor": 0.0}, r"lr_factor is 0.0; expected in \(0, 1\]"),
        ({"max_skips": 0}, "max_skips is 0; expected at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        SpikeGuard(**settings)
