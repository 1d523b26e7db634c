"""From features to numbers with their protocol: every measurement of :class:`ImageGenerationMetrics` is made here."""

from __future__ import annotations

import dataclasses
import math
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

__all__ = ["FeatureScores", "ProtocolCard"]

_PUBLISHED_REFERENCES: Final = 10_000


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
        common: dict[str, Detail] = {
            "extractor": self.extractor.name,
            "extractor_sha256": self.extractor.fingerprint,
            "dtype": str(self.extractor.dtype).removeprefix("torch."),
            "quantisation": self.quantisation,
            "sampling": self.sampling,
        }
        expected = self.expected_count if has_count else None
        protocol = Protocol(metric, self.extractor.name, count, expected, {**common, **details})
        return Measurement(value, protocol, error=error, note=note)


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
        if self.extrapolate and rows is not None:
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
        for name in ("precision", "recall", "density", "coverage"):
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
