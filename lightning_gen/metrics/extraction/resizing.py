"""The ways in which libraries bring a picture to Inception's 299 x 299, and the range of values that goes with each.

They give different numbers from the same pictures, so each has the name of an extractor of its own.

Shape letters: B images, H and W height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.extraction.inception import INCEPTION_SIZE
from lightning_gen.metrics.images import Images

__all__ = ["Resize", "inception_input", "resize_clean", "resize_tf1"]

Resize = Literal["tf1", "clean", "torch", "antialias", "vitok_release"]


def inception_input(
    images: Images,
    resize: Resize = "tf1",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Pictures as Inception sees them under one protocol.

    ========================  =====================================================  ==========================
    ``resize``                filter to 299 x 299                                    values
    ========================  =====================================================  ==========================
    ``tf1``                   bilinear of TensorFlow 1, see :func:`resize_tf1`       (x - 128) / 128
    ``clean``                 bicubic of Pillow, see :func:`resize_clean`            (x - 128) / 128
    ``torch``                 bilinear, half-pixel centres, no antialiasing          2 x / 255 - 1
    ``antialias``             bilinear, half-pixel centres, antialiased              (x - 128) / 128
    ``vitok_release``         bicubic, half-pixel centres, antialiased, not clamped  x / 255, so [0, 1]
    ========================  =====================================================  ==========================

    ``vitok_release`` is how the released code of ViTok-v2 measured: it leaves pixels in [0, 1] where the network
    expects [-1, 1]. Its numbers compare with that code's only.

    Args:
        images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes; those of a list are resized one by one.
        resize: whose protocol.
        dtype: in which the arithmetic is done; ``clean`` is float32 in any case, as Pillow is.
        device: where the arithmetic is done (Pillow's on the CPU); None = where the pictures are.

    Returns:
        (B, 3, 299, 299) of that dtype, on that device.

    Raises:
        ValueError: an unknown protocol.

    Source: ``tf1``: openai/guided-diffusion and toshas/torch-fidelity; ``clean``: arXiv:2104.11222; ``torch``:
        mseitzer/pytorch-fid; ``antialias``: the default of torchmetrics' FrechetInceptionDistance; ``vitok_release``:
        Na-VAE/vitok-release, for arXiv:2605.05331.
    """
    if resize not in get_args(Resize):
        raise ValueError(f"unknown resize {resize!r}: choose one of {', '.join(get_args(Resize))}")
    prepare = _PROTOCOLS[resize]
    # Pillow would bring pictures back that were moved first.
    where = torch.device("cpu") if resize == "clean" else device
    groups = [images] if isinstance(images, Tensor) else [image[None] for image in images]
    return torch.cat([prepare(group.to(where or group.device, dtype)).to(device or group.device) for group in groups])


def resize_tf1(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation as TensorFlow 1 does it by default: corners are not aligned, and neither are centres.

    Output pixel i looks at position p = i (in / out), between floor(p) and min(floor(p) + 1, in - 1); nothing is
    antialiased. Columns are interpolated first, and positions are float32, so that the result is that of the graph.

    Args:
        images: float, (B, C, H, W), any range.
        size: new height and width.

    Returns:
        (B, C, *size) in the dtype of the images.

    Source: tensorflow/core/kernels/resize_bilinear_op.cc with align_corners and half_pixel_centers false.
    """
    top, bottom, down = _positions(images.shape[2], size[0], images)
    left, right, across = _positions(images.shape[3], size[1], images)
    columns = _between(images[..., left], images[..., right], across)
    return _between(columns[:, :, top], columns[:, :, bottom], down[:, None])


def resize_clean(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bicubic interpolation by Pillow, every channel as float32, so that nothing is rounded to 8 bits.

    The bicubic filter overshoots at edges; the result is clipped to [0, 255].

    Args:
        images: float, (B, C, H, W), range [0, 255].
        size: new height and width.

    Returns:
        (B, C, *size) in the dtype and on the device of the images.

    Source: arXiv:2104.11222 section 4, GaParmar/clean-fid ``resize.py`` mode ``clean``.
    """
    from PIL import Image

    planes = images.detach().to("cpu", torch.float32).flatten(0, 1).numpy()
    resized = [Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC) for plane in planes]
    stacked = torch.from_numpy(np.stack([np.asarray(plane) for plane in resized]))
    return stacked.clamp_(0, 255).reshape(*images.shape[:2], *size).to(images)


def _positions(old: int, new: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper neighbour of every output pixel, and how far it is from the lower one."""
    scale = torch.tensor(old, dtype=torch.float32) / torch.tensor(new, dtype=torch.float32)
    position = torch.arange(new, dtype=torch.float32) * scale
    lower = position.floor()
    upper = (lower + 1).clamp(max=old - 1)
    return lower.long().to(like.device), upper.long().to(like.device), (position - lower).to(like)


def _between(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    return first + (second - first) * fraction


_EDGES = (INCEPTION_SIZE, INCEPTION_SIZE)


def _centred(pixels: Tensor) -> Tensor:
    return (pixels - 128) / 128


def _interpolate(pixels: Tensor, mode: Literal["bilinear", "bicubic"], antialias: bool) -> Tensor:
    return F.interpolate(pixels, size=_EDGES, mode=mode, align_corners=False, antialias=antialias)


_PROTOCOLS: dict[Resize, Callable[[Tensor], Tensor]] = {
    "tf1": lambda pixels: _centred(resize_tf1(pixels, _EDGES)),
    "clean": lambda pixels: _centred(resize_clean(pixels, _EDGES)),
    "torch": lambda pixels: 2 * _interpolate(pixels / 255, "bilinear", antialias=False) - 1,
    "antialias": lambda pixels: _centred(_interpolate(pixels, "bilinear", antialias=True)),
    "vitok_release": lambda pixels: _interpolate(pixels / 255, "bicubic", antialias=True),
}
