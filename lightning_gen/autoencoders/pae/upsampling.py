"""Upsampling of feature maps under the guidance of their picture: what the refined prior is made with.

Shape letters: B images, D features, h and w rows and columns of the features, H and W of the result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoders.pae.objective import low_pass
from lightning_gen.backbones.frozen import FrozenModule, ordinary_construction
from lightning_gen.backbones.weights import MissingWeightsError
from lightning_gen.training.safe_reading import load_plain

__all__ = ["AnyUp", "Bicubic", "FeatureUpsampler", "JointBilateral", "structural_reference"]


class FeatureUpsampler(ABC):
    """Makes feature maps as fine as a picture."""

    @abstractmethod
    def upsample(self, features: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Finer maps.

        Args:
            features: (B, D, h, w).
            images: the pictures that they describe, (B, 3, H', W') in [-1, 1].
            size: H and W.

        Returns:
            (B, D, H, W).
        """


class Bicubic(FeatureUpsampler):
    """Upsampling without guidance."""

    def upsample(self, features: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """See :meth:`FeatureUpsampler.upsample`."""
        del images
        return F.interpolate(features, size=size, mode="bicubic", align_corners=False)


class JointBilateral(FeatureUpsampler):
    """Every place takes the mean of the features nearby, weighted by distance and by likeness of colour.

    f(p) = sum_q w_pq f(q) / sum_q w_pq,  w_pq = exp(-|p - q|^2 / (2 s^2) - |I(p) - I(q)|^2 / (2 r^2))
    over the (2 k + 1)^2 places q of the coarse map around p

    Args:
        spatial: s, in places of the coarse map.
        color: r, of pixels in [-1, 1].
        radius: k.

    Raises:
        ValueError: a deviation that is not positive, or a negative radius.

    Source: Kopf et al., Joint Bilateral Upsampling, SIGGRAPH 2007; stands in for AnyUp where that is not at hand.
    """

    def __init__(self, spatial: float = 1.0, color: float = 0.2, radius: int = 2) -> None:
        if spatial <= 0 or color <= 0 or radius < 0:
            raise ValueError(f"JointBilateral needs positive deviations, got {spatial}, {color} and radius {radius}")
        self.spatial, self.color, self.radius = spatial, color, radius

    def upsample(self, features: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """See :meth:`FeatureUpsampler.upsample`."""
        coarse, k = features.shape[-2:], self.radius
        fine = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        guide = F.pad(F.adaptive_avg_pool2d(images, (coarse[0], coarse[1])), (k, k, k, k), mode="replicate")
        padded = F.pad(features, (k, k, k, k), mode="replicate")
        places = [_places(fine_side, side, features) for fine_side, side in zip(size, coarse, strict=True)]
        cells = [place.round().long().clamp(0, side - 1) for place, side in zip(places, coarse, strict=True)]
        total, weights = features.new_zeros(*features.shape[:2], *size), features.new_zeros(len(features), 1, *size)
        for dy in range(-k, k + 1):
            for dx in range(-k, k + 1):
                rows, cols = cells[0] + dy, cells[1] + dx
                away = (places[0] - rows).square()[:, None] + (places[1] - cols).square()
                there = (slice(None), slice(None), (rows + k)[:, None], cols + k)
                unlike = (fine - guide[there]).square().sum(1, keepdim=True)
                weight = torch.exp(-away / (2 * self.spatial**2) - unlike / (2 * self.color**2))
                total = total + weight * padded[there]
                weights = weights + weight
        return total / weights.clamp(min=1e-12)


def _places(fine: int, coarse: int, like: Tensor) -> Tensor:
    """Where the centres of a fine row lie among those of a coarse one."""
    return (torch.arange(fine, device=like.device, dtype=like.dtype) + 0.5) * coarse / fine - 0.5


class AnyUp(FeatureUpsampler):
    """AnyUp, from a checkout of its repository on this machine; its code is run.

    Args:
        repository: folder of wimmerth/anyup, with its ``hubconf.py``.
        weights: file of its published weights.
        chunk: rows of queries at a time, for less memory; None = its own choice.

    Source: arXiv:2510.12764; weights under CC BY 4.0.
    """

    def __init__(self, repository: str, weights: str, chunk: int | None = None) -> None:
        self.repository, self.weights, self.chunk = repository, weights, chunk
        self._frozen: FrozenModule | None = None

    def upsample(self, features: Tensor, images: Tensor, size: tuple[int, int]) -> Tensor:
        """See :meth:`FeatureUpsampler.upsample`."""
        network = self._network(features.device)
        mean, std = (
            images.new_tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        guide = F.interpolate((images + 1) / 2, size=size, mode="bilinear", align_corners=False)
        options = {} if self.chunk is None else {"q_chunk_size": self.chunk}
        fine: Tensor = network((guide - mean) / std, features, output_size=size, **options)
        return fine

    def _network(self, device: torch.device) -> nn.Module:
        if self._frozen is None:
            folder = Path(self.repository).expanduser()
            if not (folder / "hubconf.py").is_file() or not Path(self.weights).expanduser().is_file():
                raise MissingWeightsError(
                    f"AnyUp needs a checkout of wimmerth/anyup and its weights; {self.repository} holds no hubconf.py, "
                    f"or {self.weights} is no file. JointBilateral does without both"
                )
            with ordinary_construction():
                # torch.hub has no types.
                load: Any = torch.hub.load
                network: nn.Module = load(str(folder), "anyup", source="local", pretrained=False)
            network.load_state_dict(load_plain(Path(self.weights).expanduser()))
            self._frozen = FrozenModule(network)
        self._frozen.network.to(device)
        return self._frozen.network


@torch.no_grad()
def structural_reference(
    features: Tensor,
    images: Tensor,
    grid: tuple[int, int],
    upsampler: FeatureUpsampler,
    size: tuple[int, int],
    strength: float = 0.4,
    sigma: float = 8.0,
) -> Tensor:
    """H_ref: features made fine, their detail damped, brought back to the grid.

    H_ref = bilinear(low_pass(upsample(H, x)))

    Args:
        features: H, (B, N, D).
        images: x, (B, 3, H', W') in [-1, 1].
        grid: rows and columns.
        upsampler: how the features are made fine.
        size: rows and columns of the fine maps; paper: 256 x 256.
        strength: of the low pass; paper: 0.4.
        sigma: of its Gaussian, in places of the fine map.

    Returns:
        (B, N, D), float32, without gradient.

    Source: arXiv:2605.07915 section 3.3.
    """
    found = []
    # One picture at a time: a fine map of 1024 features at 256 x 256 places takes a quarter of a gigabyte.
    for one, image in zip(features.float(), images.float(), strict=True):
        maps = one.transpose(0, 1).reshape(1, -1, *grid)
        fine = low_pass(upsampler.upsample(maps, image[None], size), strength, sigma)
        coarse = F.interpolate(fine, size=grid, mode="bilinear", align_corners=False)
        found.append(coarse.flatten(2).transpose(1, 2))
    return torch.cat(found)
