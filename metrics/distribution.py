"""Distances between the features of two sets of pictures: Frechet and kernel distances on named backbones."""

from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities.data import dim_zero_cat

from metrics.backbones import feature_network
from metrics.per_image import Summary, check_pair, to_8_bit


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of Gaussians fitted to features of predictions and of true pictures.

    With "inception" it is FID (Heusel et al. 2017), with any other backbone another number. Covariances of fewer pictures
    than features are singular: such values are biased upwards and compare only at equal counts.

    Args: as `feature_network`, which also says what is raised.
    """

    def __init__(self, backbone: str = "inception", *, weights_dir: str | Path | None = None) -> None:
        super().__init__(feature=feature_network(backbone, weights_dir))

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds predictions and true pictures, (B, 3, H, W) in [0, 1] taken as 8-bit; B may differ."""
        check_pair(pred, target, are_sets=True)
        self.inception.to(pred.device)  # other rows share it, maybe on another device
        super().update(to_8_bit(target).to(torch.uint8), real=True)
        super().update(to_8_bit(pred).to(torch.uint8), real=False)

    def compute(self) -> Summary:
        """The distance and the number of predictions; ValueError for fewer than two pictures of either set."""
        count = int(self.fake_features_num_samples)
        _check_count(min(count, int(self.real_features_num_samples)))
        return Summary(float(super().compute()), None, count)


class KernelDistance(Metric):
    """Squared maximum mean discrepancy of features with the kernel (x'y / D + 1)^3, unbiased (Binkowski et al. 2018).

    With "inception" it is KID. Sets of at most `subset_size` are compared whole, larger ones as the mean over
    `num_subsets` random subsets of that size, drawn from a fixed seed. Being unbiased, it can be negative, and it
    compares at unequal counts.

    Args: otherwise as `feature_network`, which also says what is raised.
    """

    pred_features: list[Tensor]
    target_features: list[Tensor]

    def __init__(
        self,
        backbone: str = "inception",
        *,
        weights_dir: str | Path | None = None,
        subset_size: int = 1000,
        num_subsets: int = 100,
    ) -> None:
        super().__init__()
        self.net = feature_network(backbone, weights_dir)
        self.subset_size, self.num_subsets = subset_size, num_subsets
        self.add_state("pred_features", default=[], dist_reduce_fx="cat")
        self.add_state("target_features", default=[], dist_reduce_fx="cat")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Adds predictions and true pictures, (B, 3, H, W) in [0, 1] taken as 8-bit; B may differ."""
        check_pair(pred, target, are_sets=True)
        net = self.net.to(pred.device)  # other rows share it, maybe on another device
        self.pred_features.append(net(to_8_bit(pred).to(torch.uint8)))
        self.target_features.append(net(to_8_bit(target).to(torch.uint8)))

    def compute(self) -> Summary:
        """The distance and the number of predictions; ValueError for fewer than two pictures of either set."""
        pred, target = (dim_zero_cat(f).double() for f in (self.pred_features, self.target_features))
        _check_count(min(len(pred), len(target)))
        size = min(self.subset_size, len(pred), len(target))
        if size == len(pred) == len(target):
            return Summary(poly_mmd(target, pred).item(), None, len(pred))
        generator = torch.Generator().manual_seed(0)

        def subset(features: Tensor) -> Tensor:
            return features[torch.randperm(len(features), generator=generator)[:size]]

        drawn = [poly_mmd(subset(target), subset(pred)).item() for _ in range(self.num_subsets)]
        return Summary(fmean(drawn), None, len(pred))


def _check_count(count: int) -> None:
    if count < 2:
        raise ValueError(
            f"a distance of sets got {count} pictures, expected at least 2; evaluate more of them"
        )
