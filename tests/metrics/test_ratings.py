"""Gaussian ratings against the numbers of the requirement and against PyPI's trueskill."""

from __future__ import annotations

import math

import pytest

from lightning_gen.metrics.ratings import (
    BETA,
    MU,
    SIGMA,
    TAU,
    Rating,
    draw_margin,
    draw_moments,
    inverse_mills,
    noisy_win_moments,
    rate_ranking,
    win_moments,
)


def test_the_margin_of_ten_per_cent() -> None:
    assert draw_margin(0.10, 25 / 6) == pytest.approx(0.7404666, abs=1e-7)
    assert draw_margin(0.0) == 0
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        draw_margin(1)


@pytest.mark.parametrize("t", [-1e6, -40.0, -4.1, -4.0, -3.9, 0.0, 3.0, 40.0])
def test_moments_stay_in_their_range(t: float) -> None:
    v, w = win_moments(t)
    assert v >= 0 and 0 <= w < 1 + 1e-15
    for margin in (1e-6, 0.1, 2.0):
        v, w = draw_moments(t, margin)
        assert v * t <= 0 and 0 <= w <= 1
    assert inverse_mills(t)[1] > 0


def test_the_tail_meets_the_middle() -> None:
    below, above = inverse_mills(-4 - 1e-9), inverse_mills(-4 + 1e-9)
    assert below == pytest.approx(above, rel=1e-8)
    assert inverse_mills(-1000.0)[1] == pytest.approx(9.9999800001e-4, rel=1e-10)


def test_a_sure_statement_is_a_win_and_an_empty_one_nothing() -> None:
    assert noisy_win_moments(0.7, 0.2, 1 - 1e-15) == pytest.approx(win_moments(0.5), rel=1e-9)
    assert noisy_win_moments(0.7, 0.0, 0.5) == pytest.approx((0.0, 0.0), abs=1e-15)
    # Nobody expected it and it is doubtful: the players become less certain.
    assert noisy_win_moments(-3.0, 0.0, 0.8)[1] < 0


def test_noisy_moments_are_derivatives_of_the_log_mass() -> None:
    def log_mass(t: float) -> float:
        right, wrong = (0.5 * math.erfc(-x / math.sqrt(2)) for x in (t - 0.3, -t - 0.3))
        return math.log(0.8 * right + 0.2 * wrong)

    for t in (-2.0, -0.5, 1.0):
        v, w = noisy_win_moments(t, 0.3, 0.8)
        step = 1e-4
        assert v == pytest.approx((log_mass(t + step) - log_mass(t - step)) / (2 * step), rel=1e-6)
        assert w == pytest.approx(-(log_mass(t + step) - 2 * log_mass(t) + log_mass(t - step)) / step**2, rel=1e-4)


def test_two_players_of_a_ranking_are_a_duel() -> None:
    first, second = rate_ranking([Rating(), Rating()], dynamics=0, draw_probability=0)
    assert first.mean == pytest.approx(29.20522087, abs=1e-8)
    assert second.mean == pytest.approx(20.79477913, abs=1e-8)
    assert first.deviation == pytest.approx(7.194481349, abs=1e-8)


def test_five_players_as_trueskill() -> None:
    trueskill = pytest.importorskip("trueskill", reason="trueskill is not installed: pip install trueskill")
    environment = trueskill.TrueSkill(mu=MU, sigma=SIGMA, beta=BETA, tau=TAU, draw_probability=0.1, backend="scipy")
    players = [Rating(25, 8), Rating(27, 3), Rating(20, 5), Rating(31, 2), Rating(22, 7)]
    groups = [(environment.create_rating(one.mean, one.deviation),) for one in players]
    wanted = environment.rate(groups, min_delta=1e-13)
    for (theirs,), ours in zip(wanted, rate_ranking(players), strict=True):
        assert (ours.mean, ours.deviation) == pytest.approx((theirs.mu, theirs.sigma), abs=1e-8)


def test_a_game_has_two_players() -> None:
    with pytest.raises(ValueError, match="two players at least"):
        rate_ranking([Rating()])
