"""Ratings as TrueSkill has them: a Gaussian per player, and what the outcome of a game does to it.

A player's capability is theta ~ N(mu, sigma^2), its performance in a game X ~ N(theta, beta^2), and the better
performance wins; within the draw margin eps neither does. Numbers are plain floats: a game takes a microsecond, which
no tensor does.

Shape letters: K players of one game.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "BETA",
    "DRAW_PROBABILITY",
    "MU",
    "SIGMA",
    "TAU",
    "Rating",
    "draw_margin",
    "draw_moments",
    "inverse_mills",
    "noisy_win_moments",
    "rate_ranking",
    "win_moments",
]

MU: Final = 25.0
SIGMA: Final = 25 / 3
BETA: Final = 25 / 6
TAU: Final = 25 / 300
DRAW_PROBABILITY: Final = 0.10

_NORMAL: Final = NormalDist()
_DENSITY: Final = 1 / math.sqrt(2 * math.pi)
_RATE: Final = math.sqrt(2 / math.pi)
_ROOT_HALF: Final = math.sqrt(0.5)
# Below it t + lambda would lose digits, and the ratio of Mills is taken from its fraction, which is exact by 24 levels.
_TAIL: Final = -4.0
_LEVELS: Final = 24
_SWEEPS: Final = 200
_TOLERANCE: Final = 1e-12


@dataclasses.dataclass(frozen=True)
class Rating:
    """What is known about a player.

    Attributes:
        mean: mu.
        deviation: sigma, > 0.
    """

    mean: float = MU
    deviation: float = SIGMA


def draw_margin(draw_probability: float, performance: float = BETA) -> float:
    """The margin within which a game is a draw.

    eps = Phi^-1((1 + p) / 2) sqrt(2) beta

    Args:
        draw_probability: p, that two equal players draw, in [0, 1).
        performance: beta.

    Returns:
        eps >= 0.

    Raises:
        ValueError: p outside [0, 1).

    Source: TrueSkill, Herbrich et al., NeurIPS 2006.
    """
    if not 0 <= draw_probability < 1:
        raise ValueError(f"a probability of draws lies in [0, 1), got {draw_probability}")
    return _NORMAL.inv_cdf((1 + draw_probability) / 2) * math.sqrt(2) * performance


def inverse_mills(t: float) -> tuple[float, float]:
    """lambda = phi(t) / Phi(t), and lambda + t without cancellation.

    Args:
        t: any number.

    Returns:
        lambda, and r = lambda + t > 0.
    """
    if t >= _TAIL:
        rate = _RATE * math.exp(-0.5 * t * t) / math.erfc(-t * _ROOT_HALF)
        return rate, rate + t
    fraction = 0.0
    for level in range(_LEVELS, 0, -1):
        fraction = level / (fraction - t)
    return fraction - t, fraction


def win_moments(t: float) -> tuple[float, float]:
    """How a win moves a rating.

    v = phi(t) / Phi(t),  w = v (v + t)

    Args:
        t: (mu_w - mu_l - eps) / c,  c^2 = 2 beta^2 + sigma_w^2 + sigma_l^2.

    Returns:
        v > 0, and w in (0, 1).

    Source: TrueSkill, Herbrich et al., NeurIPS 2006.
    """
    rate, ratio = inverse_mills(t)
    return rate, rate * ratio


def noisy_win_moments(t: float, margin: float, certainty: float) -> tuple[float, float]:
    """The same where the outcome may have been noted the wrong way round.

    Z = q Phi(t - e) + (1 - q) Phi(-t - e),  v = Z' / Z,  w = v^2 - Z'' / Z

    Args:
        t: (mu_w - mu_l) / c of the stated winner and loser.
        margin: e = eps / c.
        certainty: q, the probability that the statement is right, in (0, 1).

    Returns:
        v and w; w < 0 where a statement that nobody expected makes the ratings less sure.

    Source: ours: a TrueSkill factor with a flipped label.
    """
    right, wrong = t - margin, -t - margin
    density = certainty * _DENSITY * math.exp(-0.5 * right * right)
    other = (1 - certainty) * _DENSITY * math.exp(-0.5 * wrong * wrong)
    mass = 0.5 * (certainty * math.erfc(-right * _ROOT_HALF) + (1 - certainty) * math.erfc(-wrong * _ROOT_HALF))
    v = (density - other) / mass
    return v, v * v + (right * density + wrong * other) / mass


def draw_moments(t: float, margin: float) -> tuple[float, float]:
    """How a draw moves a rating.

    D = Phi(e - t) - Phi(-e - t),  v = (phi(-e - t) - phi(e - t)) / D
    w = v^2 + ((e - t) phi(e - t) + (e + t) phi(e + t)) / D

    All three are divided by phi(|t| - e) first, so that far draws do not become 0 / 0.

    Args:
        t: (mu_1 - mu_2) / c.
        margin: e = eps / c > 0.

    Returns:
        v, which has the sign of -t, and w in (0, 1).

    Source: TrueSkill, Herbrich et al., NeurIPS 2006.
    """
    far = abs(t)
    ratio = math.exp(-2 * far * margin)
    mass = 1 / inverse_mills(margin - far)[0] - ratio / inverse_mills(-margin - far)[0]
    size = math.expm1(-2 * far * margin) / mass
    w = size * size + ((margin - far) + (margin + far) * ratio) / mass
    return math.copysign(size, -t) if size else 0.0, min(max(w, 0.0), 1.0)


def rate_ranking(
    ratings: Sequence[Rating],
    performance: float = BETA,
    dynamics: float = TAU,
    draw_probability: float = DRAW_PROBABILITY,
) -> list[Rating]:
    """Ratings after one game of K players, the best first.

    X_k ~ N(mu_k, sigma_k^2 + tau^2 + beta^2), and X_k - X_{k+1} > eps for all k: every condition becomes a Gaussian of
    the difference by matching moments, until nothing changes. On this chain it is TrueSkill's message passing.

    Args:
        ratings: of the players, in the order of the ranking, K at least 2.
        performance: beta.
        dynamics: tau, added to every deviation before.
        draw_probability: gives eps.

    Returns:
        New ratings, in the same order.

    Raises:
        ValueError: fewer than two players, or a deviation that is not positive.

    Source: TrueSkill, Herbrich et al., NeurIPS 2006. deviates: iterates to 1e-12 where PyPI ``trueskill`` stops at
        1e-4, and knows no ties in a ranking.
    """
    if len(ratings) < 2 or not all(rating.deviation > 0 for rating in ratings):
        raise ValueError(f"a game has two players at least, with positive deviations, got {list(ratings)}")
    prior = np.array([rating.mean for rating in ratings])
    own = np.array([rating.deviation for rating in ratings]) ** 2 + dynamics**2
    spread = own + performance**2
    differences = np.eye(len(ratings))[:-1] - np.eye(len(ratings))[1:]
    mean, covariance = _condition(prior, spread, differences, draw_margin(draw_probability, performance))
    # Back from performances to capabilities: theta_k given X_k is N(mu + a (X - mu), (1 - a) sigma^2), a = sigma^2 / s.
    gain = own / spread
    means = prior + gain * (mean - prior)
    variances = own * (1 - gain) + gain**2 * np.diag(covariance)
    return [Rating(float(mu), math.sqrt(variance)) for mu, variance in zip(means, variances, strict=True)]


def _condition(
    prior: npt.NDArray[np.float64], spread: npt.NDArray[np.float64], differences: npt.NDArray[np.float64], margin: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and covariance of independent Gaussians given that every difference is larger than the margin."""
    precision, shift = np.zeros(len(differences)), np.zeros(len(differences))
    mean: npt.NDArray[Any] = prior
    covariance: npt.NDArray[Any] = np.diag(spread)
    for _ in range(_SWEEPS):
        before = mean
        for number, row in enumerate(differences):
            variance = float(row @ covariance @ row)
            rest = 1 / (1 / variance - precision[number])
            centre = rest * (float(row @ mean) / variance - shift[number])
            width = math.sqrt(rest)
            v, w = win_moments((centre - margin) / width)
            # The Gaussian factor that turns N(centre, rest) into the moments of its part above the margin.
            precision[number] = w / (rest * (1 - w))
            shift[number] = precision[number] * centre + v / (width * (1 - w))
            covariance = np.linalg.inv(np.diag(1 / spread) + differences.T * precision @ differences)
            mean = covariance @ (prior / spread + differences.T @ shift)
        if np.abs(mean - before).max() < _TOLERANCE * (1 + np.abs(mean).max()):
            break
    return mean, covariance
