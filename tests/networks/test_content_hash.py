import torch

from networks.content_hash import content_hash


def test_names_types_shapes_and_values_count_and_the_order_does_not():
    zeros = {"a": torch.zeros(2), "b": torch.ones(2)}
    first = content_hash(zeros)
    assert content_hash(dict(reversed(zeros.items()))) == first
    others = [
        {"a": torch.zeros(2), "c": torch.ones(2)},
        {"a": torch.zeros(2), "b": torch.ones(2, dtype=torch.bfloat16)},
        {"a": torch.zeros(2), "b": torch.ones(1, 2)},
        {"a": torch.zeros(2), "b": torch.full((2,), 2.0)},
    ]
    assert len({first, *map(content_hash, others)}) == 5
