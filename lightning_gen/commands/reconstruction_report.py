"""How well photographs come back: an auto-encoder before and after training, next to two references without learning.

The references are fitted on the same training pictures and judged on the same held-out ones: the mean colour of every
patch, and PCA of the patches with as many numbers per patch as the auto-encoder has.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from lightning_gen.metrics.baselines import PatchPCA, patch_mean_reconstruction
from lightning_gen.metrics.reconstruction import psnr_per_image, ssim_per_image
from lightning_gen.nn.tokens import Tokens, split_images, unpatchify

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_gen.autoencoders.vitok_v2.module import ViTokV2
    from lightning_gen.data.modules import ShardDataModule

__all__ = ["METHODS", "Measured", "Report", "Score", "as_json", "as_table", "measure"]

METHODS: Final = ("mean colour", "patch PCA", "untrained", "trained")
"""What is compared, in the order of the columns."""

_TARGET = 4.0
_PCA_BATCHES = 100


class Score(NamedTuple):
    """How close a picture is to its original.

    Attributes:
        psnr: decibel.
        ssim: structural similarity, 1 = equal.
    """

    psnr: float
    ssim: float


class Measured(NamedTuple):
    """One photograph at one resolution.

    Attributes:
        key: its name.
        budget: token budget it was resized to.
        tokens: tokens it has.
        original: (3, H, W) in [-1, 1].
        trained: its reconstruction by the trained model, likewise.
        scores: method -> score.
    """

    key: str
    budget: int
    tokens: int
    original: Tensor
    trained: Tensor
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Report:
    """All photographs at all resolutions.

    Attributes:
        measured: one entry per photograph and budget.
        components: numbers per patch of the auto-encoder and of PCA.
        steps: optimiser steps the model was trained for.
    """

    measured: Sequence[Measured]
    components: int
    steps: int

    @property
    def budgets(self) -> list[int]:
        """Token budgets in ascending order."""
        return sorted({one.budget for one in self.measured})

    def mean(self, budget: int, method: str) -> Score:
        """Average over the photographs.

        Args:
            budget: which resolution.
            method: one of ``METHODS``.

        Returns:
            Mean PSNR and mean SSIM, every photograph weighs the same.
        """
        scores = [one.scores[method] for one in self.measured if one.budget == budget]
        return Score(fmean(score.psnr for score in scores), fmean(score.ssim for score in scores))

    def lead(self, budget: int, reference: str) -> float:
        """How far the trained model is ahead of a reference.

        Args:
            budget: which resolution.
            reference: one of ``METHODS``.

        Returns:
            Difference of the mean PSNRs in decibel; negative = behind.
        """
        return self.mean(budget, "trained").psnr - self.mean(budget, reference).psnr

    @property
    def passed(self) -> bool:
        """Whether the trained model beats the mean colour by 4 dB at every resolution."""
        return all(self.lead(budget, "mean colour") >= _TARGET for budget in self.budgets)


def measure(
    data: Callable[[int], ShardDataModule],
    untrained: ViTokV2,
    trained: ViTokV2,
    steps: int,
    budgets: Sequence[int] = (256, 1024),
) -> Report:
    """Reconstruct the validation photographs with both models and both references.

    Args:
        data: token budget of validation -> the data.
        untrained: the model with the weights of step 0.
        trained: the model after training.
        steps: how long that took, in optimiser steps.
        budgets: resolutions, in tokens per photograph.

    Returns:
        The report.
    """
    components = trained.variant.channels
    pca = _fit_pca(data(budgets[0]), components)
    methods: dict[str, Callable[[Tokens], Tensor]] = {
        "mean colour": lambda pixels: unpatchify(patch_mean_reconstruction(pixels))[0],
        "patch PCA": lambda pixels: unpatchify(pca.reconstruct(pixels))[0],
        "untrained": lambda pixels: _round_trip(untrained, pixels),
        "trained": lambda pixels: _round_trip(trained, pixels),
    }
    measured = [
        _measure_one(key, budget, pixels, methods) for budget in budgets for key, pixels in _photographs(data(budget))
    ]
    return Report(measured, components, steps)


def _fit_pca(data: ShardDataModule, components: int) -> PatchPCA:
    """On the crops that training sees: its first batches, more patches than 64 components can be wrong about."""
    batches = itertools.islice(data.train_loader(), _PCA_BATCHES)
    return PatchPCA(components).fit(batch.images for batch in batches if isinstance(batch.images, Tokens))


@torch.no_grad()
def _round_trip(model: ViTokV2, pixels: Tokens) -> Tensor:
    return model.decode(model.encode(pixels))[0].float()


def _photographs(data: ShardDataModule) -> Iterator[tuple[str, Tokens]]:
    for batch in data.evaluation_loader("val"):
        assert isinstance(batch.images, Tokens)  # what a ShardDataModule yields
        for key, valid, pixels in zip(batch.key, batch.valid.tolist(), split_images(batch.images), strict=True):
            if valid:
                yield key, pixels


def _measure_one(key: str, budget: int, pixels: Tokens, methods: Mapping[str, Callable[[Tokens], Tensor]]) -> Measured:
    original = unpatchify(pixels)[0]
    images = {method: reconstruct(pixels) for method, reconstruct in methods.items()}
    scores = {
        method: Score(
            psnr_per_image(image[None], original[None]).item(), ssim_per_image(image[None], original[None]).item()
        )
        for method, image in images.items()
    }
    return Measured(key, budget, int(pixels.mask.sum()), original, images["trained"], scores)


def as_table(report: Report) -> Table:
    """The report for people.

    Args:
        report: what was measured.

    Returns:
        A table of rich: PSNR in decibel and SSIM of every photograph, and the means.
    """
    from rich import box
    from rich.table import Table

    title = f"Held-out photographs after {report.steps} steps: PSNR in dB, SSIM"
    caption = f"patch PCA: {report.components} numbers per patch, as many as the model has"
    # Narrow enough for a terminal of 80 columns.
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("photograph", "size"):
        table.add_column(column, no_wrap=True)
    for method in METHODS:
        table.add_column(method, justify="right", no_wrap=True)
    for budget in report.budgets:
        for one in (one for one in report.measured if one.budget == budget):
            height, width = one.original.shape[1:]
            cells = (_cell(one.scores[method]) for method in METHODS)
            table.add_row(one.key, f"{height} x {width}", *cells)
        means = (_cell(report.mean(budget, method)) for method in METHODS)
        table.add_row("mean", f"{budget} tokens", *means, style="bold", end_section=True)
    return table


def _cell(score: Score) -> str:
    return f"{score.psnr:.2f} {score.ssim:.2f}"


def as_json(report: Report) -> dict[str, Any]:
    """The report for programs.

    Args:
        report: what was measured.

    Returns:
        Plain values.
    """
    return {
        "steps": report.steps,
        "numbers_per_patch": report.components,
        "passed": report.passed,
        "mean": {
            str(budget): {
                **{method: report.mean(budget, method)._asdict() for method in METHODS},
                "lead_over_mean_colour_db": report.lead(budget, "mean colour"),
                "lead_over_patch_pca_db": report.lead(budget, "patch PCA"),
            }
            for budget in report.budgets
        },
        "photographs": [
            {
                "key": one.key,
                "budget": one.budget,
                "tokens": one.tokens,
                "height": one.original.shape[1],
                "width": one.original.shape[2],
                "scores": {method: score._asdict() for method, score in one.scores.items()},
            }
            for one in report.measured
        ],
    }
