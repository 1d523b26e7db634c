"""Images as sequences of tokens: the one currency of the house.

Shape letters: B rows of a batch, L tokens in a row, D numbers per token, I images, C colour channels, p patch edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

__all__ = [
    "Tokens",
    "join_images",
    "pack",
    "pad_to",
    "patchify",
    "pixel_validity",
    "split_images",
    "unpack",
    "unpatchify",
]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A batch of token sequences with the place every token has in its image.

    Patchified pixels, latents and transformer states are all ``Tokens``. Padding has ``mask`` False, ``image`` -1 and
    may hold any finite garbage. An *unpacked* batch has one image per row (I = B); a *packed* one has several.

    Attributes:
        values: float, (B, L, D). Patch vectors are ordered channel, row, column (C-P-P).
        mask: bool, (B, L), True = a real token.
        row: int64, (B, L), patch row inside the image.
        col: int64, (B, L), patch column inside the image.
        image: int64, (B, L), index into ``sizes`` of the image a token belongs to, -1 = padding.
        sizes: int64, (I, 2), height and width in pixels before padding to a multiple of the patch.
        patch: patch edge p in pixels.
    """

    values: Tensor
    mask: Tensor
    row: Tensor
    col: Tensor
    image: Tensor
    sizes: Tensor
    patch: int

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.mask.shape != self.values.shape[:2]:
            raise ValueError(
                f"Tokens need values of shape (B, L, D) and a mask of shape (B, L); got {tuple(self.values.shape)} "
                f"and {tuple(self.mask.shape)}"
            )

    @property
    def num_images(self) -> int:
        """Number of images I."""
        return self.sizes.shape[0]

    @property
    def grid(self) -> Tensor:
        """Patch grid ceil(size / p) of every image, int64, (I, 2)."""
        return -(-self.sizes // self.patch)

    def with_values(self, values: Tensor) -> Tokens:
        """The same tokens carrying other numbers.

        Args:
            values: float, (B, L, D') for any D'.

        Returns:
            Tokens that share mask, coordinates and sizes with this one.
        """
        return dataclasses.replace(self, values=values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        """Copy every tensor to a device.

        Args:
            device: where to.
            non_blocking: overlap the copy with computation where the memory is pinned.

        Returns:
            Tokens on that device.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Tokens:
        """Copy every tensor to page-locked memory.

        Returns:
            Tokens in pinned host memory.
        """
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        tensors, patch = _flatten(self)
        return _unflatten(map(change, tensors), patch)


def _flatten(tokens: Tokens) -> tuple[list[Tensor], int]:
    return [getattr(tokens, f.name) for f in dataclasses.fields(tokens) if f.name != "patch"], tokens.patch


def _unflatten(tensors: Iterable[Tensor], patch: int) -> Tokens:
    # Whatever walks a tree may put placeholders at the leaves, so the checks of the constructor are skipped.
    tokens = object.__new__(Tokens)
    for field, value in zip(dataclasses.fields(Tokens), (*tensors, patch), strict=True):
        object.__setattr__(tokens, field.name, value)
    return tokens


# FSDP looks for tensors in the arguments and results of a module: without this it would not see into Tokens.
pytree.register_pytree_node(Tokens, _flatten, _unflatten)


def patchify(images: Tensor | Sequence[Tensor], patch: int, length: int | None = None) -> Tokens:
    """Cut images of any sizes into patches, one image per row.

    Each image is padded at the bottom and the right with 0 (mid grey) to a multiple of p, then token (r, k) holds
    ``image[c, r*p + i, k*p + j]`` at position ``c*p*p + i*p + j``.

    Args:
        images: float, (B, C, H, W) or a sequence of (C, H, W) of any sizes, range [-1, 1].
        patch: patch edge p in pixels.
        length: row length L to pad to; default: the longest image.

    Returns:
        Unpacked tokens with D = C * p * p.

    Raises:
        ValueError: an image needs more than ``length`` tokens, or there is no image.

    Source: arXiv:2605.05331 section on native resolution; layout of the published weights.
    """
    if len(images) == 0:
        raise ValueError("patchify needs at least one image")
    single = [_patches(image, patch) for image in images]
    counts = [values.shape[0] for values, _, _ in single]
    length = max(counts) if length is None else length
    if max(counts) > length:
        worst = counts.index(max(counts))
        raise ValueError(
            f"image {worst} of size {tuple(images[worst].shape[-2:])} needs {counts[worst]} tokens of "
            f"{patch} x {patch} pixels, but a row holds {length}: resize it to the token budget first"
        )
    device = images[0].device
    valid = torch.arange(length, device=device) < torch.tensor(counts, device=device)[:, None]
    index = torch.arange(len(counts), device=device)[:, None].expand(-1, length)

    def padded(part: int) -> Tensor:
        tensors = [item[part] for item in single]
        return torch.stack([F.pad(x, (0, 0) * (x.ndim - 1) + (0, length - len(x))) for x in tensors])

    return Tokens(
        values=padded(0),
        mask=valid,
        row=padded(1),
        col=padded(2),
        image=torch.where(valid, index, -1),
        sizes=torch.tensor([image.shape[-2:] for image in images], device=device),
        patch=patch,
    )


def _patches(image: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    channels, height, width = image.shape
    image = F.pad(image, (0, -width % patch, 0, -height % patch))
    rows, cols = image.shape[1] // patch, image.shape[2] // patch
    blocks = image.reshape(channels, rows, patch, cols, patch).permute(1, 3, 0, 2, 4)
    row, col = torch.meshgrid(
        torch.arange(rows, device=image.device), torch.arange(cols, device=image.device), indexing="ij"
    )
    return blocks.reshape(rows * cols, channels * patch * patch), row.flatten(), col.flatten()


def unpatchify(tokens: Tokens) -> list[Tensor]:
    """Put patches back where their coordinates say and crop every image to its size.

    Works on packed and unpacked tokens in any order. Padding never touches an image, and a cell that no token
    covers is 0. Differentiable.

    Args:
        tokens: patch vectors, D = C * p * p.

    Returns:
        One (C, H, W) image per entry of ``tokens.sizes``.

    Raises:
        ValueError: a token lies outside its image's grid, or D is not a multiple of p * p.
    """
    patch, grid = tokens.patch, tokens.grid
    channels, rest = divmod(tokens.values.shape[-1], patch * patch)
    if rest:
        raise ValueError(f"{tokens.values.shape[-1]} numbers per token are not whole {patch} x {patch} patches")
    owner = tokens.image.clamp(min=0)
    outside = (tokens.row < 0) | (tokens.col < 0) | (tokens.row >= grid[owner, 0]) | (tokens.col >= grid[owner, 1])
    if bool((outside & tokens.mask).any()):
        raise ValueError("a token lies outside the patch grid of its image: row and col must start at 0")
    cells = grid.prod(1)
    first = cells.cumsum(0) - cells
    total = int(cells.sum())
    # Padding goes to a slot of its own behind the last image, so that it cannot overwrite token (0, 0).
    slot = torch.where(tokens.mask, first[owner] + tokens.row * grid[owner, 1] + tokens.col, total)
    canvas = tokens.values.new_zeros(total + 1, tokens.values.shape[-1])
    canvas = canvas.index_put((slot.flatten(),), tokens.values.flatten(0, 1))
    pieces = torch.split(canvas[:total], cells.tolist())
    return [
        piece.view(rows, cols, channels, patch, patch)
        .permute(2, 0, 3, 1, 4)
        .reshape(channels, rows * patch, cols * patch)[:, :height, :width]
        for piece, (rows, cols), (height, width) in zip(pieces, grid.tolist(), tokens.sizes.tolist(), strict=True)
    ]


def pad_to(tokens: Tokens, length: int) -> Tokens:
    """Lengthen every row with padding.

    Args:
        tokens: packed or unpacked tokens, rows of L.
        length: new row length, at least L.

    Returns:
        The same tokens in rows of ``length``; new values and coordinates are 0.

    Raises:
        ValueError: ``length`` is shorter than the rows are.
    """
    extra = length - tokens.values.shape[1]
    if extra < 0:
        raise ValueError(f"rows of {tokens.values.shape[1]} tokens cannot be padded to {length}")
    return dataclasses.replace(
        tokens,
        values=F.pad(tokens.values, (0, 0, 0, extra)),
        mask=F.pad(tokens.mask, (0, extra)),
        row=F.pad(tokens.row, (0, extra)),
        col=F.pad(tokens.col, (0, extra)),
        image=F.pad(tokens.image, (0, extra), value=-1),
    )


def pack(tokens: Tokens, length: int | None = None) -> Tokens:
    """Lay the images one after another, without padding between them, from long to short.

    First fit of descending lengths fills the rows; images of one length become neighbours, which lets packed
    attention run on views.

    Args:
        tokens: packed or unpacked tokens.
        length: capacity of a row; default: one row that holds everything.

    Returns:
        Packed tokens; the numbering of the images stays.

    Raises:
        ValueError: one image alone is longer than ``length``.
    """
    counts = _counts(tokens)
    length = sum(counts) if length is None else length
    if max(counts) > length:
        raise ValueError(f"image {counts.index(max(counts))} has {max(counts)} tokens, a packed row holds {length}")
    free: list[int] = []
    start = [0] * len(counts)
    for image in sorted(range(len(counts)), key=lambda i: -counts[i]):
        place = next((i for i, room in enumerate(free) if room >= counts[image]), len(free))
        if place == len(free):
            free.append(length)
        start[image] = place * length + length - free[place]
        free[place] -= counts[image]
    return _rearrange(tokens, counts, start, rows=len(free), length=length)


def unpack(tokens: Tokens, length: int | None = None) -> Tokens:
    """Give every image a row of its own again: the inverse of ``pack``.

    Args:
        tokens: packed or unpacked tokens.
        length: row length to pad to; default: the longest image.

    Returns:
        Unpacked tokens, row i is image i.

    Raises:
        ValueError: an image is longer than ``length``.
    """
    counts = _counts(tokens)
    length = max(counts) if length is None else length
    if max(counts) > length:
        raise ValueError(f"image {counts.index(max(counts))} has {max(counts)} tokens, a row holds {length}")
    return _rearrange(tokens, counts, [i * length for i in range(len(counts))], rows=len(counts), length=length)


def split_images(tokens: Tokens) -> list[Tokens]:
    """Every image alone, in a row without padding.

    Args:
        tokens: packed or unpacked tokens.

    Returns:
        One batch of a single row per image, in the order of the images.
    """
    single = unpack(tokens)
    parts = []
    for image, count in enumerate(_counts(tokens)):
        values, mask, row, col, owner = (
            part[image : image + 1, :count]
            for part in (single.values, single.mask, single.row, single.col, single.image)
        )
        size = single.sizes[image : image + 1]
        parts.append(Tokens(values, mask, row, col, torch.zeros_like(owner), size, tokens.patch))
    return parts


def join_images(batches: Sequence[Tokens]) -> Tokens:
    """One batch of several, rows padded to the longest; images are numbered on.

    Args:
        batches: packed or unpacked tokens of one patch edge and one D.

    Returns:
        Tokens with the rows of all batches.
    """
    length = max(tokens.values.shape[1] for tokens in batches)
    padded = [pad_to(tokens, length) for tokens in batches]
    first = [0]
    for tokens in batches:
        first.append(first[-1] + tokens.num_images)
    image = [torch.where(t.image < 0, t.image, t.image + before) for t, before in zip(padded, first, strict=False)]
    return Tokens(
        values=torch.cat([t.values for t in padded]),
        mask=torch.cat([t.mask for t in padded]),
        row=torch.cat([t.row for t in padded]),
        col=torch.cat([t.col for t in padded]),
        image=torch.cat(image),
        sizes=torch.cat([t.sizes for t in padded]),
        patch=padded[0].patch,
    )


def pixel_validity(tokens: Tokens) -> Tensor:
    """Which pixels of a patch lie inside the image; the others fill patches at its edge.

    Args:
        tokens: packed or unpacked tokens.

    Returns:
        bool, (B, L, p * p), row by row; undefined in padding.
    """
    step = torch.arange(tokens.patch, device=tokens.mask.device)
    size = tokens.sizes[tokens.image.clamp(min=0)]
    inside_rows = tokens.row[..., None] * tokens.patch + step < size[..., :1]
    inside_cols = tokens.col[..., None] * tokens.patch + step < size[..., 1:]
    return (inside_rows[..., :, None] & inside_cols[..., None, :]).flatten(-2)


def _counts(tokens: Tokens) -> list[int]:
    counts: list[int] = torch.bincount(tokens.image[tokens.mask], minlength=tokens.num_images).tolist()
    if min(counts, default=0) == 0:
        raise ValueError(f"image {counts.index(0) if counts else 0} has no token")
    return counts


def _rearrange(tokens: Tokens, counts: Sequence[int], start: Sequence[int], rows: int, length: int) -> Tokens:
    """Move the tokens of image i, in their order, to the flat positions from start[i] on of a (rows, length) batch."""
    device = tokens.mask.device
    source = tokens.mask.flatten().nonzero().squeeze(1)
    source = source[tokens.image.flatten()[source].argsort(stable=True)]
    count = torch.tensor(counts, device=device)
    before = torch.repeat_interleave(count.cumsum(0) - count, count)
    within = torch.arange(len(source), device=device) - before
    target = torch.repeat_interleave(torch.tensor(start, device=device), count) + within

    def moved(tensor: Tensor, fill: int = 0) -> Tensor:
        flat = tensor.flatten(0, 1)
        out = flat.new_full((rows * length, *flat.shape[1:]), fill)
        return out.index_put((target,), flat[source]).view(rows, length, *flat.shape[1:])

    return dataclasses.replace(
        tokens,
        values=moved(tokens.values),
        mask=moved(tokens.mask),
        row=moved(tokens.row),
        col=moved(tokens.col),
        image=moved(tokens.image, -1),
    )
