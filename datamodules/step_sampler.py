"""Batches addressed by their global number, so that a resumed run needs no saved generator state."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]


@lru_cache(maxsize=4)
def epoch_order(num_samples: int, *, seed: int, epoch: int, stream: tuple[int, ...] = ()) -> np.ndarray:
    """Permutation of range(num_samples), int64, a pure function of (seed, epoch, stream)."""
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch, *stream]))
    return np.random.Generator(bits).permutation(num_samples)


@dataclass(eq=False)
class StepBatchSampler(Sampler[list[Key]]):
    """Yields one rank's list of (epoch, index) keys for every global batch from start_batch to total_batches.

    The global batch k belongs to epoch k // batches_per_epoch; the samples left over at the end of an epoch are dropped.
    A set smaller than one global batch is repeated within it. A global batch is the same for every world_size with the
    same batch_size * world_size.
    """

    num_samples: int  # of the data set
    batch_size: int  # of one batch of one rank
    total_batches: int  # of the whole run: optimizer steps times accumulation
    seed: int  # of the order
    rank: int = 0  # of this process
    world_size: int = 1  # number of processes
    start_batch: int = 0  # first global batch to yield: the number consumed when a run is resumed

    def __post_init__(self) -> None:
        self.global_batch_size = self.batch_size * self.world_size
        self.batches_per_epoch = max(1, self.num_samples // self.global_batch_size)

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
