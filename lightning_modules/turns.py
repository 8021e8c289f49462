"""Two players on one optimiser."""

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def turn(module: L.LightningModule, *players: nn.Module) -> Iterator[nn.Module]:
    """Inside, only the parameters of the player whose turn it is require a gradient; by optimiser step.

    The optimiser skips parameters without a gradient, so this equals two optimisers that alternate, and accumulation,
    clipping, schedules, EMA and resume need to know nothing of it. In evaluation it is the first player's turn.

    Raises:
        ValueError: DDP that waits for the gradients of all parameters.
    """
    number = module.trainer.global_step % len(players) if module.training else 0
    parallel = module.trainer.strategy.model if module.training else None
    if isinstance(parallel, DistributedDataParallel) and not parallel.find_unused_parameters:
        raise ValueError(
            f"{type(module).__name__} trains its networks in turns, so some have no gradient in a step; set "
            "trainer.strategy=ddp_find_unused_parameters_true"
        )
    own = {id(p) for p in players[number].parameters()}
    waiting = [p for player in players for p in player.parameters() if p.requires_grad and id(p) not in own]
    try:
        for parameter in waiting:
            parameter.requires_grad_(False)
        yield players[number]
    finally:
        for parameter in waiting:
            parameter.requires_grad_(True)
