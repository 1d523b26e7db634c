"""Preference pairs: the columns of Pick-a-Pic (v1 and v2), and tables like it.

Source: dataset cards of yuvalkirstain/pickapic_v1 and pickapic_v2.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from lightning_gen.data.convert.columns import confidence, picture_bytes, plain, text
from lightning_gen.data.convert.records import Record, Unusable
from lightning_gen.data.convert.tables import Row, RowReader

__all__ = ["PAIR_NEEDED", "PAIR_OPTIONAL", "PairRows", "UserRule"]

UserRule = Literal["hash", "drop"]

PAIR_NEEDED: Final = {
    "image_0": ("jpg_0", "image_0"),
    "image_1": ("jpg_1", "image_1"),
    "caption": ("caption", "prompt", "text"),
    "label_0": ("label_0",),
}
"""Field -> usual names of its column."""

PAIR_OPTIONAL: Final = {
    "label_1": ("label_1",),
    "model_0": ("model_0",),
    "model_1": ("model_1",),
    "uid_0": ("image_0_uid", "uid_0"),
    "uid_1": ("image_1_uid", "uid_1"),
    "best": ("best_image_uid",),
    "has_label": ("has_label",),
    "are_different": ("are_different",),
    "created_at": ("created_at",),
    "ranking_id": ("ranking_id",),
    "user": ("user_id", "user"),
    "num_example_per_prompt": ("num_example_per_prompt",),
    "confidence": ("confidence",),
}
"""Likewise, for columns that may be absent."""

_COPIED = ("model_0", "model_1", "uid_0", "uid_1", "created_at", "ranking_id", "num_example_per_prompt", "confidence")


@dataclasses.dataclass(frozen=True)
class PairRows(RowReader):
    """Rows with two pictures and a label.

    ``label_0`` is 1 where picture 0 won, 0 where picture 1 won, 0.5 for a tie; integers, floats and their text are
    understood, anything else is no label. Ties are kept. Where ``best_image_uid`` names the loser, the label columns
    are believed, and the pair is counted and marked ``contradictory``.

    Attributes:
        columns: field -> column, see :data:`PAIR_NEEDED` and :data:`PAIR_OPTIONAL`.
        user: ``hash`` = a pseudonym takes the annotator's place (whoever can guess the number can undo it); ``drop`` =
            nothing does.
    """

    user: UserRule = "hash"

    kind: ClassVar[str] = "pairs"

    def record(self, row: Row, number: int, root: Path) -> Record:
        """Make a sample of a row.

        Args:
            row: column -> value.
            number: number of the row.
            root: where paths of pictures start.

        Returns:
            Key = the row's number, pictures ``0`` and ``1``.

        Raises:
            Unusable: no label (``unlabelled``), a label that is none (``bad_label``), no caption
                (``no_value``), no picture.
        """
        values = self.values(row)
        if values.get("has_label", True) in (False, 0, "False", "false", "0") or values["label_0"] is None:
            raise Unusable("unlabelled", "has_label is false, or label_0 is null")
        label = _label(values)
        meta: dict[str, Any] = {"caption": text(values["caption"], "caption"), "label_0": label}
        meta |= {field: plain(values[field]) for field in _COPIED if values.get(field) is not None}
        if "confidence" in meta:
            meta["confidence"] = confidence(values["confidence"])
        if self.user == "hash" and values.get("user") is not None:
            meta["user"] = hashlib.blake2b(f"user {values['user']}".encode(), digest_size=8).hexdigest()
        notes = ["ties"] if label == 0.5 else []
        if _contradicts(label, values):
            notes.append("contradictory")
            meta["contradictory"] = True
        pictures = {stem: picture_bytes(values[f"image_{stem}"], root, f"image_{stem}") for stem in ("0", "1")}
        uids = sorted(str(values[uid]) for uid in ("uid_0", "uid_1") if values.get(uid))
        identity = " ".join(uids) if len(uids) == 2 else ""
        return Record(number, f"{number:09d}", pictures, {}, meta, identity, tuple(notes))


def _label(values: Mapping[str, Any]) -> float:
    found = [_number(values[field], field) for field in ("label_0", "label_1") if field in values]
    if len(found) == 2 and found[0] + found[1] != 1:
        raise Unusable("bad_label", f"label_0 is {found[0]} and label_1 is {found[1]}, which do not add up to 1")
    return found[0]


def _number(value: Any, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number not in (0.0, 0.5, 1.0):
        raise Unusable("bad_label", f"{field} is {value!r}; known are 1, 0 and 0.5 (a tie)")
    return number


def _contradicts(label: float, values: Mapping[str, Any]) -> bool:
    """A uid that is neither picture's, or both pictures', says nothing."""
    uids = values.get("uid_0"), values.get("uid_1")
    best = values.get("best")
    if best is None or best not in uids or uids[0] == uids[1]:
        return False
    return label != (1.0 if best == uids[0] else 0.0)
