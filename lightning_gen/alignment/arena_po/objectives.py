"""Losses on pairs of errors: Diffusion-DPO, the ways in which a quality gap may enter it, and its siblings.

A pair is judged by four numbers: how far the trained network and the reference are off for the winner and the loser,
at one time and with one noise for both. t = 0 is clean, t = 1 is noise.

Shape letters: B pairs, D numbers of a latent.
"""

from __future__ import annotations

import dataclasses
from typing import Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.alignment.arena_po.gap import expected_margin_loss, gap_variance
from lightning_gen.backbones.pipelines.family import Predicted

__all__ = [
    "GAP_MODES",
    "LossMode",
    "PairErrors",
    "PairLoss",
    "dpo_logits",
    "error_weight",
    "implicit_rewards",
    "mean_square_error",
    "pair_losses",
]

LossMode = Literal[
    "none", "margin", "margin_const", "expected_margin", "scale", "weight", "soft", "regress",
    "sft", "kto", "mapo", "dspo", "smpo", "ipo",
]  # fmt: skip
"""What is done with a pair, see :func:`pair_losses`."""

GAP_MODES: Final[frozenset[str]] = frozenset(
    {"margin", "expected_margin", "scale", "weight", "soft", "regress", "smpo"}
)
"""Modes that need the gap of every pair."""

_WITHOUT_REFERENCE: Final[frozenset[str]] = frozenset({"sft", "mapo"})
_SMPO_SLOPE: Final = 10.0


class PairErrors(NamedTuple):
    """Mean squared errors of B pairs, each (B,), float32 or better.

    Attributes:
        winner: of the trained network.
        loser: of the trained network.
        reference_winner: of the reference, no gradient.
        reference_loser: of the reference, no gradient.
        distance: mean squared difference of the two networks on the winner; None = not known.
    """

    winner: Tensor
    loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor
    distance: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class PairLoss:
    """What is learned from a pair.

    Attributes:
        mode: see :func:`pair_losses`.
        beta: temperature of the logit; published: 5000, SmPO 2000.
        strength: gamma, the weight of the gap in a margin, or the margin itself for ``margin_const``.
        certainty_scale: kappa, the gap's factor in p = sigmoid(kappa gap) of ``soft`` and ``smpo``; 1 where gaps are
            normalised to ``logit``.
        odds_scale: of the errors inside MaPO's odds; the default is its published trainer's as far as remembered.
        odds_weight: of MaPO's log-odds beside the winner's error; likewise.
        score_pull: of DSPO, how much of the way from the reference a certain mistake asks for.
        variance_discount: how much less a pair counts whose gap is unsure: its loss is divided by 1 + this number times
            Var[gamma D | D > 0], in squared nats; 0 = not at all. For modes with a gap.

    Raises:
        ValueError: an unknown mode, or a number that makes no sense.

    Source: arXiv:2605.06070 for what the gap is; how it enters the loss could not be read, so every way is here and
        ``margin`` is the choice: the paper compares itself with fixed margins.
    """

    mode: LossMode = "none"
    beta: float = 5000.0
    strength: float = 1.0
    certainty_scale: float = 1.0
    odds_scale: float = 5.0
    odds_weight: float = 0.1
    score_pull: float = 1.0
    variance_discount: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in get_args(LossMode):
            raise ValueError(f"loss.mode is one of {', '.join(get_args(LossMode))}, got {self.mode!r}")
        positive = (self.beta, self.certainty_scale, self.odds_scale)
        if not all(value > 0 for value in positive) or not self.strength >= 0 or not self.odds_weight >= 0:
            raise ValueError(
                "loss.beta, certainty_scale and odds_scale are positive, strength and odds_weight are not negative: "
                f"{self}"
            )
        if not 0 <= self.score_pull <= 1:
            raise ValueError(f"loss.score_pull lies in [0, 1], got {self.score_pull}")
        if not self.variance_discount >= 0 or (self.variance_discount and not self.needs_gap):
            raise ValueError(
                f"loss.variance_discount is not negative, and 0 for {self.mode}, which knows no gap: "
                f"{self.variance_discount}"
            )

    def margin(self, gap: Tensor) -> Tensor:
        """What a logit should be above.

        gamma g;  gamma for ``margin_const``

        Args:
            gap: g, (B,), NaN = not known.

        Returns:
            (B,).
        """
        return torch.full_like(gap, self.strength) if self.mode == "margin_const" else self.strength * gap

    @property
    def needs_gap(self) -> bool:
        """Whether every pair must have a gap."""
        return self.mode in GAP_MODES

    @property
    def needs_spread(self) -> bool:
        """Whether every pair must have the difference of the capabilities and its deviation."""
        return self.mode == "expected_margin" or self.variance_discount > 0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss knows a reference; where it does not, none is kept and nothing is logged about it."""
        return self.mode not in _WITHOUT_REFERENCE

    @property
    def needs_distance(self) -> bool:
        """Whether numbers of the reference are needed that errors alone do not give, so that they cannot be cached."""
        return self.mode == "dspo"


def mean_square_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Error of every row, a mean and not a sum: a latent of twice the side has errors of the same size.

    d = 1/D sum (found - wanted)^2, in float32 or better

    Args:
        found: float, (B, ...).
        wanted: same shape.

    Returns:
        (B,).

    Source: arXiv:2311.12908, published trainer.
    """
    exact = torch.promote_types(found.dtype, torch.float32)
    return (found.to(exact) - wanted.to(exact)).square().flatten(1).mean(1)


def error_weight(t: Tensor, kind: Predicted) -> Tensor:
    """Factor from the squared error of the velocity to that of what a network predicts.

    With x_t given, every prediction follows from the velocity, and its error is the velocity's times a number:

    epsilon: eps = x_t + (1 - t) v, so (1 - t)^2;   clean: x_0 = x_t - t v, so t^2
    v_prediction: sqrt(a) eps - sqrt(1 - a) x_0 with a = (1 - t)^2 / ((1 - t)^2 + t^2), so (1 - t)^2 + t^2

    Args:
        t: house time, float, (B,), 0 = clean.
        kind: what the error is counted in.

    Returns:
        (B,), in the dtype of ``t``.

    Raises:
        ValueError: an unknown kind.
    """
    match kind:
        case "velocity":
            return torch.ones_like(t)
        case "epsilon":
            return (1 - t).square()
        case "clean":
            return t.square()
        case "v_prediction":
            return (1 - t).square() + t.square()
    raise ValueError(f"errors are counted in {', '.join(get_args(Predicted))}, got {kind!r}")


def implicit_rewards(errors: PairErrors, beta: float) -> tuple[Tensor, Tensor]:
    """What the trained network would pay for each picture, up to a constant of the prompt.

    r(a) = -beta / 2 (d_theta(a) - d_ref(a))

    Args:
        errors: of the pairs.
        beta: temperature.

    Returns:
        Of winners and losers, (B,) each.

    Source: arXiv:2311.12908 eq. 14.
    """
    return (
        -0.5 * beta * (errors.winner - errors.reference_winner.detach()),
        -0.5 * beta * (errors.loser - errors.reference_loser.detach()),
    )


def dpo_logits(errors: PairErrors, beta: float) -> Tensor:
    """How much more the winner is paid than the loser.

    z = -beta / 2 ((d_theta(w) - d_theta(l)) - (d_ref(w) - d_ref(l)))

    Args:
        errors: of the pairs.
        beta: temperature.

    Returns:
        (B,).

    Source: arXiv:2311.12908 eq. 14 and its published trainer.
    """
    ours = errors.winner - errors.loser
    reference = errors.reference_winner - errors.reference_loser
    return -0.5 * beta * (ours - reference.detach())


def pair_losses(
    errors: PairErrors,
    loss: PairLoss,
    gap: Tensor | None = None,
    delta: Tensor | None = None,
    scale: Tensor | None = None,
    baseline: Tensor | None = None,
) -> Tensor:
    """Loss of every pair. g = the pair's gap, no gradient; the mean over the pairs comes after the logarithm.

    none: -log s(z)                          Diffusion-DPO;  s = sigmoid
    margin: -log s(z - gamma g)              the gap as an offset: a large gap pushes for longer
    margin_const: -log s(z - gamma)          the ablation with one margin for all
    expected_margin: E_D[-log s(z - gamma D)], D ~ N(delta, scale^2) given D > 0: the gap with its uncertainty
    scale: -log s(g z);   weight: -g log s(z);   regress: (z - gamma g)^2
    soft: -p log s(z) - (1 - p) log s(-z),  p = s(kappa g)
    smpo: -log s(10 (2 p - 1) z)             SmPO's smoothed labels, without its inversion of the noise
    ipo: (z - 1/2)^2                         the published (z / beta - 1 / (2 beta))^2 times beta^2
    kto: (1 - s(r_w - q)) + (1 - s(q - r_l)),  q = max(0, mean r) of all pictures, no gradient
    sft: d_w
    mapo: d_w - w log s(o(d_w) - o(d_l)),  o(d) = c d / (exp(c d) - 1)
    dspo: mean ((1 - k) (e_theta - e) + k (e_ref - e))^2 on the winner,  k = pull (1 - s(z)), no gradient

    and, where it is discounted, divided by 1 + discount gamma^2 Var[D | D > 0].

    Args:
        errors: of the pairs.
        loss: which of them, and its numbers.
        gap: g >= 0, (B,), for the modes of ``GAP_MODES`` but ``expected_margin``.
        delta: difference of the capabilities, winner minus loser, (B,), where ``loss.needs_spread``.
        scale: standard deviation of the difference of two pictures, (B,), where ``loss.needs_spread``.
        baseline: q, a scalar, for ``kto``.

    Returns:
        (B,), float32 or better.

    Raises:
        ValueError: what the mode needs is missing.

    Source: arXiv:2311.12908 (none), arXiv:2310.12036 eq. 17 (ipo), arXiv:2404.04465 (kto), arXiv:2406.06424 (mapo),
        arXiv:2506.02698 and its published trainer (smpo). Of DSPO no text was at hand: the score of "this picture is
        preferred" is added to the data's; that its factor is a number of its own, in place of beta, is a choice.
    """
    if loss.variance_discount:
        spread = (_constant(part, name, loss.mode) for part, name in ((delta, "delta"), (scale, "scale")))
        unsure = 1 + loss.variance_discount * loss.strength**2 * gap_variance(*spread)
        sure = dataclasses.replace(loss, variance_discount=0.0)
        return pair_losses(errors, sure, gap, delta, scale, baseline) / unsure
    if loss.mode in ("sft", "mapo", "dspo"):
        return _without_logit(errors, loss)
    z = dpo_logits(errors, loss.beta)
    if loss.mode == "kto":
        return _kto(errors, loss.beta, _constant(baseline, "the baseline", loss.mode))
    if loss.mode == "expected_margin":
        return expected_margin_loss(
            z, _constant(delta, "delta", loss.mode), _constant(scale, "scale", loss.mode), loss.strength
        )
    if loss.mode in GAP_MODES:
        return _with_gap(z, _constant(gap, "the gap", loss.mode), loss)
    if loss.mode == "margin_const":
        return -F.logsigmoid(z - loss.strength)
    return (z - 0.5).square() if loss.mode == "ipo" else -F.logsigmoid(z)


def _with_gap(z: Tensor, gap: Tensor, loss: PairLoss) -> Tensor:
    """Losses of the logit and a known gap."""
    match loss.mode:
        case "margin":
            return -F.logsigmoid(z - loss.margin(gap))
        case "scale":
            return -F.logsigmoid(gap * z)
        case "weight":
            return -gap * F.logsigmoid(z)
        case "regress":
            return (z - loss.strength * gap).square()
    certainty = torch.sigmoid(loss.certainty_scale * gap)
    if loss.mode == "smpo":
        return -F.logsigmoid(_SMPO_SLOPE * (2 * certainty - 1) * z)
    return -certainty * F.logsigmoid(z) - (1 - certainty) * F.logsigmoid(-z)


def _without_logit(errors: PairErrors, loss: PairLoss) -> Tensor:
    """Losses of errors."""
    if loss.mode == "sft":
        return errors.winner
    if loss.mode == "mapo":
        odds = _odds(loss.odds_scale * errors.winner) - _odds(loss.odds_scale * errors.loser)
        return errors.winner - loss.odds_weight * F.logsigmoid(odds)
    if errors.distance is None:
        raise ValueError("the loss dspo needs the distance of the two networks, which cached errors do not give")
    k = loss.score_pull * torch.sigmoid(-dpo_logits(errors, loss.beta)).detach()
    # |(1 - k) a + k b|^2 of vectors a, b, of which |a|^2, |b|^2 and |a - b|^2 are known.
    return (1 - k) * errors.winner + k * errors.reference_winner.detach() - k * (1 - k) * errors.distance


def _kto(errors: PairErrors, beta: float, baseline: Tensor) -> Tensor:
    winner, loser = implicit_rewards(errors, beta)
    return torch.sigmoid(baseline - winner) + torch.sigmoid(loser - baseline)


def _odds(x: Tensor) -> Tensor:
    """x / (exp(x) - 1), 1 at 0."""
    small = x.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 1 - x / 2, safe / torch.expm1(safe))


def _constant(value: Tensor | None, name: str, mode: str) -> Tensor:
    if value is None:
        raise ValueError(f"the loss {mode} needs {name} of every pair")
    return value.detach()
