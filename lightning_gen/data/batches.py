"""What the DataModules yield. Batches are frozen: a step that wants other values makes another batch.

Shape letters: B images of a rank's batch, L tokens in a row, D numbers per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.nn.tokens import Tokens

__all__ = [
    "Batch",
    "EditBatch",
    "Example",
    "ImageBatch",
    "PreferenceBatch",
    "PromptBatch",
    "collate_images",
    "patchify_pixels",
    "stack_images",
]


@dataclasses.dataclass(frozen=True)
class Example:
    """One decoded picture on its way into a batch.

    Attributes:
        pixels: uint8, (h, w, 3), already of the size it has in the batch.
        label: class, -1 = none.
        index: global sample index in the manifest.
        valid: False = it only fills an evaluation batch.
        original_size: height and width of the stored picture after its EXIF rotation.
        key: the sample's key.
        caption: text, empty = none.
        crop_top_left: row and column of the first pixel that is kept, in the resized picture.
    """

    pixels: Tensor
    label: int
    index: int
    valid: bool
    original_size: tuple[int, int]
    key: str
    caption: str = ""
    crop_top_left: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What every batch can do."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Copy every tensor to a device.

        Args:
            device: where to.
            non_blocking: overlap the copy with computation where the memory is pinned.

        Returns:
            The batch on that device.
        """
        return self._mapped(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copy every tensor to page-locked memory.

        Returns:
            The batch in pinned host memory.
        """
        return self._mapped(lambda value: value.pin_memory())

    def _mapped(self, copy: Callable[[Any], Any]) -> Self:
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved = {name: copy(part) for name, part in parts.items() if isinstance(part, Tensor | Tokens | Batch)}
        return dataclasses.replace(self, **moved)


@dataclasses.dataclass(frozen=True)
class ImageBatch(Batch):
    """Images with what is known about them.

    Attributes:
        images: unpacked ``Tokens`` (patch vectors in [-1, 1] at native resolution, or latents), or float pictures,
            (B, 3, H, W) in [-1, 1].
        label: int64, (B,), class, -1 = none.
        index: int64, (B,), global sample index in the manifest.
        valid: bool, (B,), False = a sample that only fills the batch and must not be counted in a metric.
        original_size: int64, (B, 2), height and width of the stored picture after its EXIF rotation.
        key: the samples' keys.
        epoch: number of the pass over the data, the epoch of every keyed draw made for this batch.
        caption: the samples' texts, empty texts where there are none.
        crop_top_left: int64, (B, 2), row and column of the first pixel that was kept, in the resized picture; None =
            nothing was cut off after resizing. With ``original_size`` and ``target_size`` SDXL's micro-conditioning.
        target_size: int64, (B, 2), height and width in the batch.
    """

    images: Tokens | Tensor
    label: Tensor
    index: Tensor
    valid: Tensor
    original_size: Tensor
    key: tuple[str, ...]
    epoch: int
    caption: tuple[str, ...] = ()
    crop_top_left: Tensor | None = None
    target_size: Tensor | None = None

    def __len__(self) -> int:
        """Number of images B."""
        return self.index.shape[0]


@dataclasses.dataclass(frozen=True)
class PreferenceBatch(Batch):
    """Pairs of images of one prompt, the preferred one first.

    Attributes:
        winner: the preferred images; captions, keys and indices are those of the pair.
        loser: the other ones, row for row.
        preference: float32, (B,), how sure the preference is: 1 = certain, 0.5 = a tie, between them a share of votes.
        gap: float32, (B,), capability gap of the two models, NaN = not known.
        weight: float32, (B,), weight of the pair in a loss, 1 = plain.
        models: names of the winner's and the loser's model, empty = not known.
    """

    winner: ImageBatch
    loser: ImageBatch
    preference: Tensor
    gap: Tensor
    weight: Tensor
    models: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Number of pairs B."""
        return len(self.winner)


@dataclasses.dataclass(frozen=True)
class EditBatch(Batch):
    """Pairs of images before and after an edit, cropped and mirrored alike.

    Attributes:
        source: before the edit; its captions are the instructions.
        target: after it, row for row.
        task: what kind of edit each pair shows, the unit in which seen and unseen edits are told apart.
    """

    source: ImageBatch
    target: ImageBatch
    task: tuple[str, ...]

    def __len__(self) -> int:
        """Number of pairs B."""
        return len(self.source)


@dataclasses.dataclass(frozen=True)
class PromptBatch(Batch):
    """Prompts to generate images for, each k times.

    Attributes:
        prompt: the texts.
        metadata: what stands beside each prompt in its file (GenEval's fields, a target text), as JSON text.
        index: int64, (B,), number of the prompt in its file.
        group: int64, (B,), rows of one group share their prompt; numbered inside the global batch.
        member: int64, (B,), number of the row in its group, in [0, k).
        valid: bool, (B,), False = only fills the batch.
        epoch: number of the pass over the prompts.
    """

    prompt: tuple[str, ...]
    metadata: tuple[str, ...]
    index: Tensor
    group: Tensor
    member: Tensor
    valid: Tensor
    epoch: int

    def __len__(self) -> int:
        """Number of rows B."""
        return len(self.prompt)


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
    images = patchify_pixels([example.pixels for example in examples], patch, length)
    return _image_batch(images, examples, epoch)


def stack_images(examples: Sequence[Example], epoch: int) -> ImageBatch:
    """Make one batch of pictures of one size.

    Args:
        examples: at least one.
        epoch: pass number of the batch.

    Returns:
        A batch of float32 images, (B, 3, H, W), range [-1, 1].
    """
    pixels = torch.stack([example.pixels for example in examples]).permute(0, 3, 1, 2)
    return _image_batch(uint8_to_signed(pixels).contiguous(), examples, epoch)


def _image_batch(images: Tokens | Tensor, examples: Sequence[Example], epoch: int) -> ImageBatch:
    def integers(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return ImageBatch(
        images=images,
        label=integers([example.label for example in examples]),
        index=integers([example.index for example in examples]),
        valid=torch.tensor([example.valid for example in examples], dtype=torch.bool),
        original_size=integers([example.original_size for example in examples]),
        key=tuple(example.key for example in examples),
        epoch=epoch,
        caption=tuple(example.caption for example in examples),
        crop_top_left=integers([example.crop_top_left for example in examples]),
        target_size=integers([example.pixels.shape[:2] for example in examples]),
    )


def patchify_pixels(pictures: Sequence[Tensor], patch: int, length: int | None = None) -> Tokens:
    """The same tokens as ``patchify`` of the pictures in [-1, 1], written straight into the batch.

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
    # NumPy asks the system for huge pages. A batch in torch's own memory costs a page fault every few kilobytes, which
    # together take up to a sixth of the time of decoding it.
    values = torch.from_numpy(np.empty((len(pictures), length, 3 * patch * patch), np.float32))
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
    """Bytes are sorted before they become floats: a quarter of the memory, and a row of a patch moves as one word."""
    rows, columns, channels, patch, _ = out.shape
    height, width, _ = picture.shape
    planes = np.zeros((channels, rows * patch, columns * patch), np.uint8)
    planes[:, :height, :width] = picture.numpy().transpose(2, 0, 1)
    words = planes.view(np.dtype((np.void, patch))).reshape(channels, rows, patch, columns)
    patches = np.ascontiguousarray(words.transpose(1, 3, 0, 2)).view(np.uint8)
    uint8_to_signed(torch.from_numpy(patches).view(out.shape), out)
    # The padding is grey, which lies between two bytes: it is added after the conversion.
    out[-1, :, :, patch - (rows * patch - height) :] = 0
    out[:, -1, :, :, patch - (columns * patch - width) :] = 0
