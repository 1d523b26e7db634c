"""Attention inside the images of a packed row, by buckets of similar length.

One kernel call per image wastes time on short images, one padded call on long ones. Images sorted by length are
grouped so that the padding inside a bucket costs less than another call would.

Shape letters: B rows, L tokens, H heads, d head width, G images in a bucket, N tokens of its longest image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.nn.sdpa import dot_product_attention
from lightning_gen.nn.tokens import Tokens

__all__ = ["BucketedAttention", "length_buckets"]

_CALL_COST = 64 * 64
"""Price of one more kernel call in query-key pairs. Measured with benchmarks/speed/vitok_v2.py; the optimum is flat."""


class _Bucket(NamedTuple):
    images: int
    longest: int
    key_mask: Tensor | None


def length_buckets(lengths: list[int], call_cost: int = _CALL_COST) -> list[tuple[int, int]]:
    """Group descending lengths so that padding to a bucket's longest stays cheaper than opening another bucket.

    Args:
        lengths: token counts, sorted from long to short.
        call_cost: price of one kernel call in query-key pairs.

    Returns:
        Half-open ranges (first, last) into ``lengths``.
    """
    buckets: list[tuple[int, int]] = []
    first, waste = 0, 0
    for i, length in enumerate(lengths):
        waste += lengths[first] ** 2 - length**2
        if waste > call_cost:
            buckets.append((first, i))
            first, waste = i, 0
    return [*buckets, (first, len(lengths))]


class BucketedAttention:
    """Full attention inside every image of a packed batch, none across images.

    Tokens are brought into the order of the buckets once for all of them: a copy per bucket would give the backward
    pass one gradient of full size per bucket.

    Args:
        tokens: packed tokens; only mask and image are read.
    """

    def __init__(self, tokens: Tokens) -> None:
        image = torch.where(tokens.mask, tokens.image, tokens.num_images).flatten()
        flat = image.argsort(stable=True)
        counts = torch.bincount(image, minlength=tokens.num_images + 1)[: tokens.num_images]
        order = counts.argsort(descending=True, stable=True)
        starts = (counts.cumsum(0) - counts)[order].tolist()
        lengths: list[int] = counts[order].tolist()
        ranges = length_buckets([n for n in lengths if n > 0])
        filled = [_bucket(flat, starts[first:last], lengths[first:last]) for first, last in ranges]
        self._buckets = [bucket for bucket, _, _ in filled]
        self._place = torch.cat([place for _, place, _ in filled])
        real = torch.cat([valid for _, _, valid in filled]).nonzero().squeeze(1)
        self._output = flat.new_full((image.numel(),), self._place.numel())
        self._output[self._place[real]] = real
        self._in_order = torch.equal(self._place, torch.arange(image.numel(), device=flat.device))

    # Every batch has other buckets: compiled, each of them would be a program of its own.
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
        if not self._in_order:
            q, k, v = (x.index_select(0, self._place) for x in (q, k, v))
        sizes = [bucket.images * bucket.longest for bucket in self._buckets]
        parts = []
        for bucket, *grouped in zip(self._buckets, *(torch.split(x, sizes) for x in (q, k, v)), strict=True):
            q, k, v = (x.reshape(bucket.images, bucket.longest, *x.shape[1:]) for x in grouped)
            parts.append(dot_product_attention(q, k, v, bucket.key_mask).flatten(0, 1))
        if not self._in_order:
            parts.append(parts[0].new_zeros(1, *parts[0].shape[1:]))
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        return (joined if self._in_order else joined.index_select(0, self._output)).view(query.shape)


def _bucket(flat: Tensor, starts: list[int], lengths: list[int]) -> tuple[_Bucket, Tensor, Tensor]:
    """One bucket, the flat place in the batch that each of its slots reads, and whether a slot holds a token.

    A slot without a token reads the first of its image: any finite value will do.
    """
    longest = lengths[0]
    step = torch.arange(longest, device=flat.device)
    valid = step < torch.tensor(lengths, device=flat.device)[:, None]
    place = flat[torch.tensor(starts, device=flat.device)[:, None] + torch.where(valid, step, 0)]
    mask = None if lengths[-1] == longest else valid[:, None, None, :]
    return _Bucket(len(lengths), longest, mask), place.flatten(), valid.flatten()
