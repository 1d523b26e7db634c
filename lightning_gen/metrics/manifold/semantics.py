"""GSQ: is the nearest neighbour of an image in a latent space of the same class?

Shape letters: N images, C channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.metrics.intervals import ratio_bootstrap_interval
from lightning_gen.metrics.labelled_features import LabelledFeatures
from lightning_gen.metrics.manifold.pooling import pooled_latents
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.nn.tokens import Tokens
from lightning_gen.training.randomness import torch_generator

__all__ = ["GSQ", "NeighbourAgreement", "neighbour_agreement", "neighbours_agree"]

_BLOCK: Final = 2048


@dataclasses.dataclass(frozen=True)
class NeighbourAgreement:
    """GSQ over several draws of classes.

    Attributes:
        mean: mean over the draws.
        deviation: standard deviation over the draws, their number in the denominator (ddof 0); 0 where every draw has
            all classes.
        draws: GSQ of every draw.
        hits: float64, (classes,), images whose neighbour agrees, over all draws, one entry per class.
        totals: float64, (classes,), images over all draws.
        num_classes: classes of a draw.
    """

    mean: float
    deviation: float
    draws: tuple[float, ...]
    hits: Tensor
    totals: Tensor
    num_classes: int


def neighbours_agree(features: Tensor, labels: Tensor, block: int = _BLOCK) -> Tensor:
    """Whether the nearest neighbour of every image has its class; exact, in blocks.

    f <- (f - mean f) / |f - mean f|;  neighbour of i = argmax over j != i of <f_i, f_j>

    Args:
        features: float, (N, C).
        labels: whole numbers, (N,).
        block: rows at a time.

    Returns:
        bool, (N,).

    Raises:
        ValueError: fewer than two images, or numbers that differ.

    Source: arXiv:2605.07915 eq. 11-13.
    """
    if len(features) < 2 or features.ndim != 2 or labels.shape != (len(features),):
        raise ValueError(
            f"features {tuple(features.shape)} with labels {tuple(labels.shape)}: need (N, C) and (N,), N at least 2"
        )
    unit = features.detach().double()
    unit = F.normalize(unit - unit.mean(0), dim=1)
    hits = []
    for start in range(0, len(unit), block):
        cosines = unit[start : start + block] @ unit.T
        rows = torch.arange(len(cosines), device=unit.device)
        cosines[rows, rows + start] = -torch.inf
        hits.append(labels[cosines.argmax(1)] == labels[start : start + block])
    return torch.cat(hits)


def neighbour_agreement(
    features: Tensor, labels: Tensor, num_classes: int = 100, num_draws: int = 5, seed: int = 0
) -> NeighbourAgreement:
    """GSQ: the share of images whose neighbour agrees, among the images of some random classes.

    Args:
        features: mean tokens, float, (N, C).
        labels: classes, whole numbers, (N,).
        num_classes: classes of a draw; where there are no more, all of them are used once.
        num_draws: draws of classes.
        seed: of the draws.

    Returns:
        Mean, deviation and parts. The mean of the features is that of each draw's images.

    Raises:
        ValueError: one class only, for which GSQ is 1 whatever the features are, or fewer than two classes per draw.

    Source: arXiv:2605.07915 eq. 11-14. Random labels give about 1 / num_classes; a class with a single image cannot
    agree.
    """
    classes, group = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"{len(labels)} images of {len(classes)} class: every neighbour would agree whatever the latents are. Take "
            "pictures of at least 2 classes"
        )
    if num_classes < 2 or num_draws < 1:
        raise ValueError(f"{num_draws} draws of {num_classes} classes: take at least 1 of at least 2")
    chosen_each, draws = min(num_classes, len(classes)), num_draws if len(classes) > num_classes else 1
    values = []
    hits, totals = torch.zeros(2, len(classes), dtype=torch.float64)
    for draw in range(draws):
        order = torch.randperm(len(classes), generator=torch_generator(seed, "gsq classes", draw))
        rows = torch.isin(group, order[:chosen_each].to(group.device))
        agrees = neighbours_agree(features[rows], group[rows]).cpu()
        values.append(float(agrees.double().mean()))
        hits += torch.bincount(group[rows].cpu(), agrees.double(), minlength=len(classes))
        totals += torch.bincount(group[rows].cpu(), minlength=len(classes))
    mean = math.fsum(values) / draws
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / draws)
    seen = totals > 0
    return NeighbourAgreement(mean, deviation, tuple(values), hits[seen], totals[seen], chosen_each)


class GSQ(LabelledFeatures):
    """Share of images whose nearest neighbour among the mean tokens has their class; higher is better.

    All ranks' mean tokens are gathered before neighbours are looked for: a neighbour may be another rank's image.

    Args:
        channels: C of the latents.
        num_classes: classes of a draw.
        num_draws: draws of classes.
        seed: of the draws.

    Source: arXiv:2605.07915 eq. 11-14.
    """

    higher_is_better: bool | None = True

    def __init__(self, channels: int, num_classes: int = 100, num_draws: int = 5, seed: int = 0) -> None:
        super().__init__(channels, "float64")
        self.num_classes, self.num_draws, self.seed = num_classes, num_draws, seed

    def update(  # type: ignore[override]  # takes latents, of which the features are the mean tokens
        self, latents: Tokens, index: Tensor, labels: Tensor | None = None, valid: Tensor | None = None
    ) -> None:
        """Count images.

        Args:
            latents: of B images.
            index: whole numbers, (B,), the number of every image in its set.
            labels: whole numbers, (B,), classes, -1 = none; such images have no part in the value.
            valid: bool, (B,), False = an image that only fills the batch.

        Raises:
            ValueError: latents that are not finite or of other channels, or numbers that differ.
        """
        super().update(pooled_latents(latents), index, labels, valid)

    def compute(self) -> Tensor:
        """GSQ over the images of all ranks.

        Returns:
            float64 scalar.

        Raises:
            ValueError: fewer than two classes.
        """
        return torch.tensor(self._agreement().mean, dtype=torch.float64, device=self.device)

    def agreement(self) -> NeighbourAgreement:
        """Mean, deviation and parts over the images of all ranks; every rank must call it.

        Returns:
            See :func:`neighbour_agreement`.

        Raises:
            ValueError: fewer than two classes.
        """
        with self.on_all_ranks():
            return self._agreement()

    def measurements(self, tokenizer: str = "") -> list[Measurement]:
        """The mean over the draws; its error is their deviation, its interval a bootstrap over classes.

        Args:
            tokenizer: whose latents they are, for the protocol card.

        Returns:
            ``gsq/nn-cosine``, over the images of all ranks.

        Raises:
            ValueError: fewer than two classes.
        """
        found = self.agreement()
        details: dict[str, Detail] = {
            "tokenizer": tokenizer,
            "classes": found.num_classes,
            "draws": len(found.draws),
            "seed": self.seed,
            "error": "standard deviation over draws of classes (ddof 0)",
            "interval": "bootstrap over classes with the neighbours as they are, 95 %",
        }
        note = ""
        if len(found.draws) == 1:
            note = f"one draw of all {found.num_classes} classes; the paper's is the mean of 5 draws of 100"
        interval = ratio_bootstrap_interval(found.hits, found.totals)
        card = Protocol("gsq", "nn-cosine", int(found.totals.sum()) // len(found.draws), None, details)
        return [Measurement(found.mean, card, found.deviation if len(found.draws) > 1 else None, interval, note=note)]

    def _agreement(self) -> NeighbourAgreement:
        table = self.table().with_class()
        return neighbour_agreement(table.features, table.labels, self.num_classes, self.num_draws, self.seed)
