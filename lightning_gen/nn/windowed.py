"""Attention inside a square window of patches, tile by tile: cost and memory linear in the number of tokens.

A tile of query patches sees its own tile and a halo of ``radius`` patches around it. Tiles are taken one column of
tiles at a time: the keys that such a column can see are copied into one strip, in which the halo of every tile is a
contiguous run of rows, so that the kernel reads overlapping views. The largest mask is (tiles of a column, queries of
a tile, keys of a halo), never (L, L).

Shape letters: B rows, L tokens, H heads, d head width, R and K rows and columns of a patch grid, T tiles of a column.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.nn.sdpa import dot_product_attention
from lightning_gen.nn.tokens import Tokens

__all__ = ["WindowedAttention", "attend_in_window", "window_pairs"]

_TILE = 8
"""Edge of a query tile in patches. Measured with benchmarks/speed/vitok_v2.py at radius 8: 16 sees too many keys in
vain, 4 fills the kernel badly."""


class _Strip(NamedTuple):
    """One column of tiles with all keys that it can see.

    A score is visible where the three biases add up to 0: same window of rows, same window of columns, real key.
    """

    query: Tensor  # (T, tile rows * tile columns) flat token index, -1 = no token
    key: Tensor  # (strip rows * halo columns) flat token index, -1 = no token
    row_bias: Tensor  # (T, tile rows, 1, halo rows, 1) 0 or -inf
    col_bias: Tensor  # (tile columns, 1, halo columns) 0 or -inf
    complete: bool  # every cell inside the grids holds a token
    stride: int  # strip rows between the halos of neighbouring tiles; 0 = all tiles see the whole strip

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Outputs of the tiles, (T * tile cells, H, d), from queries (N, H, d) and keys and values (M, H, d)."""
        tiles, cells = self.query.shape
        halo = self.row_bias.shape[3] * self.col_bias.shape[2]
        q = query.index_select(0, self.query.clamp(min=0).flatten()).view(tiles, cells, *query.shape[1:])
        place = self.key.clamp(min=0)
        k, v = (self._halos(x.index_select(0, place), tiles) for x in (key, value))
        bias = (self.row_bias + self.col_bias).to(query.dtype).view(tiles, cells, halo)
        if not self.complete:
            missing = query.new_zeros(self.key.shape).masked_fill(self.key < 0, -torch.inf)
            bias = bias + self._halos(missing, tiles)[:, None]
            # A cell without a token sees everything: its output is dropped, but an empty softmax gives NaN gradients.
            bias = bias.masked_fill((self.query < 0)[:, :, None], 0)
        return dot_product_attention(q, k, v, bias[:, None]).flatten(0, 1)

    def _halos(self, strip: Tensor, tiles: int) -> Tensor:
        """The run of the strip that every tile sees, (T, halo cells, ...), as a view."""
        rows, cols = self.row_bias.shape[3], self.col_bias.shape[2]
        runs = strip.unfold(0, rows * cols, max(1, self.stride) * cols).movedim(-1, 1)
        return runs.expand(tiles, *runs.shape[1:])


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
        tables = [_table(tokens, image) for image in range(tokens.num_images)]
        self._strips = [strip for table in tables for strip in _strips(table, table, 0, radius)]
        self._output = _slots(self._strips, tokens.mask.numel())

    # Every grid has other tiles: compiled, each of them would be a program of its own.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        return _joined([strip.attend(q, k, v) for strip in self._strips], self._output).view(query.shape)


def attend_in_window(
    query: Tensor, key: Tensor, value: Tensor, queries: Tensor, keys: Tensor, offset: int, radius: int
) -> Tensor:
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
        (N, H, d); queries that sit in no cell get 0.
    """
    strips = list(_strips(queries, keys, offset, radius))
    return _joined([strip.attend(query, key, value) for strip in strips], _slots(strips, query.shape[0]))


def _slots(strips: list[_Strip], total: int) -> Tensor:
    """For each of ``total`` tokens its place in the strips' outputs, one after another; behind the end = none."""
    order = torch.cat([strip.query.flatten() for strip in strips])
    slot = order.new_full((total,), order.numel())
    real = order >= 0
    slot[order[real]] = real.nonzero().squeeze(1)
    return slot


def _joined(parts: list[Tensor], slots: Tensor) -> Tensor:
    return torch.cat([*parts, parts[0].new_zeros(1, *parts[0].shape[1:])]).index_select(0, slots)


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


class _Axis(NamedTuple):
    """One axis of a grid, cut into tiles with halos of one size; indices may lie outside the grid."""

    query: Tensor  # (tiles, tile) index along the axis
    key: Tensor  # (tiles, halo)
    bias: Tensor  # (tiles, tile, halo) 0 or -inf
    stride: int


def _axis(queries: int, keys: int, offset: int, radius: int, device: torch.device) -> _Axis:
    tiles = -(-queries // _TILE)
    tile = -(-queries // tiles)  # equal shares of at most _TILE
    left = tile * torch.arange(tiles, device=device)[:, None]
    query = left + torch.arange(tile, device=device)
    # Where a halo would be as long as the axis, all tiles take the axis.
    whole = tile + 2 * radius >= keys
    stride = 0 if whole else tile
    reach = torch.arange(keys if whole else tile + 2 * radius, device=device)
    key = reach.expand(tiles, -1) if whole else left + offset - radius + reach
    seen = ((query + offset)[:, :, None] - key[:, None, :]).abs() <= radius
    seen &= ((key >= 0) & (key < keys))[:, None]
    seen |= (query >= queries)[:, :, None]  # outside the grid nothing is masked: an empty softmax gives NaN gradients
    return _Axis(query, key, torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf), stride)


def _strips(queries: Tensor, keys: Tensor, offset: int, radius: int) -> Iterator[_Strip]:
    """Cut a query grid into columns of tiles and give every column its strip of keys."""
    rows = _axis(queries.shape[0], keys.shape[0], offset, radius, queries.device)
    cols = _axis(queries.shape[1], keys.shape[1], 0, radius, queries.device)
    complete = bool((queries >= 0).all()) and bool((keys >= 0).all())
    strip_rows = rows.key[0] if rows.stride == 0 else torch.cat([rows.key[:-1, : rows.stride].flatten(), rows.key[-1]])
    for query_cols, key_cols, bias in zip(cols.query, cols.key, cols.bias, strict=True):
        query = _cells(queries, rows.query.flatten(), query_cols).view(len(rows.query), -1)
        key = _cells(keys, strip_rows, key_cols).flatten()
        yield _Strip(query, key, rows.bias[:, :, None, :, None], bias[:, None, :], complete, rows.stride)


def _cells(table: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Entries of a table at all pairs of rows and columns, -1 outside."""
    inside = ((row >= 0) & (row < table.shape[0]))[:, None] & ((col >= 0) & (col < table.shape[1]))
    found = table[row.clamp(0, table.shape[0] - 1)[:, None], col.clamp(0, table.shape[1] - 1)]
    return torch.where(inside, found, -1)
