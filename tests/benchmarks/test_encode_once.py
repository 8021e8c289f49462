from benchmarks.encode_once import EncodeOptions, measure


def test_both_ways_draw_the_same_mask() -> None:
    found = measure(EncodeOptions(size_px=32, steps=2, num_rounds=1, device="cpu"))
    assert found["difference"] < 1e-4
    assert found["ratio"] > 0
