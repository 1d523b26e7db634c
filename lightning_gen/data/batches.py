"""What the DataModules yield. Batches are frozen: a step that wants other values makes another batch.

Shape letters: B images of a rank's batch, L tokens in a row, D numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gen.nn.tokens import Tokens, patchify

__all__ = ["Example", "ImageBatch", "collate_images"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One decoded picture on its way into a batch.

    Attributes:
        image: float, (3, h, w), range [-1, 1], already inside the token budget.
        label: class, -1 = none.
        index: global sample index in the manifest.
        valid: False = it only fills an evaluation batch.
        original_size: height and width of the stored picture after its EXIF rotation.
        key: the sample's key.
    """

    image: Tensor
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
        images=patchify([example.image for example in examples], patch, length),
        label=torch.tensor([example.label for example in examples], dtype=torch.int64),
        index=torch.tensor([example.index for example in examples], dtype=torch.int64),
        valid=torch.tensor([example.valid for example in examples], dtype=torch.bool),
        original_size=torch.tensor([example.original_size for example in examples], dtype=torch.int64),
        key=tuple(example.key for example in examples),
        epoch=epoch,
    )
