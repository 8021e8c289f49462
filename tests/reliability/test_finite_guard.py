"""A NaN stops the run before it reaches weights or checkpoints."""

from __future__ import annotations

import pytest
import torch

import reliability.finite_guard as finite_guard
from reliability.checkpoints import LastCheckpoint, read_checkpoint
from reliability.finite_guard import FiniteGuard, NonFiniteError


def poison(module, where, at):
    """Makes the loss or one gradient of batch `at` non-finite."""
    step = module.training_step

    def training_step(batch, batch_idx):
        loss = step(batch, batch_idx)
        if batch_idx != at:
            return loss
        if where == "loss":
            return loss * float("nan")
        module.net.bias.register_hook(lambda grad: torch.full_like(grad, float("inf")) if armed else grad)
        return loss

    armed = [True]
    module.training_step = training_step
    return module


@pytest.mark.parametrize(("where", "what"), [("loss", "loss"), ("gradient", "gradient norm")])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_not_taken_and_the_batch_is_named(fit, tiny, tmp_path, where, what, accumulate):
    module, clean = poison(tiny(), where, 5), tiny()
    step = 5 // accumulate
    names = "photo10, photo11" if accumulate == 1 else "photo8, photo9, photo10, photo11"
    options = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    with pytest.raises(NonFiniteError, match=rf"The {what} is not finite at step {step} \(batch: {names}\)"):
        fit(module, [FiniteGuard(), LastCheckpoint(1)], **options)
    fit(clean, [], max_steps=step, **options)
    assert torch.equal(module.net.weight, clean.net.weight)
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == step
    assert torch.equal(saved["state_dict"]["net.weight"], clean.net.weight)


@pytest.mark.parametrize(("where", "what"), [("loss", "loss"), ("gradient", "gradient norm")])
def test_where_reading_waits_the_next_reading_raises(fit, tiny, monkeypatch, where, what):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: False)
    module = poison(tiny(), where, 5)
    with pytest.raises(
        NonFiniteError, match=rf"The {what} is not finite at step 5 \(batch: photo10, photo11\)"
    ):
        fit(module, [FiniteGuard(every_n_steps=8)], limit_val_batches=0)
    assert module.losses[-1][0] == 7
    assert torch.isfinite(module.net.weight).all()


def test_an_open_accumulation_window_is_neither_read_nor_forgotten(fit, tiny, monkeypatch):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: False)
    options = {"limit_val_batches": 0, "accumulate_grad_batches": 2}

    class Counting(FiniteGuard):
        def _read(self):
            reads.append(module.global_step)
            super()._read()

    reads, module = [], tiny()
    fit(module, [Counting(every_n_steps=4)], max_steps=10, **options)
    assert reads == [4, 8, 10]  # 10: the end
    module = poison(tiny(), "loss", 9)  # the second half of step 4
    names = "photo16, photo17, photo18, photo19"
    with pytest.raises(NonFiniteError, match=rf"The loss is not finite at step 4 \(batch: {names}\)"):
        fit(module, [FiniteGuard(every_n_steps=4)], max_steps=10, **options)


def test_no_checkpoint_is_written_after_an_unread_bad_step(fit, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: False)
    with pytest.raises(NonFiniteError, match="no checkpoint holds it"):
        fit(poison(tiny(), "loss", 5), [LastCheckpoint(4), FiniteGuard(1000)], limit_val_batches=0)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_weights_that_one_update_made_infinite_are_never_saved(fit, tiny, tmp_path):
    module = tiny()

    def explode(optimizer, *_):
        if module.global_step == 19:
            module.net.weight.data.fill_(float("inf"))

    configure = module.configure_optimizers

    def optimizer():
        result = configure()
        result.register_step_post_hook(explode)
        return result

    module.configure_optimizers = optimizer
    with pytest.raises(
        NonFiniteError, match=r"The weights are not finite after step 19, and no checkpoint holds"
    ):
        fit(module, [FiniteGuard(), LastCheckpoint(5)], limit_val_batches=0)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 15


def test_the_last_steps_are_read_at_the_end(fit, tiny, monkeypatch):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: False)
    with pytest.raises(NonFiniteError, match="at step 19"):
        fit(poison(tiny(), "loss", 19), [FiniteGuard(1000)], limit_val_batches=0)


@pytest.mark.parametrize("free", [True, False])
def test_the_bad_term_of_the_loss_is_named_also_one_that_starts_later(fit, tiny, monkeypatch, free):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: free)
    module = tiny()
    step = module.training_step

    def training_step(batch, batch_idx):
        l1 = step(batch, batch_idx)
        module.loss_terms = {"l1": l1}
        if batch_idx >= 3:
            module.loss_terms["adversarial"] = l1 * (float("inf") if batch_idx == 6 else 1)
        return sum(module.loss_terms.values())

    module.training_step = training_step
    with pytest.raises(NonFiniteError, match=r"The loss \(term: adversarial\) is not finite at step 6"):
        fit(module, [FiniteGuard(every_n_steps=8)], limit_val_batches=0)
    assert torch.isfinite(module.net.weight).all()


@pytest.mark.parametrize("free", [True, False])
def test_a_healthy_run_is_unchanged(fit, tiny, monkeypatch, free):
    monkeypatch.setattr(finite_guard, "reading_is_free", lambda device: free)
    guarded, plain = tiny(), tiny()
    fit(guarded, [FiniteGuard(4)])
    fit(plain, [])
    assert guarded.losses == plain.losses
    assert torch.equal(guarded.net.weight, plain.net.weight)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        FiniteGuard(0)
