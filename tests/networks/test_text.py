"""Text encoders: the bytes of ByT5, CLIP's own tokenizer, folders, and the cache of their states."""

import pytest
import torch
from transformers import ByT5Tokenizer

from networks.text import TextEncoder
from networks.text_cache import TextCache
from tests.networks.sd_folder import clip_text_model, clip_tokenizer

CAPTIONS = ["", "red", "a blue rose", "Caf\u00e9 \u4e2d"]


def small_encoder(seed: int = 0) -> TextEncoder:
    torch.manual_seed(seed)
    return TextEncoder.byte_level(width=16, num_heads=2, num_tokens=24).eval()


@torch.no_grad()
def test_tokens_are_byt5s_and_captions_differ():
    encoder = small_encoder()
    reference = ByT5Tokenizer(extra_ids=0)
    for caption in [*CAPTIONS, "x" * 100]:
        ids = encoder._tokens(caption)
        expected = [byte + 3 for byte in caption.encode()][:23] + [
            1
        ]  # three special tokens, then the end mark
        assert ids.tolist() == expected + [0] * (24 - len(expected))
        assert ids.tolist()[: len(expected)] == reference(caption).input_ids[:23] + [1] * (len(caption) > 23)
    states = encoder(CAPTIONS)
    assert states.shape == (4, 24, 16)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(states[i], states[j])


@torch.no_grad()
def test_a_caption_does_not_depend_on_its_neighbours():
    encoder = small_encoder()
    torch.testing.assert_close(encoder(CAPTIONS)[2:3], encoder([CAPTIONS[2]]))


@torch.no_grad()
def test_a_saved_byte_encoder_gives_equal_states(tmp_path):
    encoder = small_encoder()
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = TextEncoder.from_folder(str(tmp_path))
    assert torch.equal(loaded.eval()(CAPTIONS), encoder(CAPTIONS))
    assert loaded.width == 16


@torch.no_grad()
def test_clip_states_are_those_of_transformers(tmp_path):
    tokenizer = clip_tokenizer(tmp_path / "files")
    model = clip_text_model(tokenizer)
    encoder = TextEncoder(model, tokenizer)
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    torch.testing.assert_close(encoder(CAPTIONS), model(tokens.input_ids)[0])
    red = tokenizer.convert_tokens_to_ids("red</w>")
    assert encoder._tokens("Red").tolist()[:3] == [tokenizer.bos_token_id, red, tokenizer.eos_token_id]
    encoder.model.save_pretrained(tmp_path / "text_encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert torch.equal(TextEncoder.from_folder(str(tmp_path)).eval()(CAPTIONS), encoder(CAPTIONS))


def test_a_tokenizer_without_a_length_takes_the_encoders(tmp_path):
    tokenizer = clip_tokenizer(tmp_path)
    tokenizer.model_max_length = int(1e30)  # what transformers sets where the files name no length
    assert TextEncoder(clip_text_model(tokenizer), tokenizer)(["red"]).shape == (1, 77, 16)


@pytest.mark.parametrize(
    ("caption", "left_out"),
    [
        ("", ""),
        ("x" * 23, ""),
        ("x" * 23 + " red", " red"),
        ("x" * 22 + "\u4e2d", "\ufffd"),
        ("x" * 22 + "\u4e2d rose", " rose"),
    ],
)
def test_what_a_byte_encoder_leaves_out(caption, left_out):
    assert small_encoder().left_out(caption) == left_out


@pytest.mark.parametrize(("count", "left_out"), [(75, ""), (76, "red"), (78, "red red red")])
def test_what_clip_leaves_out(tmp_path, count, left_out):
    tokenizer = clip_tokenizer(tmp_path)
    assert TextEncoder(clip_text_model(tokenizer), tokenizer).left_out("red " * count).strip() == left_out


@torch.no_grad()
@pytest.mark.parametrize("on_disk", [False, True])
def test_cached_states_equal_the_encoders(tmp_path, on_disk):
    encoder = small_encoder()
    cache = TextCache(encoder, folder=str(tmp_path) if on_disk else None)
    expected = encoder(CAPTIONS)
    torch.testing.assert_close(cache(CAPTIONS), expected, atol=1e-6, rtol=1e-5)
    first = cache(CAPTIONS)
    assert torch.equal(first, cache(CAPTIONS))
    assert torch.equal(cache([CAPTIONS[2], CAPTIONS[0], CAPTIONS[2]]), first[[2, 0, 2]])
    assert len(list(tmp_path.rglob("*.safetensors"))) == (4 if on_disk else 0)


@torch.no_grad()
def test_a_second_run_reads_the_files(tmp_path):
    first = TextCache(small_encoder(), folder=str(tmp_path))(CAPTIONS)
    encoder = small_encoder()
    second = TextCache(encoder, folder=str(tmp_path))
    encoder.forward = None  # type: ignore[method-assign, assignment]  # a call would fail
    assert torch.equal(second(CAPTIONS), first)


@torch.no_grad()
@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: content[:-1] + b"?", lambda _: b""]
)
def test_damaged_files_are_noticed_and_written_anew(tmp_path, damage, caplog):
    first = TextCache(small_encoder(), folder=str(tmp_path))(CAPTIONS)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    victim = min(files)
    victim.write_bytes(damage(files[victim]))
    torch.testing.assert_close(TextCache(small_encoder(), folder=str(tmp_path))(CAPTIONS), first)
    assert caplog.text.count("damaged and will be written anew") == 1
    assert repr(str(victim)) in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


@torch.no_grad()
def test_other_weights_have_other_files(tmp_path):
    TextCache(small_encoder(), folder=str(tmp_path))(CAPTIONS)
    other = small_encoder(seed=1)
    torch.testing.assert_close(TextCache(other, folder=str(tmp_path))(CAPTIONS), other(CAPTIONS))
    assert len(list(tmp_path.iterdir())) == 2


@torch.no_grad()
def test_memory_is_bounded_and_answers_stay_right():
    encoder = small_encoder()
    cache = TextCache(encoder, max_bytes=2 * encoder(["a"]).nbytes)
    torch.testing.assert_close(cache(CAPTIONS), encoder(CAPTIONS), atol=1e-6, rtol=1e-5)
    assert len(cache._memory) == 2
    torch.testing.assert_close(cache(CAPTIONS), encoder(CAPTIONS), atol=1e-6, rtol=1e-5)


def test_states_cached_in_inference_mode_serve_training():
    encoder = small_encoder().requires_grad_(False)
    cache, layer = TextCache(encoder), torch.nn.Linear(16, 1)
    with torch.inference_mode():
        cache(["red"])
    layer(cache(["red"])).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
