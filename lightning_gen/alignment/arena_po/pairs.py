"""Pairs on their way into the loss: with what is known about them before the network sees them, and noised.

t = 0 is clean, t = 1 is noise. Shape letters: B pairs; stacked states have 2 B rows, the winners first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from lightning_gen.alignment.arena_po.objectives import PairLoss
from lightning_gen.data.batches import ImageBatch, PreferenceBatch
from lightning_gen.interfaces import Conditioning

__all__ = ["NoisyPairs", "PairGapSource", "PairGaps", "ReadyPairs", "pictures_of", "require_gaps", "twice"]

# With a negative gap these would prefer the loser; a margin or a target may be negative.
_POSITIVE = ("scale", "weight", "soft", "smpo")


class PairGaps(NamedTuple):
    """What is known about the gaps of B pairs, all in the unit of the loss.

    Attributes:
        gap: expected gap, float32, (B,), NaN = not known.
        delta: difference of the capabilities, winner minus loser, (B,), NaN = not known.
        scale: standard deviation of the difference of the two pictures, (B,), NaN = not known.
    """

    gap: Tensor
    delta: Tensor
    scale: Tensor

    @classmethod
    def unknown(cls, pairs: int) -> Self:
        """Nothing is known.

        Args:
            pairs: B.

        Returns:
            NaN for all.
        """
        return cls(*torch.full((3, pairs), torch.nan))


class PairGapSource(Protocol):
    """Where gaps come from."""

    def open(self, data: Any) -> None:
        """Make ready for a data set; called on every rank when training, or a validation by itself, starts.

        Args:
            data: the DataModule, None where there is none.
        """
        ...

    def __call__(self, batch: PreferenceBatch, training: bool) -> PairGaps:
        """Gaps of a batch, in the unit of the loss.

        Args:
            batch: pairs, on the CPU.
            training: whether they are training pairs; False = of validation, whose gaps need not be known.

        Returns:
            Gaps of B pairs.
        """
        ...


def require_gaps(gaps: PairGaps, loss: PairLoss, models: Sequence[tuple[str, str]]) -> None:
    """Refuse pairs whose gap a loss needs and does not get.

    Args:
        gaps: of B pairs.
        loss: what needs them.
        models: names of the winners' and losers' models, B of them.

    Raises:
        ValueError: gaps that are NaN or infinite, or negative where that turns the preference round; with their number.
    """
    mode = loss.mode
    needed: Sequence[Tensor] = gaps[:1]
    what, more = "gap", ""
    if loss.needs_spread:
        needed, what = gaps[1:] if mode == "expected_margin" else gaps, "gap and its deviation"
        more = (
            "; deviations come from model.gaps (TableGaps of that table, or FittedGaps), normalised to mean, logit or "
            "none: zscore_clip has no unit to count them in"
        )
    bad = ~torch.stack(list(needed)).isfinite().all(0)
    if rows := bad.nonzero().flatten().tolist():
        winner, loser = (name or "an unknown model" for name in models[rows[0]])
        raise ValueError(
            f"{len(rows)} of {len(models)} pairs of a batch have no {what} (NaN), which the loss {mode} needs; the "
            f"first is of {winner!r} and {loser!r}. Make a table (lightning arena fit, then lightning arena gaps) and "
            "set data.gaps to it, also where model.gaps is a TableGaps of the same file: pairs without a row are then "
            f"left out{more}"
        )
    if mode in _POSITIVE and (negative := int((gaps.gap < 0).sum())):
        raise ValueError(
            f"{negative} of {len(models)} gaps of a batch are negative, with which the loss {mode} prefers the loser: "
            "normalise gaps to mean or logit, or use margin"
        )


@dataclasses.dataclass(frozen=True)
class ReadyPairs(PreferenceBatch):
    """A batch with the columns that are looked up on the host, so that the device is never waited for.

    Attributes:
        delta: as in :class:`PairGaps`.
        scale: as in :class:`PairGaps`; ``gap`` is in the unit of the loss.
        draw: number of the draw of time and noise: the pass, or the row of the cache.
        reference: the reference's errors of winner and loser, float32, (B, 2); None = to be computed.
        clean: clean latents of winner and loser, (B, 2, ...); None = to be encoded.
    """

    delta: Tensor
    scale: Tensor
    draw: int
    reference: Tensor | None = None
    clean: Tensor | None = None

    @classmethod
    def of(
        cls,
        batch: PreferenceBatch,
        gaps: PairGaps,
        draw: int,
        reference: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Self:
        """A batch with more columns.

        Args:
            batch: what the DataModule yields.
            gaps: its gaps.
            draw: see the class.
            reference: see the class.
            clean: see the class.

        Returns:
            The batch.
        """
        own = {field.name: getattr(batch, field.name) for field in dataclasses.fields(PreferenceBatch)}
        return cls(**{**own, "gap": gaps.gap}, delta=gaps.delta, scale=gaps.scale, draw=draw, reference=reference,
                   clean=clean)  # fmt: skip


class NoisyPairs(NamedTuple):
    """Both pictures of B pairs at one time and with one noise.

    Attributes:
        x_t: states, (2 B, ...).
        velocity: what the network should say, eps - x_0, (2 B, ...).
        t: house time, (2 B,).
        text: encoded prompts, 2 B of them.
    """

    x_t: Tensor
    velocity: Tensor
    t: Tensor
    text: Conditioning


def pictures_of(batch: ImageBatch) -> Tensor:
    """The pictures of one side of a batch.

    Args:
        batch: pictures of one shape.

    Returns:
        (B, 3, H, W) in [-1, 1].

    Raises:
        TypeError: they are tokens.
    """
    images = batch.images
    if not isinstance(images, Tensor):
        raise TypeError("pairs are trained on as pictures of one shape, not as tokens: use a preference DataModule")
    return images


def twice(text: Conditioning) -> Conditioning:
    """Prompts for the winners, and again for the losers.

    Args:
        text: B encoded prompts.

    Returns:
        2 B.
    """
    return Conditioning(
        torch.cat([text.sequence] * 2),
        torch.cat([text.mask] * 2),
        None if text.pooled is None else torch.cat([text.pooled] * 2),
        {name: torch.cat([value] * 2) for name, value in text.extra.items()},
    )
