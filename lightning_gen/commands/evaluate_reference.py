"""What samples are compared with, and what can be computed from so many pictures: told before the first one is read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .evaluate_options import images_of

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
    from lightning_gen.metrics.features import FeatureMetric
    from lightning_gen.metrics.image_sets import ImageSet
    from lightning_gen.metrics.reference import ReferenceStatistics

__all__ = ["ON_FEATURES", "Counts", "GivenReference", "watched"]

ON_FEATURES: Final = ("precision_recall", "kid", "cmmd")
"""Metrics that compare features of single pictures, not moments."""

_HEAVY: Final = ("arr_0", "mu", "sigma", "mu_s", "sigma_s")
_HELP: Final = {"kid": "--kid-subset-size", "precision_recall": "--neighbours"}


class GivenReference:
    """The reference of a verb, opened; its pictures are not read yet.

    Attributes:
        has_moments: whether it is statistics, with moments of their own.
        pictures: what its features are computed from; None = it holds them itself, or none are needed.
        num_features: how many pictures its features belong to, as far as that is known.

    Args:
        options: of the verb.
        needs_features: keep the features of the reference, not only their moments.

    Raises:
        ValueError: ``--assume-extractor`` without statistics, or a single picture.
    """

    def __init__(self, options: argparse.Namespace, needs_features: bool) -> None:
        self._options = options
        self._path = Path(options.reference)
        self._keep = ("pool",) if needs_features else ()
        names = self._names()
        self.has_moments = self._path.suffix == ".safetensors" or "mu" in names
        self.pictures: ImageSet | None = None
        if not self.has_moments or (needs_features and "arr_0" in names):
            self.pictures = images_of(options.reference).with_alpha(options.alpha)
        if options.assume_extractor is not None and "mu" not in names:
            raise ValueError("--assume-extractor is for an npz of statistics; pictures go through the extractor itself")
        self.num_features = None if self.pictures is None else len(self.pictures)
        if not self.has_moments and (self.num_features or 0) < 2:
            raise ValueError(f"{options.reference}: a covariance needs at least 2 pictures, not 1 reference pictures")

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Its pictures under the name by which people know them, if there are any."""
        return {} if self.pictures is None else {"reference pictures": self.pictures}

    def load(self, extractor: FeatureExtractor, watch: Any) -> ReferenceStatistics:
        """Read it, or compute it.

        Args:
            extractor: the network.
            watch: told how far it is.

        Returns:
            The statistics; those of another extractor are refused.
        """
        from lightning_gen.metrics.reference import ReferenceStatistics

        if not self.has_moments:
            assert self.pictures is not None
            batches = watched(self.pictures, self._options, watch, "reference")
            return ReferenceStatistics.from_images(batches, extractor, self._keep, self.pictures.fingerprint)
        if self._path.suffix == ".safetensors":
            found = ReferenceStatistics.load(self._path)
        else:
            found = ReferenceStatistics.from_npz(self._path, None, self._options.assume_extractor)
        found.check(extractor)
        if self.pictures is not None:
            batches = watched(self.pictures, self._options, watch, "reference")
            seen = ReferenceStatistics.from_images(batches, extractor, self._keep, "")
            rows: dict[str, Tensor] = {name: one.cpu() for name, one in seen.features.items()}
            found = dataclasses.replace(found, features=rows)
        features = found.features.get("pool")
        self.num_features = None if features is None else len(features)
        return found

    def _names(self) -> list[str]:
        from lightning_gen.metrics.npz_arrays import read_npz

        return read_npz(self._path, skip=_HEAVY)[1] if self._path.suffix == ".npz" else []


@dataclasses.dataclass(frozen=True)
class Counts:
    """How many pictures there are, and what can be computed from them.

    Attributes:
        samples: number of samples.
        reference: what they are compared with; None = nothing.
        neighbours: k of precision and recall.
        kid_subset_size: samples in a subset of KID.
    """

    samples: int
    reference: GivenReference | None
    neighbours: int
    kid_subset_size: int

    def check(self, asked: Sequence[FeatureMetric]) -> None:
        """Refuse what was asked for and cannot be computed.

        Args:
            asked: names of metrics.

        Raises:
            ValueError: too few pictures; says of which kind, and which option helps.
        """
        for metric in asked:
            if why := self._why_not(metric):
                raise ValueError(f"--metrics {metric}: {why}")

    def possible(self, chosen: Sequence[FeatureMetric], warnings: list[str]) -> list[FeatureMetric]:
        """Leave out what cannot be computed.

        Args:
            chosen: names of metrics.
            warnings: gets a word about each that is left out.

        Returns:
            The others.

        Raises:
            ValueError: none is left.
        """
        problems = {metric: self._why_not(metric) for metric in chosen}
        left_out = [f"{metric} is left out: {why}" for metric, why in problems.items() if why]
        if len(left_out) == len(chosen):
            raise ValueError("; ".join(left_out))
        warnings += left_out
        return [metric for metric in chosen if not problems[metric]]

    def _why_not(self, metric: FeatureMetric) -> str:
        from lightning_gen.metrics.feature_scores import why_too_few

        references = None
        if self.reference is not None and (metric in ON_FEATURES or not self.reference.has_moments):
            references = self.reference.num_features
        why = why_too_few(metric, self.samples, references, self.neighbours, self.kid_subset_size)
        option = _HELP.get(metric)
        return f"{why}; give more pictures, or a smaller {option}" if why and option else why


def watched(
    images: ImageSet, options: argparse.Namespace, watch: Any, what: str = "pictures"
) -> Iterator[list[Tensor]]:
    """Batches of pictures, and a word to the watcher after each.

    Args:
        images: the pictures.
        options: of the verb.
        watch: told how far it is.
        what: what it calls them.

    Yields:
        The batches.
    """
    done = 0
    for batch in images.batches(options.batch_size, options.threads):
        yield batch
        done += len(batch)
        watch(what, done, len(images))
