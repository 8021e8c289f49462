"""A ControlNet of grey conditions as others use it: with a picture of three channels, which is what PIL's become."""

from typing import Any

import torch
from diffusers import ControlNetModel
from torch import nn

_LUMA = (0.2126, 0.7152)  # of red and green (BT.709); blue has the rest
_KEY = "controlnet_cond_embedding.conv_in.weight"


def takes_rgb(controlnet: ControlNetModel) -> ControlNetModel:
    """Gives a ControlNet of one condition channel three, in place: a grey picture's result stays the same.

    The shares of the channels are those of luma; they add up to the old weight bit for bit (Sterbenz: the difference of
    two floats within a factor of two is exact), so that `takes_grey` finds it again.
    """
    embedding = controlnet.controlnet_cond_embedding
    before = embedding.conv_in
    if before.in_channels == 3:
        return controlnet
    conv = nn.Conv2d(3, before.out_channels, before.kernel_size, padding=before.padding)
    red, green = (before.weight * share for share in _LUMA)
    conv.weight = nn.Parameter(torch.cat([red, green, before.weight - (red + green)], dim=1))
    conv.bias = before.bias
    embedding.conv_in = conv
    controlnet.register_to_config(conditioning_channels=3)
    return controlnet


def takes_grey(controlnet: ControlNetModel) -> None:
    """Lets a ControlNet of one condition channel load what `takes_rgb` made of it."""
    controlnet.register_load_state_dict_pre_hook(_summed)


def _summed(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.get(prefix + _KEY)
    if weight is not None and weight.shape[1] == 3:
        red, green, blue = weight.split(1, dim=1)
        state[prefix + _KEY] = (red + green) + blue
