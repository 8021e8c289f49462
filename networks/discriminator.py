"""The patch discriminator of pix2pix (Isola et al. 2017) for the adversarial term of an autoencoder."""

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """One logit for each receptive patch of an image.

    Group normalisation instead of batch normalisation: no statistic couples real and fake batches.

    Args:
        num_channels: width of the first layer; doubles with each, up to eight times.
        num_layers: strided layers.

    Example:
        >>> import torch
        >>> PatchDiscriminator(num_channels=16, num_layers=2)(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 1, 6, 6])
    """

    def __init__(self, *, num_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, num_channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = num_channels
        for depth in range(1, num_layers + 1):
            stride = 2 if depth < num_layers else 1
            wider = num_channels * min(2**depth, 8)
            layers += [nn.Conv2d(width, wider, 4, stride, 1), nn.GroupNorm(8, wider), nn.LeakyReLU(0.2)]
            width = wider
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of image (B, 3, H, W) in [0, 1]; positive means real."""
        return self.layers(image * 2 - 1)
