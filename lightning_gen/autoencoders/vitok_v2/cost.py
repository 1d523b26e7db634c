"""What a ViTok-v2 model costs, in closed form: multiply-adds and bytes, without building it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gen.autoencoders.vitok_v2.variants import Stack, Variant

__all__ = ["activation_bytes_per_token", "forward_flops", "use_bytes_per_token"]


def forward_flops(variant: Variant, counts: Sequence[int], keys: float | None = None) -> float:
    """Floating-point operations of the matrix products of one forward pass, encoder and decoder.

    sum over images, blocks: n * (2 * (4 W^2 + 3 W M) + 4 * W * n_keys), plus 2 * inputs * outputs of the end layers

    Args:
        variant: the model.
        counts: real tokens n of every image.
        keys: tokens that a query sees; None = its whole image.

    Returns:
        Operations; one multiply-add counts as two.

    Source: counted from the architecture of arXiv:2605.05331.
    """
    ends = 2 * variant.channels * (variant.encoder.width + variant.decoder.width)
    ends += 2 * variant.pixels * (variant.encoder.width + variant.decoder.width)
    total = float(ends * sum(counts))
    for half in (variant.encoder, variant.decoder):
        linear = 2 * (4 * half.width**2 + 3 * half.width * half.hidden)
        total += half.depth * sum(n * (linear + 4 * half.width * (n if keys is None else keys)) for n in counts)
    return total


def activation_bytes_per_token(variant: Variant, activation_checkpointing: bool) -> float:
    """Bytes that the backward pass needs per token, in float32.

    Without checkpointing a block keeps about its input, the normalised input, q, k, v, the attention output (8 W) and
    the two halves and the product of the feed-forward part (4 M); with it, the input of every block and the inside of
    one.

    Args:
        variant: the model.
        activation_checkpointing: whether blocks are computed again in the backward pass.

    Returns:
        An estimate, good to a few tens of percent.
    """

    def inside(half: Stack) -> float:
        return 4.0 * (8 * half.width + 4 * half.hidden)

    halves = (variant.encoder, variant.decoder)
    if activation_checkpointing:
        return sum(4.0 * half.width * half.depth for half in halves) + max(inside(half) for half in halves)
    return sum(half.depth * inside(half) for half in halves)


def use_bytes_per_token(variant: Variant) -> float:
    """Bytes that a token takes at the peak of a pass without gradients, in float32.

    A block then holds its input, the normalised input and the mixed values (3 W), and beside them either q, k and v
    with their rotated copies (8 W) or the two halves, the gate and the product of the feed-forward part (4 M).

    Args:
        variant: the model.

    Returns:
        An estimate, good to about ten percent; pictures and latents themselves are small beside it.
    """
    return max(
        4.0 * (3 * half.width + max(8 * half.width, 4 * half.hidden)) for half in (variant.encoder, variant.decoder)
    )
