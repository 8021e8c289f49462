"""EMA: closed form, frozen parts, swap and restore, checkpoints."""

from __future__ import annotations

import pytest
import torch

from callbacks.ema import EMA, average_from_checkpoint
from reliability.checkpoints import LastCheckpoint, read_checkpoint


class Recorder(EMA):
    """Keeps the raw weights after each update."""

    def update(self, module):
        self.__dict__.setdefault("seen", []).append(module.net.weight.detach().clone())
        super().update(module)


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_average_equals_the_closed_form_in_float64(fit, tiny, warmup, accumulate):
    module = tiny().double()
    start = module.net.weight.detach().clone()
    ema = Recorder(decay=0.7, warmup=warmup)

    def double_step(batch, batch_idx):
        x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(batch_idx))
        return (module.net(x) - 1).square().mean()

    module.training_step = double_step
    fit(module, [ema], max_steps=8, limit_val_batches=0, accumulate_grad_batches=accumulate)

    assert len(ema.seen) == 8  # one update per optimiser step
    decays = [min(0.7, (1 + n) / (10 + n)) if warmup else 0.7 for n in range(8)]
    weights = [1 - d for d in decays]
    expected = start * torch.tensor(decays, dtype=torch.float64).prod()
    for n, value in enumerate(ema.seen):
        expected = expected + weights[n] * torch.tensor(decays[n + 1 :], dtype=torch.float64).prod() * value
    average = ema.average["net.weight"]
    assert average.dtype == torch.float64
    torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-12)


def test_sparse_updates_keep_the_averaging_length(fit, tiny):
    ema = EMA(decay=0.9, warmup=False, update_every_n_steps=4)
    fit(tiny(), [ema], max_steps=8, limit_val_batches=0)
    assert ema.num_updates == 2
    assert ema.decay_at(0) == pytest.approx(0.9**4, rel=1e-12)


def test_only_trainable_parameters_are_kept_in_float32(fit, tiny):
    module = tiny()
    ema = EMA()
    fit(module, [ema], max_steps=2, limit_val_batches=0)
    assert set(ema.average) == {"net.weight", "net.bias"}
    assert all(a.dtype == torch.float32 for a in ema.average.values())
    bf16 = tiny().to(torch.bfloat16)
    ema.load_state_dict({"average": {}, "num_updates": 0})
    ema.on_fit_start(fit(tiny(), [], max_steps=1, limit_val_batches=0), bf16)
    ema.update(bf16)
    assert ema.average["net.weight"].dtype == torch.float32


def test_validation_sees_the_average_and_training_the_raw_weights(fit, tiny):
    module = tiny()
    ema = EMA(decay=0.9, warmup=False)
    fit(module, [ema], max_steps=10)
    torch.testing.assert_close(module.weights_in_validation, ema.average["net.weight"])
    assert not torch.equal(module.net.weight, ema.average["net.weight"])


def test_training_is_the_same_with_and_without_ema(fit, tiny):
    with_ema, without = tiny(), tiny()
    fit(with_ema, [EMA()])
    fit(without, [])
    assert with_ema.losses == without.losses


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_in_validation_leaves_raw_weights_in_module_and_checkpoint(fit, tiny, tmp_path, error):
    module = tiny(fail_at=("val", 1), error=error)
    ema = EMA(decay=0.9, warmup=False)
    with pytest.raises((RuntimeError, SystemExit)):
        fit(module, [LastCheckpoint(1000), ema])
    clean = tiny()
    fit(clean, [], max_steps=10, limit_val_batches=0)
    torch.testing.assert_close(module.net.weight, clean.net.weight, rtol=0, atol=0)
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.equal(saved["state_dict"]["net.weight"], clean.net.weight)
    assert torch.equal(average_from_checkpoint(saved)["net.weight"], ema.average["net.weight"])


def test_a_save_while_swapped_in_writes_raw_weights(fit, tiny, tmp_path):
    module = tiny()
    ema = EMA(decay=0.9, warmup=False)
    trainer = fit(module, [ema, LastCheckpoint()], max_steps=5, limit_val_batches=0)
    raw = module.net.weight.detach().clone()
    with ema.applied(module):
        assert torch.equal(module.net.weight, ema.average["net.weight"])
        with ema.applied(module):
            pass
        assert torch.equal(module.net.weight, ema.average["net.weight"])
        trainer.save_checkpoint(tmp_path / "mid.ckpt", weights_only=False)
    assert torch.equal(module.net.weight, raw)
    assert torch.equal(read_checkpoint(tmp_path / "mid.ckpt")["state_dict"]["net.weight"], raw)


def test_applied_restores_after_an_error(fit, tiny):
    module = tiny()
    ema = EMA()
    fit(module, [ema], max_steps=3, limit_val_batches=0)
    raw = module.net.weight.detach().clone()
    with pytest.raises(RuntimeError), ema.applied(module):
        raise RuntimeError
    assert torch.equal(module.net.weight, raw)


def test_resume_continues_the_average_exactly(fit, tiny, tmp_path):
    whole, first, second = EMA(0.9), EMA(0.9), EMA(0.9)
    fit(tiny(), [whole], limit_val_batches=0)
    fit(tiny(), [first, LastCheckpoint()], max_steps=7, limit_val_batches=0)
    fit(tiny(), [second], ckpt_path=tmp_path / "checkpoints" / "last.ckpt", limit_val_batches=0)
    for name, average in whole.average.items():
        assert torch.equal(average, second.average[name])
    assert second.num_updates == whole.num_updates


def test_a_foreign_average_is_refused(fit, tiny, tmp_path):
    fit(tiny(), [EMA(), LastCheckpoint()], max_steps=2, limit_val_batches=0)
    other = tiny()
    other.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="EMA does not fit this model: 2 trainable parameters differ"):
        fit(other, [EMA()], ckpt_path=tmp_path / "checkpoints" / "last.ckpt", limit_val_batches=0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="0 <= decay < 1"):
        EMA(decay=1.0)
    with pytest.raises(ValueError, match="at least 1"):
        EMA(update_every_n_steps=0)


def test_a_checkpoint_without_ema_has_no_average():
    assert average_from_checkpoint({"callbacks": {}}) == {}
