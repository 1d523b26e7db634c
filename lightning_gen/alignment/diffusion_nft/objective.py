"""Negative-aware finetuning on the forward process. t = 0 is clean, t = 1 is noise.

Clean pictures x_0 of the old policy are noised anew; the better a picture, the more the velocity is drawn to where the
picture is, the worse, the more to the mirrored side of the old policy.

Shape letters: B pictures, D numbers of a latent.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_gen.flow import paths

__all__ = [
    "OldPolicySchedule",
    "Weighting",
    "implicit_velocities",
    "nft_losses",
    "old_policy_decay",
    "reference_losses",
    "reward_gradients",
]

OldPolicySchedule = Literal["copy", "ramp", "delayed_ramp"]
"""How the old policy follows the trained one, see :func:`old_policy_decay`."""

Weighting = Literal["adaptive", "none"]
"""Whether a picture's error is divided by its own mean absolute error, see :func:`nft_losses`."""

_LEAST_WEIGHT = 1e-5

_RAMPS = {"ramp": (0, 0.001, 0.5), "delayed_ramp": (75, 0.0075, 0.999)}
"""First step, slope and ceiling."""


def implicit_velocities(v: Tensor, v_old: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The policies for good and for bad pictures that one trained velocity stands for.

    v_plus = (1 - b) v_old + b v;  v_minus = (1 + b) v_old - b v

    Args:
        v: of the trained policy, float, (B, ...).
        v_old: of the policy that made the pictures, no gradient, same shape.
        strength: b > 0; small = a large step of v for the same change of the policies.

    Returns:
        v_plus, v_minus.

    Source: arXiv:2509.16117 eqs. of the implicit policies.
    """
    return (1 - strength) * v_old + strength * v, (1 + strength) * v_old - strength * v


def nft_losses(
    v: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    t: Tensor,
    optimality: Tensor,
    strength: float,
    weighting: Weighting = "adaptive",
) -> Tensor:
    """Loss of every picture at its time.

    l = r / b |x_plus - x_0|^2 / w_plus + (1 - r) / b |x_minus - x_0|^2 / w_minus,  x_plus = x_t - t v_plus
    w = mean |x_plus - x_0|, at least 1e-5, no gradient; 1 without weighting.  |.|^2 is a mean over the D numbers

    Dividing by w turns the squared error into about an absolute one. Its gradient at v = v_old does not depend on b.

    Args:
        v: trained velocity, float, (B, ...).
        v_old: velocity of the old policy, same shape.
        x_t: noised latents.
        x_0: clean latents.
        t: time, (B,).
        optimality: r in [0, 1], (B,); 1/2 = neither good nor bad.
        strength: b.
        weighting: ``adaptive`` as published.

    Returns:
        float32 or float64, (B,); the published loss is their mean times the bound of the advantages.

    Raises:
        ValueError: an unknown weighting.

    Source: arXiv:2509.16117 and its published trainer.
    """
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting is one of {', '.join(get_args(Weighting))}, got {weighting!r}")
    exact = torch.promote_types(v.dtype, torch.float32)
    v, v_old, x_t, x_0 = v.to(exact), v_old.detach().to(exact), x_t.to(exact), x_0.to(exact)
    plus, minus = (
        _error(paths.clean(x_t, implicit, t) - x_0, weighting) for implicit in implicit_velocities(v, v_old, strength)
    )
    share = optimality.to(exact)
    return (share * plus + (1 - share) * minus) / strength


def reward_gradients(
    v: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    t: Tensor,
    optimality: Tensor,
    strength: float,
    weighting: Weighting = "adaptive",
) -> Tensor:
    """How strongly the reward, and nothing else, pulls at the velocity of every picture; for the log.

    |d/dv (l(r) - l(1/2))|, l from :func:`nft_losses`

    Where the old policy is a copy of the trained one, the value of the loss knows nothing of the reward; this does.

    Args:
        v: trained velocity, float, (B, ...).
        v_old: velocity of the old policy, same shape.
        x_t: noised latents.
        x_0: clean latents.
        t: time, (B,).
        optimality: r in [0, 1], (B,).
        strength: b.
        weighting: see :func:`nft_losses`.

    Returns:
        Euclidean norms, (B,), without gradient.

    Source: repository verl-project/verl-omni, issue 568.
    """
    here = v.detach().requires_grad_()
    with torch.enable_grad():
        losses, without = (
            nft_losses(here, v_old, x_t, x_0, t, r, strength, weighting)
            for r in (optimality, torch.full_like(optimality, 0.5))
        )
        [gradient] = torch.autograd.grad((losses - without).sum(), here)
    norms: Tensor = gradient.flatten(1).norm(dim=1)
    return norms


def reference_losses(v: Tensor, v_reference: Tensor) -> Tensor:
    """How far the trained velocity is from that of the reference, picture by picture.

    mean over the numbers of (v - v_ref)^2, without a weight of the time

    Args:
        v: trained velocity, float, (B, ...).
        v_reference: adapters off, no gradient, same shape.

    Returns:
        (B,).

    Source: arXiv:2509.16117, published trainer.
    """
    exact = torch.promote_types(v.dtype, torch.float32)
    return (v.to(exact) - v_reference.detach().to(exact)).square().flatten(1).mean(1)


def old_policy_decay(
    step: int, schedule: OldPolicySchedule, ceiling: float | None = None, slope: float | None = None
) -> float:
    """How much of the old policy stays: old <- d old + (1 - d) trained.

    copy: 0;  ramp: min(0.001 k, 0.5);  delayed_ramp: 0 before step 75, then min(0.0075 (k - 75), 0.999)

    Args:
        step: k, optimiser steps so far.
        schedule: which of the three; the published code numbers them 0, 1, 2.
        ceiling: in [0, 1), in place of 0.5 or 0.999 (arXiv:2605.06507's copy has 0.95 for the ramp).
        slope: per step, > 0, in place of 0.001 or 0.0075; for runs much shorter than the published ones.

    Returns:
        d in [0, 1).

    Raises:
        ValueError: an unknown schedule, or a ceiling or a slope outside its range or without a ramp.

    Source: arXiv:2509.16117, published trainer (schedules); the slope is fixed there.
    """
    if schedule not in get_args(OldPolicySchedule):
        raise ValueError(f"the old policy follows as one of {', '.join(get_args(OldPolicySchedule))}, got {schedule!r}")
    if schedule == "copy":
        if ceiling is not None or slope is not None:
            raise ValueError(f"an old policy that is a copy has neither ceiling nor slope, got {ceiling} and {slope}")
        return 0.0
    start, usual_slope, usual_ceiling = _RAMPS[schedule]
    steep, most = usual_slope if slope is None else slope, usual_ceiling if ceiling is None else ceiling
    if not steep > 0 or not 0 <= most < 1:
        raise ValueError(f"old_policy_slope is positive and old_policy_ceiling in [0, 1), got {steep} and {most}")
    return min(steep * max(step - start, 0), most)


def _error(difference: Tensor, weighting: Weighting) -> Tensor:
    """(B,)."""
    flat = difference.flatten(1)
    error = flat.square().mean(1)
    if weighting == "none":
        return error
    weight = flat.detach().double().abs().mean(1).clamp(min=_LEAST_WEIGHT)
    return error / weight.to(error.dtype)
