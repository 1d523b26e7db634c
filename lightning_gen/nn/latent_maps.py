"""Auto-encoders that work on maps, one latent per square of pixels, for pictures of any sizes.

Pictures of one shape are one batch; what comes out stands in the order in which they came.

Shape letters: N pictures, B of them of one shape, C channels of a latent, H and W height and width in pixels, h and w
of the map, p pixels per latent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.nn.tokens import Tokens, patchify, unpatchify

__all__ = ["by_shape", "fill_up", "latents_of_pictures", "pictures_of_latents", "require_latents"]


def by_shape(tensors: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """Apply a function to batches of tensors of one shape.

    Args:
        tensors: N of any shapes.
        function: of a batch (B, ...) and the places of its rows in the sequence, int64, (B,), to B results.

    Returns:
        N results, in the order of the tensors.
    """
    groups: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        groups.setdefault(tensor.shape, []).append(place)
    out: dict[int, Tensor] = {}
    for places in groups.values():
        batch = torch.stack([tensors[place] for place in places])
        out |= dict(zip(places, function(batch, torch.tensor(places, device=batch.device)), strict=True))
    return [out[place] for place in range(len(tensors))]


def fill_up(images: Tensor, patch: int) -> Tensor:
    """Fill sides that are no multiple of the patch up with mid grey, at the bottom and the right.

    Args:
        images: float, (..., 3, H, W) in [-1, 1].
        patch: p.

    Returns:
        (..., 3, h p, w p).
    """
    return F.pad(images, (0, -images.shape[-1] % patch, 0, -images.shape[-2] % patch))


def latents_of_pictures(pictures: Sequence[Tensor], patch: int, encode: Callable[[Tensor, Tensor], Tensor]) -> Tokens:
    """Latents of pictures, one picture per row.

    Args:
        pictures: N of (3, H, W), of any sizes.
        patch: p.
        encode: of pictures (B, 3, H, W), which it fills up to whole squares, and their places in the sequence, to maps
            (B, C, h, w).

    Returns:
        Unpacked tokens, values (N, largest h w, C).
    """
    maps = by_shape(pictures, encode)
    sizes = torch.tensor([picture.shape[-2:] for picture in pictures], device=maps[0].device)
    return dataclasses.replace(patchify(maps, 1), sizes=sizes, patch=patch)


def pictures_of_latents(latents: Tokens, decode: Callable[[Tensor], Tensor]) -> Tensor | list[Tensor]:
    """Pictures of latents, cut to their sizes.

    Args:
        latents: unpacked, one picture per row.
        decode: of maps (B, C, h, w) to pictures (B, 3, h p, w p).

    Returns:
        (N, 3, H, W) when all sizes are equal, else a list of (3, H, W).
    """
    maps = unpatchify(dataclasses.replace(latents, patch=1, sizes=latents.grid))
    filled = by_shape(maps, lambda batch, places: decode(batch))
    images = [image[:, :height, :width] for image, (height, width) in zip(filled, latents.sizes.tolist(), strict=True)]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


def require_latents(latents: Tokens, patch: int, channels: int, owner: str) -> None:
    """Refuse latents of another auto-encoder.

    Args:
        latents: any.
        patch: p of this one.
        channels: C of this one.
        owner: which one this is, for the message.

    Raises:
        ValueError: another patch or another number of channels.
    """
    if latents.patch != patch or latents.values.shape[-1] != channels:
        raise ValueError(
            f"latents of {latents.values.shape[-1]} channels and {latents.patch} pixels per token are not those of "
            f"{owner}, which has {channels} and {patch}"
        )
