"""Text conditions: CLIP's encoder from transformers, or a small byte-level one that needs no vocabulary file.

Shapes: B batch, N tokens, D width.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, ByT5Tokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from networks.foreign_models import load_weights


class TextEncoder(nn.Module):
    """Tokenizer and encoder as one: captions in, token states out.

    Args:
        model: transformers' CLIPTextModel.
        tokenizer: any tokenizer of transformers; captions are padded and cut to its `model_max_length`, or to the
            model's positions where those are fewer.
    """

    def __init__(self, model: CLIPTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self._tokens = lru_cache(maxsize=100_000)(self._tokenize)
        self.left_out = lru_cache(maxsize=100_000)(self._left_out)

    @classmethod
    def byte_level(
        cls, *, width: int = 96, depth: int = 2, num_heads: int = 4, num_tokens: int = 64
    ) -> "TextEncoder":
        """A small encoder over UTF-8 bytes, from scratch (the bytes are ByT5's, Xue et al. 2022).

        Args:
            width: D, also the cross-attention width of the U-Net.
            depth: transformer layers.
            num_heads: attention heads.
            num_tokens: N, the longest caption in bytes, end mark included.

        Example:
            >>> TextEncoder.byte_level(width=16, num_heads=2)(["red", "blue"]).shape
            torch.Size([2, 64, 16])
        """
        tokenizer = ByT5Tokenizer(extra_ids=0, model_max_length=num_tokens)
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=depth,
            num_attention_heads=num_heads,
            max_position_embeddings=num_tokens,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return cls(CLIPTextModel(config), tokenizer)

    @classmethod
    def from_folder(
        cls, source: str, *, revision: str | None = None, use_safetensors: bool | None = True
    ) -> "TextEncoder":
        """Loads `text_encoder/` and `tokenizer/` of a diffusers folder or hub id; no code that comes with them runs.

        use_safetensors=None also takes pickled tensors (weights_only) where there are no safetensors.
        """
        at: dict[str, Any] = {} if revision is None else {"revision": revision}
        tokenizer = AutoTokenizer.from_pretrained(
            source, subfolder="tokenizer", trust_remote_code=False, **at
        )
        # transformers would otherwise keep the precision of the file.
        at |= {"dtype": torch.float32, "use_safetensors": use_safetensors}
        model = load_weights(CLIPTextModel, source, subfolder="text_encoder", **at)
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        """D."""
        return self.model.config.hidden_size

    @property
    def num_tokens(self) -> int:
        """N."""
        # Tokenizer files without a length give 1e30.
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)

    def forward(self, captions: list[str]) -> Tensor:
        """Token states (B, N, D) of B captions."""
        tokens = torch.stack([self._tokens(caption) for caption in captions])
        return self.model(tokens.to(self.model.device, non_blocking=True))[0]

    def _tokenize(self, caption: str) -> Tensor:
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(caption, max_length=self.num_tokens, **options).input_ids[0]

    def _left_out(self, caption: str) -> str:
        """The end of a caption that has no place among the N tokens, as the tokenizer spells it; "" if all fits."""
        tokens = self.tokenizer(caption, add_special_tokens=False, verbose=False).input_ids
        left_out = tokens[self.num_tokens - self.tokenizer.num_special_tokens_to_add() :]
        # Of some bytes of a last character nothing can be written.
        return self.tokenizer.decode(left_out) or "\N{REPLACEMENT CHARACTER}" * bool(left_out)
