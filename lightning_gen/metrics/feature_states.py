"""Features of pictures as states of a metric: summed or kept, each picture once, whatever ranks and batches there are.

A stream is one set of pictures, such as the samples. Some of its features are summed into moments, others are kept,
together with the number of the picture each row belongs to.

Shape letters: B images, N pictures, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_gen.metrics.extraction.feature_extractor import FeatureExtractor
from lightning_gen.metrics.frechet import Gaussian, Moments
from lightning_gen.metrics.images import Images

__all__ = ["FeatureSet", "FeatureStates", "choose_images"]

_ROWS: Final = 1024
_UNNUMBERED: Final = -1


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """What a stream has seen on all ranks.

    Attributes:
        count: N, every picture once.
        gaussians: moments, by name of the feature; none of fewer than two pictures.
        features: float, (N, D), sorted by the number of the picture, by name of the feature.
    """

    count: int
    gaussians: dict[str, Gaussian]
    features: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class _Stream:
    summed: tuple[str, ...]
    kept: tuple[str, ...]
    shifts: Mapping[str, Tensor]

    @property
    def indices(self) -> tuple[str, ...]:
        """Which lists of picture numbers there are."""
        return ("kept",) * bool(self.kept) + ("waiting", "summed") * bool(self.summed)


class FeatureStates(Metric):
    """Base of metrics over features. States are float64 sums and lists; parents move them but never round them.

    A picture that two ranks saw, because a distributed sampler fills up the last batch, counts once if its number is
    given: kept rows are gathered and the later ones dropped; of summed features, the rows of every rank's last batch
    stay out of the sums until the end, since this is where a sampler fills up. Kept features give the same bits for any
    number of ranks, sums the same value to about 1e-12.

    Args:
        extractor: the network; a constant of the run, never saved.
    """

    full_state_update: bool | None = False
    is_differentiable: bool | None = False
    higher_is_better: bool | None = None

    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor
        self._streams: dict[str, _Stream] = {}

    def add_stream(
        self, stream: str, summed: Iterable[str], kept: Iterable[str] = (), shifts: Mapping[str, Tensor] | None = None
    ) -> None:
        """Make the states of a set of pictures.

        Args:
            stream: its name.
            summed: features whose moments are wanted.
            kept: features that are kept; moments of these are found from the rows.
            shifts: feature -> a vector near its mean, the same on all ranks; see :class:`Moments`.

        Raises:
            ValueError: the extractor has no such feature.
        """
        kept = tuple(dict.fromkeys(kept))
        record = _Stream(tuple(name for name in dict.fromkeys(summed) if name not in kept), kept, dict(shifts or {}))
        for feature in (*record.summed, *record.kept):
            if feature not in self.extractor.sizes:
                raise ValueError(
                    f"extractor {self.extractor.name} has {', '.join(self.extractor.sizes)}, no feature {feature!r}"
                )
        self._streams[stream] = record
        lists = [f"{stream}_{feature}_kept" for feature in record.kept]
        lists += [f"{stream}_{feature}_waiting" for feature in record.summed]
        lists += [f"{stream}_{what}" for what in record.indices]
        for name in lists:
            self.add_state(name, [], dist_reduce_fx="cat")
        for feature in record.summed:
            size = self.extractor.sizes[feature]
            self.add_state(f"{stream}_{feature}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            for what, shape in (("total", (size,)), ("outer", (size, size))):
                zeros = torch.zeros(shape, dtype=torch.float64)
                self.add_state(f"{stream}_{feature}_{what}", zeros, dist_reduce_fx="sum")

    def count(self, stream: str, images: Images, index: Tensor | None = None) -> None:
        """Count pictures.

        Args:
            stream: which set they belong to.
            images: uint8, (B, 3, H, W) or a list; an empty one is fine.
            index: int64, (B,), the number of every picture in its set, from 0; None = they have none.
        """
        if len(images) == 0:
            return
        record, features = self._streams[stream], self.extractor(images)
        if index is None:
            index = torch.full((len(images),), _UNNUMBERED)
        index = index.to(self.device, torch.int64)
        if record.kept:
            self._append(f"{stream}_kept", index)
        for feature in record.kept:
            self._append(f"{stream}_{feature}_kept", features[feature].to(self.device))
        if record.summed:
            self._append(f"{stream}_waiting", index)
        for feature in record.summed:
            self._append(f"{stream}_{feature}_waiting", features[feature].to(self.device))
        if record.summed and sum(map(len, self._list(f"{stream}_waiting")[:-1])) >= _ROWS:
            self._sum_all_but_the_last_batch(stream)

    def collect(self, stream: str) -> FeatureSet:
        """All that was counted; inside ``compute`` this is what all ranks counted.

        Args:
            stream: which set.

        Returns:
            Its moments and features.

        Raises:
            ValueError: only some pictures have numbers, or a repeated picture went into a sum.
        """
        record = self._streams[stream]
        gaussians: dict[str, Gaussian] = {}
        features: dict[str, Tensor] = {}
        count = 0
        if record.kept:
            index = self._cat(f"{stream}_kept", torch.int64)
            rows = _once(index)
            count = len(rows)
            for feature in record.kept:
                kept = features[feature] = self._cat(f"{stream}_{feature}_kept", self.extractor.dtype, feature)[rows]
                moments = Moments(kept.shape[1], self._shift(stream, feature), self.device)
                for some in torch.split(kept, _ROWS):
                    moments.add(some)
                if count > 1:
                    gaussians[feature] = moments.gaussian()
        if record.summed:
            summed = self._cat(f"{stream}_summed", torch.int64)
            waiting = self._cat(f"{stream}_waiting", torch.int64)
            rows = _once(waiting, summed)
            count = len(summed) + len(rows)
            for feature in record.summed:
                moments = self._moments(stream, feature, copy=True)
                moments.add(self._cat(f"{stream}_{feature}_waiting", self.extractor.dtype, feature)[rows])
                if count > 1:
                    gaussians[feature] = moments.gaussian()
        return FeatureSet(count, gaussians, features)

    def seen(self, stream: str) -> int:
        """Pictures that this rank has counted, repeats included.

        Args:
            stream: which set.

        Returns:
            Their number.
        """
        record = self._streams[stream]
        names = ("kept",) if record.kept else record.indices
        return sum(len(one) for name in names for one in self._list(f"{stream}_{name}"))

    def sync(self, *args: Any, **keywords: Any) -> None:
        """Gather the states; see torchmetrics.

        Args:
            *args: as in torchmetrics.
            **keywords: as in torchmetrics.
        """
        # torchmetrics lets a rank without rows send a one-dimensional float32 tensor, which does not fit the others'.
        if not self._is_synced:
            for name, empty in self._empty_lists():
                if len(self._list(name)) == 0:
                    setattr(self, name, [empty])
        super().sync(*args, **keywords)

    def _empty_lists(self) -> Iterable[tuple[str, Tensor]]:
        for stream, record in self._streams.items():
            for what in record.indices:
                yield f"{stream}_{what}", torch.zeros(0, dtype=torch.int64, device=self.device)
            for what, names in (("kept", record.kept), ("waiting", record.summed)):
                for feature in names:
                    shape = (0, self.extractor.sizes[feature])
                    yield (
                        f"{stream}_{feature}_{what}",
                        torch.zeros(shape, dtype=self.extractor.dtype, device=self.device),
                    )

    def _sum_all_but_the_last_batch(self, stream: str) -> None:
        for feature in self._streams[stream].summed:
            name = f"{stream}_{feature}_waiting"
            batches = self._list(name)
            self._moments(stream, feature).add(torch.cat(batches[:-1]))
            setattr(self, name, batches[-1:])
        batches = self._list(f"{stream}_waiting")
        self._append(f"{stream}_summed", torch.cat(batches[:-1]))
        setattr(self, f"{stream}_waiting", batches[-1:])

    def _moments(self, stream: str, feature: str, copy: bool = False) -> Moments:
        sums = []
        for what in ("count", "total", "outer"):
            name = f"{stream}_{feature}_{what}"
            state = cast(Tensor, getattr(self, name))
            if copy:
                state = state.clone()
            elif state.is_inference() and not torch.is_inference_mode_enabled():
                # A reset inside a validation loop left a state that only inference mode may change in place.
                state = state.clone()
                setattr(self, name, state)
            sums.append(state)
        shift = self._shift(stream, feature)
        return Moments.of(sums[0], sums[1], sums[2], torch.zeros_like(sums[1]) if shift is None else shift)

    def _shift(self, stream: str, feature: str) -> Tensor | None:
        shift = self._streams[stream].shifts.get(feature)
        return None if shift is None else shift.to(self.device, torch.float64)

    def _list(self, name: str) -> list[Tensor]:
        state = getattr(self, name)
        return [state] if isinstance(state, Tensor) else state

    def _append(self, name: str, rows: Tensor) -> None:
        setattr(self, name, [*self._list(name), rows])

    def _cat(self, name: str, dtype: torch.dtype, feature: str | None = None) -> Tensor:
        rows = self._list(name)
        if rows:
            return dim_zero_cat(rows)
        shape = (0,) if feature is None else (0, self.extractor.sizes[feature])
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Iterable[str] = "") -> nn.Module:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), tuple(exclude_state))


def choose_images(
    images: Images, valid: Tensor | None, index: Tensor | None, below: int | None = None
) -> tuple[Images, Tensor | None]:
    """Leave out the pictures that do not count, before they cost anything.

    Args:
        images: B pictures.
        valid: bool, (B,), False = fills the batch; None = all count.
        index: integers >= 0, (B,), the number of every picture in its set; None = they have none.
        below: pictures whose number is not below this are left out; None = none is.

    Returns:
        The pictures that count, and their numbers.

    Raises:
        ValueError: ``valid`` is not a mask of B, or ``index`` not B numbers >= 0.
    """
    size = len(images)
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (size,)):
        raise ValueError(f"valid must be a bool mask of {size} images, got {valid.dtype} {list(valid.shape)}")
    mask = torch.ones(size, dtype=torch.bool) if valid is None else valid.cpu()
    if index is not None:
        if index.shape != (size,) or index.is_floating_point() or index.dtype == torch.bool or (index < 0).any():
            raise ValueError(f"index must be {size} whole numbers >= 0, got {index.dtype} {list(index.shape)}")
        if below is not None:
            mask &= index.cpu() < below
    if mask.all():
        return images, index
    chosen: Images
    if isinstance(images, Tensor):
        chosen = images[mask.to(images.device)]
    else:
        chosen = [image for image, counts in zip(images, mask.tolist(), strict=True) if counts]
    return chosen, None if index is None else index[mask.to(index.device)]


def _once(index: Tensor, counted: Tensor | None = None) -> Tensor:
    """Positions of the rows that count, sorted by the number of their picture.

    Args:
        index: int64, (N,), numbers, or -1 for all.
        counted: int64, numbers that count already and cannot be taken back.
    """
    everything = index if counted is None else torch.cat((counted, index))
    unnumbered = everything == _UNNUMBERED
    if unnumbered.all():
        return torch.arange(len(index), device=index.device)
    if unnumbered.any():
        raise ValueError("some pictures were counted with their index and others without: give all of them one")
    if counted is not None:
        numbers, times = torch.unique(counted, return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"picture {int(numbers[times > 1][0])} went into the sums more than once: pass valid=False for samples "
                "that are repeated before the last batch, or give every picture its own index"
            )
    order = torch.argsort(index, stable=True)
    ordered = index[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    if counted is not None:
        first &= ~torch.isin(ordered, counted)
    return order[first]
