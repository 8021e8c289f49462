import pytest

from benchmarks.liif_query import QueryOptions, measure


@pytest.mark.parametrize("unfold", [False, True])
def test_both_ways_give_the_same_picture(unfold: bool) -> None:
    found = measure(QueryOptions(cells=8, scale=3.5, channels=8, unfold=unfold, num_rounds=1))
    assert found["difference"] < 1e-4
    assert found["ratio"] > 0
