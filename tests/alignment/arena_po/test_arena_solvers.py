"""Solvers of the arena: parity with trueskill, invariants, recovery. Checks 5 to 8 of the requirement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_gen.alignment.arena_po.arena_solvers import (
    DRAW,
    Capabilities,
    Games,
    ThurstoneModel,
    cavity,
    game_moments,
    grouped,
    solve_batch_ep,
    solve_laplace,
    solve_sequential,
)
from lightning_gen.alignment.arena_po.gap import expected_gap
from lightning_gen.metrics.ratings import (
    Rating,
    draw_margin,
    draw_moments,
    noisy_win_moments,
    rate_ranking,
    win_moments,
)

BETA = 25 / 6
PLAIN = ThurstoneModel(25.0, 25 / 3, BETA)
TRUTH = np.array([20.0, 22, 24, 26, 28, 30])
SOLVERS = {"ep_sequential": solve_sequential, "batch_ep": solve_batch_ep, "laplace": solve_laplace}


def games(*rows: tuple[int, int] | tuple[int, int, float]) -> Games:
    parts = [(*row, 1.0)[:3] for row in rows]
    winner, loser, certainty = (np.array(column) for column in zip(*parts, strict=True))
    return Games(winner, loser, certainty.astype(float), np.ones(len(parts)))


def played(count: int, seed: int = 0, truth: np.ndarray = TRUTH) -> Games:
    random = np.random.default_rng(seed)
    first = random.integers(len(truth), size=count)
    second = (first + random.integers(1, len(truth), size=count)) % len(truth)
    noise = BETA * random.standard_normal((2, count))
    won = truth[first] + noise[0] > truth[second] + noise[1]
    return Games(np.where(won, first, second), np.where(won, second, first), np.ones(count), np.ones(count))


def sigma(found: Capabilities) -> np.ndarray:
    return np.sqrt(found.covariance.diagonal())


def test_one_win_of_equals() -> None:
    found = solve_sequential(games((0, 1)), 2, ThurstoneModel(25, 25 / 3, BETA, 0.0, 0.0))
    assert found.mean == pytest.approx([29.20522087, 20.79477913], abs=1e-8)
    assert sigma(found) == pytest.approx([7.194481349] * 2, abs=1e-8)
    with_margin = solve_sequential(games((0, 1)), 2, ThurstoneModel(25, 25 / 3, BETA, 0.0, draw_margin(0.1)))
    assert with_margin.mean[0] != pytest.approx(29.20522087, abs=1e-3)


def test_uneven_players_win_and_draw_as_published() -> None:
    # A prior of its own for each player: games are played from given ratings by starting at them.
    belief = ThurstoneModel(25, 25 / 3, BETA, 25 / 300, draw_margin(0.1))
    assert _one_game((30, 5), (22, 7), belief, 1.0) == pytest.approx(
        (30.99205186, 4.729324705, 20.05584284, 6.234277743), abs=1e-7
    )
    assert _one_game((30, 5), (22, 7), belief, DRAW) == pytest.approx(
        (28.16326340, 4.389253282, 25.59951407, 5.191992058), abs=1e-7
    )
    rows = played(60, seed=9)
    state = solve_sequential(Games(*(part[:59] for part in rows)), 6, belief)
    after = solve_sequential(rows, 6, belief)
    i, j = int(rows.winner[59]), int(rows.loser[59])
    assert sigma(state)[i] != sigma(state)[j]
    step = _one_game((state.mean[i], sigma(state)[i]), (state.mean[j], sigma(state)[j]), belief, 1.0)
    assert step == pytest.approx((after.mean[i], sigma(after)[i], after.mean[j], sigma(after)[j]), rel=1e-12)
    winner, loser = rate_ranking([Rating(30, 5), Rating(22, 7)])
    assert (winner.mean, loser.mean) == pytest.approx((30.99205186, 20.05584284), abs=1e-7)


def _one_game(
    first: tuple[float, float], second: tuple[float, float], belief: ThurstoneModel, outcome: float
) -> tuple[float, ...]:
    """The solver's update by hand from its moments: what its loop does for one game."""
    (m, s), (n, r) = first, second
    mine, theirs = s**2 + belief.dynamics**2, r**2 + belief.dynamics**2
    c = math.sqrt(2 * belief.performance**2 + mine + theirs)
    v, w = draw_moments((m - n) / c, belief.margin / c) if outcome == DRAW else win_moments((m - n - belief.margin) / c)
    return (
        m + mine / c * v,
        math.sqrt(mine * (1 - mine / c**2 * w)),
        n - theirs / c * v,
        math.sqrt(theirs * (1 - theirs / c**2 * w)),
    )


def test_many_games_as_trueskill() -> None:
    trueskill = pytest.importorskip("trueskill", reason="trueskill is not installed: pip install trueskill")
    for tau, draw in ((0.0, 0.1), (25 / 300, 0.1)):
        environment = trueskill.TrueSkill(tau=tau, draw_probability=draw, backend="scipy")
        rows = played(150, seed=4)
        certainty = np.where(np.random.default_rng(1).random(150) < 0.15, DRAW, 1.0)
        ratings = [environment.create_rating() for _ in TRUTH]
        for winner, loser, kind in zip(rows.winner, rows.loser, certainty, strict=True):
            pair = environment.rate([(ratings[winner],), (ratings[loser],)], ranks=[0, 0 if kind == DRAW else 1],
                                    min_delta=1e-14)  # fmt: skip
            (ratings[winner],), (ratings[loser],) = pair
        belief = ThurstoneModel(25, 25 / 3, BETA, tau, draw_margin(draw))
        found = solve_sequential(rows._replace(certainty=certainty), len(TRUTH), belief)
        assert found.mean == pytest.approx([one.mu for one in ratings], abs=1e-8)
        assert sigma(found) == pytest.approx([one.sigma for one in ratings], abs=1e-8)


def test_invariants_of_one_pass() -> None:
    one = solve_sequential(games((0, 1)), 3, PLAIN)
    assert one.mean.sum() == pytest.approx(75, abs=1e-12), "what one gains the other loses"
    assert one.mean[0] > 25 and one.mean[2] == 25
    rows = played(200)
    means, deviations = np.full(6, 25.0), np.full(6, 25 / 3)
    for count in range(1, 60):
        before, spread = means.copy(), deviations.copy()
        found = solve_sequential(Games(*(part[:count] for part in rows)), 6, PLAIN)
        means, deviations = found.mean, sigma(found)
        assert means[rows.winner[count - 1]] >= before[rows.winner[count - 1]]
        for player in (rows.winner[count - 1], rows.loser[count - 1]):
            assert deviations[player] < spread[player]
    upset = solve_sequential(games(*([(0, 1)] * 400), (1, 0)), 2, PLAIN)
    assert np.isfinite(upset.mean).all() and (sigma(upset) > 0).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_names_and_origin_do_not_matter(solver: str) -> None:
    rows, solve = played(300, seed=2), SOLVERS[solver]
    found = solve(rows, 6, PLAIN)
    order = np.random.default_rng(3).permutation(6)
    renamed = solve(rows._replace(winner=order[rows.winner], loser=order[rows.loser]), 6, PLAIN)
    assert renamed.mean[order] == pytest.approx(found.mean, abs=1e-6)
    assert sigma(renamed)[order] == pytest.approx(sigma(found), abs=1e-6)
    shifted = solve(rows, 6, ThurstoneModel(1025.0, 25 / 3, BETA))
    assert shifted.mean - 1000 == pytest.approx(found.mean, abs=1e-6)


@pytest.mark.parametrize("solver", ["batch_ep", "laplace"])
def test_no_order(solver: str) -> None:
    rows, solve = played(500, seed=5), SOLVERS[solver]
    order = np.random.default_rng(6).permutation(500)
    again = solve(Games(*(part[order] for part in rows)), 6, PLAIN)
    assert again.mean == pytest.approx(solve(rows, 6, PLAIN).mean, abs=1e-10)
    moved = solve_sequential(Games(*(part[order] for part in rows)), 6, PLAIN).mean
    assert np.abs(moved - solve_sequential(rows, 6, PLAIN).mean).max() > 0.05, "one pass has an order"


@pytest.mark.parametrize("solver", SOLVERS)
def test_recovery_of_known_capabilities(solver: str) -> None:
    rows = played(20_000)
    found = SOLVERS[solver](rows, 6, PLAIN)
    error = (found.mean - found.mean.mean()) - (TRUTH - TRUTH.mean())
    assert np.abs(error).max() < 0.5
    assert np.argsort(found.mean).tolist() == list(range(6))
    variance = found.covariance.diagonal()
    # Shares of 1300 games of a pair err by 0.014 themselves; of ten times as many, other ones, by 0.004.
    other = played(200_000, seed=1)
    for first in range(6):
        for second in range(first):
            won = ((other.winner == first) & (other.loser == second)).sum()
            total = won + ((other.winner == second) & (other.loser == first)).sum()
            cov = found.covariance[first, second]
            scale = math.sqrt(2 * BETA**2 + variance[first] + variance[second] - 2 * cov)
            predicted = 0.5 * math.erfc(-(found.mean[first] - found.mean[second]) / scale / math.sqrt(2))
            assert abs(won / total - predicted) < 0.02


def test_one_pass_is_about_as_sure_as_said() -> None:
    assert sigma(solve_sequential(played(20_000), 6, PLAIN)) == pytest.approx([0.105] * 6, abs=0.01)
    floored = solve_sequential(played(20_000), 6, ThurstoneModel(25, 25 / 3, BETA, 25 / 300))
    assert (sigma(floored) > 0.8).all() and (sigma(floored) < 0.9).all()


def test_literal_variance_degenerates() -> None:
    found = solve_sequential(played(20_000), 6, PLAIN)
    delta = torch.tensor(found.mean[0] - found.mean[-1])  # the weakest beat the strongest
    own = torch.tensor(found.covariance[0, 0] + found.covariance[-1, -1])
    assert float(expected_gap(delta, own.sqrt())) < 0.05
    assert float(expected_gap(delta, (own + 2 * BETA**2).sqrt())) > 2


def test_batch_ep_of_two_models_is_the_true_posterior() -> None:
    """A single game is matched exactly; with several the mean and deviation are those of the integral, nearly."""
    one = solve_batch_ep(games((0, 1)), 2, PLAIN)
    assert one.mean == pytest.approx([29.20522087, 20.79477913], abs=1e-8)
    assert np.sqrt(one.covariance.diagonal()) == pytest.approx([7.194481349] * 2, abs=1e-8)
    wins, losses = 12, 4
    found = solve_batch_ep(games(*([(0, 1)] * wins), *([(1, 0)] * losses)), 2, PLAIN)
    d = np.linspace(-60, 60, 40001)
    phi = 0.5 * np.vectorize(math.erfc)(-d / (math.sqrt(2) * BETA) / math.sqrt(2))
    weight = np.exp(-(d**2) / (4 * (25 / 3) ** 2)) * phi**wins * (1 - phi) ** losses
    mean = (d * weight).sum() / weight.sum()
    spread = math.sqrt((d**2 * weight).sum() / weight.sum() - mean**2)
    cov = found.covariance
    assert found.mean[0] - found.mean[1] == pytest.approx(mean, rel=2e-3)
    assert math.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]) == pytest.approx(spread, rel=5e-3)
    laplace = solve_laplace(games(*([(0, 1)] * wins), *([(1, 0)] * losses)), 2, PLAIN)
    peak = d[weight.argmax()]
    assert laplace.mean[0] - laplace.mean[1] == pytest.approx(peak, abs=0.01)


def test_one_pass_ignores_what_models_share() -> None:
    """A model that met only one other says nothing about it alone: their capabilities move together."""
    rows = games(*([(0, 1), (1, 0)] * 200))
    found = solve_batch_ep(rows, 2, PLAIN).covariance
    difference = found[0, 0] + found[1, 1] - 2 * found[0, 1]
    # Of an even score every game says w = 4 phi(0)^2 = 2 / pi about the difference.
    assert difference == pytest.approx(1 / (400 * 2 / math.pi / (2 * BETA**2) + 1 / (2 * (25 / 3) ** 2)), rel=0.01)
    assert found[0, 0] > 30, "the difference is known, the level is not"
    assert np.count_nonzero(solve_sequential(rows, 2, PLAIN).covariance) == 2


@pytest.mark.parametrize("solver", SOLVERS)
def test_doubtful_statements(solver: str) -> None:
    random = np.random.default_rng(8)
    rows = played(8000, seed=7)
    flipped = random.random(8000) < 0.25
    winner, loser = np.where(flipped, rows.loser, rows.winner), np.where(flipped, rows.winner, rows.loser)
    told = Games(winner, loser, np.full(8000, 0.75), rows.times)
    found = SOLVERS[solver](told, 6, PLAIN).mean
    # Three quarters of a flipped label say a quarter of a sure one: deviations are near 0.4.
    assert np.abs(found - found.mean() - (TRUTH - 25)).max() < 1.7
    believed = SOLVERS[solver](told._replace(certainty=np.ones(8000)), 6, PLAIN).mean
    assert np.ptp(believed) < 0.6 * np.ptp(found), "who believes every word finds the models alike"


@pytest.mark.parametrize("solver", SOLVERS)
def test_draws_pull_together(solver: str) -> None:
    belief = ThurstoneModel(25, 25 / 3, BETA, 0.0, draw_margin(0.2))
    wins = SOLVERS[solver](games(*([(0, 1)] * 5)), 2, belief).mean
    draws = SOLVERS[solver](games(*([(0, 1)] * 5), *([(0, 1, DRAW)] * 5)), 2, belief).mean
    assert 0 < draws[0] - draws[1] < wins[0] - wins[1]
    turned = SOLVERS[solver](games(*([(0, 1)] * 5), *([(1, 0, DRAW)] * 5)), 2, belief).mean
    assert turned == pytest.approx(draws, abs=1e-9), "of a draw neither side is the winner"


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_models_teach_and_do_not_learn(solver: str) -> None:
    rows = games(*([(0, 2)] * 30), *([(2, 1)] * 30))
    found = SOLVERS[solver](rows, 3, PLAIN, [2])
    assert found.mean[2] == pytest.approx(25) and sigma(found)[2] == pytest.approx(25 / 3)
    assert found.mean[0] > 30 and found.mean[1] < 20
    free = SOLVERS[solver](rows, 3, PLAIN)
    assert sigma(free)[2] < 0.8 * 25 / 3


def test_moments_of_many_games_are_those_of_one() -> None:
    t = torch.tensor([-7.0, -2.0, -0.1, 0.4, 3.0, 9.0], dtype=torch.float64)
    for margin, certainty, one in (
        (0.2, 1.0, lambda x: win_moments(x - 0.2)),
        (0.2, 0.9, lambda x: noisy_win_moments(x, 0.2, 0.9)),
        (0.2, DRAW, lambda x: draw_moments(x, 0.2)),
    ):
        _, v, w = game_moments(t, torch.full_like(t, margin), torch.full_like(t, certainty))
        wanted = [one(value) for value in t.tolist()]
        assert v.tolist() == pytest.approx([pair[0] for pair in wanted], rel=1e-9)
        assert w.tolist() == pytest.approx([pair[1] for pair in wanted], rel=1e-7, abs=1e-12)
    far = torch.tensor([-300.0, 300.0], dtype=torch.float64)
    assert all(bool(torch.isfinite(part).all()) for part in game_moments(far, 0.1 + 0 * far, 0.9 + 0 * far))


def test_log_mass_has_the_moments_as_derivatives() -> None:
    t, step = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64), 1e-4
    for certainty in (1.0, 0.85, DRAW):
        rest = torch.full_like(t, 0.4), torch.full_like(t, certainty)
        low, here, high = (game_moments(t + shift, *rest) for shift in (-step, 0.0, step))
        assert torch.allclose((high[0] - low[0]) / (2 * step), here[1], rtol=1e-6)
        assert torch.allclose((low[1] - high[1]) / (2 * step), here[2], rtol=1e-6)


def test_grouped_games_are_the_same_games() -> None:
    rows = played(400)
    kinds = grouped(rows)
    assert kinds.times.sum() == 400 and len(kinds.times) == 30
    assert ((rows.winner == 3) & (rows.loser == 1)).sum() == kinds.times[(kinds.winner == 3) & (kinds.loser == 1)][0]


def test_without_one_game_is_what_was_fitted_without_it() -> None:
    rows = games(*([(0, 1)] * 7), *([(1, 0)] * 3), *([(1, 2)] * 5), *([(2, 0)] * 2))
    left = Games(*(part[1:] for part in rows))  # without the first win of 0 over 1
    whole, rest = (solve_batch_ep(one, 3, PLAIN) for one in (rows, left))

    def difference(found: Capabilities) -> tuple[float, float]:
        cov = found.covariance
        return found.mean[0] - found.mean[1], cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]

    mean, variance = difference(whole)
    found = cavity(np.array([mean]), np.array([variance]), games((0, 1)), PLAIN)
    wanted = difference(rest)
    assert found[0][0] == pytest.approx(wanted[0], abs=0.03) and found[1][0] == pytest.approx(wanted[1], rel=0.02)
    assert found[0][0] < mean - 0.3 and found[1][0] > variance
