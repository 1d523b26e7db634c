"""Structural similarity of two batches, the differentiable core of the metric and of losses.

Shape letters: B images, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.protocol import Detail, Protocol

__all__ = ["SSIM_PROTOCOLS", "SSIMScale", "structural_similarity"]

SSIMScale = Literal["signed", "unit"]
"""Which pixels SSIM sees. Its luminance term changes with the level of black, so these are two quantities.

``unit``: black is 0, R = 1; with ``quantise=True`` the SSIM of 8-bit values with R = 255, which tables of
reconstructions mean (protocol ``ssim/gaussian-11``). ``signed``: black is -1, R = 2, as ViTok-v2 measures it (protocol
``ssim/gaussian-11-signed``); lower by up to some tenths where pictures are near mid grey.
"""

_SIGMA = 1.5
_WINDOW = 11
_K1, _K2 = 0.01, 0.03
_COMMON: Final[dict[str, Detail]] = {"sigma": _SIGMA, "k1": _K1, "k2": _K2, "border": "left out"}
SSIM_PROTOCOLS: Final[dict[SSIMScale, Protocol]] = {
    "unit": Protocol("ssim", "gaussian-11", details={"values": "0 to 1", "range": 1, **_COMMON}),
    "signed": Protocol("ssim", "gaussian-11-signed", details={"values": "-1 to 1", "range": 2, **_COMMON}),
}
"""Cards of SSIM by its scale, of pixels that are not rounded to 8 bits."""


def structural_similarity(prediction: Tensor, target: Tensor, data_range: float = 2.0) -> Tensor:
    """Structural similarity of a batch, differentiable, in the dtype of its arguments.

    SSIM = mean over windows and channels of
           (2 m_y m_x + C1) (2 s_yx + C2) / ((m_y^2 + m_x^2 + C1) (s_y^2 + s_x^2 + C2)),
    with C1 = (0.01 R)^2, C2 = (0.03 R)^2 and moments under a Gaussian of sigma 1.5 on 11 x 11 pixels

    Only windows that lie inside the image count, and variances are those of the population. This is the definition of
    the original paper, of scikit-image with ``gaussian_weights=True, use_sample_covariance=False``, and of the
    interior of torchmetrics' map. The mean that torchmetrics 1.9 returns is another number: it also averages over a
    border of 5 pixels whose windows look at a reflection of the image.

    Args:
        prediction: y, float, (B, C, H, W), range [-1, 1].
        target: x, the same shape.
        data_range: R, the distance from black to white: 2 for [-1, 1]. The value also depends on where black is: the
            luminance term of pixels around 0 is not that of the same pixels moved to [0, 2].

    Returns:
        (B,), in [-1, 1]; 1 = equal.

    Source: doi:10.1109/TIP.2003.819861 eq. 13.
    """
    y, x = prediction, target
    window = _gaussian_window(min(_WINDOW, *y.shape[-2:]), y)
    mean_y, mean_x, square_y, square_x, product = _smooth(torch.stack((y, x, y * y, x * x, y * x)), window)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    covariance = product - mean_y * mean_x
    # Rounding can leave a variance slightly below 0 in flat regions.
    variance_y, variance_x = (square_y - mean_y**2).clamp(min=0), (square_x - mean_x**2).clamp(min=0)
    luminance = (2 * mean_y * mean_x + c1) / (mean_y**2 + mean_x**2 + c1)
    structure = (2 * covariance + c2) / (variance_y + variance_x + c2)
    similarity: Tensor = (luminance * structure).mean((1, 2, 3))
    return similarity


def _gaussian_window(largest: int, like: Tensor) -> Tensor:
    edge = largest if largest % 2 else largest - 1
    distance = torch.arange(edge, dtype=like.dtype, device=like.device) - edge // 2
    weight = torch.exp(-((distance / _SIGMA) ** 2) / 2)
    return weight / weight.sum()


def _smooth(maps: Tensor, window: Tensor) -> Tensor:
    """Weighted means of (..., H, W) over all windows inside the map; rows and columns one after the other."""
    flat = maps.flatten(0, -3)[:, None]
    smooth = F.conv2d(F.conv2d(flat, window[None, None, :, None]), window[None, None, None, :])
    return smooth.reshape(*maps.shape[:-2], *smooth.shape[-2:])
