"""Randomness as a pure function of progress: every draw is keyed, none depends on history.

Shapes: B batch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Streams that had numbers before they had names alone, so that trained runs go on with the same draws.
_NUMBERED = ["noise", "timestep", "posterior", "dropout", "sample", "network", "hint", "region"]  # from 1
# Evaluation draws from keys of its own, the same every time.
_EVALUATION = 1_000_003


def stream_number(name: str) -> int:
    """The number of an independent use of randomness, from its name alone: adding a stream never shifts another."""
    if name in _NUMBERED:
        return _NUMBERED.index(name) + 1
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _mix(state: np.ndarray) -> np.ndarray:
    """SplitMix64 finaliser (Steele et al. 2014): a bijection that scatters neighbouring integers."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def keyed_integers(*key: int, sample: Sequence[int] | np.ndarray) -> np.ndarray:
    """64-bit integers (B,) that depend on the key, such as (seed, stream, step), and one entry of `sample` each."""
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
    # Some back ends keep 63 bits of a seed.
    seeds = keyed_integers(*key, sample=sample) >> np.uint64(1)
    return [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch, by stream: row i depends on seed, stream, step and `sample[i]` alone.

    Args:
        seed: of the run.
        step: number of the training batch; None in evaluation, where the numbers are always the same.
        sample: (B,) positions in the global batch of training, or indices in the data set of evaluation.
        device: of normal numbers.

    Example:
        >>> draws = Draws(seed=0, step=7, sample=np.arange(2))
        >>> draws.normal("noise", (3,)).shape, draws.uniform("timestep").shape
        (torch.Size([2, 3]), (2,))
    """

    seed: int
    step: int | None
    sample: np.ndarray
    device: torch.device | str = "cpu"

    def _key(self, stream: str) -> tuple[int, int, int]:
        return self.seed, stream_number(stream), _EVALUATION if self.step is None else self.step

    def normal(self, stream: str, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 (B, *shape)."""
        return randn(shape, generators(*self._key(stream), sample=self.sample, device=self.device))

    def uniform(self, stream: str, count: int | None = None) -> np.ndarray:
        """float64 (B,), or (B, count), uniform in [0, 1)."""
        if count is None:
            return keyed_uniform(*self._key(stream), sample=self.sample)
        sample = (self.sample[:, None] * count + np.arange(count)).ravel()
        return keyed_uniform(*self._key(stream), sample=sample).reshape(-1, count)


def randn(
    shape: Sequence[int], generators: Sequence[torch.Generator], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal (B, *shape) on the generators' device; row i comes from generator i alone."""
    noise = torch.empty((len(generators), *shape), device=generators[0].device, dtype=dtype)
    for row, generator in zip(noise, generators, strict=True):
        row.normal_(generator=generator)
    return noise
