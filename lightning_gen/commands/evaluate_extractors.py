"""From the options of a verb to an extractor of features."""

from __future__ import annotations

import argparse
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor, ModuleExtractor

from .evaluate_options import built, is_class_path
from .options import device_of

__all__ = ["GridColours", "extractor_of"]

_DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}


class GridColours(nn.Module):
    """The mean colours of a grid of cells: features that need no weights.

    They see nothing but coarse colour, so a distance between them says little about pictures; they are there to try the
    command, and a data set, without any weights.

    Args:
        cells: cells per edge.
    """

    def __init__(self, cells: int = 4) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, pixels: Tensor) -> Tensor:
        """Mean colours.

        Args:
            pixels: float, (B, 3, H, W), range [-1, 1].

        Returns:
            (B, 3 * cells * cells).
        """
        return F.adaptive_avg_pool2d(pixels, self.cells).flatten(1)


def extractor_of(options: argparse.Namespace) -> FeatureExtractor:
    """Build the extractor that was asked for.

    Args:
        options: with those of ``evaluate_features.add_extractor``.

    Returns:
        It, on its device.

    Raises:
        ValueError: an option is missing or has no meaning for this extractor.
        MissingWeightsError: the weights are absent or others than expected.
    """
    kind, weights = options.extractor, options.weights
    for option, given in (("resize", options.resize), ("sha256", options.sha256)):
        if given is not None and kind != "inception":
            raise ValueError(f"--{option} belongs to --extractor inception, not to {kind}")
    if kind == "clip" and options.dtype != "float32":
        raise ValueError("--extractor clip computes in float32")
    extractor = _built(kind, weights, options)
    if options.dtype != "float32" and extractor.dtype != _DTYPES[options.dtype]:
        raise ValueError(f"--extractor {kind} decides its own dtype, {extractor.dtype}")
    return extractor.to(device_of(options.device, apple=False))


def _built(kind: str, weights: str | None, options: argparse.Namespace) -> FeatureExtractor:
    dtype = _DTYPES[options.dtype]
    if kind == "grid-colours":
        if weights is not None:
            raise ValueError("--extractor grid-colours has no weights")
        return ModuleExtractor(GridColours(), "grid-colours-4x4", dtype=dtype)
    if is_class_path(kind):
        made = built(kind, "--extractor", weights)
        if isinstance(made, FeatureExtractor):
            return made
        if isinstance(made, nn.Module):
            return ModuleExtractor(made, kind.rpartition(".")[2].lower(), dtype=dtype)
        raise ValueError(f"--extractor {kind} made a {type(made).__name__}, neither a FeatureExtractor nor a module")
    if weights is None:
        raise ValueError(
            f"--extractor {kind} needs --weights: a file or folder of this machine; the page docs/evaluation.md says "
            "where the published ones are"
        )
    from lightning_gen.metrics import extractors

    if kind == "inception":
        return extractors.FIDInceptionV3(weights, options.resize or "tf1", dtype, options.sha256)
    if kind == "dinov2":
        return extractors.DINOv2Extractor(weights, dtype)
    if kind == "dinov3":
        return extractors.DINOv3Extractor(weights, dtype)
    if kind == "clip":
        return extractors.CLIPImageExtractor(weights)
    raise ValueError(
        f"--extractor {kind}: choose inception, dinov2, dinov3, clip, grid-colours, or name a class of yours "
        "package.Class"
    )
