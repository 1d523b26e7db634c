"""What the DataModules yield. Batches are frozen: a step that wants other values makes another batch.

Shape letters: B images of a rank's batch, L tokens in a row, D numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.nn.tokens import Tokens

__all__ = ["Example", "ImageBatch", "collate_images", "patchify_pixels"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One decoded picture on its way into a batch.

    Attributes:
        pixels: uint8, (h, w, 3), already inside the token budget.
        label: class, -1 = none.
        index: global sample index in the manifest.
        valid: False = it only fills an evaluation batch.
        original_size: height and width of the stored picture after its EXIF rotation.
        key: the sample's key.
    """

    pixels: Tensor
    label: int
    index: int
    valid: bool
    original_size: tuple[int, int]
    key: str


@dataclasses.dataclass(frozen=True)
class ImageBatch:
    """Images with what is known about them.

    Attributes:
        images: patch vectors in [-1, 1] at native resolution (unpacked ``Tokens``), or float (B, 3, H, W) in [-1, 1].
        label: int64, (B,), class, -1 = none.
        index: int64, (B,), global sample index in the manifest.
        valid: bool, (B,), False = a sample that only fills the batch and must not be counted in a metric.
        original_size: int64, (B, 2), height and width of the stored picture after its EXIF rotation.
        key: the samples' keys.
        epoch: number of the pass over the data, the epoch of every keyed draw made for this batch.
    """

    images: Tokens | Tensor
    label: Tensor
    index: Tensor
    valid: Tensor
    original_size: Tensor
    key: tuple[str, ...]
    epoch: int

    def __len__(self) -> int:
        """Number of images B."""
        return self.index.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Copy every tensor to a device.

        Args:
            device: where to.
            non_blocking: overlap the copy with computation where the memory is pinned.

        Returns:
            The batch on that device.
        """
        return dataclasses.replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            label=self.label.to(device, non_blocking=non_blocking),
            index=self.index.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
            original_size=self.original_size.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> ImageBatch:
        """Copy every tensor to page-locked memory.

        Returns:
            The batch in pinned host memory.
        """
        return dataclasses.replace(
            self,
            images=self.images.pin_memory(),
            label=self.label.pin_memory(),
            index=self.index.pin_memory(),
            valid=self.valid.pin_memory(),
            original_size=self.original_size.pin_memory(),
        )


def collate_images(examples: Sequence[Example], patch: int, length: int | None, epoch: int) -> ImageBatch:
    """Make one batch of decoded examples.

    Args:
        examples: pictures of any sizes with their records, at least one.
        patch: patch edge in pixels.
        length: tokens every row is padded to; None = the longest of this batch.
        epoch: pass number of the batch.

    Returns:
        A batch of unpacked tokens, row i is example i.
    """
    return ImageBatch(
        images=patchify_pixels([example.pixels for example in examples], patch, length),
        label=torch.tensor([example.label for example in examples], dtype=torch.int64),
        index=torch.tensor([example.index for example in examples], dtype=torch.int64),
        valid=torch.tensor([example.valid for example in examples], dtype=torch.bool),
        original_size=torch.tensor([example.original_size for example in examples], dtype=torch.int64),
        key=tuple(example.key for example in examples),
        epoch=epoch,
    )


def patchify_pixels(pictures: Sequence[Tensor], patch: int, length: int | None = None) -> Tokens:
    """The same tokens as ``patchify`` of the pictures in [-1, 1], written straight into the batch.

    Conversion, padding and layout cost one copy instead of six, which is a tenth of decoding a picture.

    Args:
        pictures: uint8, (h, w, 3) each, of any sizes.
        patch: patch edge p in pixels.
        length: row length L; None = the longest picture.

    Returns:
        Unpacked tokens with D = 3 * p * p.

    Raises:
        ValueError: a picture needs more than ``length`` tokens.
    """
    sizes = torch.tensor([picture.shape[:2] for picture in pictures], dtype=torch.int64)
    grids = -(-sizes // patch)
    counts = grids.prod(1)
    longest = int(counts.max())
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a picture of the batch needs {longest} tokens, its rows hold {length}")
    place = torch.arange(length).expand(len(pictures), -1)
    mask = place < counts[:, None]
    values = torch.empty(len(pictures), length, 3 * patch * patch)
    for row, picture, (rows, columns) in zip(values, pictures, grids.tolist(), strict=True):
        _write_patches(row[: rows * columns].view(rows, columns, 3, patch, patch), picture)
        row[rows * columns :] = 0
    return Tokens(
        values=values,
        mask=mask,
        row=torch.where(mask, place // grids[:, 1:], 0),
        col=torch.where(mask, place % grids[:, 1:], 0),
        image=torch.where(mask, torch.arange(len(pictures))[:, None], -1),
        sizes=sizes,
        patch=patch,
    )


def _write_patches(out: Tensor, picture: Tensor) -> None:
    rows, columns, _, patch, _ = out.shape
    below, right = rows * patch - picture.shape[0], columns * patch - picture.shape[1]
    if below or right:
        # The padding is grey, which lies between two bytes: it is added after the conversion.
        picture = F.pad(uint8_to_signed(picture), (0, 0, 0, right, 0, below))
    blocks = picture.view(rows, patch, columns, patch, 3).permute(0, 2, 4, 1, 3)
    if blocks.dtype == torch.uint8:
        # NumPy reorders bytes faster than torch does.
        uint8_to_signed(torch.from_numpy(np.ascontiguousarray(blocks.numpy())), out)
    else:
        out.copy_(blocks)
