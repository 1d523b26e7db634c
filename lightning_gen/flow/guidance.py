"""Classifier-free guidance of a velocity, with an interval of times and a rescaling. t = 0 is clean, t = 1 is noise.

Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gen.flow.solvers import Velocity

__all__ = ["Guidance", "combine", "guided", "rescaled"]


@dataclass(frozen=True)
class Guidance:
    """How strongly, and when, a condition is exaggerated.

    Args:
        scale: s; 1 = the conditional velocity as it is, at the price of one evaluation per step.
        low: guidance acts from this time on, 0 = clean.
        high: guidance acts up to this time, 1 = noise.
        rescale: how much of the guided velocity gets the spread of the conditional one, 0 = none, 1 = all.

    Raises:
        ValueError: not 0 <= low <= high <= 1, or ``rescale`` is outside [0, 1].

    Source: interval arXiv:2404.07724; rescaling arXiv:2305.08891 section 3.4.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"guidance needs 0 <= low <= high <= 1, got low {self.low} and high {self.high}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance rescale must lie in [0, 1], got {self.rescale}")

    def acts(self, t: float) -> bool:
        """Whether the velocity at a time needs the unconditional network too.

        Args:
            t: time, 0 = clean, 1 = noise.

        Returns:
            False outside the interval (both ends belong to it) and at scale 1.
        """
        return self.scale != 1.0 and self.low <= t <= self.high


def combine(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Walk from the unconditional velocity through the conditional one and beyond.

    v = v_u + s (v_c - v_u)

    Args:
        conditional: v_c, float, any shape.
        unconditional: v_u, same shape.
        scale: s; 0 = unconditional, 1 = conditional.

    Returns:
        v, same shape.

    Source: arXiv:2207.12598 eq. 6, with s = 1 + w.
    """
    return unconditional + scale * (conditional - unconditional)


def rescaled(guided: Tensor, conditional: Tensor, strength: float, image: Tensor | None = None) -> Tensor:
    """Take back the growth in spread that guidance causes (oversaturated pictures).

    v = v_cfg (phi std(v_c) / std(v_cfg) + 1 - phi), standard deviations over one image

    Args:
        guided: v_cfg, float, (B, ...), or (B, L, C) where ``image`` is given.
        conditional: v_c, same shape.
        strength: phi in [0, 1].
        image: int64, (B, L), image of every token, -1 = padding (counts for nothing); None = every row is one image.

    Returns:
        v, same shape; padding unchanged.

    Source: arXiv:2305.08891 eqs. 15 and 16, on velocities.
    """
    if image is None:
        image = torch.arange(guided.shape[0], device=guided.device)
    # Slot 0 collects the padding.
    slot = image + 1
    ratio = _spread(conditional, slot) / _spread(guided, slot).clamp(min=torch.finfo(guided.dtype).tiny)
    factor = torch.where(slot > 0, strength * ratio[slot] + (1 - strength), 1.0)
    return guided * factor.reshape(factor.shape + (1,) * (guided.ndim - factor.ndim)).to(guided.dtype)


def guided(conditional: Velocity, unconditional: Velocity, guidance: Guidance, image: Tensor | None = None) -> Velocity:
    """Velocity field with guidance.

    Args:
        conditional: v_c(x, t).
        unconditional: v_u(x, t), evaluated only where guidance acts.
        guidance: scale, interval and rescaling.
        image: as for ``rescaled``.

    Returns:
        A velocity for the solvers.
    """

    def velocity(x: Tensor, t: float) -> Tensor:
        v_c = conditional(x, t)
        if not guidance.acts(t):
            return v_c
        v = combine(v_c, unconditional(x, t), guidance.scale)
        return rescaled(v, v_c, guidance.rescale, image) if guidance.rescale > 0 else v

    return velocity


def _spread(v: Tensor, slot: Tensor) -> Tensor:
    """Population standard deviation of the numbers in every slot, two passes, float32 or better, (slots,)."""
    flat = v.reshape(slot.numel(), -1)
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    where = slot.flatten()
    slots = where.numel() + 1  # no more images than entries; asking for the largest index would wait for the device

    def mean(per_entry: Tensor) -> Tensor:
        total = per_entry.new_zeros(slots).index_add(0, where, per_entry)
        count = torch.bincount(where, minlength=slots).clamp(min=1)
        return total / count

    centred = flat - mean(flat.mean(1))[where, None]
    return mean(centred.square().mean(1)).sqrt()
