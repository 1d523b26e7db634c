"""From features to numbers with their protocol: every measurement of :class:`ImageGenerationMetrics` is made here."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Final

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.feature_states import FeatureSet
from lightning_gen.metrics.frechet import FrechetReference, too_few_samples
from lightning_gen.metrics.frechet_sampling import frechet_infinity, frechet_standard_error
from lightning_gen.metrics.inception_score import inception_score
from lightning_gen.metrics.kernel import CMMD_SCALE, CMMD_SIGMA, clip_mmd, kernel_inception_distance
from lightning_gen.metrics.precision_recall import manifold_scores
from lightning_gen.metrics.protocol import Detail, Measurement, Protocol
from lightning_gen.metrics.reference import ReferenceStatistics

__all__ = ["FeatureScores", "ProtocolCard", "why_too_few"]

_PUBLISHED_REFERENCES: Final = 10_000
_LEAST_FOR_A_LINE: Final = 3
_MANIFOLD: Final = ("precision", "recall", "density", "coverage")
_OWN_FEATURES: Final = {
    "fdd": ("dinov2", "DINOv2"),
    "gfdd": ("dinov3", "DINOv3"),
    "rfdd": ("dino", "DINO"),
    "cmmd": ("clip", "CLIP"),
}
"""Metric -> how the name of the extractor begins whose features it is defined on, and what people call it."""


def why_too_few(
    metric: str, samples: int, references: int | None, neighbours: int = 3, kid_subset_size: int = 1000
) -> str:
    """Say why a metric cannot be computed from so many pictures; known before any picture is looked at.

    Args:
        metric: its name, as in ``ImageGenerationMetrics``.
        samples: number of samples.
        references: number of reference pictures whose features, or moments, are compared; None = not known.
        neighbours: k of precision and recall.
        kid_subset_size: samples in a subset of KID.

    Returns:
        A sentence, or an empty string where it can be computed.
    """
    if metric == "inception_score":
        return "" if samples else "there are no samples"
    needed, problem = {
        "kid": (kid_subset_size, f"subsets of {kid_subset_size} cannot be drawn from {{}}"),
        "precision_recall": (neighbours + 1, f"{{}} have no neighbour number {neighbours}"),
        "cmmd": (2, "a kernel distance needs at least 2 pictures on each side, not {}"),
    }.get(metric, (2, "a covariance needs at least 2 pictures, not {}"))
    for count, what in ((samples, "samples"), (references, "reference pictures")):
        if count is not None and count < needed:
            return problem.format(f"{count:,} {what}")
    return ""


@dataclasses.dataclass(frozen=True)
class ProtocolCard:
    """What all numbers of one evaluation have in common.

    Attributes:
        extractor: the network.
        expected_count: N of the protocol.
        quantisation: how pictures were rounded to 8 bits.
        sampling: what else decides the samples.
    """

    extractor: FeatureExtractor
    expected_count: int
    quantisation: str
    sampling: str

    def measurement(
        self,
        metric: str,
        value: float,
        count: int,
        details: Mapping[str, Detail],
        error: float | None = None,
        note: str = "",
        has_count: bool = True,
    ) -> Measurement:
        """A number with its card.

        Args:
            metric: its name.
            value: the number.
            count: N, the samples it was computed from.
            details: what is particular about it.
            error: one standard error.
            note: a warning.
            has_count: whether N belongs to its name.

        Returns:
            The measurement.
        """
        notes = (note, self._foreign(metric.removesuffix("-infinity")), self.extractor.note)
        common: dict[str, Detail] = {
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.fingerprint,
            "dtype": str(self.extractor.dtype).removeprefix("torch."),
            "quantisation": self.quantisation,
            "sampling": self.sampling,
        }
        expected = self.expected_count if has_count else None
        protocol = Protocol(metric, self.extractor.name, count, expected, {**common, **details})
        return Measurement(value, protocol, error=error, note="; ".join(one for one in notes if one))

    def _foreign(self, metric: str) -> str:
        beginning, called = _OWN_FEATURES.get(metric, ("", ""))
        if self.extractor.name.startswith(beginning):
            return ""
        return f"{metric} is defined on features of {called}, these are of {self.extractor.name}"


@dataclasses.dataclass(frozen=True)
class FeatureScores:
    """Settings of the metrics of one evaluation, and the numbers that follow from features.

    Attributes:
        card: what the numbers have in common.
        neighbours: k of precision and recall.
        half_distances: their distances in float16.
        split_size: samples per split of the Inception score.
        kid_subsets: pairs of subsets of KID.
        kid_subset_size: samples in each.
        seed: of KID's draws and of the extrapolation's.
        extrapolate: whether Frechet distances of kept features are extrapolated to infinite N.
    """

    card: ProtocolCard
    neighbours: int
    half_distances: bool
    split_size: int
    kid_subsets: int
    kid_subset_size: int
    seed: int
    extrapolate: bool

    def __post_init__(self) -> None:
        smallest = {"neighbours": 1, "split_size": 1, "kid_subsets": 1, "kid_subset_size": 2}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is at least {least}, got {getattr(self, name)}")

    def missing(self, metric: str, samples: int, references: int | None) -> Iterator[Measurement]:
        """What stands for a metric that cannot be computed from so few pictures: NaN with a note, and a warning.

        Args:
            metric: its name.
            samples: number of samples.
            references: number of reference pictures; None = not known.

        Yields:
            Nothing where it can be computed, else a measurement for each of its values.
        """
        why = why_too_few(metric, samples, references, self.neighbours, self.kid_subset_size)
        if not why:
            return
        warnings.warn(f"{metric}: {why}", stacklevel=2)
        has_count = metric not in ("kid", "cmmd")
        for name in _MANIFOLD if metric == "precision_recall" else (metric,):
            yield self.card.measurement(name, math.nan, samples, {}, note=why, has_count=has_count)

    def frechet(
        self, metric: str, feature: str, fake: FeatureSet, reference: ReferenceStatistics, side: FrechetReference
    ) -> Iterator[Measurement]:
        """A Frechet distance, with its standard error and extrapolation where the features were kept.

        Args:
            metric: its name.
            feature: which one it compares.
            fake: the samples.
            reference: what they are compared with.
            side: the reference's moments of this feature.

        Yields:
            One or two measurements.
        """
        gaussian, rows = fake.gaussians[feature], fake.features.get(feature)
        details: dict[str, Detail] = {
            "reference_sha256": reference.source,
            "reference_count": side.gaussian.count,
        }
        error = None if rows is None else frechet_standard_error(rows, side)
        note = too_few_samples(gaussian) or too_few_samples(side.gaussian)
        yield self.card.measurement(metric, side.distance(gaussian), fake.count, details, error, note)
        if self.extrapolate and rows is not None and len(rows) < _LEAST_FOR_A_LINE:
            why = f"a line needs at least {_LEAST_FOR_A_LINE} samples, got {len(rows)}"
            yield self.card.measurement(f"{metric}-infinity", math.nan, fake.count, details, note=why)
        elif self.extrapolate and rows is not None:
            line = frechet_infinity(rows, side, seed=self.seed)
            error = line.error if math.isfinite(line.error) else None
            details |= {"points": len(line.sizes), "smallest": line.sizes[0], "slope": line.slope, "seed": self.seed}
            yield self.card.measurement(f"{metric}-infinity", line.value, fake.count, details, error)

    def inception_score(self, fake: FeatureSet) -> Measurement:
        """The Inception score.

        Args:
            fake: the samples; its ``logits`` are read.

        Returns:
            The score; its error is that of a mean of independent splits.
        """
        score = inception_score(fake.features["logits"], self.split_size)
        splits = len(score.splits)
        # ddof 1 over sqrt(splits), from a deviation with ddof 0.
        error = score.deviation / math.sqrt(splits - 1) if splits > 1 else None
        details: dict[str, Detail] = {"splits": splits, "split_size": self.split_size, "order": "as numbered"}
        details["split_deviation"] = score.deviation
        return self.card.measurement("inception_score", score.mean, fake.count, details, error)

    def precision_recall(self, fake: FeatureSet, reference: ReferenceStatistics) -> Iterator[Measurement]:
        """Precision, recall, density and coverage.

        Args:
            fake: the samples.
            reference: what they are compared with.

        Yields:
            Four measurements.
        """
        samples = fake.features["pool"]
        others = reference.features["pool"].to(samples.device)
        scores = manifold_scores(samples, others, self.neighbours, half=self.half_distances)
        details: dict[str, Detail] = {
            "k": self.neighbours,
            "distances": "float16" if self.half_distances else "float32",
            "inside": "<=",
            "reference_count": len(others),
            "reference_sha256": reference.source,
        }
        note = ""
        if len(others) != _PUBLISHED_REFERENCES:
            note = (
                f"precision and recall depend on the number of references: {len(others):,} here, "
                f"{_PUBLISHED_REFERENCES:,} in published numbers"
            )
        for name in _MANIFOLD:
            yield self.card.measurement(name, getattr(scores, name), fake.count, details, note=note)

    def kid(self, fake: FeatureSet, reference: ReferenceStatistics) -> Measurement:
        """KID.

        Args:
            fake: the samples.
            reference: what they are compared with.

        Returns:
            The mean over subsets, not multiplied by 1000; the deviation of the subsets is in the details, because they
            overlap and it is no standard error of the mean.
        """
        samples = fake.features["pool"]
        others = reference.features["pool"].to(samples.device)
        kid = kernel_inception_distance(samples, others, self.kid_subsets, self.kid_subset_size, self.seed)
        details: dict[str, Detail] = {
            "subsets": self.kid_subsets,
            "subset_size": self.kid_subset_size,
            "seed": self.seed,
            "subset_deviation": kid.deviation,
            "reference_count": len(others),
            "reference_sha256": reference.source,
        }
        return self.card.measurement("kid", kid.mean, fake.count, details, has_count=False)

    def cmmd(self, fake: FeatureSet, reference: ReferenceStatistics) -> Measurement:
        """CMMD.

        Args:
            fake: the samples.
            reference: what they are compared with.

        Returns:
            The distance, multiplied by 1000.
        """
        samples = fake.features["pool"]
        others = reference.features["pool"].to(samples.device)
        details: dict[str, Detail] = {
            "sigma": CMMD_SIGMA,
            "scale": CMMD_SCALE,
            "reference_count": len(others),
            "reference_sha256": reference.source,
        }
        return self.card.measurement("cmmd", clip_mmd(samples, others), fake.count, details, has_count=False)
