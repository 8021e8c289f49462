"""Keyed randomness: a pure function of its key, well spread, free of collisions."""

import numpy as np
import torch

from diffusion.seeding import Stream, generators, keyed_integers, keyed_uniform, randn


def test_each_sample_depends_on_its_own_number_alone():
    together = randn((3, 4), generators(1, Stream.NOISE, sample=[5, 6, 7]))
    alone = randn((3, 4), generators(1, Stream.NOISE, sample=[6]))
    assert torch.equal(together[1:2], alone)


def test_every_part_of_the_key_matters():
    keys = [(s, stream, step) for s in range(4) for stream in range(4) for step in range(50)]
    drawn = np.concatenate([keyed_integers(*key, sample=np.arange(20)) for key in keys])
    assert len(np.unique(drawn)) == len(drawn)


def test_uniform_is_uniform():
    drawn = keyed_uniform(3, Stream.TIMESTEP, 9, sample=np.arange(100_000))
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    # chi-square with 19 degrees of freedom: 43.8 is its 99.9 % quantile
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_noise_is_standard_normal():
    noise = randn((4096,), generators(0, sample=range(16))).double()
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5
