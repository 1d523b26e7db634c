"""What the DataModules yield. Batches are frozen: a step that wants other values makes another batch.

Pictures travel from a worker to the device as bytes, a quarter of what floats need, and become floats there.
Shape letters: B images of a rank's batch, L tokens in a row, D numbers per token, p patch edge.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_signed
from lightning_gen.nn.tokens import Tokens, pixel_validity

__all__ = [
    "Batch",
    "EditBatch",
    "Example",
    "ImageBatch",
    "PreferenceBatch",
    "PromptBatch",
    "collate_images",
    "patchify_pixels",
    "signed_images",
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
    """Images with what is known about them. What a step reads is :attr:`images`.

    Attributes:
        raw: the images as they travel: unpacked ``Tokens`` (patch vectors of pictures at native resolution, or latents)
            or pictures (B, 3, H, W); uint8 in 0..255, or float as in :attr:`images`.
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

    raw: Tokens | Tensor
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

    @functools.cached_property
    def images(self) -> Tokens | Tensor:
        """Unpacked ``Tokens`` (patch vectors in [-1, 1], or latents), or float pictures, (B, 3, H, W) in [-1, 1].

        Bytes become floats when this is read for the first time, on the device where the batch is then.
        """
        return signed_images(self.raw)


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

    def rows(self, part: slice) -> Self:
        """Some of the rows; they keep their numbers.

        Args:
            part: which.

        Returns:
            A smaller batch.
        """
        names = (field.name for field in dataclasses.fields(self) if field.name != "epoch")
        return dataclasses.replace(self, **{name: getattr(self, name)[part] for name in names})


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
        A batch of pictures, (B, 3, H, W), as bytes.
    """
    pixels = torch.stack([example.pixels.permute(2, 0, 1) for example in examples])
    return _image_batch(pixels, examples, epoch)


def _image_batch(raw: Tokens | Tensor, examples: Sequence[Example], epoch: int) -> ImageBatch:
    def integers(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    return ImageBatch(
        raw=raw,
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
    """The tokens of ``patchify`` as bytes; :func:`signed_images` makes the very same floats of them.

    Args:
        pictures: uint8, (h, w, 3) each, of any sizes.
        patch: patch edge p in pixels.
        length: row length L; None = the longest picture.

    Returns:
        Unpacked tokens, values uint8, D = 3 * p * p, 0 in padding and where a patch reaches beyond its picture.

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
    values = np.empty((len(pictures), length, 3 * patch * patch), np.uint8)
    for row, picture, (rows, columns) in zip(values, pictures, grids.tolist(), strict=True):
        _write_patches(row[: rows * columns], picture.numpy(), rows, columns, patch)
        row[rows * columns :] = 0
    return Tokens(
        values=torch.from_numpy(values),
        mask=mask,
        row=torch.where(mask, place // grids[:, 1:], 0),
        col=torch.where(mask, place % grids[:, 1:], 0),
        image=torch.where(mask, torch.arange(len(pictures))[:, None], -1),
        sizes=sizes,
        patch=patch,
    )


def _write_patches(
    out: npt.NDArray[np.uint8], picture: npt.NDArray[np.uint8], rows: int, columns: int, patch: int
) -> None:
    height, width, channels = picture.shape
    planes = np.zeros((channels, rows * patch, columns * patch), np.uint8)
    planes[:, :height, :width] = picture.transpose(2, 0, 1)
    word = np.dtype((np.void, patch))  # a row of a patch moves as one
    words = planes.view(word).reshape(channels, rows, patch, columns)
    out.view(word).reshape(rows, columns, channels, patch)[:] = words.transpose(1, 3, 0, 2)


def signed_images(raw: Tokens | Tensor) -> Tokens | Tensor:
    """Images as networks see them. The same bits on every device.

    Args:
        raw: uint8, 0..255: pictures of any shape, or tokens of :func:`patchify_pixels`. What is float stays as it is.

    Returns:
        float32, range [-1, 1]; tokens have 0, mid grey, in padding and where a patch reaches beyond its picture.
    """
    values = raw.values if isinstance(raw, Tokens) else raw
    if values.dtype != torch.uint8:
        return raw
    # Whoever looks first may be in inference mode; a training step must still be able to use what was made there.
    with torch.inference_mode(False):
        if isinstance(raw, Tensor):
            return uint8_to_signed(raw)
        patches = values.reshape(*values.shape[:2], -1, raw.patch**2)
        return raw.with_values(uint8_to_signed(patches, _inside(raw)).flatten(2))


def _inside(tokens: Tokens) -> Tensor:
    """1 where a patch shows its picture, 0 elsewhere: float32 that broadcasts to (B, L, 3, p * p)."""
    inside = tokens.mask[..., None]
    # Whole patches are common and their pixels need not be looked at; but asking a GPU would mean to wait for it.
    if not (tokens.sizes.is_cpu and bool((tokens.sizes % tokens.patch == 0).all())):
        inside = inside & pixel_validity(tokens)
    return inside[:, :, None].float()
