"""Randomness as a pure function of progress: every draw is keyed, none depends on history.

Shapes: B batch.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """Names the independent uses of randomness, so that adding one never shifts another."""

    NOISE = 1
    TIMESTEP = 2
    POSTERIOR = 3
    DROPOUT = 4
    SAMPLE = 5
    NETWORK = 6
    HINT = 7
    REGION = 8


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser (Steele et al. 2014): a bijection that scatters neighbouring integers."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def keyed_integers(*key: int, sample: Sequence[int] | np.ndarray) -> np.ndarray:
    """64-bit integers (B,), one for each entry of `sample`, that depend on the key and that entry alone.

    Args:
        key: any integers, for example (seed, stream, step).
        sample: (B,) the sample numbers.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(len(sample), dtype=np.uint64)
        for part in (*key, np.asarray(sample)):
            step = np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = _mix((state * np.uint64(0x9E3779B97F4A7C15)) ^ step)
    return state


def keyed_uniform(*key: int, sample: Sequence[int] | np.ndarray) -> np.ndarray:
    """float64 (B,) uniform in [0, 1), keyed as in `keyed_integers`."""
    return (keyed_integers(*key, sample=sample) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def generators(
    *key: int, sample: Sequence[int] | np.ndarray, device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """One generator for each entry of `sample`, seeded by the key and that entry: batch size changes nothing."""
    # The upper half alone is used: mt19937 on the CPU takes 64 bits, but some back ends keep only 63.
    seeds = keyed_integers(*key, sample=sample) >> np.uint64(1)
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


def randn(
    shape: Sequence[int], sources: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal (B, *shape) on the generators' device; row i comes from generator i alone.

    Example:
        >>> a = randn((2, 3), generators(0, sample=[7, 8]))
        >>> b = randn((2, 3), generators(0, sample=[8]))
        >>> bool((a[1] == b[0]).all())
        True
    """
    noise = torch.empty((len(sources), *shape), device=sources[0].device, dtype=dtype)
    for row, source in zip(noise, sources, strict=True):
        row.normal_(generator=source)
    return noise
