"""Annotations of any table: who met whom, who won, how sure that is. Pictures are never touched.

Read are Parquet files, lists (json, jsonl, csv, tsv) and the shards of this package. Which column is which is told by
its name: Pick-a-Pic (``model_0``, ``model_1``, ``label_0`` and its redundant fields), HPDv3 (``model1``, ``model2``,
``path1`` always won, ``confidence``, ``choice_dist``), or any table with ``model_a``, ``model_b`` and ``outcome``.

Shape letters: N rows that are kept, M models.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    "numbered_names",
    "read_comparisons",
]

SoftOutcome = Literal["none", "confidence", "votes"]
"""What says how sure an outcome is, see :class:`TableOptions`."""

UNKNOWN: Final = "unknown"
"""Canonical name where the annotations name no model."""

CONTRADICTIONS: Final = {
    "bad_label": "outcomes that are none, or label_0 and label_1 that do not add up to 1: left out",
    "best_is_loser": "best_image_uid names the loser, or a picture of a tie: the label is believed",
    "votes_against": "more votes for the loser: the label is believed",
    "same_picture": "both pictures have one uid",
    "are_different": "are_different says other than the uids",
    "labels_differ_from_has_label": "has_label is false and yet there is a winner: left out",
    "no_certainty": "confidence or votes are missing or unreadable: the outcome is taken as certain",
}
"""What may be wrong with the fields of an annotation, and what is done about it."""

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
            ``low_confidence``, and those of :data:`CONTRADICTIONS`.
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of all names, outcomes and certainties, whatever file holds them, and in whatever order."""
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in self.raw_names]
        names = np.frombuffer(b"".join(digests), np.int64)
        said = (part.astype(np.float64).view(np.int64) for part in (self.outcome, self.certainty))
        rows = np.stack((names[self.raw_first], names[self.raw_second], *said), 1)
        return hashlib.sha256(rows[np.lexsort(rows.T)].tobytes()).hexdigest()

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

    @functools.cached_property
    def raw_counts(self) -> dict[str, Counter[str]]:
        """How often every model was met under which name: canonical name -> name as annotated -> pictures."""
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
        merged = [name for name, raw in self.raw_counts.items() if len(_owners(raw)) > 1]
        if merged:
            shown = ", ".join(merged[:_SHOWN]) + (", ..." if len(merged) > _SHOWN else "")
            said.append(f"{len(merged)} models are annotated with several owners and count as one each: {shown}")
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
        certainty, sure, told = self._certainties(chunk, outcome)
        self.counts["low_confidence"] += int((kept & ~sure).sum())
        kept &= sure
        self.counts["no_certainty"] += int((kept & ~told & (outcome != 0.5)).sum())
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
        if chunk.names["outcome"] == "label_0":
            return found  # a number, never a name
        named = self._named(chunk, column, found)
        found = np.where(np.isnan(found), named, found)
        for value in column.objects()[np.isnan(found)][:_SHOWN]:
            if value is not None:
                self.examples[repr(value)] = None
        return found

    def _named(self, chunk: Chunk, column: Column, found: _Floats) -> _Floats:
        """1 or 0 where the winner is called by its name, else NaN; refuses what can be read in two ways."""
        said, named = column.objects(), np.full(chunk.size, math.nan)
        for name, value in (("model_b", 0.0), ("model_a", 1.0)):
            named[(said == chunk.columns[name].objects()).astype(np.bool_)] = value
        title, read = chunk.names["outcome"], ~np.isnan(found)
        if (torn := read & ~np.isnan(named) & (found != named)).any():
            row = int(torn.argmax())
            raise DataError(
                f"{torn.sum():,} outcomes can be read in two ways, the first is {said[row]!r} of "
                f"{chunk.columns['model_a'].objects()[row]!r} against {chunk.columns['model_b'].objects()[row]!r}: as "
                f"a side and as the name of the other one. Write model_a, model_b or tie into the column {title}"
            )
        numbers = read & np.isnan(named) & ~np.isnan(column.mapped(_float))
        if title == "winner" and "outcome" not in self.options.fields and numbers.any():
            raise DataError(
                f"{numbers.sum():,} values of the column winner are numbers: does 1 mean that the first won, or that "
                f"picture 1 did? Say --fields outcome=winner if it is the first, else write model_a, model_b or tie"
            )
        return named

    def _certainties(
        self, chunk: Chunk, outcome: _Floats
    ) -> tuple[_Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Certainty of every outcome, whether its confidence is high enough, and whether there is one."""
        certainty, sure, told = np.ones(chunk.size), np.ones(chunk.size, np.bool_), np.ones(chunk.size, np.bool_)
        if "confidence" in chunk.columns and (self.options.soft == "confidence" or self.options.min_confidence):
            told = chunk.columns["confidence"].mapped(lambda value: float(value is not None)) > 0
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
            told = ~np.isnan(share)
            certainty = np.where(told & (outcome != 0.5), np.where(outcome == 0.0, 1 - share, share), 1.0)
        return certainty, sure, told

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
        self._require_certainty(source, int((outcome != 0.5).sum()))
        used = np.unique(np.concatenate((first, second)))
        raw = list(self.raw)
        order = sorted(used.tolist(), key=lambda code: raw[code])
        place = np.zeros(len(raw), np.int64)
        place[order] = np.arange(len(order))
        raw_names = tuple(raw[code] for code in order)
        canonical = [canonical_name(name, self.options.aliases) for name in raw_names]
        names, model = numbered_names(canonical)
        raw_first, raw_second = place[first], place[second]
        a, b = model[raw_first], model[raw_second]
        self.counts["same_model"] = int((a == b).sum())
        keys = None if self.keys is None else tuple(self.keys)
        return Comparisons(
            names, raw_names, a, b, raw_first, raw_second, outcome, certainty, row, keys, dict(self.counts), source
        )

    def _require_certainty(self, source: str, decided: int) -> None:
        """Refuse softness of which no row knows anything."""
        if self.options.soft != "none" and decided and self.counts["no_certainty"] == decided:
            column = "confidence" if self.options.soft == "confidence" else "votes, two numbers such as [7, 2],"
            raise DataError(
                f"{source}: none of {decided:,} outcomes has {column} that can be read: leave out --soft, or name the "
                f"right column (--fields {self.options.soft}=COLUMN)"
            )


def numbered_names(canonical: Sequence[str]) -> tuple[tuple[str, ...], _Ints]:
    """Number names.

    Args:
        canonical: names, some of them several times.

    Returns:
        Different names, sorted, and the number of every given one among them, int64.
    """
    names = tuple(sorted(set(canonical)))
    place = {name: number for number, name in enumerate(names)}
    return names, np.array([place[name] for name in canonical], np.int64)


def _owners(raw: Iterable[str]) -> set[str]:
    """Who the models belong to, as far as their names say so."""
    return {name.strip().lower().rstrip("/").rpartition("/")[0] for name in raw} - {""}


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
    if isinstance(value, str) and value.lstrip().startswith("["):
        # As tables of text write lists.
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return math.nan
    votes = [_float(one) for one in value]
    if not all(vote >= 0 for vote in votes) or not sum(votes):
        return math.nan
    return (votes[0] + 0.5) / (sum(votes) + 1)
