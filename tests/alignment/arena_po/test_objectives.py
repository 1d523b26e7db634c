"""Losses on pairs: closed forms, limiting cases and gradients, in float64."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lightning_gen.alignment.arena_po.gap import gap_variance
from lightning_gen.alignment.arena_po.objectives import (
    LossMode,
    PairErrors,
    PairLoss,
    dpo_logits,
    error_weight,
    implicit_rewards,
    mean_square_error,
    pair_losses,
)
from lightning_gen.flow import paths

BETA = 7.0


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def errors(count: int = 9, seed: int = 1) -> PairErrors:
    return PairErrors(*draws(4, count, seed=seed).square().unbind(0))


def loss(mode: Any, **rest: float) -> PairLoss:
    return PairLoss(mode, **({"beta": BETA} | rest))


def of_logits(z: Tensor) -> PairErrors:
    """Errors whose logits are z."""
    nothing = torch.zeros_like(z)
    return PairErrors(-2 * z / BETA, nothing, nothing, nothing)


def test_the_logit_is_that_of_the_paper() -> None:
    e = errors()
    expected = -0.5 * BETA * ((e.winner - e.loser) - (e.reference_winner - e.reference_loser))
    torch.testing.assert_close(dpo_logits(e, BETA), expected, rtol=0, atol=1e-14)
    winner, loser = implicit_rewards(e, BETA)
    torch.testing.assert_close(winner - loser, expected, rtol=0, atol=1e-13)
    swapped = PairErrors(e.loser, e.winner, e.reference_loser, e.reference_winner)
    assert torch.equal(dpo_logits(swapped, BETA), -dpo_logits(e, BETA))


def test_every_mode_falls_back_to_diffusion_dpo() -> None:
    e = errors()
    plain, one, nothing = pair_losses(e, loss("none")), torch.ones(9).double(), torch.zeros(9).double()
    torch.testing.assert_close(plain, torch.nn.functional.softplus(-dpo_logits(e, BETA)))
    certain = torch.full((9,), 1e4, dtype=torch.float64)
    for mode, gap in (("margin", nothing), ("scale", one), ("weight", one), ("soft", certain)):
        torch.testing.assert_close(pair_losses(e, loss(mode), gap), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(pair_losses(e, loss("margin_const", strength=0.0)), plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(pair_losses(e, loss("margin", strength=0.0), 3 * one), plain, rtol=0, atol=1e-12)


def test_at_the_reference_the_loss_is_that_of_a_coin() -> None:
    e = errors()
    same = PairErrors(e.reference_winner, e.reference_loser, e.reference_winner, e.reference_loser)
    gap = draws(9).abs()
    assert pair_losses(same, loss("none")).tolist() == pytest.approx([math.log(2)] * 9)
    found = pair_losses(same, loss("margin", strength=0.7), gap)
    torch.testing.assert_close(found, torch.nn.functional.softplus(0.7 * gap))


def test_the_mean_comes_after_the_logarithm() -> None:
    z = torch.tensor([3.0, -0.3, 2.7], dtype=torch.float64)
    found = float(pair_losses(of_logits(z), loss("none")).mean())
    assert found == pytest.approx(sum(math.log1p(math.exp(-value)) for value in z.tolist()) / 3)
    assert found > math.log1p(math.exp(-1.8)) + 0.1


def test_an_error_is_a_mean_over_the_picture() -> None:
    found, wanted = draws(5, 3, 4, 4), draws(5, 3, 4, 4, seed=2)
    tiled = [part.repeat(1, 1, 2, 2) for part in (found, wanted)]
    torch.testing.assert_close(mean_square_error(*tiled), mean_square_error(found, wanted))
    assert mean_square_error(found.bfloat16(), wanted.bfloat16()).dtype == torch.float32


def test_the_gradient_of_the_margin_loss() -> None:
    z = draws(6).requires_grad_()
    gap = draws(6, seed=3).abs().requires_grad_()
    pair_losses(of_logits(z), loss("margin", strength=1.3), gap).mean().backward()
    torch.testing.assert_close(z.grad, -torch.sigmoid(1.3 * gap - z).detach() / 6)
    assert gap.grad is None
    z.grad = None
    pair_losses(of_logits(z), loss("none")).mean().backward()
    torch.testing.assert_close(z.grad, -torch.sigmoid(-z).detach() / 6)


@pytest.mark.parametrize("mode", ["margin", "margin_const", "scale", "weight", "soft", "regress"])
def test_the_formulas_of_the_modes(mode: str) -> None:
    z, gap = draws(6), draws(6, seed=3).abs()

    def s(x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    p = s(0.4 * gap)
    expected = {
        "margin": -s(z - 1.3 * gap).log(),
        "margin_const": -s(z - 1.3).log(),
        "scale": -s(gap * z).log(),
        "weight": -gap * s(z).log(),
        "soft": -p * s(z).log() - (1 - p) * s(-z).log(),
        "regress": (z - 1.3 * gap).square(),
    }[mode]
    found = pair_losses(of_logits(z), loss(mode, strength=1.3, certainty_scale=0.4), gap)
    torch.testing.assert_close(found, expected)


def test_a_sure_gap_is_an_ordinary_margin() -> None:
    z, delta = draws(6), draws(6, seed=3).abs() + 0.5
    sure = torch.full_like(delta, 1e-7)
    found = pair_losses(of_logits(z), loss("expected_margin", strength=1.3), None, delta, sure)
    torch.testing.assert_close(found, pair_losses(of_logits(z), loss("margin", strength=1.3), delta))
    unsure = pair_losses(of_logits(z), loss("expected_margin", strength=1.3), None, delta, torch.ones_like(delta))
    assert bool((unsure > found).all())


@pytest.mark.parametrize("mode", ["margin", "expected_margin", "weight"])
def test_an_unsure_gap_counts_less(mode: str) -> None:
    z, delta, gap = draws(6), draws(6, seed=3), draws(6, seed=4).abs()
    scale = torch.linspace(0.1, 5, 6).double()
    plain, less = (loss(mode, strength=1.3, variance_discount=much) for much in (0.0, 0.7))
    expected = pair_losses(of_logits(z), plain, gap, delta, scale) / (1 + 0.7 * 1.3**2 * gap_variance(delta, scale))
    torch.testing.assert_close(pair_losses(of_logits(z), less, gap, delta, scale), expected)
    assert less.needs_spread and plain.needs_spread == (mode == "expected_margin")
    with pytest.raises(ValueError, match=f"the loss {mode} needs delta of every pair"):
        pair_losses(of_logits(z), less, gap)


def test_ipo_is_the_published_loss_times_beta_squared() -> None:
    e = errors()
    published = (dpo_logits(e, BETA) / BETA - 1 / (2 * BETA)).square()
    torch.testing.assert_close(pair_losses(e, loss("ipo")), BETA**2 * published)


def test_kto_judges_every_picture_by_itself() -> None:
    e, q = errors(), torch.tensor(0.3, dtype=torch.float64)
    winner, loser = implicit_rewards(e, BETA)
    expected = (1 - torch.sigmoid(winner - q)) + (1 - torch.sigmoid(q - loser))
    torch.testing.assert_close(pair_losses(e, loss("kto"), baseline=q), expected)


def test_mapo_has_no_reference_and_prefers_the_smaller_error() -> None:
    e = errors()
    other = e._replace(reference_winner=e.winner * torch.nan, reference_loser=e.winner * torch.nan)
    how = loss("mapo", odds_scale=0.5, odds_weight=0.1)

    def odds(d: Tensor) -> Tensor:
        return 0.5 * d / (torch.exp(0.5 * d) - 1)

    expected = e.winner - 0.1 * torch.sigmoid(odds(e.winner) - odds(e.loser)).log()
    torch.testing.assert_close(pair_losses(other, how), expected)
    none = PairErrors(*torch.zeros(4, 2).double().requires_grad_().unbind(0))
    found = pair_losses(none, how)
    assert found.tolist() == pytest.approx([0.1 * math.log(2)] * 2)
    assert torch.equal(pair_losses(other, loss("sft")), e.winner)
    assert not how.needs_reference and not loss("sft").needs_reference and loss("none").needs_reference


def test_dspo_is_the_error_of_a_point_between_the_networks() -> None:
    ours, reference, truth = draws(5, 12), draws(5, 12, seed=5), draws(5, 12, seed=6)
    rest = draws(2, 5, seed=7).square()
    distance = (ours - reference).square().mean(1)
    e = PairErrors((ours - truth).square().mean(1), rest[0], (reference - truth).square().mean(1), rest[1], distance)
    k = 0.6 * torch.sigmoid(-dpo_logits(e, BETA))[:, None]
    expected = ((1 - k) * (ours - truth) + k * (reference - truth)).square().mean(1)
    torch.testing.assert_close(pair_losses(e, loss("dspo", score_pull=0.6)), expected)
    with pytest.raises(ValueError, match="dspo needs the distance"):
        pair_losses(e._replace(distance=None), loss("dspo"))


@pytest.mark.parametrize("mode", [mode for mode in get_args(LossMode) if PairLoss(mode).needs_reference])
def test_no_gradient_reaches_the_reference_or_the_gap(mode: Any) -> None:
    e = PairErrors(*draws(4, 9, seed=1).square().requires_grad_().unbind(0), distance=draws(9, seed=4).square())
    for part in e[:4]:
        part.retain_grad()
    gap, delta, scale = (draws(9, seed=seed).abs().add(0.1).requires_grad_() for seed in (5, 6, 7))
    baseline = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    pair_losses(e, loss(mode), gap, delta, scale, baseline).sum().backward()
    assert e.winner.grad is not None and bool((e.winner.grad != 0).all())
    assert all(part.grad is None for part in (e.reference_winner, e.reference_loser, gap, delta, scale, baseline))
    if mode == "dspo":
        k = torch.sigmoid(-dpo_logits(e, BETA)).detach()
        torch.testing.assert_close(e.winner.grad, 1 - k)
        assert e.loser.grad is None, "how far the way is has no gradient"
    else:
        assert e.loser.grad is not None and bool((e.loser.grad != 0).all())


def test_smpo_scales_the_logit_by_how_sure_the_label_is() -> None:
    z, gap = draws(6), torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 1e4], dtype=torch.float64)
    found = pair_losses(of_logits(z), loss("smpo"), gap)
    p = torch.sigmoid(gap)
    torch.testing.assert_close(found, torch.nn.functional.softplus(-10 * (2 * p - 1) * z))
    assert float(found[0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["epsilon", "clean", "v_prediction", "velocity"])
def test_errors_of_all_predictions_follow_from_that_of_the_velocity(kind: Any) -> None:
    x_0, eps, v = draws(8, 3, 2, 2), draws(8, 3, 2, 2, seed=1), draws(8, 3, 2, 2, seed=2)
    t = torch.linspace(0.05, 0.95, 8, dtype=torch.float64)
    x_t = paths.noised(x_0, eps, t)
    a = paths.alpha_bar_from_time(t)[:, None, None, None]
    guess_0, guess_eps = paths.clean(x_t, v, t), paths.noise(x_t, v, t)
    pairs = {
        "velocity": (v, eps - x_0),
        "epsilon": (guess_eps, eps),
        "clean": (guess_0, x_0),
        "v_prediction": (a.sqrt() * guess_eps - (1 - a).sqrt() * guess_0, a.sqrt() * eps - (1 - a).sqrt() * x_0),
    }
    own = mean_square_error(*pairs[kind])
    torch.testing.assert_close(error_weight(t, kind) * mean_square_error(v, eps - x_0), own)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.mode is one of none, margin"):
        PairLoss("hinge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are positive"):
        PairLoss(beta=0.0)
    with pytest.raises(ValueError, match=r"score_pull lies in \[0, 1\]"):
        PairLoss("dspo", score_pull=2.0)
    with pytest.raises(ValueError, match="variance_discount is not negative, and 0 for margin_const"):
        PairLoss("margin_const", variance_discount=1.0)
    with pytest.raises(ValueError, match="the loss margin needs the gap"):
        pair_losses(errors(), loss("margin"))
    with pytest.raises(ValueError, match="the loss kto needs the baseline"):
        pair_losses(errors(), loss("kto"))
    with pytest.raises(ValueError, match="errors are counted in"):
        error_weight(torch.zeros(1), "score")  # type: ignore[arg-type]


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([a.argsort().argsort().double(), b.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])


def trained(mode: Any) -> tuple[Tensor, Tensor]:
    """A denoiser of two numbers, one for each kind of prompt: gaps are large for the one, small for the other."""
    kind = torch.arange(64) % 2
    gap = 0.2 + 2.0 * kind + draws(64, seed=8).abs() * 0.3
    shift, eps = 0.5 + draws(64, seed=9).abs() * 0.2, draws(64, seed=10)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.02)

    def current() -> PairErrors:
        def off(guess: Tensor, picture: Tensor) -> Tensor:
            return (guess - (eps - picture)).square()

        guess, nothing = theta[kind], torch.zeros(64, dtype=torch.float64)
        return PairErrors(off(guess, shift), off(guess, -shift), off(nothing, shift), off(nothing, -shift))

    for _ in range(50):
        optimizer.zero_grad()
        pair_losses(current(), loss(mode), gap).mean().backward()
        optimizer.step()
    return dpo_logits(current(), BETA).detach(), gap


def test_with_a_margin_larger_gaps_end_further_apart() -> None:
    z, gap = trained("margin")
    assert float((z > 0).double().mean()) == 1.0 and spearman(z, gap) > 0.5
    plain, gap = trained("none")
    assert float((plain > 0).double().mean()) == 1.0 and abs(spearman(plain, gap)) < 0.25
