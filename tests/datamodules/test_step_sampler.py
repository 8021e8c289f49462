from itertools import chain

import pytest

from datamodules.step_sampler import StepBatchSampler, epoch_order


def test_epochs_are_permutations_without_repeats_and_drop_the_rest() -> None:
    batches = list(StepBatchSampler(10, 3, 9, seed=1))
    for epoch in range(3):
        keys = list(chain.from_iterable(batches[3 * epoch : 3 * epoch + 3]))
        assert {key[0] for key in keys} == {epoch}
        assert len({key[1] for key in keys}) == 9
    assert [key[1] for key in chain.from_iterable(batches[:3])] == epoch_order(10, seed=1, epoch=0)[
        :9
    ].tolist()


@pytest.mark.parametrize("start", [0, 1, 4, 7, 13])
def test_a_later_start_continues_the_same_sequence(start: int) -> None:
    whole = list(StepBatchSampler(7, 2, 13, seed=3))
    later = StepBatchSampler(7, 2, 13, seed=3, start_batch=start)
    assert list(later) == whole[start:]
    assert len(later) == 13


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_split_the_global_batch(world_size: int) -> None:
    whole = list(StepBatchSampler(21, 8, 6, seed=0))
    ranks = [
        list(StepBatchSampler(21, 8 // world_size, 6, seed=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)] == whole


def test_a_set_smaller_than_the_batch_repeats_its_order() -> None:
    batches = list(StepBatchSampler(3, 8, 4, seed=0))
    for epoch, keys in enumerate(batches):
        order = epoch_order(3, seed=0, epoch=epoch).tolist()
        assert keys == [(epoch, index) for index in (order * 3)[:8]]


def test_orders_differ_by_epoch_and_seed() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
