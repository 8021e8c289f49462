"""Further input channels of a trained U-Net."""

import torch
from diffusers import UNet2DConditionModel
from torch import nn


def widen_input(unet: UNet2DConditionModel, num_channels: int) -> None:
    """Gives a U-Net more input channels, in place; the new ones have zero weight, so that nothing changes at first."""
    before = unet.conv_in
    extra = num_channels - before.in_channels
    if extra <= 0:
        return
    conv = nn.Conv2d(num_channels, before.out_channels, before.kernel_size, padding=before.padding)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, : before.in_channels] = before.weight
    conv.bias = before.bias
    unet.conv_in = conv.to(before.weight.dtype)
    unet.register_to_config(in_channels=num_channels)
