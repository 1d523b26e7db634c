"""What ViTok-v2 minimises: pixels everywhere, structure and features on random tiles.

Shape letters: B rows, L tokens, P pixel numbers per patch, I images, T tiles per image, t tile edge in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.reconstruction import structural_similarity
from lightning_gen.nn.tokens import Tokens, pixel_validity

__all__ = ["Tiles", "charbonnier", "mean_of_images", "sample_tiles", "ssim_loss", "tile_corners"]


class Tiles(NamedTuple):
    """Corresponding crops of reconstructions and originals.

    Attributes:
        prediction: (I * T, 3, t, t).
        target: (I * T, 3, t, t).
    """

    prediction: Tensor
    target: Tensor


def charbonnier(prediction: Tokens, target: Tokens, eps: float = 1e-3, pixel_mask: bool = False) -> Tensor:
    """Smooth absolute error; every image weighs the same whatever its number of tokens.

    L = mean_b [ sum_i M_bi mean_k sqrt((y_bik - x_bik)^2 + eps^2) / max(1, sum_i M_bi) ]

    Args:
        prediction: decoded patches y, packed or unpacked, values (B, L, P).
        target: patches x of the same layout.
        eps: below it the error is quadratic.
        pixel_mask: leave out the grey pixels by which edge patches were filled up; the published code counts them.

    Returns:
        Scalar, float32 (float64 for float64).

    Source: arXiv:2605.05331 (reconstruction loss); published training code for the order of the means.
    """
    exact = torch.promote_types(prediction.values.dtype, torch.float32)
    error = torch.sqrt((prediction.values.to(exact) - target.values.to(exact)).square() + eps**2)
    weight = target.mask[..., None].to(exact)
    channels = error.shape[-1] // target.patch**2
    inside = pixel_validity(target).to(exact).repeat(1, 1, channels) if pixel_mask else torch.ones_like(error)
    weight = weight * inside
    # Multiplying by zero would let an infinite value in a padding token through.
    return mean_of_images(torch.where(weight > 0, error, 0).sum(-1), weight.sum(-1), target)


def mean_of_images(total: Tensor, weight: Tensor, tokens: Tokens) -> Tensor:
    """Mean over images of the mean over each image's tokens, so that images weigh the same in every batch.

    L = mean_b [ sum_i total_bi / max(1, sum_i weight_bi) ]

    Args:
        total: sums over whatever a token holds, 0 in padding, (B, L).
        weight: how many numbers went into each sum, 0 in padding, (B, L).
        tokens: says which image a token belongs to.

    Returns:
        Scalar.
    """
    owner = tokens.image.clamp(min=0).flatten()
    sums = total.new_zeros(tokens.num_images).index_add(0, owner, total.flatten())
    counts = total.new_zeros(tokens.num_images).index_add(0, owner, weight.flatten())
    return (sums / counts.clamp(min=1)).mean()


def tile_corners(sizes: Tensor, u: Tensor, tile: int) -> Tensor:
    """Top-left corners of random tiles inside the true size of every image.

    corner = floor(u * (max(size - t, 0) + 1))

    Args:
        sizes: heights and widths, int64, (I, 2).
        u: uniform numbers in [0, 1), (I, T, 2).
        tile: tile edge t in pixels.

    Returns:
        int64, (I, T, 2), uniform on {0..size - t}; 0 where the image is smaller than the tile.

    Source: arXiv:2605.05331 (tile losses); published training code.
    """
    room = (sizes - tile).clamp(min=0)[:, None, :]
    return torch.minimum((u * (room + 1)).floor().long(), room)


def sample_tiles(prediction: Sequence[Tensor], target: Sequence[Tensor], corners: Tensor, tile: int) -> Tiles:
    """Cut the same tiles from reconstructions and originals.

    Images smaller than the tile are filled up at the bottom and the right with -1 on both sides.

    Args:
        prediction: I images (3, H, W).
        target: I images of the same sizes.
        corners: int64, (I, T, 2), from ``tile_corners``.
        tile: tile edge t in pixels.

    Returns:
        Both stacks of tiles, image by image.

    Source: arXiv:2605.05331 (tile losses).
    """

    def cut(image: Tensor, top: int, left: int) -> Tensor:
        piece = image[:, top : top + tile, left : left + tile]
        return F.pad(piece, (0, tile - piece.shape[2], 0, tile - piece.shape[1]), value=-1.0)

    places = corners.tolist()
    pairs = [
        (cut(y, top, left), cut(x, top, left))
        for y, x, of_image in zip(prediction, target, places, strict=True)
        for top, left in of_image
    ]
    return Tiles(torch.stack([y for y, _ in pairs]), torch.stack([x for _, x in pairs]))


def ssim_loss(tiles: Tiles) -> Tensor:
    """Structural dissimilarity of tiles.

    L = 1 - mean over tiles of SSIM(y, x), by the definition of the metric (``structural_similarity``)

    Args:
        tiles: crops with an edge of at least 11 pixels.

    Returns:
        Scalar, float32 (float64 for float64).

    Raises:
        ValueError: the tiles are smaller than the window.

    Source: arXiv:2605.05331 (reconstruction loss).
    """
    if tiles.target.shape[-1] < 11:
        raise ValueError(f"SSIM needs tiles of at least 11 pixels, got {tiles.target.shape[-1]}")
    exact = torch.promote_types(tiles.prediction.dtype, torch.float32)
    return 1 - structural_similarity(tiles.prediction.to(exact), tiles.target.to(exact)).mean()
