"""Rankers of saturation: the learned one's shapes, and CLIP's score against transformers' own."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from networks.vividness import ClipVividness, VividnessRanker
from tests.networks.sd_folder import clip_tokenizer


def save_clip(folder):
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 77} | ids,
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model, tokenizer


def test_a_saved_ranker_scores_the_same_at_any_size(tmp_path):
    torch.manual_seed(0)
    ranker = VividnessRanker(channels=(8, 16))
    ranker.save_pretrained(tmp_path)
    loaded = VividnessRanker.from_pretrained(tmp_path)
    for size in ((32, 32), (48, 80)):
        image = torch.rand(3, 3, *size)
        assert torch.equal(loaded(image), ranker.eval()(image))
        assert torch.allclose(ranker(image[1:2])[0], ranker(image)[1], atol=1e-5)


def test_clips_score_is_the_log_probability_of_transformers(tmp_path):
    model, tokenizer = save_clip(tmp_path)
    ranker = ClipVividness.from_folder(str(tmp_path))
    image = torch.rand(2, 3, 32, 32)
    texts = ["a natural colour photo", *("a black and white photo", "a washed out photo")]
    texts.append("an oversaturated photo with garish colours")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=(image - mean) / std).logits_per_image
    assert torch.allclose(ranker(image), logits.log_softmax(-1)[:, 0], atol=1e-5)
    assert ranker(torch.rand(1, 3, 50, 70)).shape == (1,)


def test_a_missing_clip_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CLIP model at .*: the folder lacks CLIP's files"):
        ClipVividness.from_folder(str(tmp_path))
