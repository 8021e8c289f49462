"""The CIEDE2000 colour difference (Sharma, Wu and Dalal 2005), by scikit-image."""

import torch
from skimage.color import deltaE_ciede2000 as ciede2000
from torch import Tensor


def delta_e_2000(lab_a: Tensor, lab_b: Tensor) -> Tensor:
    """Returns CIEDE2000 per pixel with unit weights, (B, 1, H, W), of Lab pictures (B, 3, H, W); without gradient.

    It is computed on the CPU, in the precision of the pictures.
    """
    pair = [lab.detach().cpu().numpy() for lab in (lab_a, lab_b)]
    return torch.from_numpy(ciede2000(*pair, channel_axis=1)).unsqueeze(1).to(lab_a)
