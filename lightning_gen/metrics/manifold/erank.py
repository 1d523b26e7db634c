"""eRank: how many directions of a latent space its images use, as a share of its channels.

Shape letters: N images, C channels, G groups.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

import torch
from torch import Tensor

from lightning_gen.metrics.labelled_features import LabelledFeatures
from lightning_gen.metrics.manifold.pooling import pooled_latents
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.nn.tokens import Tokens

__all__ = ["EffectiveRank", "effective_rank", "effective_rank_error"]

_GROUPS: Final = 20
_TWO_SIDED: Final = NormalDist().inv_cdf(0.975)


def effective_rank(features: Tensor) -> float:
    """The effective rank of a matrix of features, divided by C.

    eRank = exp(-sum_i p_i log p_i) / C,  p_i = s_i / sum_j s_j,  s = singular values of the (N, C) matrix

    The mean is not taken out, as in the formula: a common offset counts as a direction.

    Args:
        features: float, (N, C).

    Returns:
        In [1 / C, min(N, C) / C].

    Raises:
        ValueError: no features, or all of them 0.

    Source: arXiv:2605.07915 appendix B; Roy and Vetterli, 2007.
    """
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"an effective rank is that of (N, C) features, got {tuple(features.shape)}")
    return _from_singular_values(torch.linalg.svdvals(features.detach().double()), features.shape[1])


def effective_rank_error(features: Tensor, groups: int = _GROUPS) -> float:
    """Standard error of :func:`effective_rank` by the jackknife over groups of images.

    error^2 = (G - 1) / G sum_g (eRank without group g - their mean)^2

    A bootstrap would draw images twice, which lowers a rank; leaving some out does so far less.

    Args:
        features: float, (N, C); image n belongs to group n mod G.
        groups: G, at most N of them are made.

    Returns:
        The error; NaN with fewer than two images.
    """
    rows = features.detach().double()
    groups = min(groups, len(rows))
    if groups < 2:
        return math.nan
    gram = rows.T @ rows
    values = []
    for group in range(groups):
        part = rows[group::groups]
        squares = torch.linalg.eigvalsh(gram - part.T @ part).clamp(min=0)
        values.append(_from_singular_values(squares.sqrt(), rows.shape[1]))
    mean = math.fsum(values) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((value - mean) ** 2 for value in values))


def _from_singular_values(values: Tensor, channels: int) -> float:
    total = values.sum()
    if not float(total) > 0:
        raise ValueError("all features are 0: there is no direction to count")
    share = values / total
    return float((-torch.xlogy(share, share).sum()).exp()) / channels


class EffectiveRank(LabelledFeatures):
    """Effective rank of the mean tokens of all images, divided by the channels; higher is better.

    Args:
        channels: C of the latents.

    Source: arXiv:2605.07915 appendix B.
    """

    higher_is_better: bool | None = True

    def __init__(self, channels: int) -> None:
        super().__init__(channels, "float64")

    def update(  # type: ignore[override]  # takes latents, of which the features are the mean tokens
        self, latents: Tokens, index: Tensor, valid: Tensor | None = None
    ) -> None:
        """Count images.

        Args:
            latents: of B images.
            index: whole numbers, (B,), the number of every image in its set.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: latents that are not finite or of other channels, or numbers that differ.
        """
        super().update(pooled_latents(latents), index, None, valid)

    def compute(self) -> Tensor:
        """The value over the images of all ranks.

        Returns:
            float64 scalar.

        Raises:
            ValueError: nothing was counted.
        """
        return torch.tensor(effective_rank(self.table().features), dtype=torch.float64, device=self.device)

    def measurements(self, tokenizer: str = "") -> list[Measurement]:
        """The value with its jackknife error and the normal interval of it.

        Args:
            tokenizer: whose latents they are, for the protocol card.

        Returns:
            ``erank/mean-token``, over the images of all ranks.

        Raises:
            ValueError: nothing was counted.
        """
        with self.on_all_ranks():
            features = self.table().features
        value, error = effective_rank(features), effective_rank_error(features)
        interval = None if math.isnan(error) else (value - _TWO_SIDED * error, value + _TWO_SIDED * error)
        details: dict[str, Detail] = {
            "tokenizer": tokenizer,
            "channels": self.size,
            "error": f"jackknife over {min(_GROUPS, len(features))} groups of images",
            "interval": "normal, 95 %",
        }
        few = len(features) <= self.size
        note = f"{len(features)} images of {self.size} channels bound the rank: take more" if few else ""
        card = Protocol("erank", "mean-token", len(features), None, details)
        return [Measurement(value, card, None if math.isnan(error) else error, interval, note=note)]
