"""From pictures to the arrays that are cached: any auto-encoder of the house, also of the mirror images.

Shape letters: B pictures, L tokens in a row, c numbers per token, n tokens of one picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.latents.fields import Array
from lightning_gen.data.latents.record import StoredKind
from lightning_gen.data.quarantine import DataError
from lightning_gen.interfaces import Autoencoder
from lightning_gen.nn.tokens import Tokens, patchify, unpack, unpatchify

__all__ = ["EncodedPicture", "PictureEncoder", "mirror_images", "token_grids"]

_PROBE = 64


class EncodedPicture(NamedTuple):
    """The latent of one picture.

    Attributes:
        plain: (n, c), tokens row by row.
        mirrored: those of its mirror image, None = not asked for.
        grid: rows and columns.
        size: height and width of the picture in pixels.
    """

    plain: Array
    mirrored: Array | None
    grid: tuple[int, int]
    size: tuple[int, int]


class PictureEncoder:
    """Calls an auto-encoder and turns its tokens into arrays.

    Args:
        autoencoder: in eval mode, on its device. It is asked once for the latent of a grey square, to learn its patch.
        dtype: of the arrays.
        mirror: encode the mirror images too.
        device: where pictures go.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        dtype: StoredKind = "float16",
        mirror: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.autoencoder, self.dtype, self.mirror, self.device = autoencoder, np.dtype(dtype), mirror, device
        with _reproducible():
            probe = autoencoder.encode(torch.zeros(1, 3, _PROBE, _PROBE, device=device))
        self.patch, self.channels = probe.patch, probe.values.shape[-1]

    def __call__(self, images: Tokens | Tensor) -> list[EncodedPicture]:
        """Encode a batch.

        Args:
            images: as they come from a loader.

        Returns:
            One entry per picture.

        Raises:
            DataError: the auto-encoder does not give a full grid of tokens, or numbers that are not finite.
        """
        with _reproducible():
            images = images.to(self.device)
            latents = self.autoencoder.encode(images)
            plain = [self._array(grid) for grid in token_grids(latents)]
            mirrored: list[Array | None] = [None] * len(plain)
            if self.mirror:
                grids = token_grids(self.autoencoder.encode(mirror_images(images)))
                mirrored = [self._array(grid) for grid in grids]
        grids_and_sizes = zip(latents.grid.tolist(), latents.sizes.tolist(), strict=True)
        return [
            EncodedPicture(one, other, (grid[0], grid[1]), (size[0], size[1]))
            for one, other, (grid, size) in zip(plain, mirrored, grids_and_sizes, strict=True)
        ]

    def _array(self, grid: Tensor) -> Array:
        exact = grid.float().cpu().numpy()
        with np.errstate(over="ignore"):
            array: Array = np.ascontiguousarray(exact.astype(self.dtype))
        if not np.isfinite(exact).all():
            raise DataError(
                f"{type(self.autoencoder).__name__} gives numbers that are not finite: are its weights right?"
            )
        if not np.isfinite(array).all():
            raise DataError(
                f"a latent holds {np.abs(exact).max():.3g}, which is no {self.dtype} number: use --dtype float32"
            )
        return array


def mirror_images(images: Tokens | Tensor) -> Tokens | Tensor:
    """Every picture with left and right exchanged.

    Args:
        images: unpacked tokens of patches, or (B, 3, H, W).

    Returns:
        The same kind of batch. What fills the patches at the right edge of a picture stays at the right.
    """
    if isinstance(images, Tensor):
        return images.flip(-1)
    pictures = [picture.flip(-1) for picture in unpatchify(images)]
    return patchify(pictures, images.patch, images.values.shape[1])


def token_grids(latents: Tokens) -> list[Tensor]:
    """The tokens of every picture, row by row.

    Args:
        latents: packed or unpacked, in any order.

    Returns:
        (rows * cols, c) for every picture.

    Raises:
        DataError: a place of a picture's grid has no token, or more than one.
    """
    single = unpack(latents)
    grids = []
    for number, (rows, columns) in enumerate(single.grid.tolist()):
        there = single.mask[number]
        place = (single.row[number] * columns + single.col[number])[there]
        order = place.argsort()
        if not torch.equal(place[order], torch.arange(rows * columns, device=place.device)):
            raise DataError(
                f"{len(place)} tokens do not fill the {rows} x {columns} grid of a picture: only auto-encoders with "
                "one token per patch can be cached"
            )
        grids.append(single.values[number][there][order])
    return grids


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """Without gradients, and with convolutions that give the same bits every time."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
