"""Annotations of any table: who met whom, who won, how sure that is. Pictures are never touched.

Read are Parquet files, lists (json, jsonl, csv, tsv) and the shards of this package. Which column is which is told by
its name: Pick-a-Pic (``model_0``, ``model_1``, ``label_0`` and its redundant fields), HPDv3 (``model1``, ``model2``,
``path1`` always won, ``confidence``, ``choice_dist``), or any table with ``model_a``, ``model_b`` and ``outcome``.

Shape letters: N rows that are kept, M models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from lightning_gen.alignment.arena_po.arena_rows import Chunk, Column, read_chunks
from lightning_gen.data.quarantine import DataError

__all__ = [
    "CONTRADICTIONS",
    "UNKNOWN",
    "Comparisons",
    "SoftOutcome",
    "TableOptions",
    "canonical_name",
    "read_comparisons",
]

SoftOutcome = Literal["none", "confidence", "votes"]
"""What says how sure an outcome is, see :class:`TableOptions`."""

UNKNOWN: Final = "unknown"
"""Canonical name where the annotations name no model."""

CONTRADICTIONS: Final = {
    "bad_label": "outcomes that are none, or label_0 and label_1 that do not add up to 1: left out",
    "best_is_loser": "best_image_uid names the loser: the label is believed",
    "votes_against": "more votes for the loser: the label is believed",
    "same_picture": "both pictures have one uid",
    "are_different": "are_different says other than the uids",
    "labels_differ_from_has_label": "has_label is false and yet there is a winner: left out",
}
"""What is cross-checked in the redundant fields of an annotation, and what is done about it."""

_BLANK: Final = frozenset({"", "unknown", "none", "null", "nan", "n/a"})
_WORDS: Final = {
    "model_a": 1.0, "a": 1.0, "first": 1.0, "model_b": 0.0, "b": 0.0, "second": 0.0,
    "tie": 0.5, "draw": 0.5, "tie (bothbad)": 0.5,
}  # fmt: skip
_FALSE: Final = (False, 0, "False", "false", "0")
_SHOWN: Final = 3

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class TableOptions:
    """How a table is read.

    Attributes:
        fields: field -> column, where columns have unusual names; fields are ``model_a``, ``model_b``, ``outcome``,
            ``confidence``, ``votes``, ``pair_id``, ...
        split: of a folder with several.
        aliases: canonical name -> the name that counts, for models with several names.
        soft: ``none`` = outcomes are certain; ``confidence`` = the column of that name is the probability that the
            outcome is right; ``votes`` = the winner's share of the votes is, (k + 1/2) / (n + 1) for k of n: one of
            one says 0.75, and 20 of 30 say more than 2 of 3. The half is a choice (Jeffreys' prior); a pair stays one
            game, however many voted.
        min_confidence: rows with a lower ``confidence`` are left out; HPSv3 trains with 0.95.

    Raises:
        ValueError: an unknown kind of softness, or a confidence outside [0, 1].
    """

    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    soft: SoftOutcome = "none"
    min_confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.soft not in get_args(SoftOutcome):
            raise ValueError(f"soft is one of {', '.join(get_args(SoftOutcome))}, got {self.soft!r}")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence lies in [0, 1], got {self.min_confidence}")


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """Annotations in the order of their table. Ties and pairs of one model are among them.

    Attributes:
        names: canonical names of the models, sorted, M of them.
        raw_names: names as annotated, of all rows that were kept.
        first: number of the first picture's model in ``names``, int64, (N,).
        second: likewise of the second picture's.
        raw_first: the same in ``raw_names``.
        raw_second: likewise.
        outcome: 1 = the first picture won, 0 = the second, 0.5 = a tie, float64, (N,).
        certainty: probability that the outcome is right, in [0, 1], (N,); 1 without softness.
        row: number of the row in the table, int64, (N,).
        keys: names of the pairs, where the table has them; None = the row's number stands for it.
        counts: what was met: ``rows``, ``unlabelled``, ``ties``, ``same_model``, ``blank_model_a``, ``blank_model_b``,
            ``low_confidence``, and :data:`CONTRADICTIONS`.
        source: where the rows came from, for people.
    """

    names: tuple[str, ...]
    raw_names: tuple[str, ...]
    first: _Ints
    second: _Ints
    raw_first: _Ints
    raw_second: _Ints
    outcome: _Floats
    certainty: _Floats
    row: _Ints
    keys: tuple[str, ...] | None
    counts: Mapping[str, int]
    source: str

    def __len__(self) -> int:
        """N."""
        return len(self.first)

    @property
    def fingerprint(self) -> str:
        """sha256 of names, outcomes and certainties in order: equal for equal annotations, whatever file holds them."""
        digest = hashlib.sha256("\n".join(self.raw_names).encode())
        for part in (self.raw_first, self.raw_second, self.outcome, self.certainty):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def pair_ids(self, rows: _Ints) -> list[str]:
        """Names of pairs, as converted shards have them as keys.

        Args:
            rows: numbers of kept rows.

        Returns:
            One name each.
        """
        if self.keys is not None:
            return [self.keys[row] for row in rows.tolist()]
        return [f"{number:09d}" for number in self.row[rows].tolist()]

    def raw_counts(self) -> dict[str, Counter[str]]:
        """How often every model was met under which name.

        Returns:
            Canonical name -> name as annotated -> pictures.
        """
        found = dict[str, Counter[str]]()
        for canonical, raw in ((self.first, self.raw_first), (self.second, self.raw_second)):
            kinds, counts = np.unique(canonical * len(self.raw_names) + raw, return_counts=True)
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
                model, name = divmod(kind, len(self.raw_names))
                found.setdefault(self.names[model], Counter())[self.raw_names[name]] += count
        return found

    def remarks(self) -> list[str]:
        """What somebody should know about the table, with numbers.

        Returns:
            Sentences.
        """
        total = self.counts["rows"]
        said = [
            f"{self.counts[kind]:,} of {total:,} rows: {meaning}"
            for kind, meaning in CONTRADICTIONS.items()
            if self.counts.get(kind)
        ]
        blank = [
            f"{self.counts[name]:,} in {name[6:]}" for name in ("blank_model_a", "blank_model_b") if self.counts[name]
        ]
        if blank:
            said.append(f"no model is named: {' and '.join(blank)} of {total:,} rows")
        return said


def canonical_name(raw: str | None, aliases: Mapping[str, str] | None = None) -> str:
    """One name for a model, however it was written: without its owner, in lower case, spaces as dashes.

    Args:
        raw: as annotated; None or blank = no model is named.
        aliases: canonical name -> the name that counts.

    Returns:
        The name; :data:`UNKNOWN` for none.
    """
    name = "-".join(str(raw if raw is not None else "").strip().lower().rstrip("/").rpartition("/")[2].split())
    if name in _BLANK:
        return UNKNOWN
    return (aliases or {}).get(name, name)


def read_comparisons(where: str | Path, options: TableOptions | None = None) -> Comparisons:
    """Read a table once.

    Args:
        where: a Parquet file, folder or pattern; a json, jsonl, csv or tsv list; or shards of preference pairs.
        options: how.

    Returns:
        All rows with a usable outcome.

    Raises:
        FileNotFoundError: nothing is there.
        DataError: no such columns, or no row can be used; with numbers.
    """
    options = options or TableOptions()
    gathered = _Gathered(options)
    soft = {"confidence": options.soft == "confidence" or options.min_confidence > 0, "votes": options.soft == "votes"}
    wanted = [field for field, asked in soft.items() if asked]
    for chunk in read_chunks(str(where), options.fields, options.split, wanted):
        gathered.add(chunk)
    return gathered.comparisons(str(where))


class _Gathered:
    """Rows so far."""

    def __init__(self, options: TableOptions) -> None:
        self.options = options
        self.counts = Counter[str]()
        self.raw = dict[str, int]()
        self.parts: list[tuple[npt.NDArray[Any], ...]] = []
        self.keys: list[str] | None = None
        self.examples = dict[str, None]()

    def add(self, chunk: Chunk) -> None:
        """Read the rows of a chunk."""
        columns = chunk.columns
        models = [self._coded(columns[name]) for name in ("model_a", "model_b")]
        outcome = self._outcomes(chunk)
        labelled = np.ones(chunk.size, np.bool_)
        if "has_label" in columns:
            labelled = columns["has_label"].mapped(lambda value: float(value not in _FALSE)) > 0
            self.counts["labels_differ_from_has_label"] += int((~labelled & np.isin(outcome, (0.0, 1.0))).sum())
        is_null = np.zeros(chunk.size, np.bool_)
        if "outcome" in columns:
            is_null = columns["outcome"].mapped(lambda value: float(value is None or value == "")) > 0
        unlabelled = ~labelled | is_null
        bad = ~unlabelled & np.isnan(outcome)
        if "label_1" in columns:
            other = columns["label_1"].mapped(_number)
            # Wherever the second label is there it must be the first one's complement.
            bad |= ~unlabelled & (outcome + other != 1)
        kept = ~unlabelled & ~bad
        certainty, sure = self._certainties(chunk, outcome)
        self.counts["low_confidence"] += int((kept & ~sure).sum())
        kept &= sure
        self.counts["unlabelled"] += int(unlabelled.sum())
        self.counts["bad_label"] += int(bad.sum())
        self._check(chunk, outcome, kept)
        rows = np.flatnonzero(kept)
        self._count(models, outcome, rows)
        keys = chunk.keys
        if keys is None and "pair_id" in columns:
            keys = [str(one) for one in columns["pair_id"].objects()]
        if keys is not None:
            self.keys = self.keys if self.keys is not None else []
            self.keys += [keys[row] for row in rows.tolist()]
        self.parts.append(
            (models[0][rows], models[1][rows], outcome[rows], certainty[rows], rows + self.counts["rows"])
        )
        self.counts["rows"] += chunk.size

    def _coded(self, column: Column) -> _Ints:
        used = np.unique(column.codes)
        table = np.zeros(len(column.values), np.int64)
        names = ["" if column.values[code] is None else str(column.values[code]) for code in used.tolist()]
        table[used] = [self.raw.setdefault(name, len(self.raw)) for name in names]
        return table[column.codes]

    def _outcomes(self, chunk: Chunk) -> _Floats:
        """1, 0, 0.5, or NaN where it is none of them."""
        if "outcome" not in chunk.columns:
            return np.ones(chunk.size)  # HPDv3: path1 won, always
        column = chunk.columns["outcome"]
        found = column.mapped(_number)
        open_rows = np.flatnonzero(np.isnan(found))
        if len(open_rows):
            # The winner may be called by its name.
            said = column.objects()[open_rows]
            for name, value in (("model_a", 1.0), ("model_b", 0.0)):
                same = said == chunk.columns[name].objects()[open_rows]
                found[open_rows[same.astype(np.bool_)]] = value
            for value in said[np.isnan(found[open_rows])][:_SHOWN]:
                if value is not None:
                    self.examples[repr(value)] = None
        return found

    def _certainties(self, chunk: Chunk, outcome: _Floats) -> tuple[_Floats, npt.NDArray[np.bool_]]:
        """Certainty of every outcome, and whether its confidence is high enough."""
        certainty, sure = np.ones(chunk.size), np.ones(chunk.size, np.bool_)
        if "confidence" in chunk.columns and (self.options.soft == "confidence" or self.options.min_confidence):
            confidence = chunk.columns["confidence"].mapped(lambda value: 1.0 if value is None else _float(value))
            if (wrong := ~((confidence >= 0) & (confidence <= 1))).any():
                raise DataError(
                    f"{wrong.sum():,} confidences in rows {self.counts['rows']:,} and following lie outside [0, 1], "
                    f"the first is {chunk.columns['confidence'].objects()[wrong][0]!r}"
                )
            sure = confidence >= self.options.min_confidence
            if self.options.soft == "confidence":
                certainty = confidence
        if self.options.soft == "votes":
            share = chunk.columns["votes"].mapped(_first_share)
            share = np.where(np.isnan(share), 1.0, np.where(outcome == 0.0, 1 - share, share))
            certainty = np.where(outcome == 0.5, 1.0, share)
        return certainty, sure

    def _check(self, chunk: Chunk, outcome: _Floats, kept: npt.NDArray[np.bool_]) -> None:
        """Count contradictions among the redundant fields of rows that are kept."""
        columns = chunk.columns
        if "votes" in columns:
            share = columns["votes"].mapped(_first_share)
            against = (outcome == 1.0) & (share < 0.5) | (outcome == 0.0) & (share > 0.5)
            self.counts["votes_against"] += int((kept & against).sum())
        if not {"uid_a", "uid_b"} <= set(columns):
            return
        first, second = columns["uid_a"].objects(), columns["uid_b"].objects()
        same = (first == second).astype(np.bool_)
        self.counts["same_picture"] += int((kept & same).sum())
        if "best" in columns:
            best = columns["best"].objects()
            on_first, on_second = ((best == uid).astype(np.bool_) for uid in (first, second))
            wrong = on_first & (outcome != 1.0) | on_second & (outcome != 0.0)
            self.counts["best_is_loser"] += int((kept & wrong & ~same).sum())
        if "are_different" in columns:
            said = columns["are_different"].mapped(lambda value: float(value not in _FALSE)) > 0
            self.counts["are_different"] += int((kept & (said == same)).sum())

    def _count(self, models: Sequence[_Ints], outcome: _Floats, rows: _Ints) -> None:
        self.counts["ties"] += int((outcome[rows] == 0.5).sum())
        names = list(self.raw)
        blank = np.array([canonical_name(name) == UNKNOWN for name in names], np.bool_)
        for which, name in zip(models, ("blank_model_a", "blank_model_b"), strict=True):
            self.counts[name] += int(blank[which[rows]].sum())

    def comparisons(self, source: str) -> Comparisons:
        """All of it."""
        total = self.counts["rows"]
        if not total:
            raise DataError(f"{source} holds no row")
        first, second, outcome, certainty, row = (np.concatenate(part) for part in zip(*self.parts, strict=True))
        if not len(first):
            bad = f" (for instance {', '.join(list(self.examples)[:_SHOWN])})" if self.examples else ""
            raise DataError(
                f"{source}: none of {total:,} rows says who won: {self.counts['unlabelled']:,} have no label, "
                f"{self.counts['bad_label']:,} have one that is none{bad}, {self.counts['low_confidence']:,} are below "
                f"the confidence. An outcome is 1 (the first won), 0, 0.5 (a tie), model_a, model_b, tie, or a name"
            )
        used = np.unique(np.concatenate((first, second)))
        raw = list(self.raw)
        order = sorted(used.tolist(), key=lambda code: raw[code])
        place = np.zeros(len(raw), np.int64)
        place[order] = np.arange(len(order))
        raw_names = tuple(raw[code] for code in order)
        canonical = [canonical_name(name, self.options.aliases) for name in raw_names]
        names = tuple(sorted(set(canonical)))
        model = np.array([names.index(name) for name in canonical], np.int64)
        raw_first, raw_second = place[first], place[second]
        a, b = model[raw_first], model[raw_second]
        self.counts["same_model"] = int((a == b).sum())
        keys = None if self.keys is None else tuple(self.keys)
        return Comparisons(
            names, raw_names, a, b, raw_first, raw_second, outcome, certainty, row, keys, dict(self.counts), source
        )


def _number(value: Any) -> float:
    """An outcome as a number; NaN where it is none."""
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _WORDS:
            return _WORDS[word]
        value = word
    number = _float(value)
    return number if number in (0.0, 0.5, 1.0) else math.nan


def _float(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def _first_share(value: Any) -> float:
    """The first picture's share of two numbers of votes, (k + 1/2) / (n + 1); NaN where they are none."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return math.nan
    votes = [_float(one) for one in value]
    if not all(vote >= 0 for vote in votes) or not sum(votes):
        return math.nan
    return (votes[0] + 0.5) / (sum(votes) + 1)
