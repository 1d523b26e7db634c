"""Pre-processing as the image processors of transformers describe it, on float pictures and with torch alone.

Shape letters: B images, H and W height and width of the pictures, h and w of the network's input.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lightning_gen.backbones.weights import MissingWeightsError

__all__ = ["PROCESSOR_FILE", "PROCESSOR_FILE_OF_BOTH", "ImagePreparation", "PreparedImages"]

PROCESSOR_FILE: Final = "preprocessor_config.json"
"""Describes an image processor."""

PROCESSOR_FILE_OF_BOTH: Final = "processor_config.json"
"""What newer releases write instead for a processor of pictures and text."""

_RESAMPLING: Final = {2: "bilinear", 3: "bicubic"}


class PreparedImages(NamedTuple):
    """A batch as the network wants it.

    Attributes:
        pixels: float32, (B, 3, h, w), normalised; zero where it is filled up at the bottom and the right.
        content: height and width of the part that is the resized picture.
    """

    pixels: Tensor
    content: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ImagePreparation:
    """The pre-processing that a ``preprocessor_config.json`` of transformers describes, on float pictures.

    Resize with antialiasing (shorter side to ``shortest``, unless the longer one would exceed ``longest``; both sides
    are then stretched to multiples of ``divisor``), mean and standard deviation, and zeros up to ``padded``.

    Attributes:
        shortest: shorter side in pixels; None where ``fixed`` is given or pictures keep their size.
        longest: limit of the longer side in pixels.
        fixed: height and width, whatever the shape of the picture.
        divisor: the resized sides are multiples of it.
        padded: height and width of the network's input; None = no filling up.
        resampling: ``"bilinear"`` or ``"bicubic"``.
        mean: per channel, for pictures in [0, 1].
        std: per channel.

    Source: the image processors of the transformers library. deviates: the library rounds the resized picture to whole
    levels of 1/255; here it keeps its fractions.
    """

    shortest: int | None
    longest: int | None
    fixed: tuple[int, int] | None
    divisor: int
    padded: tuple[int, int] | None
    resampling: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> ImagePreparation:
        """Read the description beside the weights.

        Args:
            folder: holds ``preprocessor_config.json``, or ``processor_config.json`` with an ``image_processor``.

        Returns:
            The preparation.

        Raises:
            MissingWeightsError: the file is damaged, or asks for what is not done here.
        """
        path, config = _processor_config(folder)
        try:
            return cls._parse(config)
        except (KeyError, TypeError, ValueError) as error:
            raise MissingWeightsError(
                f"{path} is not understood ({type(error).__name__}: {error}): copy it from the source of the weights"
            ) from None

    @classmethod
    def _parse(cls, config: dict[str, Any]) -> ImagePreparation:
        factor = config.get("rescale_factor", 1 / 255)
        if not config.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-6):
            raise ValueError(f"levels are rescaled by {factor}, expected 1/255")
        size: Any = config["size"] if config.get("do_resize", True) else {}
        if isinstance(size, int):
            size = {"shortest_edge": size, "longest_edge": config.get("max_size", 1333)}
        if not {*size} <= {"shortest_edge", "longest_edge"} and {*size} != {"height", "width"}:
            raise ValueError(
                f"size has the keys {sorted(size)}, expected shortest_edge and longest_edge, or both sides"
            )
        pad, scaled = config.get("pad_size"), config.get("do_normalize", True)
        return cls(
            shortest=size.get("shortest_edge"),
            longest=size.get("longest_edge"),
            fixed=(size["height"], size["width"]) if "height" in size else None,
            divisor=(config.get("size_divisor") or 1) if size else 1,
            padded=(pad["height"], pad["width"]) if pad else None,
            resampling=_RESAMPLING[config.get("resample", 2)],
            mean=tuple(config["image_mean"]) if scaled else (0.0, 0.0, 0.0),
            std=tuple(config["image_std"]) if scaled else (1.0, 1.0, 1.0),
        )

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a picture after the resize.

        Args:
            size: before it.

        Returns:
            Both sides in pixels.
        """
        height, width = size
        if self.fixed is not None:
            height, width = self.fixed
        elif self.shortest is not None:
            target: float = self.shortest
            shorter, longer = min(size), max(size)
            if self.longest is not None and longer / shorter * target > self.longest:
                target = self.longest * shorter / longer
            # As the library does: the shorter side is rounded and the longer one cut, unless nothing would change.
            if round(target) != shorter:
                sides = round(target), int(target * longer / shorter)
                height, width = sides if height <= width else sides[::-1]
        return math.ceil(height / self.divisor) * self.divisor, math.ceil(width / self.divisor) * self.divisor

    def __call__(self, images: Tensor) -> PreparedImages:
        """Prepare a batch.

        Args:
            images: float, (B, 3, H, W) in [0, 1].

        Returns:
            Pixels for the network, and which part of them is the picture.

        Raises:
            ValueError: a picture that does not fit into the padded size.
        """
        size = (images.shape[-2], images.shape[-1])
        content = self.resized(size)
        pixels = images.float()
        if content != size:
            pixels = F.interpolate(pixels, content, mode=self.resampling, align_corners=False, antialias=True)
            # Bicubic weights are partly negative; levels end at black and white.
            pixels = pixels.clamp(0, 1)
        pixels = (pixels - pixels.new_tensor(self.mean)[:, None, None]) / pixels.new_tensor(self.std)[:, None, None]
        if self.padded is not None:
            bottom, right = self.padded[0] - content[0], self.padded[1] - content[1]
            if bottom < 0 or right < 0:
                raise ValueError(
                    f"a picture of {size[0]}x{size[1]} becomes {content[0]}x{content[1]}, which does not fit into the "
                    f"pad_size {self.padded[0]}x{self.padded[1]} of the weights' {PROCESSOR_FILE}"
                )
            pixels = F.pad(pixels, (0, right, 0, bottom))
        return PreparedImages(pixels, content)


def _processor_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = folder / PROCESSOR_FILE
    is_nested = not path.is_file()
    if is_nested:
        path = folder / PROCESSOR_FILE_OF_BOTH
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config = config["image_processor"] if is_nested else config
    except (OSError, ValueError, LookupError, TypeError):
        config = None
    if not isinstance(config, dict):
        raise MissingWeightsError(f"{path} is not a readable description of an image processor: copy it again")
    return path, config
