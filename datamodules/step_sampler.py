"""Batches addressed by their global number, so that a resumed run needs no saved generator state."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]


@lru_cache(maxsize=4)
def epoch_order(num_samples: int, *, seed: int, epoch: int, stream: tuple[int, ...] = ()) -> np.ndarray:
    """Permutation of range(num_samples), int64, a pure function of (seed, epoch, stream)."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, *stream]))
    return np.random.Generator(bits).permutation(num_samples)


class StepBatchSampler(Sampler[list[Key]]):
    """Yields one rank's list of (epoch, index) keys for every global batch from start_batch to total_batches.

    The global batch k belongs to epoch k // batches_per_epoch; the samples left over at the end of an epoch are dropped.
    A set smaller than one global batch is repeated within it. A global batch is the same for every world_size with the
    same batch_size * world_size.

    Args:
        num_samples, batch_size: Size of the data set, and of one batch of one rank.
        total_batches: Batches of the whole run (optimizer steps times accumulation).
        seed, rank, world_size: Of the order; this process of how many.
        start_batch: First global batch to yield; the number already consumed when a run is resumed.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        total_batches: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_batch: int = 0,
    ) -> None:
        self.num_samples, self.batch_size, self.total_batches = num_samples, batch_size, total_batches
        self.seed, self.rank, self.world_size, self.start_batch = seed, rank, world_size, start_batch
        self.global_batch_size = batch_size * world_size
        self.batches_per_epoch = max(1, num_samples // self.global_batch_size)

    def __len__(self) -> int:
        """Batches of the whole run, also when it starts later: Lightning adds what was done before."""
        return self.total_batches

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in range(self.start_batch, self.total_batches):
            epoch, offset = divmod(batch, self.batches_per_epoch)
            order = epoch_order(self.num_samples, seed=self.seed, epoch=epoch)
            first = offset * self.global_batch_size + self.rank * self.batch_size
            positions = np.arange(first, first + self.batch_size) % self.num_samples
            yield [(epoch, int(index)) for index in order[positions]]
