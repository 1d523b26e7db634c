"""Metrics of sets of pictures: one forward of one network per picture, all the numbers from it.

Shape letters: B images, N samples, D features.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.feature_scores import FeatureScores, ProtocolCard, why_too_few
from lightning_gen.metrics.feature_states import FeatureSet, FeatureStates, choose_images
from lightning_gen.metrics.frechet import FrechetReference, Gaussian, too_few_samples
from lightning_gen.metrics.images import Images
from lightning_gen.metrics.protocol import Measurement
from lightning_gen.metrics.reference import ReferenceStatistics

__all__ = ["FeatureMetric", "ImageGenerationMetrics", "ReconstructionFrechet"]

FeatureMetric = Literal[
    "gfid", "rfid", "fdd", "gfdd", "rfdd", "sfid", "inception_score", "precision_recall", "kid", "cmmd"
]
"""What can be measured. The first five are the Frechet distance of ``pool``, under the name it is published by."""

_POOL_FRECHET: Final = ("gfid", "rfid", "fdd", "gfdd", "rfdd")
_ON_KEPT: Final = ("precision_recall", "kid", "cmmd")


class _FeatureMetrics(FeatureStates):
    """Measurements over streams of features, remembered from the last ``compute``."""

    def __init__(
        self, extractor: FeatureExtractor, expected_count: int, truncate: bool, quantisation: str, sampling: str
    ) -> None:
        super().__init__(extractor)
        self.expected_count = expected_count
        self.truncate = truncate
        self.card = ProtocolCard(extractor, expected_count, quantisation, sampling)
        self._results: list[Measurement] = []

    def forward(self, *args: Any, **keywords: Any) -> dict[str, Tensor]:
        """Count a batch, as ``update`` does. One batch has no distance of its own, so nothing is computed.

        Args:
            *args: as in ``update``.
            **keywords: as in ``update``.

        Returns:
            An empty dictionary.
        """
        self.update(*args, **keywords)
        return {}

    def measurements(self) -> list[Measurement]:
        """The values with all that decides them; call it on every rank, as ``compute``.

        Returns:
            One measurement per value.
        """
        self.compute()
        return list(self._results)

    def _choose(self, images: Images, valid: Tensor | None, index: Tensor | None) -> tuple[Images, Tensor | None]:
        if self.truncate and index is None:
            raise ValueError("truncate=True leaves out pictures by their index: pass index to update")
        return choose_images(images, valid, index, self.expected_count if self.truncate else None)

    def _publish(self, results: Iterator[Measurement]) -> dict[str, Tensor]:
        self._results = list(results)
        return {
            one.protocol.id: torch.tensor(one.value, dtype=torch.float64, device=self.device) for one in self._results
        }

    def _check_count(self, count: int) -> None:
        if count > self.expected_count:
            raise ValueError(
                f"{count:,} pictures were counted, {self.expected_count:,} are expected: mask what fills up the last "
                "batch with `valid`, give `index` and truncate=True, or expect more"
            )


class ImageGenerationMetrics(_FeatureMetrics):
    """gFID, sFID, Inception score, precision and recall, KID, CMMD, FDD of generated pictures in one pass.

    The published protocols: ``FIDInceptionV3`` with 50,000 samples for gFID, sFID, the Inception score, precision and
    recall; a DINOv2 extractor for FDD; a CLIP extractor for CMMD. Every value is named by its protocol id, for instance
    ``gfid/adm-tf1/50k``, or ``gfid@2048/adm-tf1`` where another number of samples was counted.

    A value that cannot be computed from so few pictures is NaN, with a warning and a note; the others are not lost.

    In a LightningModule it is an ordinary attribute: ``update`` in ``validation_step``, then
    ``self.log_dict(self.metrics.compute())`` and ``self.metrics.reset()`` in ``on_validation_epoch_end``. Values do not
    depend on the number of ranks; see :class:`FeatureStates` for how exactly. Without ``index``, the order of the
    samples, and with it the Inception score and the draws of KID, is that of the ranks.

    Args:
        extractor: the network.
        reference: what samples are compared with; None = real pictures are counted with ``real=True``. Precision and
            recall, KID and CMMD need one that holds the features ``pool``.
        metrics: what is measured.
        expected_count: N of the protocol; more samples are refused.
        truncate: leave out samples whose index is not below ``expected_count``.
        reset_real_features: whether ``reset`` forgets counted real pictures. If not, the first ``reset`` after a
            ``compute`` makes them the reference; further real pictures are then passed over, and checkpoints hold it.
            Lightning's sanity check would make a reference of two batches: call :meth:`forget_reference` after it, or
            set ``num_sanity_val_steps=0``.
        standard_error: keep ``pool`` and estimate the standard error of its Frechet distance (also done where another
            metric keeps it anyway).
        extrapolate: keep ``pool`` and also extrapolate its Frechet distance to infinite N.
        neighbours: k of precision and recall.
        half_distances: distances of precision and recall in float16, as in the ADM evaluator.
        split_size: samples per split of the Inception score.
        kid_subsets: pairs of subsets of KID.
        kid_subset_size: samples in each.
        seed: of KID's draws and of the extrapolation's.
        quantisation: how the pictures were rounded to 8 bits, for the protocol card.
        sampling: what else decides the samples, such as guidance, steps and the rule of seeds; for the protocol card.

    Raises:
        ValueError: the extractor lacks a feature, or the reference comes from another extractor or lacks statistics.

    Source: github.com/openai/guided-diffusion, evaluations/evaluator.py; arXiv:1706.08500; arXiv:2103.03841;
    arXiv:1606.03498; arXiv:1904.06991; arXiv:1801.01401; arXiv:2401.09603; arXiv:2306.04675.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: ReferenceStatistics | None = None,
        metrics: Sequence[FeatureMetric] = ("gfid", "sfid", "inception_score", "precision_recall"),
        expected_count: int = 50_000,
        truncate: bool = False,
        reset_real_features: bool = True,
        standard_error: bool = False,
        extrapolate: bool = False,
        neighbours: int = 3,
        half_distances: bool = False,
        split_size: int = 5000,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        seed: int = 2020,
        quantisation: str = "round",
        sampling: str = "",
    ) -> None:
        super().__init__(extractor, expected_count, truncate, quantisation, sampling)
        unknown = [name for name in metrics if name not in get_args(FeatureMetric)]
        if unknown or not metrics:
            raise ValueError(f"unknown metrics {unknown}; there are {', '.join(get_args(FeatureMetric))}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.reset_real_features = reset_real_features
        self._scores = FeatureScores(
            self.card, neighbours, half_distances, split_size, kid_subsets, kid_subset_size, seed, extrapolate
        )
        self._summed = ["pool"] * any(name in _POOL_FRECHET for name in self.metrics)
        self._summed += ["spatial"] * ("sfid" in self.metrics)
        self._compared = ["pool"] * any(name in _ON_KEPT for name in self.metrics)
        kept = [*self._compared, *["logits"] * ("inception_score" in self.metrics)]
        if (standard_error or extrapolate) and "pool" in self._summed:
            kept.append("pool")
        self._reference: ReferenceStatistics | None = None
        self._measured_reference: ReferenceStatistics | None = None
        self._is_given = reference is not None
        self._sides: dict[str, FrechetReference] = {}
        shifts = {}
        if reference is None:
            self.add_stream("real", self._summed, self._compared)
        else:
            self._adopt(reference)
            shifts = {name: one.mean for name, one in reference.gaussians.items()}
        self.add_stream("fake", self._summed, kept, shifts)

    @property
    def reference(self) -> ReferenceStatistics | None:
        """What samples are compared with; None = real pictures are still to be counted."""
        return self._reference

    @property
    def needs_reference(self) -> bool:
        """Whether real pictures have to be counted."""
        return self._reference is None and bool(self._summed or self._compared)

    def update(
        self, images: Images, real: bool = False, valid: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        """Count a batch.

        Args:
            images: uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes.
            real: whether they are real ones; passed over once there is a reference.
            valid: bool, (B,); False = a picture that only fills the batch.
            index: whole numbers, (B,): the number of every sample among all samples of all ranks, from 0. With it,
                repeated ones count once and the order does not depend on the ranks.

        Raises:
            ValueError: pictures that are not 8-bit RGB, a wrong mask or wrong numbers.
        """
        if real and not self.needs_reference:
            return
        chosen, numbers = choose_images(images, valid, index) if real else self._choose(images, valid, index)
        self.count("real" if real else "fake", chosen, numbers)

    def compute(self) -> dict[str, Tensor]:
        """All values over what was counted on all ranks.

        Returns:
            Protocol id -> float64 scalar.

        Raises:
            ValueError: more samples than expected, or no reference.
        """
        fake = self.collect("fake")
        self._check_count(fake.count)
        if self.needs_reference:
            self._measured_reference = self._from_real_pictures()
        return self._publish(self._measure(fake, self._reference or self._measured_reference))

    def reset(self) -> None:
        """Forget the samples; the reference stays, and real pictures as ``reset_real_features`` says."""
        if not self.reset_real_features and self._reference is None and self._measured_reference is not None:
            self._adopt(self._measured_reference)
        self._measured_reference = None
        super().reset()

    def forget_reference(self) -> None:
        """Make room for other real pictures.

        Raises:
            ValueError: the reference was given at construction.
        """
        if self._is_given:
            raise ValueError("the reference was given at construction; build the metrics anew with another one")
        self._reference = self._measured_reference = None
        self._sides.clear()

    def _from_real_pictures(self) -> ReferenceStatistics:
        real = self.collect("real")
        if real.count < 2:
            raise ValueError(f"a reference needs at least 2 samples, got {real.count}: count pictures with real=True")
        hashed = ReferenceStatistics.digest(real.gaussians)
        name, weights = self.extractor.name, self.extractor.fingerprint
        return ReferenceStatistics(real.gaussians, name, weights, hashed, real.features)

    def _adopt(self, reference: ReferenceStatistics) -> None:
        reference.check(self.extractor)
        for feature in self._summed:
            reference.frechet(feature)
        if self._compared and "pool" not in reference.features:
            raise ValueError(
                f"{', '.join(name for name in self.metrics if name in _ON_KEPT)} compare features, of which the "
                "reference holds none: build it with keep=('pool',), or from an npz with arr_0 and its extractor"
            )
        self._reference = reference
        self._sides.clear()

    def _measure(self, fake: FeatureSet, reference: ReferenceStatistics | None) -> Iterator[Measurement]:
        for metric in self.metrics:
            if missing := list(self._scores.missing(metric, fake.count, self._references(metric, reference))):
                yield from missing
            elif metric == "inception_score":
                yield self._scores.inception_score(fake)
            else:
                assert reference is not None
                yield from self._compare(metric, fake, reference)

    def _compare(
        self, metric: FeatureMetric, fake: FeatureSet, reference: ReferenceStatistics
    ) -> Iterator[Measurement]:
        if metric == "precision_recall":
            yield from self._scores.precision_recall(fake, reference)
        elif metric == "kid":
            yield self._scores.kid(fake, reference)
        elif metric == "cmmd":
            yield self._scores.cmmd(fake, reference)
        else:
            feature = "spatial" if metric == "sfid" else "pool"
            yield from self._scores.frechet(metric, feature, fake, reference, self._side(feature, reference))

    @staticmethod
    def _references(metric: FeatureMetric, reference: ReferenceStatistics | None) -> int | None:
        """Reference pictures that a metric compares one by one; moments say nothing about how few there were."""
        return len(reference.features["pool"]) if reference is not None and metric in _ON_KEPT else None

    def _side(self, feature: str, reference: ReferenceStatistics) -> FrechetReference:
        known = self._sides.get(feature)
        if known is not None and known.gaussian.mean.device == self.device:
            return known
        side = reference.frechet(feature, self.device)
        # Only what stays is worth remembering.
        if reference is self._reference:
            self._sides[feature] = side
        return side

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._reference is not None and not self._is_given:
            content = bytearray(self._reference.to_bytes())
            destination[prefix + "reference"] = torch.frombuffer(content, dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.pop(prefix + "reference", None)
        if stored is not None and not self._is_given:
            self._adopt(ReferenceStatistics.from_bytes(stored.cpu().numpy().tobytes(), "the checkpoint's reference"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class ReconstructionFrechet(_FeatureMetrics):
    """rFID or rFDD: reconstructions against the very originals they were made from.

    The reference is the set of originals, not the statistics of a training set; values against those are other numbers.
    Both sides are counted together, so both have the same pictures whatever a sampler repeats. From fewer than two
    pairs it is NaN, with a warning and a note.

    Args:
        extractor: the network; ``FIDInceptionV3`` for rFID, DINOv2 for rFDD.
        metric: the name of the value.
        expected_count: N of the protocol; more pairs are refused.
        truncate: leave out pairs whose index is not below ``expected_count``.
        quantisation: how the reconstructions were rounded to 8 bits, for the protocol card.
        sampling: what else decides the reconstructions, for the protocol card.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        metric: Literal["rfid", "rfdd"] = "rfid",
        expected_count: int = 50_000,
        truncate: bool = False,
        quantisation: str = "round",
        sampling: str = "",
    ) -> None:
        super().__init__(extractor, expected_count, truncate, quantisation, sampling)
        self.metric = metric
        self.add_stream("prediction", ["pool"])
        self.add_stream("target", ["pool"])

    def update(
        self, prediction: Images, target: Images, valid: Tensor | None = None, index: Tensor | None = None
    ) -> None:
        """Count a batch of pairs.

        Args:
            prediction: reconstructions, uint8, (B, 3, H, W) or B tensors (3, H, W) of any sizes.
            target: their originals.
            valid: bool, (B,); False = a pair that only fills the batch.
            index: whole numbers, (B,): the number of every pair in the set; repeated ones count once.

        Raises:
            ValueError: numbers of pictures differ, pictures that are not 8-bit RGB, a wrong mask or wrong numbers.
        """
        if len(prediction) != len(target):
            raise ValueError(f"{len(prediction)} reconstructions, {len(target)} originals")
        for stream, images in (("prediction", prediction), ("target", target)):
            self.count(stream, *self._choose(images, valid, index))

    def compute(self) -> dict[str, Tensor]:
        """The distance over all pairs counted on all ranks.

        Returns:
            Protocol id -> float64 scalar.

        Raises:
            ValueError: more pairs than expected.
        """
        prediction, target = self.collect("prediction"), self.collect("target")
        self._check_count(prediction.count)
        return self._publish(self._measure(prediction, target.gaussians.get("pool")))

    def _measure(self, prediction: FeatureSet, target: Gaussian | None) -> Iterator[Measurement]:
        if target is None:
            why = why_too_few(self.metric, prediction.count, None).replace("samples", "pairs")
            warnings.warn(f"{self.metric}: {why}", stacklevel=2)
            yield self.card.measurement(self.metric, math.nan, prediction.count, {}, note=why)
            return
        gaussian = prediction.gaussians["pool"]
        value, note = FrechetReference(target).distance(gaussian), too_few_samples(gaussian)
        hashed = ReferenceStatistics.digest({"pool": target})
        details = {"reference_sha256": hashed, "reference": "the originals of the reconstructions"}
        yield self.card.measurement(self.metric, value, prediction.count, details, note=note)
