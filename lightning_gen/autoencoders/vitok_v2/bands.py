"""Very large images, row band by row band, with exactly the numbers of the whole image.

With a window of radius r, a row of patches needs only r rows above and below it at every layer. Rows enter the first
block in bands; each block keeps the rows that later ones may still ask for (2 r rows of keys and values, r rows of
states) and hands on what is complete. Nothing is computed twice, nothing is approximated, and memory grows with the
width of the image but not with its height.

Shape letters: R rows of patches, K patches in a row, W width, H heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_gen.autoencoders.vitok_v2.network import TransformerStack, ViTokV2Network
from lightning_gen.nn.blocks import ParallelBlock
from lightning_gen.nn.rope import rotary_2d
from lightning_gen.nn.tokens import Tokens
from lightning_gen.nn.windowed import attend_in_window

__all__ = ["decode_in_bands", "encode_in_bands", "transform_in_bands"]


def decode_in_bands(network: ViTokV2Network, latents: Tokens, radius: int, band_rows: int = 16) -> Iterator[Tensor]:
    """Decode one image from top to bottom.

    Args:
        network: the auto-encoder.
        latents: latents of exactly one image.
        radius: window radius in patches.
        band_rows: rows of patches that enter at a time; memory grows with (band_rows + 2 * radius) * K * depth.

    Yields:
        Strips of the image, (3, h, width), not clamped; their heights add up to the height of the image.

    Raises:
        ValueError: there is not exactly one image, or its grid is not complete.
    """
    patch = latents.patch
    height, width = latents.sizes[0].tolist()
    top = 0
    for patches in transform_in_bands(network.decoder, latents, radius, band_rows):
        rows, cols = patches.shape[:2]
        strip = patches.view(rows, cols, 3, patch, patch).permute(2, 0, 3, 1, 4).reshape(3, rows * patch, cols * patch)
        yield strip[:, : height - top, :width]
        top += rows * patch


def encode_in_bands(network: ViTokV2Network, pixels: Tokens, radius: int, band_rows: int = 16) -> Tokens:
    """Latents of one large image.

    Args:
        network: the auto-encoder.
        pixels: patches of exactly one image.
        radius: window radius in patches.
        band_rows: rows of patches that enter at a time.

    Returns:
        Latents of the image, without padding, in raster order.

    Raises:
        ValueError: there is not exactly one image, or its grid is not complete.
    """
    bands = transform_in_bands(network.encoder, pixels, radius, band_rows)
    latents = torch.cat([network.bottleneck(band.flatten(0, 1)[None], None).latent for band in bands], dim=1)
    order = _raster_order(pixels)
    return Tokens(
        values=latents,
        mask=torch.ones_like(order, dtype=torch.bool)[None],
        row=pixels.row.flatten()[order][None],
        col=pixels.col.flatten()[order][None],
        image=torch.zeros_like(order)[None],
        sizes=pixels.sizes,
        patch=pixels.patch,
    )


def transform_in_bands(stack: TransformerStack, tokens: Tokens, radius: int, band_rows: int) -> Iterator[Tensor]:
    """Run a stack of blocks over one image in row bands.

    Args:
        stack: encoder or decoder.
        tokens: one image, values (B, L, inputs).
        radius: window radius r in patches.
        band_rows: rows of patches that enter at a time.

    Yields:
        Outputs of complete rows from top to bottom, (rows, K, outputs).

    Raises:
        ValueError: there is not exactly one image, its grid is not complete, ``band_rows`` is not positive, or blocks
            are sharded or wrapped.
    """
    if band_rows < 1:
        raise ValueError(f"a band needs at least 1 row of patches, got {band_rows}")
    order = _raster_order(tokens)
    rows, cols = tokens.grid[0].tolist()
    values = tokens.values.flatten(0, 1)[order].view(rows, cols, -1)
    row, col = (x.flatten()[order].view(rows, cols) for x in (tokens.row, tokens.col))
    layers = [_BandedBlock(block, radius) for block in stack.blocks]
    for top in range(0, rows, band_rows):
        band = slice(top, min(top + band_rows, rows))
        x: Tensor | None = stack.embed(values[band].to(stack.embed.weight.dtype))
        for layer in layers:
            x = layer.push(x, row, col, stack.head_dim, stack.rope_theta, last=band.stop == rows)
        if x is not None:
            yield stack.head(x)


class _BandedBlock:
    """One block with the rows that it still needs."""

    def __init__(self, block: nn.Module, radius: int) -> None:
        if type(block) is not ParallelBlock:
            raise ValueError(
                f"row bands need plain blocks, found {type(block).__name__}: load the weights without FSDP and without "
                "activation checkpointing, for instance with from_pretrained"
            )
        self._block, self._radius = block, radius
        self._received = self._emitted = 0
        self._pending: list[Tensor] = []  # x, u, q of rows that wait for the rows below them
        self._memory: list[Tensor] = []  # k, v of rows that a later row may still look at
        self._memory_top = 0

    def push(
        self, x: Tensor | None, row: Tensor, col: Tensor, head_dim: int, theta: float, last: bool
    ) -> Tensor | None:
        """Take the next rows (rows, K, W) and give the outputs of those that are complete now, if any."""
        if x is not None:
            band = slice(self._received, self._received + x.shape[0])
            rotary = rotary_2d(row[band], col[band], head_dim, theta, x.dtype)
            u = self._block.norm1(x)
            q, k, v = self._block.attn.project(u, rotary)
            self._pending = _append(self._pending, [x, u, q])
            self._memory = _append(self._memory, [k, v])
            self._received = band.stop
        complete = self._received if last else self._received - self._radius
        if complete <= self._emitted:
            return None
        ready, self._pending = _split(self._pending, complete - self._emitted)
        out = self._finish(*ready)
        self._emitted = complete
        drop = max(0, complete - self._radius - self._memory_top)
        self._memory = [part[drop:] for part in self._memory]
        self._memory_top += drop
        return out

    def _finish(self, x: Tensor, u: Tensor, q: Tensor) -> Tensor:
        key, value = (part.flatten(0, 1) for part in self._memory)
        queries, keys = (_table(part) for part in (q, self._memory[0]))
        offset = self._emitted - self._memory_top
        found = attend_in_window(q.flatten(0, 1), key, value, queries, keys, offset, self._radius)
        mixed = found.view(q.shape).flatten(2)
        branch: Tensor = self._block.layer_scale(self._block.attn.out_proj(mixed) + self._block.ffn(u))
        return x + branch


def _append(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    return [torch.cat(pair) for pair in zip(old, new, strict=True)] if old else new


def _split(parts: list[Tensor], rows: int) -> tuple[list[Tensor], list[Tensor]]:
    # The rest is cloned: a view would keep the memory of the rows that were handed on.
    return [part[:rows] for part in parts], [part[rows:].clone() for part in parts]


def _table(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2])


def _raster_order(tokens: Tokens) -> Tensor:
    if tokens.num_images != 1:
        raise ValueError(f"row bands take one image at a time, got {tokens.num_images}")
    place = tokens.mask.flatten().nonzero().squeeze(1)
    rows, cols = tokens.grid[0].tolist()
    row, col = tokens.row.flatten()[place], tokens.col.flatten()[place]
    cell = (row - row.min()) * cols + col - col.min()
    if not torch.equal(cell.sort().values, torch.arange(rows * cols, device=cell.device)):
        raise ValueError(f"row bands need every token of the {rows} x {cols} grid exactly once")
    return place[cell.argsort()]
