"""What ViTok-v2 minimises: pixels everywhere, structure and features on random tiles.

Shape letters: B rows, L tokens, P pixel numbers per patch, I images, T tiles per image, t tile edge in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.nn.tokens import Tokens

__all__ = ["Tiles", "charbonnier", "pixel_validity", "sample_tiles", "ssim_loss", "tile_corners"]


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
    weight = weight * pixel_validity(target).to(exact) if pixel_mask else weight.expand_as(error)
    # Multiplying by zero would let an infinite value in a padding token through.
    per_token = torch.where(weight > 0, error, 0).sum(-1)
    owner = target.image.clamp(min=0).flatten()
    sums = error.new_zeros(target.num_images).index_add(0, owner, per_token.flatten())
    counts = error.new_zeros(target.num_images).index_add(0, owner, weight.sum(-1).flatten())
    return (sums / counts.clamp(min=1)).mean()


def pixel_validity(tokens: Tokens) -> Tensor:
    """Which numbers of a patch vector lie inside the image.

    Args:
        tokens: patch vectors of D = 3 p^2.

    Returns:
        bool, (B, L, D).
    """
    step = torch.arange(tokens.patch, device=tokens.mask.device)
    size = tokens.sizes[tokens.image.clamp(min=0)]
    inside_rows = tokens.row[..., None] * tokens.patch + step < size[..., :1]
    inside_cols = tokens.col[..., None] * tokens.patch + step < size[..., 1:]
    inside = (inside_rows[..., :, None] & inside_cols[..., None, :]).flatten(-2)
    return inside.repeat(1, 1, tokens.values.shape[-1] // tokens.patch**2)


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

    L = 1 - SSIM(y, x), Gaussian window of 11 pixels and sigma 1.5, data range 2, mean over tiles

    Args:
        tiles: crops with an edge of at least 11 pixels.

    Returns:
        Scalar, float32 (float64 for float64).

    Raises:
        ValueError: the tiles are smaller than the window.

    Source: arXiv:2605.05331 (reconstruction loss); SSIM: doi:10.1109/TIP.2003.819861 eq. 13.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if tiles.target.shape[-1] < 11:
        raise ValueError(f"SSIM needs tiles of at least 11 pixels, got {tiles.target.shape[-1]}")
    exact = torch.promote_types(tiles.prediction.dtype, torch.float32)
    similarity = structural_similarity_index_measure(
        tiles.prediction.to(exact), tiles.target.to(exact), sigma=1.5, kernel_size=11, data_range=2.0
    )
    assert isinstance(similarity, Tensor)  # the library returns a pair only on request
    return 1 - similarity
