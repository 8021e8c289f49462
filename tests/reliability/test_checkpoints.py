"""When last.ckpt and best.ckpt are written, and that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from callbacks.ema import EMA
from reliability.checkpoints import BestCheckpoint, LastCheckpoint, read_checkpoint


def callbacks(every_n_steps=1000):
    return [EMA(0.9), BestCheckpoint(), LastCheckpoint(every_n_steps)]


def step_of(path):
    return read_checkpoint(path)["global_step"]


@pytest.mark.parametrize(("stop", "accumulate"), [(7, 1), (10, 1), (13, 1), (19, 1), (5, 2), (7, 2)])
def test_resume_equals_the_uninterrupted_run(fit, tiny, tmp_path, stop, accumulate):
    options = {"accumulate_grad_batches": accumulate, "max_steps": 20 // accumulate}
    whole, first, second = tiny(), tiny(), tiny()
    reference = fit(whole, callbacks(), folder=tmp_path / "whole", **options)
    fit(first, callbacks(), **{**options, "max_steps": stop})
    resumed = fit(second, callbacks(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **options)
    assert first.losses + second.losses == whole.losses
    assert first.validations + second.validations == whole.validations
    assert torch.equal(second.net.weight, whole.net.weight)
    ours, theirs = reference.callbacks[0].average, resumed.callbacks[0].average
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    batches = [t.fit_loop.epoch_loop._batches_that_stepped for t in (reference, resumed)]
    assert batches[0] == batches[1]  # Lightning's default step axis of the loggers


@pytest.mark.parametrize("fail_at", [("train", 4), ("train", 13), ("val", 0), ("val", 1)])
def test_a_crash_is_saved_and_resumes_exactly(fit, tiny, tmp_path, fail_at):
    whole, first, second = tiny(), tiny(fail_at=fail_at), tiny()
    reference = fit(whole, callbacks(), folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="asked for"):
        fit(first, callbacks())
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert step_of(last) == (10 if fail_at[0] == "val" else fail_at[1])
    resumed = fit(second, callbacks(), ckpt_path=last)
    assert first.losses + second.losses == whole.losses
    assert torch.equal(second.net.weight, whole.net.weight)
    done = [v for v in first.validations if v[0] < second.validations[0][0]]
    assert done + second.validations == whole.validations  # the broken validation starts again
    assert (
        reference.fit_loop.epoch_loop._batches_that_stepped
        == resumed.fit_loop.epoch_loop._batches_that_stepped
    )


def test_a_crash_inside_an_accumulation_window_keeps_the_earlier_file(fit, tiny, tmp_path):
    with pytest.raises(RuntimeError):
        fit(tiny(fail_at=("train", 13)), callbacks(every_n_steps=5), accumulate_grad_batches=2, max_steps=10)
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 5


def test_an_interrupt_inside_the_update_keeps_the_earlier_file(fit, tiny, tmp_path):
    module = tiny()
    configure = module.configure_optimizers

    def optimizer():
        result = configure()
        result.register_step_post_hook(
            lambda *_: (_ for _ in ()).throw(KeyboardInterrupt) if module.global_step == 6 else None
        )
        return result

    module.configure_optimizers = optimizer
    with pytest.raises(SystemExit):
        fit(module, callbacks(every_n_steps=2))
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 6


def test_last_is_last_and_best_is_best_when_the_metric_only_worsens(fit, tiny, tmp_path):
    module = tiny()
    module.validation_step = lambda batch, batch_idx: module.log(
        "val/loss", float(module.global_step), batch_size=1
    )
    fit(module, callbacks(), val_check_interval=4)
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 20
    assert step_of(tmp_path / "checkpoints" / "best.ckpt") == 4


def test_best_follows_improvement_and_ignores_nan(fit, tiny, tmp_path):
    module = tiny()
    values = {4: 3.0, 8: 5.0, 12: float("nan"), 16: 4.0, 20: 5.0}
    module.validation_step = lambda batch, batch_idx: module.log(
        "score", values[module.global_step], batch_size=1
    )
    best = BestCheckpoint("score", mode="max")
    fit(module, [best], val_check_interval=4)
    assert (best.best_value, best.best_step) == (5.0, 8)


def test_best_on_disk_is_the_value_to_beat_after_resume(fit, tiny, tmp_path):
    def run(values, **options):
        module = tiny()
        module.validation_step = lambda batch, batch_idx: module.log(
            "val/loss", values[module.global_step], batch_size=1
        )
        fit(module, callbacks(every_n_steps=2), val_check_interval=4, **options)

    best, last = tmp_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    run({4: 2.0, 8: 1.0}, max_steps=8)
    run({12: 1.5}, max_steps=12, ckpt_path=last)
    assert step_of(best) == 8
    run({16: 0.5}, max_steps=16, ckpt_path=last)
    assert step_of(best) == 16
    run({20: 3.0}, max_steps=20, ckpt_path=last, folder=tmp_path / "elsewhere")
    assert step_of(tmp_path / "elsewhere" / "checkpoints" / "best.ckpt") == 20  # another folder starts anew


def test_a_damaged_best_is_replaced(fit, tiny, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").write_bytes(b"no checkpoint")
    fit(tiny(), callbacks(), max_steps=10)
    assert step_of(folder / "best.ckpt") == 10
    assert "will be replaced" in caplog.text


def test_a_missing_metric_is_named(fit, tiny):
    with pytest.raises(ValueError, match=r"monitors 'val/los'.*'val/loss'.*callbacks.best.monitor"):
        fit(tiny(), [BestCheckpoint("val/los")], max_steps=10)


def test_a_failed_save_is_reported_once_and_keeps_the_previous_file(fit, tiny, tmp_path, monkeypatch):
    import reliability.checkpoint_io as io

    fsync, calls = io.os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) > 4:  # a save syncs the file, two sidecars and the folder
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(io.os, "fsync", failing)
    with pytest.raises(OSError, match=r"last.ckpt was not written \(No space left"):
        fit(tiny(), [LastCheckpoint(5)], limit_val_batches=0)
    monkeypatch.undo()
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 5
    assert len(calls) == 5


def test_a_full_disk_is_noticed_before_the_first_step(fit, tiny, monkeypatch):
    import reliability.checkpoint_io as io

    monkeypatch.setattr(io.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    module = tiny()
    with pytest.raises(OSError, match=r"need about \d+ bytes, but 10 bytes are free"):
        fit(module, callbacks())
    assert module.losses == []


def test_files_that_are_there_count_when_a_run_goes_on(fit, tiny, tmp_path, monkeypatch):
    import reliability.checkpoint_io as io

    fit(tiny(), callbacks(every_n_steps=5))
    size = (tmp_path / "checkpoints" / "last.ckpt").stat().st_size
    monkeypatch.setattr(io.shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    fit(tiny(), callbacks(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", max_steps=22)
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 22


def test_an_error_of_a_hook_after_the_batch_keeps_the_earlier_file(fit, tiny, tmp_path):
    module = tiny()

    def fail(*_):
        if module.global_step == 6:
            raise RuntimeError("asked for")

    module.on_train_batch_end = fail
    with pytest.raises(RuntimeError, match="asked for"):
        fit(module, callbacks(every_n_steps=4))
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="expected min or max"):
        BestCheckpoint(mode="lowest")
    with pytest.raises(ValueError, match="at least 1"):
        LastCheckpoint(0)
