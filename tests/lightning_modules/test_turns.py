"""Two players on one optimiser: bit for bit two optimisers that alternate, in every setting of training."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from callbacks.ema import EMA
from lightning_modules.base import TranslationModule
from tests.models import photo_batch

ROOT = Path(__file__).parents[2]


def player() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))


class TwoPlayers(TranslationModule):
    """Each player is judged by what the other makes of its output; a third network watches and never learns."""

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.first, self.second, self.watcher = player(), player(), player()
        self.train_only(self.first, self.second)

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        with self.turn(self.first, self.second) as mover:
            self.moved = "first" if mover is self.first else "second"
            return loss_terms(self, batch["image"])


def loss_terms(module: Any, image: Tensor) -> dict[str, Tensor]:
    back = module.second(module.first(image))
    return {"cycle": (back - image).square().mean(), "size": 0.1 * module.first(image).abs().mean()}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)


def make(**settings: Any) -> TwoPlayers:
    torch.manual_seed(0)
    return TwoPlayers(optimizer=adamw, **settings)


def alternated(steps: int, *, accumulate: int = 1, clip: float | None = None) -> TwoPlayers:
    """The same by hand, with two optimisers."""
    module, image = make(), photo_batch(2, size_px=16)["image"]
    optimizers = [adamw(network.parameters()) for network in (module.first, module.second)]
    for step in range(steps):
        networks = (module.first, module.second)
        for number, network in enumerate(networks):
            network.requires_grad_(number == step % 2)
        for _ in range(accumulate):
            (sum(loss_terms(module, image).values()) / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(networks[step % 2].parameters(), clip)
        optimizers[step % 2].step()
        optimizers[step % 2].zero_grad()
    return module


def assert_same(one: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (1, 0.05), (3, 0.05)])
def test_it_equals_two_optimisers_bit_for_bit(fit, accumulate: int, clip: float | None) -> None:
    module = make()
    start = copy.deepcopy(module.watcher)
    fit(
        module,
        photo_batch(2, size_px=16),
        steps=20,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    assert_same(module, alternated(20, accumulate=accumulate, clip=clip))
    assert_same(module.watcher, start)


def test_one_player_moves_in_a_step_and_the_other_the_next(fit) -> None:
    module, changed = make(), []

    def note(*_: Any) -> None:
        state = {k: v.clone() for k, v in module.state_dict().items()}
        moved = {name.split(".")[0] for name in state if not torch.equal(state[name], before[name])}
        changed.append((moved, module.moved))
        before.update(state)

    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.on_train_batch_end = note
    fit(module, photo_batch(2, size_px=16), steps=4)
    assert changed == [({"first"}, "first"), ({"second"}, "second")] * 2
    assert all(p.requires_grad for p in (*module.first.parameters(), *module.second.parameters()))


def test_it_resumes_exactly_in_the_middle_of_a_turn(fit, tmp_path: Path) -> None:
    batch = photo_batch(2, size_px=16)
    whole, part = make(), make()
    fit(whole, batch, steps=7)
    fit(part, batch, steps=3).save_checkpoint(tmp_path / "a.ckpt")
    resumed = make()
    fit(resumed, batch, steps=7, ckpt_path=tmp_path / "a.ckpt")
    assert_same(resumed, whole)


def test_the_average_follows_both_players(fit) -> None:
    module, ema = make(), EMA(decay=0.5, warmup=False)
    fit(module, photo_batch(2, size_px=16), steps=4, callbacks=[ema])
    assert {name.split(".")[0] for name in ema.average} == {"first", "second"}
    by_hand: dict[str, Tensor] = {}
    for steps in range(5):
        for name, value in alternated(steps).named_parameters():
            by_hand[name] = value if not steps else by_hand[name].lerp(value, 0.5)
    for name, value in ema.average.items():
        torch.testing.assert_close(value, by_hand[name].detach())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_true", "ddp"])
def test_two_processes_train_as_one(tmp_path: Path, strategy: str) -> None:
    """Each process has half of the batch; plain DDP, which waits for all gradients, is refused in one sentence."""
    words = [sys.executable, "-m", "tests.lightning_modules.two_players", str(tmp_path / "ddp.pt"), strategy]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250)
    if strategy == "ddp":
        assert done.returncode != 0
        assert "set trainer.strategy=ddp_find_unused_parameters_true" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    expected = alternated(6).state_dict()
    for name, value in torch.load(tmp_path / "ddp.pt", weights_only=True).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
