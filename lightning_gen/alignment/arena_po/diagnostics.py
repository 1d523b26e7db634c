"""Numbers that say whether learning from pairs works, over all pairs of an optimiser step.

The loss of Diffusion-DPO stays near ln 2 while pictures become better, so it is no gauge.

Shape letters: P pairs of an optimiser step, all ranks and micro-batches together.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from lightning_gen.alignment.arena_po.objectives import PairErrors, PairLoss

__all__ = ["Displacement", "pair_diagnostics", "pair_rows"]

_COLUMNS = 7


def pair_rows(losses: Tensor, errors: PairErrors, logits: Tensor, gap: Tensor) -> Tensor:
    """What is remembered of a micro-batch.

    Args:
        losses: of the pairs, (B,).
        errors: of the pairs.
        logits: z, (B,).
        gap: in the unit of the loss, (B,), NaN = not known.

    Returns:
        float32, (B, 7), without a graph.
    """
    columns = (losses, logits, gap, *errors[:4])
    return torch.stack([column.detach().float() for column in columns], 1)


def pair_diagnostics(rows: Tensor, loss: PairLoss) -> dict[str, Tensor]:
    """Numbers of a step.

    implicit_accuracy: share of z > 0, a tie counts half;  margin_satisfied: share of z > ``loss.margin(g)``
    drift_winner, drift_loser: mean of d_theta - d_ref; both above 0 = the model moves away from both pictures
    reward_winner, reward_loser: mean implicit reward, -beta / 2 times that, in nats
    logit_gap_correlation: of z and g, Pearson's, where neither is constant

    What needs a gap or a reference is left out where there is none.

    Args:
        rows: of :func:`pair_rows`, (P, 7).
        loss: what is learned from a pair.

    Returns:
        Name -> scalar.

    Raises:
        ValueError: rows of another kind.
    """
    if rows.ndim != 2 or rows.shape[1] != _COLUMNS:
        raise ValueError(f"rows of pairs have {_COLUMNS} columns, got {tuple(rows.shape)}")
    losses, z, gap, winner, loser, reference_winner, reference_loser = rows.double().unbind(1)
    found = {
        "loss": losses.mean(),
        "implicit_accuracy": torch.where(z.isnan(), z, (z > 0).double() + 0.5 * (z == 0)).mean(),
        "logit": z.mean(),
        "logit_deviation": z.std(correction=0),
        "error_winner": winner.mean(),
        "error_loser": loser.mean(),
        "reference_winner": reference_winner.mean(),
        "reference_loser": reference_loser.mean(),
        "drift_winner": (winner - reference_winner).mean(),
        "drift_loser": (loser - reference_loser).mean(),
    }
    for side in ("winner", "loser"):
        found[f"reward_{side}"] = -0.5 * loss.beta * found[f"drift_{side}"]
    margin = loss.margin(gap)
    found["margin_satisfied"] = torch.where(z.isnan() | margin.isnan(), torch.nan, (z > margin).double()).mean()
    found |= _about_gaps(z, gap)
    return {name: value.float() for name, value in found.items() if not bool(value.isnan())}


def _about_gaps(z: Tensor, gap: Tensor) -> dict[str, Tensor]:
    if bool(gap.isnan().any()):
        return {}
    found = {
        "gap": gap.mean(),
        "gap_10": gap.quantile(0.1),
        "gap_90": gap.quantile(0.9),
    }
    spread = z.std(correction=0) * gap.std(correction=0)
    if float(spread) > 0:
        found["logit_gap_correlation"] = ((z - z.mean()) * (gap - gap.mean())).mean() / spread
    return found


@dataclasses.dataclass(frozen=True)
class Displacement:
    """When likelihood displacement is reported: pairs are told apart ever better, while both pictures become unlikely.

    Attributes:
        tolerance: nats of implicit reward that both pictures may have lost in the mean. They are what the loss counts
            in: a share of the error would be many nats at the published temperature, and nothing at a low one.
        patience: optimiser steps in a row after which there is a warning.

    Raises:
        ValueError: a number that makes no sense.
    """

    tolerance: float = 1.0
    patience: int = 50

    def __post_init__(self) -> None:
        if self.tolerance < 0 or self.patience < 1:
            raise ValueError(f"displacement.tolerance is not negative and patience at least 1, got {self}")

    def seen(self, found: dict[str, Tensor], steps: int) -> int:
        """Look at a step.

        Args:
            found: of :func:`pair_diagnostics`.
            steps: how many steps in a row both rewards were below before this one.

        Returns:
            How many it is with this one; there is one warning when ``patience`` is reached.
        """
        if "reward_winner" not in found:
            return 0
        rewards = [float(found[f"reward_{side}"]) for side in ("winner", "loser")]
        steps = steps + 1 if max(rewards) < -self.tolerance else 0
        if steps == self.patience:
            warnings.warn(
                f"displacement: for {steps} steps both pictures have been less likely than to the reference (implicit "
                f"rewards {rewards[0]:.2f} and {rewards[1]:.2f} nats): the model leaves its data. Lower the learning "
                "rate or raise loss.beta",
                stacklevel=2,
            )
        return steps
