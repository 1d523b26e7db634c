"""The Inception network of 2015-12-05 that Frechet distances of images are defined with.

It differs from torchvision's Inception v3 in five places: 1008 classes; no auxiliary classifier; average pools that
leave the padding out of their mean; a max pool in the last block; input that is scaled outside. Names of parameters are
those of the published state dicts.

Shape letters: B images, C channels, H and W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["INCEPTION_SIZE", "NUM_CLASSES", "NUM_POOL", "NUM_SPATIAL", "InceptionV3", "spatial_features"]

INCEPTION_SIZE = 299
"""Edge of the input in pixels."""
NUM_CLASSES = 1008
NUM_POOL = 2048
_SPATIAL_CHANNELS = 7
NUM_SPATIAL = 17 * 17 * _SPATIAL_CHANNELS
"""2023 values: 7 channels on a grid of 17 x 17."""


class _Unit(nn.Module):
    """Convolution without bias, batch normalisation with epsilon 0.001, ReLU; by default the size is kept."""

    def __init__(
        self, channels: int, filters: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (height // 2, width // 2) if pad else 0
        self.conv = nn.Conv2d(channels, filters, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.bn(self.conv(x))
        return F.relu(normalised, inplace=True)


def _mean_of_neighbours(x: Tensor) -> Tensor:
    """Average over 3 x 3; at the border over the pixels that exist."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest_neighbour(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _MixedA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(channels, 64, 1)
        self.branch5x5_1 = _Unit(channels, 48, 1)
        self.branch5x5_2 = _Unit(48, 64, 5)
        self.branch3x3dbl_1 = _Unit(channels, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3)
        self.branch3x3dbl_3 = _Unit(96, 96, 3)
        self.branch_pool = _Unit(channels, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_mean_of_neighbours(x))], 1)


class _ShrinkTo17(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(channels, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = _Unit(channels, 64, 1)
        self.branch3x3dbl_2 = _Unit(64, 96, 3)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class _MixedC(nn.Module):
    """17 x 17: 1x1, a 7x7 as a row and a column, two of these, pool."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = _Unit(channels, 192, 1)
        self.branch7x7_1 = _Unit(channels, inner, 1)
        self.branch7x7_2 = _Unit(inner, inner, row)
        self.branch7x7_3 = _Unit(inner, 192, column)
        self.branch7x7dbl_1 = _Unit(channels, inner, 1)
        self.branch7x7dbl_2 = _Unit(inner, inner, column)
        self.branch7x7dbl_3 = _Unit(inner, inner, row)
        self.branch7x7dbl_4 = _Unit(inner, inner, column)
        self.branch7x7dbl_5 = _Unit(inner, 192, row)
        self.branch_pool = _Unit(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean_of_neighbours(x))], 1)


class _ShrinkTo8(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Unit(channels, 192, 1)
        self.branch3x3_2 = _Unit(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1 = _Unit(channels, 192, 1)
        self.branch7x7x3_2 = _Unit(192, 192, (1, 7))
        self.branch7x7x3_3 = _Unit(192, 192, (7, 1))
        self.branch7x7x3_4 = _Unit(192, 192, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat(
            [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1
        )


class _MixedE(nn.Module):
    """8 x 8: 1x1, a 3x3 that forks into a row and a column, a deeper one that forks, pool."""

    def __init__(self, channels: int, largest: bool) -> None:
        super().__init__()
        row, column = (1, 3), (3, 1)
        self.branch1x1 = _Unit(channels, 320, 1)
        self.branch3x3_1 = _Unit(channels, 384, 1)
        self.branch3x3_2a = _Unit(384, 384, row)
        self.branch3x3_2b = _Unit(384, 384, column)
        self.branch3x3dbl_1 = _Unit(channels, 448, 1)
        self.branch3x3dbl_2 = _Unit(448, 384, 3)
        self.branch3x3dbl_3a = _Unit(384, 384, row)
        self.branch3x3dbl_3b = _Unit(384, 384, column)
        self.branch_pool = _Unit(channels, 192, 1)
        self.largest = largest

    def forward(self, x: Tensor) -> Tensor:
        fork = self.branch3x3_1(x)
        deep = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = _largest_neighbour(x) if self.largest else _mean_of_neighbours(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(fork),
            self.branch3x3_2b(fork),
            self.branch3x3dbl_3a(deep),
            self.branch3x3dbl_3b(deep),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)


class InceptionV3(nn.Module):
    """The network up to its classifier: 94 convolutions, 23,850,960 parameters.

    Source: the TensorFlow graph ``classify_image_graph_def.pb`` of 2015-12-05, arXiv:1512.00567, as read by
    openai/guided-diffusion ``evaluations/evaluator.py``; names and blocks as in mseitzer/pytorch-fid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Unit(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = _Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = _Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = _Unit(80, 192, 3, pad=False)
        self.Mixed_5b = _MixedA(192, 32)
        self.Mixed_5c = _MixedA(256, 64)
        self.Mixed_5d = _MixedA(288, 64)
        self.Mixed_6a = _ShrinkTo17(288)
        self.Mixed_6b = _MixedC(768, 128)
        self.Mixed_6c = _MixedC(768, 160)
        self.Mixed_6d = _MixedC(768, 160)
        self.Mixed_6e = _MixedC(768, 192)
        self.Mixed_7a = _ShrinkTo8(768)
        self.Mixed_7b = _MixedE(1280, largest=False)
        # The graph has a max pool here, where the paper has an average; the weights were trained with it.
        self.Mixed_7c = _MixedE(NUM_POOL, largest=True)
        self.fc = nn.Linear(NUM_POOL, NUM_CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """All features of one pass.

        pool = mean over 8 x 8 of Mixed_7c;  logits = pool W^T, without the bias that the classifier has;
        spatial = the first 7 channels of Mixed_6d, see :func:`spatial_features`

        Args:
            images: float, (B, 3, 299, 299), range [-1, 1].

        Returns:
            ``pool`` (B, 2048), ``spatial`` (B, 2023), ``logits`` (B, 1008).

        Raises:
            ValueError: another size.
        """
        if images.shape[1:] != (3, INCEPTION_SIZE, INCEPTION_SIZE):
            raise ValueError(f"Inception sees (B, 3, 299, 299), got {tuple(images.shape)}: resize first")
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = spatial_features(x)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        pool = x.mean((2, 3))
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.fc.weight.T}


def spatial_features(mixed_6d: Tensor) -> Tensor:
    """The features of sFID: the first 7 channels, one position after the other.

    spatial[b, (h 17 + w) 7 + c] = mixed_6d[b, c, h, w],  c < 7

    The first channels are those of the block's 1 x 1 branch. The order is TensorFlow's (channels last); stored
    statistics have it.

    Args:
        mixed_6d: float, (B, 768, 17, 17), after the ReLU.

    Returns:
        (B, 2023).

    Source: openai/guided-diffusion ``evaluations/evaluator.py``, ``mixed_6/conv:0``; arXiv:2103.03841.
    """
    return mixed_6d[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
