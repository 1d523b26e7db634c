"""Several rewards with weights: scored in threads, checked, cached, and added up; what training is paid for.

    normalised_k = (raw_k - offset_k) / scale_k,   weighted_k = w_k normalised_k
    total = sum_k weighted_k   or   sum_k weighted_k / sum_k w_k,   over the k that apply to the prompt

Statistics over groups of pictures are the business of ``advantages.py``.

Shape letters: B images, H and W height and width, n images that a reward is asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor

from lightning_gen.data.transforms import uint8_to_unit, unit_to_uint8
from lightning_gen.interfaces import Reward
from lightning_gen.metrics.judging.judges import image_sha256
from lightning_gen.rewards.applicability import SaysWhereItApplies, check_batch, why_inapplicable
from lightning_gen.rewards.cache import RewardCache, score_key
from lightning_gen.rewards.lanes import Call, Lane, RewardError
from lightning_gen.training.classes import class_named
from lightning_gen.training.needs import ModelNeeds, add_needs

__all__ = ["PendingScores", "RewardEntry", "RewardScores", "RewardSuite"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True)
class RewardEntry:
    """One reward of a suite.

    Attributes:
        name: in logs, messages and tables.
        reward: scores pictures. Where it has a ``fingerprint`` (a text that changes when its scores may change) its
            scores are cached; by its method ``inapplicable`` it says which prompts it is for.
        weight: at least 0; 0 = scored and logged, never paid for.
        offset: what is taken off before scaling.
        scale: what is divided by; negative turns a penalty into a reward.
        needs: keys that the metadata of a prompt must have for this reward.
        elsewhere: what a prompt that the reward does not apply to leads to: ``error``, or ``skip`` (its score is NaN).
        background: go on while the caller does other things. None = as the reward says by its attribute
            ``background``; those that wait for servers say yes. Not for networks in this process: they switch the
            precision of the whole process while they compute.
        batch_size: pictures of one call: what a network needs for them is in memory at once. None = all that are given.
        time_limit: seconds that a call may take.

    Raises:
        ValueError: a name that is no word, or a number outside its range.
    """

    name: str
    reward: Reward | SaysWhereItApplies
    weight: float = 1.0
    offset: float = 0.0
    scale: float = 1.0
    needs: tuple[str, ...] = ()
    elsewhere: Literal["error", "skip"] = "error"
    background: bool | None = None
    batch_size: int | None = 32
    time_limit: float = 600.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"the name of a reward is one word of letters, digits, _, . and -, got {self.name!r}")
        if not callable(self.reward):
            raise ValueError(f"the reward {self.name!r} must be callable, got {type(self.reward).__name__}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"the reward {self.name!r} has the weight {self.weight}: weights are at least 0 (0 = monitor only); "
                f"scale: -1 turns a penalty into a reward"
            )
        if not (math.isfinite(self.offset) and math.isfinite(self.scale) and self.scale != 0):
            raise ValueError(
                f"the reward {self.name!r} needs a finite offset and a finite scale that is not 0, got {self.offset} "
                f"and {self.scale}"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"the reward {self.name!r} has the batch size {self.batch_size}: give 1 or more, or null")
        if not self.time_limit > 0:
            raise ValueError(f"the reward {self.name!r} has the time limit {self.time_limit}: give seconds above 0")


@dataclasses.dataclass(frozen=True)
class RewardScores:
    """What the rewards say about B images; NaN = the reward does not apply to the prompt.

    Attributes:
        raw: by name, float32, (B,), as the reward gave it.
        normalised: the same, (raw - offset) / scale.
        weighted: the same, weight times normalised; 0 for monitors.
        total: float32, (B,), what is paid; NaN where no reward with a weight applies.
    """

    raw: Mapping[str, Tensor]
    normalised: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]
    total: Tensor

    def means(self) -> dict[str, Tensor]:
        """What to log: the same keys for every batch and rank.

        Returns:
            ``NAME/raw``, ``NAME/normalised``, ``NAME/weighted`` and ``total``, means over the images that they apply
            to, NaN where there is none; ``NAME/applies``, the share of images. float32 scalars.
        """
        values: dict[str, Tensor] = {}
        for name, raw in self.raw.items():
            values[f"{name}/raw"] = raw.nanmean()
            values[f"{name}/normalised"] = self.normalised[name].nanmean()
            values[f"{name}/weighted"] = self.weighted[name].nanmean()
            values[f"{name}/applies"] = (~raw.isnan()).float().mean()
        return values | {"total": self.total.nanmean()}


class PendingScores:
    """Scores of a batch that are being computed; made by :meth:`RewardSuite.submit`.

    Attributes:
        asked: by name of a reward, how many images it applies to.
    """

    def __init__(self, suite: RewardSuite, shares: Sequence[_Share], count: int, device: torch.device) -> None:
        self._suite = suite
        self._shares = shares
        self.asked = {share.entry.name: len(share.rows) + len(share.known) for share in shares}
        self._count = count
        self._device = device
        self._raw: dict[str, Tensor] | None = None

    def result(self) -> RewardScores:
        """Wait until every reward has scored the batch.

        Returns:
            The scores, rows as they were given.

        Raises:
            RewardError: see :meth:`RewardSuite.results`.
        """
        return self._suite.results([self])

    def raw(self) -> Mapping[str, Tensor]:
        """Wait for the scores as the rewards gave them.

        Returns:
            By name, float32, (B,), NaN where a reward does not apply.

        Raises:
            RewardError: a reward raised, did not answer in time, or answered with the wrong number of scores or with
                infinity; the rest of the batch is given up and nothing of it is stored.
        """
        if self._raw is None:
            try:
                self._finish()
            finally:
                self._suite.forget(self)
        if self._raw is None:
            raise RewardError("the scores of this batch were given up after an error")
        return self._raw

    def _finish(self) -> None:
        fresh: dict[bytes, float] = {}
        raw: dict[str, Tensor] = {}
        try:
            for share in self._shares:
                raw[share.entry.name] = share.collect(self._count, fresh).to(self._device)
        except BaseException:
            self.give_up()
            raise
        if fresh and self._suite.cache is not None:
            self._suite.cache.write(fresh)
        if self._shares:
            self._raw = raw
        self._shares = ()

    def wait_for_foreground(self) -> None:
        """Wait for the rewards that do not go on in the background, see :meth:`result`."""
        try:
            for share in self._shares:
                if not share.background:
                    share.wait()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Do not begin what has not begun."""
        for share in self._shares:
            for call in share.calls:
                call.cancelled = True
        self._shares = ()


@dataclasses.dataclass
class _Share:
    """What one reward has to do for a batch: the rows it is asked for, and what is known of them already.

    ``known`` holds stored scores by row; ``keys`` the cache's keys of all rows it applies to, or nothing.
    """

    entry: RewardEntry
    lane: Lane
    background: bool
    rows: list[int]
    known: dict[int, float]
    keys: dict[int, bytes]
    calls: list[Call] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> list[list[int]]:
        """The rows of every call."""
        size = self.entry.batch_size or len(self.rows)
        return [self.rows[first : first + size] for first in range(0, len(self.rows), size)] if self.rows else []

    def start(self, pictures: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        reward = cast(Reward, self.entry.reward)
        for rows in self.parts:
            images = pictures if len(rows) == len(pictures) else pictures[rows]
            texts, records = [prompts[row] for row in rows], [metadata[row] for row in rows]
            call = Call(self.entry.name, functools.partial(reward, images, texts, records), self.entry.time_limit)
            self.calls.append(call)
            self.lane.start(call)

    def wait(self) -> Tensor | None:
        if not self.calls:
            return None
        parts = zip(self.calls, self.parts, strict=True)
        return torch.cat([_checked(self.entry.name, self.lane.wait(call), len(rows)) for call, rows in parts])

    def collect(self, count: int, fresh: dict[bytes, float]) -> Tensor:
        """All scores, (B,), on the CPU in float64; what is new and can be stored goes to ``fresh``."""
        scores = torch.full((count,), math.nan, dtype=torch.float64)
        for row, score in self.known.items():
            scores[row] = score
        new = self.wait()
        if new is not None:
            scores[self.rows] = new
            values = zip(self.rows, new.tolist(), strict=True)
            fresh.update({self.keys[row]: value for row, value in values if row in self.keys and value == value})
        return scores.float()


class RewardSuite:
    """Weighs several rewards.

    Images are rounded to 8 bits before they are scored, as the pictures that people see are: so a picture and its
    stored file have the same score, and equal pictures share a place in the cache.

    Args:
        entries: the rewards; names differ.
        combine: ``sum`` of the weighted scores (Flow-GRPO, DiffusionNFT), or their weighted ``mean`` over the rewards
            that apply (MARBLE). What is learned from is combined so, too: the scores, or the advantages in each.
        cache: keeps scores on disk; None = none.
        max_pending: batches of :meth:`submit` that may be under way; a further one waits for the oldest. In training
            by rewards these are micro-batches.

    Raises:
        ValueError: no entry, two of one name, or ``max_pending`` smaller than 1.

    Source: repositories yifan123/flow_grpo and NVlabs/DiffusionNFT (sum).
    """

    def __init__(
        self,
        entries: list[RewardEntry],
        combine: Literal["sum", "mean"] = "sum",
        cache: RewardCache | None = None,
        max_pending: int = 2,
    ) -> None:
        names = [entry.name for entry in entries]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a suite needs at least one reward, and a name of its own for each, got {names}")
        if combine not in ("sum", "mean"):
            raise ValueError(f"combine is sum or mean, got {combine!r}")
        if max_pending < 1:
            raise ValueError(f"max_pending must be at least 1, got {max_pending}")
        self.entries = tuple(entries)
        self.combine = combine
        self.cache = cache
        self.max_pending = max_pending
        self._pending: collections.deque[PendingScores] = collections.deque()
        # Networks in this process compute one after the other; what waits for others has a thread of its own.
        self._foreground = Lane()
        self._background = {entry.name: Lane() for entry in entries if _in_background(entry)}

    @classmethod
    def needs(cls, init_args: Mapping[str, Any]) -> ModelNeeds:
        """What a suite with these arguments reads from disk; nothing is built or fetched.

        A class of rewards may say so by a classmethod ``needs`` that receives its own parsed arguments and gives a
        ``ModelNeeds``; one that has none is not judged. What is read by its method ``load``, see :meth:`load`.

        Args:
            init_args: constructor arguments, as parsed from a config.

        Returns:
            Frozen parameters, and whether their weights are here.
        """
        return add_needs(_needs_of(entry) for entry in init_args.get("entries") or ())

    def load(self) -> None:
        """Have every reward read its weights now, so that what is wrong with them does not wait for the first picture.

        Raises:
            RewardError: a reward cannot; names it.
        """
        for entry in self.entries:
            load = getattr(entry.reward, "load", None)
            try:
                if load is not None:
                    load()
            except Exception as error:
                raise RewardError(f"the reward {entry.name!r} cannot be made ready: {error}") from error

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward, by name."""
        return {entry.name: entry.weight for entry in self.entries}

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> RewardScores:
        """Score a batch and wait for it; see :meth:`submit`.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: B records, see ``applicability.read_metadata``.

        Returns:
            The scores.

        Raises:
            RewardError: see :meth:`results`.
            ValueError: see :meth:`submit`.
        """
        return self.submit(images, prompts, metadata).result()

    def submit(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> PendingScores:
        """Begin to score a batch. Returns when what does not go on in the background is done.

        Args:
            images: float, (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: B records.

        Returns:
            Where the scores will be.

        Raises:
            RewardError: a prompt that a reward does not apply to while its entry says ``error``, before anything is
                scored; or a reward that failed, see :meth:`PendingScores.raw`.
            ValueError: images, prompts and metadata that do not belong together; pixels that are NaN or infinite.
        """
        check_batch(images, prompts, metadata)
        shares = [self._share(entry, prompts, metadata) for entry in self.entries]
        while len(self._pending) >= self.max_pending:
            self._pending[0].result()
        levels = unit_to_uint8(images.detach())
        if self.cache is not None:
            self._look_up(self.cache, shares, levels, prompts, metadata)
        pending = PendingScores(self, shares, len(images), images.device)
        pictures = uint8_to_unit(levels)
        for share in shares:
            share.start(pictures, prompts, metadata)
        self._pending.append(pending)
        try:
            pending.wait_for_foreground()
        except BaseException:
            self.forget(pending)
            raise
        return pending

    def results(self, pending: Sequence[PendingScores]) -> RewardScores:
        """Wait for several batches, as if they were one.

        Args:
            pending: what :meth:`submit` gave, at least one.

        Returns:
            The scores, rows in the order of the batches.

        Raises:
            RewardError: see :meth:`PendingScores.raw`; or a reward gave NaN for every picture that it was asked for.
                All batches are given up.
        """
        try:
            parts = [one.raw() for one in pending]
        except BaseException:
            self.give_up()
            raise
        raw = {entry.name: torch.cat([part[entry.name] for part in parts]) for entry in self.entries}
        for entry in self.entries:
            asked = sum(one.asked[entry.name] for one in pending)
            if asked and raw[entry.name].isnan().all():
                raise RewardError(
                    f"the reward {entry.name!r} gave NaN for all of its {asked} images: is its model sound? If it is "
                    "not for these prompts, it says so by a method `inapplicable`, or its entry by `needs`"
                )
        return self.combine_scores(raw)

    def give_up(self) -> None:
        """Forget all batches that are under way, and do not begin what has not begun."""
        for pending in tuple(self._pending):
            pending.give_up()
            self.forget(pending)

    def require_applicable(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> None:
        """Look at prompts before pictures are made for them.

        Args:
            prompts: texts.
            metadata: a record of each.

        Raises:
            RewardError: one that a reward does not apply to while its entry says ``error``.
        """
        for entry in self.entries:
            if entry.elsewhere == "error":
                self._rows(entry, prompts, metadata)

    def combine_scores(self, raw: Mapping[str, Tensor]) -> RewardScores:
        """Normalise, weigh and add up.

        Args:
            raw: scores of every reward of the suite by name, float, (B,), NaN where one does not apply.

        Returns:
            The scores.

        Raises:
            ValueError: a reward is missing.
        """
        missing = [entry.name for entry in self.entries if entry.name not in raw]
        if missing:
            raise ValueError(f"no scores of the reward {missing[0]!r}")
        given = {entry.name: raw[entry.name] for entry in self.entries}
        normalised = {entry.name: (given[entry.name] - entry.offset) / entry.scale for entry in self.entries}
        weighted = {entry.name: entry.weight * normalised[entry.name] for entry in self.entries}
        paid = [entry for entry in self.entries if entry.weight > 0]
        first = next(iter(given.values()))
        total, shares = torch.zeros_like(first), torch.zeros_like(first)
        for entry in paid:
            total = total + weighted[entry.name].nan_to_num(0.0)
            shares = shares + entry.weight * (~given[entry.name].isnan())
        total = total / shares if self.combine == "mean" else total
        return RewardScores(given, normalised, weighted, total.masked_fill(shares == 0, math.nan))

    def forget(self, pending: PendingScores) -> None:
        """Count a batch as done.

        Args:
            pending: that is done, or was given up.
        """
        if pending in self._pending:
            self._pending.remove(pending)

    @staticmethod
    def _rows(entry: RewardEntry, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[int]:
        """The rows that a reward applies to."""
        rows = []
        for row, (prompt, record) in enumerate(zip(prompts, metadata, strict=True)):
            reason = why_inapplicable(entry.reward, entry.needs, prompt, record)
            if reason is None:
                rows.append(row)
            elif entry.elsewhere == "error":
                raise RewardError(
                    f"the reward {entry.name!r} does not apply to the prompt {prompt!r} (row {row}): "
                    f"{reason}. Give it other prompts, or let its entry say elsewhere: skip"
                )
        return rows

    def _share(self, entry: RewardEntry, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> _Share:
        background = entry.name in self._background
        lane = self._background.get(entry.name, self._foreground)
        return _Share(entry, lane, background, self._rows(entry, prompts, metadata), {}, {})

    @staticmethod
    def _look_up(
        cache: RewardCache,
        shares: Sequence[_Share],
        levels: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> None:
        hashes = [image_sha256(picture) for picture in levels.cpu()]
        for share in shares:
            fingerprint = getattr(share.entry.reward, "fingerprint", None)
            if fingerprint is None:
                continue
            share.keys = {row: score_key(fingerprint, hashes[row], prompts[row], metadata[row]) for row in share.rows}
            stored = cache.read(list(share.keys.values()))
            share.known = {row: stored[key] for row, key in share.keys.items() if key in stored}
            share.rows = [row for row in share.rows if row not in share.known]


def _needs_of(entry: Any) -> ModelNeeds:
    """Of one entry as it was parsed, a mapping or a record."""
    reward = entry.get("reward") if isinstance(entry, Mapping) else None
    if not isinstance(reward, Mapping):
        return ModelNeeds(0)
    needs = getattr(class_named(str(reward["class_path"]), "reward"), "needs", None)
    return ModelNeeds(0) if needs is None else cast(ModelNeeds, needs(reward.get("init_args") or {}))


def _in_background(entry: RewardEntry) -> bool:
    return bool(getattr(entry.reward, "background", False)) if entry.background is None else entry.background


def _checked(name: str, scores: object, count: int) -> Tensor:
    """The scores of ``count`` images, float64 on the CPU."""
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.is_complex():
        got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise RewardError(f"the reward {name!r} must give {count} numbers for {count} images, got {got}")
    values = scores.detach().double().cpu()
    if values.isinf().any():
        raise RewardError(f"the reward {name!r} gave an infinite score for image {int(values.isinf().nonzero()[0])}")
    return values
