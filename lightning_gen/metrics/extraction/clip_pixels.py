"""Pictures to the square that a CLIP sees, by tensors instead of PIL, so that gradients pass.

Shape letters: B images, H and W height and width, S edge of the square.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError

__all__ = ["CLIPPixels", "ClipImages", "read_open_clip_pixels", "read_transformers_pixels"]

ClipImages = Tensor | Sequence[Tensor]
"""A batch (B, 3, H, W) or B images (3, H, W) of any sizes; uint8, or float in [0, 1]."""

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_OUTSIDE = 1e-3
_BICUBIC = 3


@dataclasses.dataclass(frozen=True)
class CLIPPixels:
    """Prepares pictures as published pipelines do.

    The shorter side is resized to ``size`` (bicubic, antialiased; the longer one to floor(size * longer / shorter)),
    the middle is cut out, and mean and standard deviation are applied.

    Published pipelines resize with PIL, which rounds to whole levels and clamps after the rows and again after the
    columns. So are uint8 pictures here: on photographs the levels differ from PIL's by less than 0.001 of 255 in the
    mean and by 1 at most, on small pictures by up to 0.05 and 2. Float pictures are clamped once and never rounded, so
    that gradients pass; that is 0.1 to 0.3 levels away from PIL in the mean, and some levels at sharp edges.

    Attributes:
        size: S, edge of the square in pixels.
        mean: per channel, of pixels in [0, 1].
        std: per channel.
        crop: what becomes of half a pixel when the middle is cut out: ``floor`` as in transformers, ``round`` (half to
            even) as in torchvision and open_clip.
    """

    size: int
    mean: tuple[float, ...] = _OPENAI_MEAN
    std: tuple[float, ...] = _OPENAI_STD
    crop: Literal["floor", "round"] = "floor"

    def __call__(self, images: ClipImages, device: torch.device | None = None) -> Tensor:
        """Prepare pictures.

        Args:
            images: B pictures, uint8 or float in [0, 1].
            device: where to; default: where they are.

        Returns:
            float32, (B, 3, S, S).

        Raises:
            ValueError: no picture, or one of another shape, type or range.
        """
        if len(images) == 0:
            raise ValueError("no images to embed")
        parts = [images] if isinstance(images, Tensor) else [image[None] for image in images]
        square = torch.cat([self.square(part.to(device or part.device)) for part in parts])
        mean, std = (square.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (square - mean) / std

    def square(self, images: Tensor) -> Tensor:
        """Resize and cut, without mean and standard deviation.

        Args:
            images: (B, 3, H, W), uint8 or float in [0, 1].

        Returns:
            float32, (B, 3, S, S), in [0, 1].

        Raises:
            ValueError: another shape, type or range.
        """
        _check(images)
        height, width = images.shape[-2:]
        shorter = min(height, width)
        size = self.size * height // shorter, self.size * width // shorter
        if images.dtype == torch.uint8:
            rows = _resize(images.to(torch.float32), (height, size[1])).round().clamp(0, 255)
            pixels = _resize(rows, size).round().clamp(0, 255) / 255
        else:
            pixels = _resize(images.to(torch.float32), size).clamp(0, 1)
        top, left = (self._offset(side - self.size) for side in size)
        return pixels[..., top : top + self.size, left : left + self.size]

    def _offset(self, rest: int) -> int:
        return rest // 2 if self.crop == "floor" else round(rest / 2)


def read_transformers_pixels(path: Path, size: int) -> CLIPPixels:
    """What a ``preprocessor_config.json`` of transformers asks for.

    Args:
        path: the file.
        size: edge of the square that the network was built for.

    Returns:
        The same, by tensors.

    Raises:
        MissingWeightsError: it asks for something else than resizing the shorter side bicubically and cutting the
            middle, or for another size.
    """
    config = _read_json(path)
    resized, cropped = config.get("size", size), config.get("crop_size", size)
    resized = resized.get("shortest_edge") if isinstance(resized, dict) else resized
    cropped = set(cropped.values()) if isinstance(cropped, dict) else {cropped}
    steps = all(config.get(f"do_{step}", True) for step in ("resize", "center_crop", "normalize"))
    if not steps or resized != size or cropped != {size} or config.get("resample", _BICUBIC) != _BICUBIC:
        raise _strange(path, size)
    return CLIPPixels(size, *_mean_and_std(config, "image_mean", "image_std"), crop="floor")


def read_open_clip_pixels(path: Path | None, size: Any) -> CLIPPixels:
    """What the ``preprocess_cfg`` of an ``open_clip_config.json`` asks for.

    Args:
        path: the file; None = open_clip's defaults.
        size: edge (or equal edges) of the square that the network was built for.

    Returns:
        The same, by tensors.

    Raises:
        MissingWeightsError: it asks for something else than resizing the shorter side bicubically and cutting the
            middle, or for another size.
    """
    config = (_read_json(path) if path else {}).get("preprocess_cfg") or {}
    edges = set(size) if isinstance(size, Sequence) else {size}
    edge = int(max(edges))
    asked = config.get("size", edge)
    asked = set(asked) if isinstance(asked, Sequence) else {asked}
    modes = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
    if edges != {edge} or asked != {edge} or modes != ("bicubic", "shortest"):
        raise _strange(path, edge)
    return CLIPPixels(edge, *_mean_and_std(config, "mean", "std"), crop="round")


def _resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    if pixels.shape[-2:] == size:
        return pixels
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True)


def _mean_and_std(config: Mapping[str, Any], mean: str, std: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(config.get(mean) or _OPENAI_MEAN), tuple(config.get(std) or _OPENAI_STD)


def _strange(path: Path | None, size: int) -> MissingWeightsError:
    return MissingWeightsError(
        f"{path or 'this architecture'} does not ask for the preprocessing of CLIP (shorter side to {size} pixels "
        f"bicubically, middle cut out, mean and std), which is the only one that is here: give another source"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise MissingWeightsError(f"{path} is not a readable JSON object: copy it again from its source")
    return content


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"need images (B, 3, H, W), or a list of (3, H, W), uint8 or float in [0, 1]; got {images.dtype} "
            f"{tuple(images.shape)}"
        )
    if images.is_floating_point() and images.numel():
        low, high = images.detach().aminmax()
        if low < -_OUTSIDE or high > 1 + _OUTSIDE:
            raise ValueError(
                f"float images must lie in [0, 1], got [{float(low):.3g}, {float(high):.3g}]: convert [-1, 1] with "
                f"data.transforms.signed_to_unit, and give levels of 0..255 as uint8"
            )
