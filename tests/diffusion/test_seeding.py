"""Keyed randomness: a pure function of its key, well spread, free of collisions."""

import numpy as np
import pytest
import torch

from diffusion.seeding import Draws, generators, keyed_integers, keyed_uniform, randn, stream_number


def test_each_sample_depends_on_its_own_number_alone():
    together = randn((3, 4), generators(1, stream_number("noise"), sample=[5, 6, 7]))
    alone = randn((3, 4), generators(1, stream_number("noise"), sample=[6]))
    assert torch.equal(together[1:2], alone)


def test_every_part_of_the_key_matters():
    keys = [(s, stream, step) for s in range(4) for stream in range(4) for step in range(50)]
    drawn = np.concatenate([keyed_integers(*key, sample=np.arange(20)) for key in keys])
    assert len(np.unique(drawn)) == len(drawn)


def test_uniform_is_uniform():
    drawn = keyed_uniform(3, stream_number("timestep"), 9, sample=np.arange(100_000))
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    # chi-square with 19 degrees of freedom: 43.8 is its 99.9 % quantile
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02


def test_noise_is_standard_normal():
    noise = randn((4096,), generators(0, sample=range(16))).double()
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5


# ---- streams by name


def test_the_first_streams_keep_their_numbers():
    names = ["noise", "timestep", "posterior", "dropout", "sample", "network", "hint", "region"]
    assert [stream_number(name) for name in names] == list(range(1, 9))


def test_further_streams_have_numbers_of_their_own():
    numbers = [stream_number(f"{name}{i}") for name in ("noise", "player", "x") for i in range(1000)]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 8
    assert max(numbers) < 1 << 63
    assert stream_number("cycle") == 7097894758501421630  # of the name alone, on any machine


# ---- the draws of a batch


@pytest.mark.parametrize("stream", ["noise", "hint", "a stream of one method"])
@pytest.mark.parametrize("step", [0, 7, None])
def test_draws_do_not_depend_on_the_batch(stream, step):
    together, alone = (Draws(3, step, np.array(sample)) for sample in ([4, 5, 6, 7], [6]))
    assert torch.equal(together.normal(stream, (2, 3))[2:3], alone.normal(stream, (2, 3)))
    assert (together.uniform(stream)[2:3] == alone.uniform(stream)).all()
    assert (together.uniform(stream, 5)[2:3] == alone.uniform(stream, 5)).all()


def test_draws_are_the_keyed_numbers_of_seed_stream_and_step():
    draws, sample = Draws(3, 7, np.arange(2, 6)), np.arange(2, 6)
    expected = randn((2, 3), generators(3, 1, 7, sample=sample))
    assert torch.equal(draws.normal("noise", (2, 3)), expected)
    assert (draws.uniform("timestep") == keyed_uniform(3, 2, 7, sample=sample)).all()
    many = keyed_uniform(3, 7, 7, sample=np.arange(2 * 5, 6 * 5)).reshape(4, 5)
    assert (draws.uniform("hint", 5) == many).all()


def test_draws_of_training_differ_by_seed_stream_and_step():
    drawn = [
        Draws(seed, step, np.arange(8)).uniform(stream)
        for seed in (0, 1)
        for step in (0, 1, None)
        for stream in ("noise", "timestep", "new")
    ]
    assert len(np.unique(drawn)) == len(drawn) * 8


def test_draws_of_evaluation_are_the_same_every_time():
    """They have no step to depend on: their key is the number that trained runs were validated with."""
    draws, sample = Draws(3, None, np.array([4, 900])), [4, 900]
    assert torch.equal(draws.normal("noise", (5,)), Draws(3, None, np.array(sample)).normal("noise", (5,)))
    assert torch.equal(draws.normal("noise", (5,)), randn((5,), generators(3, 1, 1_000_003, sample=sample)))
    assert (draws.uniform("timestep") == keyed_uniform(3, 2, 1_000_003, sample=sample)).all()


def test_a_draw_is_normal_across_its_batch():
    drawn = Draws(0, 0, np.arange(4096)).normal("noise", (3,)).double()
    assert abs(drawn.mean()) < 4 / drawn.numel() ** 0.5
    assert abs(drawn.var() - 1) < 4 * (2 / drawn.numel()) ** 0.5
    assert (torch.corrcoef(drawn.T) - torch.eye(3)).abs().max() < 4 / 4096**0.5
