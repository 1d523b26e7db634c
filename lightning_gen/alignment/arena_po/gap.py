"""The gap of a pair: how much better the preferred picture is, given that it was preferred.

The difference of two pictures is D ~ N(delta, s^2); that the winner won says D > 0. What is left is a normal cut off
at 0, and everything here is about it: D given D > 0. All functions work element by element, in float32 and float64,
are finite for every argument, and can be differentiated.

Shape letters: P pairs, N nodes of a quadrature. t = delta / s, the difference in standard deviations.
"""

from __future__ import annotations

import functools
import math
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LOGISTIC_SLOPE",
    "GapNormalisation",
    "GapVariance",
    "expected_gap",
    "expected_margin_loss",
    "gap_quantile",
    "gap_variance",
    "hazard",
    "normalise_gaps",
    "pair_scale",
    "win_probability",
]

GapVariance = Literal["performance", "capability"]
"""What a picture is, see :func:`pair_scale`."""

GapNormalisation = Literal["none", "mean", "zscore_clip", "logit"]
"""In what unit gaps enter a loss, see :func:`normalise_gaps`."""

LOGISTIC_SLOPE: Final = math.pi / math.sqrt(6.0)
"""pi / sqrt(3) / sqrt(2): a gap times this over the performance's deviation is in nats of Bradley and Terry."""

# Below these the difference t + lambda cancels, in float32 sooner, and a continued fraction takes its place. n levels
# leave an error of exp(-2 |t| sqrt(n)): 3e-18 at -3, 6e-9 at -1.5. Above _HIGH erfcx would overflow at last.
_LOW_DOUBLE: Final = -3.0
_LOW_SINGLE: Final = -1.5
_HIGH: Final = 5.0
_LEVELS: Final = 45
_CLIP: Final = 3.0
# Steps of Newton's method; enough for 1e-9 in the probability, for quantiles up to 0.999.
_STEPS: Final = 8
# Of a normal's mass 2e-19 lies beyond this many deviations.
_REACH: Final = 9.0


def hazard(t: Tensor) -> tuple[Tensor, Tensor]:
    """lambda = phi(t) / Phi(t), and its sum with t, which is E[D | D > 0] / s.

    t < -3:       r = 1 / (x + 2 / (x + 3 / (x + ...))),  x = -t,  lambda = r + x
    -3 <= t <= 5: lambda = sqrt(2 / pi) / erfcx(-t / sqrt(2)),  r = t + lambda
    t > 5:        lambda = phi(t) / Phi(t)

    with -1.5 in place of -3 in float32.

    Args:
        t: float, any shape, any value.

    Returns:
        lambda and r = t + lambda > 0, the shape of ``t``.

    Source: the ratio of Mills. Largest relative error of r: 3e-15 in float64 and 1.5e-6 in float32, for |t| up to 1e6.
    """
    low = _low(t)
    is_low, is_high = t < low, t > _HIGH
    # Every branch sees arguments that are its own, so that no gradient of another one is infinite.
    x = torch.where(is_low, -t, -low)
    fraction = _rest(x)
    for level in range(_LEVELS, 0, -1):
        fraction = level / (x + fraction)
    middle = torch.where(is_low | is_high, 0.0, t)
    high = torch.where(is_high, t, _HIGH)
    rate = torch.where(
        is_high,
        torch.exp(-0.5 * high.square()) / (math.sqrt(2 * math.pi) * torch.special.ndtr(high)),
        math.sqrt(2 / math.pi) / torch.special.erfcx(-middle * math.sqrt(0.5)),
    )
    return torch.where(is_low, x + fraction, rate), torch.where(is_low, fraction, t + rate)


def expected_gap(delta: Tensor, scale: Tensor) -> Tensor:
    """How much better the winner is expected to be.

    g = E[D | D > 0] = delta + s lambda,  lambda = phi(t) / Phi(t)

    Never negative, also where the weaker model won: then g is small, near s^2 / |delta|.

    Args:
        delta: capability of the winner's model minus that of the loser's, float, (P,).
        scale: s > 0, standard deviation of D, broadcasts with ``delta``.

    Returns:
        (P,), in the unit of ``delta``.

    Source: arXiv:2605.06070, abstract (posterior of a latent gap); the evaluation is ours.
    """
    t = delta / scale
    rate, ratio = hazard(t)
    # Where there is no cancellation, adding to delta itself keeps g >= delta to the last bit.
    return torch.where(t < _low(t), scale * ratio, delta + scale * rate)


def gap_variance(delta: Tensor, scale: Tensor) -> Tensor:
    """How sure the gap is.

    Var[D | D > 0] = s^2 (1 - lambda (lambda + t)),  which is s^2 dg/ddelta;  s^2 / t^2 far below 0

    Args:
        delta: as in :func:`expected_gap`.
        scale: s > 0.

    Returns:
        (P,), in the squared unit of ``delta``.

    Source: moments of a truncated normal; far below 0 the continued fraction is differentiated, so that no series is
        needed in the tail.
    """
    t = delta / scale
    rate, ratio = hazard(t)
    low = _low(t)
    x = torch.where(t < low, -t, -low)
    fraction = _rest(x)
    slope = -fraction / (x + 2 * fraction)
    for level in range(_LEVELS, 0, -1):
        below = x + fraction
        fraction, slope = level / below, -level * (1 + slope) / below.square()
    return scale.square() * torch.where(t < low, -slope, 1 - rate * ratio)


def gap_quantile(delta: Tensor, scale: Tensor, quantile: float) -> Tensor:
    """The gap that D stays below with probability q, given that it was won: careful for q < 0.5, bold above.

    P(D < g | D > 0) = q:   g = delta - s Phi^-1((1 - q) Phi(t)) for t > 0, and below it the root v = g / s of
    log Phi(t) - log Phi(t - v) + log(1 - q), found by Newton's method without ever computing Phi

    Args:
        delta: as in :func:`expected_gap`.
        scale: s > 0.
        quantile: q, in (0, 1).

    Returns:
        (P,), in the unit of ``delta``. The mean, ``expected_gap``, is the quantile 0.5 where a win was sure, 0.575 of
        equals and 0.632 of an upset. For q in [0.01, 0.999] the probability is q to 1e-9 in float64, and float32
        is off by 1e-4 of the gap at most.

    Raises:
        ValueError: a quantile outside (0, 1).

    Source: ours; arXiv:2605.06070 takes the mean.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile lies between 0 and 1, got {quantile}")
    t = delta / scale
    is_upset = t <= 0
    ahead = torch.where(is_upset, 1.0, t)
    direct = ahead - torch.special.ndtri((1 - quantile) * torch.special.ndtr(ahead))
    behind = torch.where(is_upset, t, -1.0)
    left = math.log1p(-quantile)
    v = -left / hazard(behind)[0]
    for _ in range(_STEPS):
        # log Phi(t) - log Phi(t - v): the squares are taken out, since they would cancel.
        tails = [torch.special.erfcx(-place * math.sqrt(0.5)) for place in (behind, behind - v)]
        value = v * (0.5 * v - behind) + torch.log(tails[0] / tails[1]) + left
        v = v - value / hazard(behind - v)[0]
    return scale * torch.where(is_upset, v, direct)


def win_probability(delta: Tensor, scale: Tensor) -> Tensor:
    """P(D > 0) = Phi(delta / s), before anybody looked: for logs, filters and calibration.

    Args:
        delta: as in :func:`expected_gap`.
        scale: s > 0.

    Returns:
        (P,), in [0, 1].
    """
    chance: Tensor = torch.special.ndtr(delta / scale)
    return chance


def pair_scale(variance_w: Tensor, variance_l: Tensor, performance: float, reading: GapVariance) -> Tensor:
    """Standard deviation s of the difference of two pictures.

    performance: s^2 = sigma_w^2 + sigma_l^2 + 2 beta^2     a picture is a performance of its model
    capability:  s^2 = sigma_w^2 + sigma_l^2                a picture is a draw from the capability itself

    The abstract reads like ``capability``. But sigma is the uncertainty of a mean, and with a million comparisons it is
    near 0: gaps of expected winners are then |delta|, and those of upsets and of pairs of one model nothing.
    ``performance`` is what TrueSkill and K-Sort Arena say, and what the abstract says if its deviation is the spread of
    a model's pictures. The most consequential choice of all; both are here.

    Args:
        variance_w: sigma_w^2 >= 0, (P,); with correlated capabilities the variance of their difference.
        variance_l: sigma_l^2 >= 0, (P,); then 0.
        performance: beta of the arena, not that of DPO.
        reading: see above.

    Returns:
        (P,).

    Raises:
        ValueError: an unknown reading, or a performance that is not positive.

    Source: arXiv:2605.06070, abstract; arXiv:2408.14468 (performances).
    """
    if reading not in get_args(GapVariance):
        raise ValueError(f"gap_variance is one of {', '.join(get_args(GapVariance))}, got {reading!r}")
    if not 0 < performance < math.inf:
        raise ValueError(f"the deviation of a performance must be positive, got {performance}")
    own = variance_w + variance_l
    return torch.sqrt(own + 2 * performance**2 if reading == "performance" else own)


def normalise_gaps(gaps: Tensor, how: GapNormalisation, performance: float) -> Tensor:
    """Gaps in the unit of a loss. Statistics are those of the tensor: give all training pairs, never a batch.

    none: g;  mean: g / mean(g);  logit: pi g / (sqrt(6) beta), the gap in nats of Bradley and Terry
    zscore_clip: (g - mean) / deviation, cut off at -3 and 3; half of them are negative, which only offsets allow

    Args:
        gaps: float, (P,), finite.
        how: see above.
        performance: beta of the arena.

    Returns:
        (P,), without a graph: a margin is a constant.

    Raises:
        ValueError: an unknown unit, no gaps, gaps that are NaN or infinite (with their number), or all alike where
            their deviation divides.

    Source: how the paper scales its gaps could not be read; ``mean`` is the choice, for then gamma = 1 is a margin of
        one nat on the average; ``logit`` has nothing to tune.
    """
    if how not in get_args(GapNormalisation):
        raise ValueError(f"gap_norm is one of {', '.join(get_args(GapNormalisation))}, got {how!r}")
    gaps = gaps.detach()
    if gaps.numel() == 0:
        raise ValueError("there are no gaps to normalise")
    if bad := int((~torch.isfinite(gaps)).sum()):
        raise ValueError(
            f"{bad:,} of {gaps.numel():,} gaps are NaN or infinite: make the table again with `lightning arena gaps`"
        )
    # A sum of a million float32 numbers would lose digits.
    exact = gaps.double()
    match how:
        case "none":
            return gaps
        case "logit":
            return gaps * (LOGISTIC_SLOPE / performance)
        case "mean":
            if not (mean := float(exact.mean())) > 0:
                raise ValueError(f"the mean of the gaps is {mean:g}, so none is a unit: look at gap_variance")
            return (exact / mean).to(gaps.dtype)
    deviation = exact.std(correction=0)
    if not deviation > 0:
        raise ValueError(f"all {gaps.numel():,} gaps are {float(exact[0]):g}: zscore_clip has nothing to divide by")
    return ((exact - exact.mean()) / deviation).clamp(-_CLIP, _CLIP).to(gaps.dtype)


def expected_margin_loss(z: Tensor, delta: Tensor, scale: Tensor, strength: float | Tensor, nodes: int = 64) -> Tensor:
    """The margin loss averaged over all that the gap may be.

    E[-log sigmoid(z - gamma D)],  D ~ N(delta, s^2) given D > 0

    by Gauss and Legendre on the stretch that holds all but 1e-18 of the mass, divided by the weights' own sum. With
    s -> 0 it is the loss of the gap itself; an unsure gap costs more, since the loss is convex.

    Args:
        z: logits of the pairs, float, (P,).
        delta: as in :func:`expected_gap`, (P,).
        scale: s > 0, (P,).
        strength: gamma, a number that also holds the unit of the gaps, for instance 1 / mean(g).
        nodes: N; 64 is exact to 1e-10 where gamma s is a few nats at most.

    Returns:
        (P,), in the dtype of ``z``.

    Source: ours. The paper's loss has the mean of the gap alone.
    """
    place, weight = (part.to(z) for part in _legendre(nodes))
    delta, scale = delta.to(z), scale.to(z)
    t = (delta / scale)[..., None]
    above, below = t.clamp(min=0), (-t).clamp(min=0)
    # v = D / s - max(t, 0). Above 0 it is the normal's own coordinate, below it the distance from the cut: the density
    # there falls like exp(-x v - v^2 / 2), and the stretch ends where that is exp(-reach^2 / 2).
    start = -above.clamp(max=_REACH)
    width = above.clamp(max=_REACH) + _REACH**2 / (below + torch.sqrt(below.square() + _REACH**2))
    v = start + width * place
    mass = weight * torch.exp(-0.5 * v.square() - below * v)
    margin = strength * (delta.clamp(min=0)[..., None] + scale[..., None] * v)
    return (mass * F.softplus(margin - z[..., None])).sum(-1) / mass.sum(-1)


def _low(t: Tensor) -> float:
    """Where the fraction begins."""
    return _LOW_DOUBLE if t.dtype == torch.float64 else _LOW_SINGLE


def _rest(x: Tensor) -> Tensor:
    """What the fraction's levels below the last one come to: the root of f = n / (x + f), within 1 / n of it."""
    # The conjugate form: the difference of the root and x would cancel.
    count = _LEVELS + 1
    return 2 * count / (x + torch.sqrt(x.square() + 4 * count))


@functools.cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]."""
    place, weight = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((place + 1) / 2), torch.from_numpy(weight / 2)
