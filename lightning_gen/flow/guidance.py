"""Classifier-free guidance of a velocity: interval of times, rescaling, projection. t = 0 is clean, t = 1 is noise.

Shape letters: B rows, L tokens, C channels, I images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gen.flow import paths
from lightning_gen.flow.solvers import Velocity

__all__ = ["Guidance", "ProjectedGuidance", "combine", "guided", "projected", "projected_guided", "rescaled"]


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
    slot = _slots(guided, image)
    ratio = _spread(conditional, slot) / _spread(guided, slot).clamp(min=torch.finfo(guided.dtype).tiny)
    factor = torch.where(slot > 0, strength * ratio[slot] + (1 - strength), 1.0)
    return guided * _per_entry(factor, guided)


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


@dataclass(frozen=True)
class ProjectedGuidance:
    """Guidance without the part that only makes the picture more intense (adaptive projected guidance).

    Args:
        scale: s; 1 = no guidance.
        low: guidance acts from this time on, 0 = clean.
        high: guidance acts up to this time, 1 = noise.
        parallel: eta, how much of the update along the predicted picture is kept; 1 = plain guidance.
        momentum: beta, weight of the update of the step before; negative pushes away from it.
        largest: r, largest norm of an update over one image; None = no bound.

    Raises:
        ValueError: not 0 <= low <= high <= 1, or a bound that is not positive.

    Source: arXiv:2410.02416, whose values for Stable Diffusion XL are eta 0, beta -0.5, r 15.
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = 1.0
    parallel: float = 0.0
    momentum: float = -0.5
    largest: float | None = 15.0

    def __post_init__(self) -> None:
        Guidance(self.scale, self.low, self.high)
        if self.largest is not None and self.largest <= 0:
            raise ValueError(f"the largest norm of a guidance update must be positive, got {self.largest}")


def projected(update: Tensor, along: Tensor, parallel: float, image: Tensor | None = None) -> Tensor:
    """Shrink the part of an update that points along a picture.

    u_par = (<u, m> / <m, m>) m,  result = u - u_par + eta u_par, inner products over one image

    Args:
        update: u, float, (B, ...), or (B, L, C) where ``image`` is given.
        along: m, same shape.
        parallel: eta.
        image: as for ``rescaled``.

    Returns:
        Same shape; padding unchanged.

    Source: arXiv:2410.02416 eqs. 6 and 7.
    """
    slot = _slots(update, image)
    share = _inner(update, along, slot) / _inner(along, along, slot).clamp(min=torch.finfo(torch.float32).tiny)
    return update - (1 - parallel) * _per_entry(torch.where(slot > 0, share[slot], 0.0), update) * along


def projected_guided(
    conditional: Velocity, unconditional: Velocity, guidance: ProjectedGuidance, image: Tensor | None = None
) -> Velocity:
    """Velocity field with projected guidance, for one run of a solver: it remembers its last update.

    With the predicted pictures m = x - t v:  u = m_c - m_u + beta u_before;  u <- u min(1, r / |u|);
    m = m_c + (s - 1) projected(u, m_c, eta);  v = (x - m) / t

    Args:
        conditional: v_c(x, t).
        unconditional: v_u(x, t), evaluated only where guidance acts.
        guidance: scale, interval and how the update is tamed.
        image: as for ``rescaled``.

    Returns:
        A velocity for the solvers; make a new one for every run.

    Source: arXiv:2410.02416 algorithm 1.
    """
    interval = Guidance(guidance.scale, guidance.low, guidance.high)
    before: Tensor | None = None

    def velocity(x: Tensor, t: float) -> Tensor:
        nonlocal before
        v_c = conditional(x, t)
        if not interval.acts(t):
            return v_c
        m_c = paths.clean(x, v_c, t)
        update = m_c - paths.clean(x, unconditional(x, t), t)
        if before is not None:
            update = update + guidance.momentum * before
        before = update
        if guidance.largest is not None:
            slot = _slots(update, image)
            norm = _inner(update, update, slot).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
            factor = (guidance.largest / norm).clamp(max=1.0)
            update = update * _per_entry(torch.where(slot > 0, factor[slot], 1.0), update)
        update = projected(update, m_c, guidance.parallel, image)
        return paths.velocity_from_clean(x, m_c + (guidance.scale - 1) * update, t)

    return velocity


def _slots(v: Tensor, image: Tensor | None) -> Tensor:
    """Number of the image of every entry plus one; slot 0 collects the padding."""
    return (torch.arange(v.shape[0], device=v.device) if image is None else image) + 1


def _per_entry(factor: Tensor, v: Tensor) -> Tensor:
    return factor.reshape(factor.shape + (1,) * (v.ndim - factor.ndim)).to(v.dtype)


def _inner(a: Tensor, b: Tensor, slot: Tensor) -> Tensor:
    """Inner product of the numbers in every slot, float32 or better, (slots,)."""
    product = a.to(torch.promote_types(a.dtype, torch.float32)) * b
    rows = product.reshape(slot.numel(), -1).sum(1)
    # No more images than entries; asking for the largest index would wait for the device.
    return rows.new_zeros(slot.numel() + 1).index_add(0, slot.flatten(), rows)


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
