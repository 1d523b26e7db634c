"""From games to capabilities: one pass of TrueSkill, expectation propagation without an order, Laplace.

All three believe the same: capabilities theta_m ~ N(mu_0, sigma_0^2), performances X ~ N(theta, beta^2), and the stated
winner had the better performance by more than eps, but for a statement that is wrong with probability 1 - q.

Shape letters: M models, N games, K kinds of games (same winner, loser and q). d = theta_winner - theta_loser.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_gen.alignment.arena_po.gap import hazard
from lightning_gen.metrics.ratings import draw_moments, noisy_win_moments, win_moments

__all__ = [
    "DRAW",
    "Capabilities",
    "Games",
    "ThurstoneModel",
    "cavity",
    "game_moments",
    "grouped",
    "solve_batch_ep",
    "solve_laplace",
    "solve_sequential",
]

DRAW: Final = -1.0
"""What stands in place of a certainty where nobody won."""

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

_RATE: Final = math.sqrt(2 / math.pi)
_ROOT_HALF: Final = math.sqrt(0.5)
_FAR: Final = -4.0
_CHUNK: Final = 1 << 16
_STEPS: Final = 500
_TOLERANCE: Final = 1e-10
_DAMPING: Final = 0.7
_CAVITY_STEPS: Final = 60


@dataclasses.dataclass(frozen=True)
class ThurstoneModel:
    """What is believed before the first game.

    Attributes:
        prior_mean: mu_0.
        prior_deviation: sigma_0.
        performance: beta, deviation of a picture around its model's capability.
        dynamics: tau, by which every deviation grows before a game; only one pass of TrueSkill knows time.
        margin: eps, below which a difference of performances is a draw.
    """

    prior_mean: float
    prior_deviation: float
    performance: float
    dynamics: float = 0.0
    margin: float = 0.0


class Games(NamedTuple):
    """Games in the order in which they were played.

    Attributes:
        winner: int64, (N,), numbers of the models; of a draw either.
        loser: int64, (N,), never the winner's.
        certainty: float64, (N,), q in (0.5, 1], or :data:`DRAW`.
        times: float64, (N,), how many such games there were; 1 but for :func:`grouped` games.
    """

    winner: _Ints
    loser: _Ints
    certainty: _Floats
    times: _Floats


class Capabilities(NamedTuple):
    """What is believed afterwards.

    Attributes:
        mean: float64, (M,).
        covariance: float64, (M, M); diagonal after one pass of TrueSkill, which ignores the rest.
    """

    mean: _Floats
    covariance: _Floats


def grouped(games: Games) -> Games:
    """Games of one kind as one row with their number; their order is lost.

    Args:
        games: N of them.

    Returns:
        K rows, sorted.
    """
    # Of a draw neither side is the winner: the smaller number stands first.
    is_draw = games.certainty == DRAW
    first = np.where(is_draw, np.minimum(games.winner, games.loser), games.winner)
    second = np.where(is_draw, np.maximum(games.winner, games.loser), games.loser)
    levels, level = np.unique(games.certainty, return_inverse=True)
    size = int(max(first.max(), second.max())) + 1
    kind, place = np.unique((first * size + second) * len(levels) + level, return_inverse=True)
    pair = kind // len(levels)
    return Games(pair // size, pair % size, levels[kind % len(levels)], _sums(place, games.times, len(kind)))


def solve_sequential(games: Games, models: int, belief: ThurstoneModel, fixed: Sequence[int] = ()) -> Capabilities:
    """TrueSkill: every game once, in order.

    c^2 = 2 beta^2 + sigma_w^2 + sigma_l^2,  t = (mu_w - mu_l) / c,  v, w: see ``metrics/ratings.py``
    mu_w += sigma_w^2 / c v,  mu_l -= sigma_l^2 / c v,  sigma^2 *= 1 - sigma^2 / c^2 w,  after sigma^2 += tau^2

    Args:
        games: N of them.
        models: M.
        belief: see there.
        fixed: models that stand for many: others learn from games against them, they never do.

    Returns:
        Means and variances; no covariances.

    Source: arXiv:2605.06070 traverses all pairs; TrueSkill's update for two players is exact moment matching of a game.
    """
    mean = [belief.prior_mean] * models
    variance = [belief.prior_deviation**2] * models
    unmoved = frozenset(fixed)
    noise, drift, margin = 2 * belief.performance**2, belief.dynamics**2, belief.margin
    sqrt, exp, erfc = math.sqrt, math.exp, math.erfc
    # 0 = a certain win of one model over another: all that most data sets have.
    kind = np.where(games.certainty == 1.0, 0.0, games.certainty)
    if unmoved:
        met = np.isin(games.winner, list(unmoved)) | np.isin(games.loser, list(unmoved))
        kind = np.where(met, games.certainty, kind)
    for start in range(0, len(kind), _CHUNK):
        part = slice(start, start + _CHUNK)
        for i, j, q in zip(games.winner[part].tolist(), games.loser[part].tolist(), kind[part].tolist(), strict=True):
            mine, theirs = variance[i] + drift, variance[j] + drift
            total = noise + mine + theirs
            c = sqrt(total)
            if q:
                v, w = _special(mean[i] - mean[j], margin, c, q)
            else:
                t = (mean[i] - mean[j] - margin) / c
                if t > _FAR:
                    v = _RATE * exp(-0.5 * t * t) / erfc(-t * _ROOT_HALF)
                    w = v * (v + t)
                else:
                    v, w = win_moments(t)
            v /= c
            w /= total
            if i not in unmoved:
                mean[i] += mine * v
                variance[i] = mine * (1 - mine * w)
            if j not in unmoved:
                mean[j] -= theirs * v
                variance[j] = theirs * (1 - theirs * w)
    return Capabilities(np.array(mean), np.diag(np.array(variance)))


def _special(difference: float, margin: float, c: float, certainty: float) -> tuple[float, float]:
    """v and w of a draw, of an uncertain win, or of a certain one against a fixed model."""
    if certainty == DRAW:
        return draw_moments(difference / c, margin / c)
    if certainty == 1.0:
        return win_moments((difference - margin) / c)
    return noisy_win_moments(difference / c, margin / c, certainty)


def game_moments(t: Tensor, margin: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Z, v and w of many games at once; the formulas of ``metrics/ratings.py``.

    Args:
        t: difference of the means over its deviation c, float64, (K,).
        margin: eps / c, (K,).
        certainty: q or :data:`DRAW`, (K,).

    Returns:
        (K,) each.
    """
    is_draw, is_sure = certainty == DRAW, certainty == 1.0
    right, wrong = t - margin, -t - margin
    rate, ratio = hazard(right)
    if bool(is_sure.all()):
        return torch.special.log_ndtr(right), rate, rate * ratio
    q = torch.where(is_draw, 1.0, certainty)
    log_right, log_wrong = torch.special.log_ndtr(right), torch.special.log_ndtr(wrong)
    # In logarithms: either side alone may be too small for a number.
    log_mass = torch.where(is_sure, log_right, torch.logaddexp(q.log() + log_right, torch.log1p(-q) + log_wrong))
    share = torch.exp(q.log() + log_right - log_mass)
    back, _ = hazard(wrong)
    v = share * rate - (1 - share) * back
    w = torch.where(is_sure, rate * ratio, v.square() + share * right * rate + (1 - share) * wrong * back)
    if not bool(is_draw.any()):
        return log_mass, v, w
    far = t.abs()
    between = torch.exp(-2 * far * margin)
    mass = 1 / hazard(margin - far)[0] - between / hazard(-margin - far)[0]
    # Without a margin there are no draws; the branch must only stay finite.
    mass = torch.where(is_draw, mass, 1.0)
    size = torch.expm1(-2 * far * margin) / mass
    curve = (size.square() + ((margin - far) + (margin + far) * between) / mass).clamp(0, 1)
    log_draw = mass.log() - 0.5 * (far - margin).square() - 0.5 * math.log(2 * math.pi)
    return (
        torch.where(is_draw, log_draw, log_mass),
        torch.where(is_draw, size * t.sign(), v),
        torch.where(is_draw, curve, w),
    )


def solve_batch_ep(games: Games, models: int, belief: ThurstoneModel, fixed: Sequence[int] = ()) -> Capabilities:
    """Expectation propagation over all games at once, with the full covariance; no order, no pass counts twice.

    Every game becomes a Gaussian factor of d with precision pi and shift nu, such that the posterior with the game's
    own factor taken out and the game put in has the posterior's moments. Games of one kind have one factor, so that a
    step costs K and M^3, not N.

    Args:
        games: N or :func:`grouped`.
        models: M.
        belief: see there; ``dynamics`` has no meaning here.
        fixed: see :func:`solve_sequential`.

    Returns:
        Means and covariance.

    Raises:
        ValueError: the steps do not settle; the message says what may help.

    Source: Minka, UAI 2001, of the model of arXiv:2605.06070; ours in place of its single pass.
    """
    kinds = _Kinds.of(games, models, belief, fixed)
    precision, shift = np.zeros(len(kinds.times)), np.zeros(len(kinds.times))
    mean, covariance = kinds.posterior(precision, shift)
    damping = _DAMPING
    for step in range(_STEPS):
        new = kinds.factors(*kinds.without(mean, covariance, precision, shift))
        trial = [old + damping * (one - old) for old, one in zip((precision, shift), new, strict=True)]
        try:
            found = kinds.posterior(*trial)
        except np.linalg.LinAlgError:
            # Factors of doubtful statements can have a negative precision; smaller steps keep the sum positive.
            damping /= 2
            continue
        precision, shift = trial
        # Of means alone an even score would settle at once, with a variance far from its own.
        before, after = kinds.difference(mean, covariance), kinds.difference(*found)
        change = float(max(np.abs(after[0] - before[0]).max(), np.abs(after[1] ** 0.5 - before[1] ** 0.5).max()))
        mean, covariance = found
        if change < _TOLERANCE * belief.prior_deviation:
            return kinds.spread_out(mean, covariance)
        if step % 50 == 49:
            damping *= 0.7
    raise ValueError(
        f"batch_ep did not settle in {_STEPS} steps (the last moved by {change:.1e}): try solver laplace, or "
        "look at the certainties of the outcomes"
    )


def solve_laplace(games: Games, models: int, belief: ThurstoneModel, fixed: Sequence[int] = ()) -> Capabilities:
    """The most likely capabilities of Thurstone's model, and the curvature there as their covariance.

    maximise sum log Z((theta_w - theta_l) / (sqrt(2) beta)) - |theta - mu_0|^2 / (2 sigma_0^2)  by Newton's method

    Args:
        games: N or :func:`grouped`.
        models: M.
        belief: see there; ``dynamics`` has no meaning here.
        fixed: see :func:`solve_sequential`; their deviation counts as noise of the game.

    Returns:
        Means and covariance.

    Raises:
        ValueError: the steps do not settle.

    Source: Thurstone, Psychological Review 34, 1927, with a Gaussian prior; ours in place of a single pass. deviates:
        curvatures of doubtful statements are taken as 0 where they are negative.
    """
    kinds = _Kinds.of(games, models, belief, fixed)
    mean = np.zeros(models)
    best, slope, curve = kinds.likelihood(mean)
    for _ in range(_STEPS):
        _, covariance = kinds.posterior(curve, np.zeros_like(curve))
        gradient = kinds.summed(slope) - mean / belief.prior_deviation**2
        gradient[kinds.fixed] = 0
        step, size = covariance @ gradient, 1.0
        while True:
            trial = mean + size * step
            value, new_slope, new_curve = kinds.likelihood(trial)
            if value >= best - 1e-12 * abs(best) or size < 1e-6:
                break
            size /= 2
        mean, best, slope, curve = trial, value, new_slope, new_curve
        if float(np.abs(size * step).max()) < _TOLERANCE * belief.prior_deviation:
            return kinds.spread_out(mean, kinds.posterior(curve, np.zeros_like(curve))[1])
    raise ValueError(f"laplace did not settle in {_STEPS} steps: try solver batch_ep")


def cavity(
    mean: _Floats, variance: _Floats, games: Games, belief: ThurstoneModel, doubt: _Floats | float = 0.0
) -> tuple[_Floats, _Floats]:
    """What the arena would say of d had it not seen one game of a kind.

    The Gaussian factor of the game is the one that its own cavity asks for; found by repetition. It is the very factor
    where :func:`solve_batch_ep` has settled, and close to it after :func:`solve_laplace`. After a single pass it is
    none: that posterior is no product of factors.

    Args:
        mean: of d, float64, (K,).
        variance: of d, (K,).
        games: of every row one.
        belief: see there.
        doubt: noise of the games beyond 2 beta^2, the variance of fixed models, (K,); it is no part of ``variance``.

    Returns:
        Mean and variance of d without the game, (K,) each.
    """
    parts = (mean, variance, games.certainty)
    posterior_mean, posterior, certainty = (torch.from_numpy(np.ascontiguousarray(one)) for one in parts)
    noise = torch.from_numpy(np.broadcast_to(2 * belief.performance**2 + doubt, mean.shape).copy())
    centre, rest = posterior_mean, posterior
    for _ in range(_CAVITY_STEPS):
        precision, shift = _factor(centre, rest, noise, belief.margin, certainty)
        # A factor that says more than the posterior cannot be taken out of it: at most nine tenths are.
        precision = torch.minimum(precision, 0.9 / posterior)
        wanted = 1 / (1 / posterior - precision)
        rest = 0.5 * rest + 0.5 * wanted
        centre = 0.5 * centre + 0.5 * wanted * (posterior_mean / posterior - shift)
    return centre.numpy(), rest.numpy()


def _factor(centre: Tensor, rest: Tensor, noise: Tensor, margin: float, certainty: Tensor) -> tuple[Tensor, Tensor]:
    """Precision and shift of the Gaussian factor of d that stands for a game, where the rest says N(centre, rest)."""
    total = noise + rest
    c = total.sqrt()
    _, v, w = game_moments(centre / c, margin / c, certainty)
    kept = 1 - rest * w / total
    precision = w / total / kept
    return precision, precision * centre + v / c / kept


def _sums(place: _Ints, values: _Floats, size: int) -> _Floats:
    """Sums of the values that have one place."""
    return np.bincount(place, values, size).astype(np.float64)


class _Kinds(NamedTuple):
    """Kinds of games as arrays; capabilities are counted from the prior's mean, where fixed models stay."""

    winner: _Ints
    loser: _Ints
    certainty: Tensor
    times: _Floats
    noise: Tensor
    fixed: list[int]
    belief: ThurstoneModel
    models: int

    @classmethod
    def of(cls, games: Games, models: int, belief: ThurstoneModel, fixed: Sequence[int]) -> _Kinds:
        rows = grouped(games)
        doubt = np.isin(rows.winner, fixed).astype(float) + np.isin(rows.loser, fixed)
        noise = 2 * belief.performance**2 + doubt * belief.prior_deviation**2
        certainty = torch.from_numpy(rows.certainty)
        return cls(rows.winner, rows.loser, certainty, rows.times, torch.from_numpy(noise), list(fixed), belief, models)

    def summed(self, values: _Floats) -> _Floats:
        """Per model: what it has from its wins minus what it has from its losses, all games of a kind counted."""
        every = values * self.times
        return _sums(self.winner, every, self.models) - _sums(self.loser, every, self.models)

    def posterior(self, precision: _Floats, shift: _Floats) -> tuple[_Floats, _Floats]:
        """Mean and covariance with the given factors; LinAlgError where they do not add up to a Gaussian."""
        every = precision * self.times
        weights = _sums(self.winner * self.models + self.loser, every, self.models**2)
        weights = weights.reshape(self.models, self.models)
        weights = weights + weights.T
        total = np.diag(1 / self.belief.prior_deviation**2 + weights.sum(1)) - weights
        free = np.setdiff1d(np.arange(self.models), self.fixed)
        inner = total[np.ix_(free, free)]
        np.linalg.cholesky(inner)
        covariance = np.zeros_like(total)
        covariance[np.ix_(free, free)] = np.linalg.inv(inner)
        return covariance @ self.summed(shift), covariance

    def difference(self, mean: _Floats, covariance: _Floats) -> tuple[_Floats, _Floats]:
        """Mean and variance of every d."""
        i, j = self.winner, self.loser
        own = covariance.diagonal()
        return mean[i] - mean[j], own[i] + own[j] - 2 * covariance[i, j]

    def without(
        self, mean: _Floats, covariance: _Floats, precision: _Floats, shift: _Floats
    ) -> tuple[_Floats, _Floats]:
        """Mean and variance of every d without one game of its kind."""
        centre, variance = self.difference(mean, covariance)
        rest = 1 / np.maximum(1 / variance - precision, 1e-12)
        return rest * (centre / variance - shift), rest

    def factors(self, centre: _Floats, rest: _Floats) -> tuple[_Floats, _Floats]:
        """New factors."""
        parts = (torch.from_numpy(centre), torch.from_numpy(rest))
        precision, shift = _factor(*parts, self.noise, self.belief.margin, self.certainty)
        return precision.numpy(), shift.numpy()

    def likelihood(self, mean: _Floats) -> tuple[float, _Floats, _Floats]:
        """Log posterior density, its slope per game and its curvature per game, of every d."""
        c = self.noise.sqrt()
        log_mass, v, w = game_moments(
            torch.from_numpy(mean[self.winner] - mean[self.loser]) / c, self.belief.margin / c, self.certainty
        )
        value = float(np.dot(self.times, log_mass.numpy())) - float(mean @ mean) / (2 * self.belief.prior_deviation**2)
        return value, (v / c).numpy(), (w.clamp(min=0) / self.noise).numpy()

    def spread_out(self, mean: _Floats, covariance: _Floats) -> Capabilities:
        """With the prior's mean, and its deviation for fixed models."""
        covariance = covariance.copy()
        covariance[self.fixed, self.fixed] = self.belief.prior_deviation**2
        return Capabilities(mean + self.belief.prior_mean, covariance)
