"""Attention inside a square window of patches, tile by tile: cost and memory linear in the number of tokens.

A tile of query patches sees its own tile and a halo of ``radius`` patches around it. Tiles are taken one band of
rows at a time, so the largest mask is (tiles in a band, queries of a tile, keys of a tile), never (L, L).

Shape letters: B rows, L tokens, H heads, d head width, R and K rows and columns of a patch grid, T tiles of a band.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.nn.sdpa import dot_product_attention
from lightning_gen.nn.tokens import Tokens

__all__ = ["WindowedAttention", "attend_in_window", "window_pairs"]

_TILE = 16
"""Edge of a query tile in patches: at radius 8 a key is read 4 times, a tile is one well-filled kernel call."""


class _Band(NamedTuple):
    query: Tensor  # (T, tile cells) flat token index, -1 = no token
    key: Tensor  # (T, halo cells)
    mask: Tensor  # (T, 1, tile cells, halo cells)


def window_pairs(rows: int, cols: int, radius: int) -> int:
    """Number of query-key pairs with |dr| <= radius and |dc| <= radius on a grid.

    S(R) S(K) with S(n) = sum_i (min(n-1, i+r) - max(0, i-r) + 1)

    Args:
        rows: R.
        cols: K.
        radius: r.

    Returns:
        The number of pairs.
    """

    def along(n: int) -> int:
        return sum(min(n - 1, i + radius) - max(0, i - radius) + 1 for i in range(n))

    return along(rows) * along(cols)


class WindowedAttention:
    """Attention to the patches of the same image at most ``radius`` rows and columns away.

    Args:
        tokens: packed or unpacked tokens in any order; coordinates may start anywhere.
        radius: r in patches; 0 = every token sees itself alone.

    Raises:
        ValueError: the radius is negative, or two tokens of an image share a coordinate.

    Source: arXiv:2605.05331 (2-D sliding window of radius 8 at inference).
    """

    def __init__(self, tokens: Tokens, radius: int) -> None:
        if radius < 0:
            raise ValueError(f"window radius must be 0 or more patches, got {radius}")
        self._radius = radius
        self._tables = [_table(tokens, image) for image in range(tokens.num_images)]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (B, L, H, d).
            key: (B, L, H, d).
            value: (B, L, H, d).

        Returns:
            (B, L, H, d); padding tokens get 0.
        """
        q, k, v = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        found = [attend_in_window(q, k, v, table, table, 0, self._radius) for table in self._tables]
        out = query.new_zeros(q.shape)
        out = out.index_put((torch.cat([place for place, _ in found]),), torch.cat([part for _, part in found]))
        return out.view(query.shape)


def attend_in_window(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, offset: int, radius: int
) -> tuple[Tensor, Tensor]:
    """Windowed attention from one patch grid to another of the same width.

    Args:
        query: (N, H, d).
        key: (M, H, d).
        value: (M, H, d).
        queries: int64, (R, K), which of the N queries sits in a cell, -1 = none.
        keys: int64, (R', K), which of the M keys sits in a cell, -1 = none.
        offset: row of ``keys`` that is level with row 0 of ``queries``.
        radius: r in patches.

    Returns:
        Indices of the queries answered, and their outputs (same order), (n, H, d).
    """
    places, parts = [], []
    for band in _bands(queries, keys, offset, radius):
        seen = band.key.clamp(min=0)
        out = dot_product_attention(query[band.query.clamp(min=0)], key[seen], value[seen], band.mask)
        real = band.query >= 0
        places.append(band.query[real])
        parts.append(out[real])
    return torch.cat(places), torch.cat(parts)


def _table(tokens: Tokens, image: int) -> Tensor:
    """Flat token index at every cell of an image's grid, (R, K), -1 where there is none."""
    place = ((tokens.image == image) & tokens.mask).flatten().nonzero().squeeze(1)
    row, col = tokens.row.flatten()[place], tokens.col.flatten()[place]
    row, col = row - row.min(), col - col.min()
    table = place.new_full((int(row.max()) + 1, int(col.max()) + 1), -1)
    table[row, col] = place
    if int((table >= 0).sum()) != len(place):
        raise ValueError(f"two tokens of image {image} share one patch coordinate: a window is not defined")
    return table


def _bands(queries: Tensor, keys: Tensor, offset: int, radius: int) -> Iterator[_Band]:
    """Cut a query grid into bands of tiles and give every tile its halo of keys."""
    (tile_rows, tile_cols) = (-(-n // -(-n // _TILE)) for n in queries.shape)  # equal shares of at most _TILE
    halo_rows, halo_cols = min(keys.shape[0], tile_rows + 2 * radius), min(keys.shape[1], tile_cols + 2 * radius)
    cells = F.pad(queries, (0, -queries.shape[1] % tile_cols, 0, -queries.shape[0] % tile_rows), value=-1)
    left = torch.arange(0, cells.shape[1], tile_cols, device=cells.device)
    query_col = left[:, None] + torch.arange(tile_cols, device=cells.device)
    # A halo that would stick out is moved inside, so that all tiles of a band have one shape.
    halo_left = (left - radius).clamp(0, keys.shape[1] - halo_cols)
    key_col = halo_left[:, None] + torch.arange(halo_cols, device=cells.device)
    near_cols = (query_col[:, :, None] - key_col[:, None, :]).abs() <= radius
    for top in range(0, cells.shape[0], tile_rows):
        halo_top = min(max(top + offset - radius, 0), keys.shape[0] - halo_rows)
        query_row = torch.arange(top, top + tile_rows, device=cells.device)
        key_row = torch.arange(halo_top, halo_top + halo_rows, device=cells.device)
        query = cells[query_row][:, query_col].transpose(0, 1).flatten(1)
        key = keys[key_row][:, key_col].transpose(0, 1).flatten(1)
        near_rows = (query_row[:, None] + offset - key_row[None, :]).abs() <= radius
        near = near_rows[None, :, None, :, None] & near_cols[:, None, :, None, :]
        near = near.reshape(len(left), query.shape[1], key.shape[1]) & (key >= 0)[:, None, :]
        # A cell without a token sees everything: its output is dropped, but an empty softmax could give NaN gradients.
        near = near | (query < 0)[:, :, None]
        yield _Band(query, key, near[:, None])
