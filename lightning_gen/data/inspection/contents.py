"""Which samples of a shard hold nothing that could be used, and which look like several samples that became one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lightning_gen.data.index import ShardIndex, picture_fields

__all__ = ["empty_samples", "merged_samples"]

_PAIRS = (("0", "1"), ("src", "tgt"))
_WITHOUT_PICTURE = ("txt", "npy")


def empty_samples(index: ShardIndex) -> list[int]:
    """Samples that have no picture, no pair of pictures, no prompt (``txt``) and no latent (``npy``).

    Args:
        index: of the shard.

    Returns:
        Their numbers in the shard, in order.
    """
    stems = _stems(index)
    used = _has(index, stems.get("", [])) | _has(index, _named(index, _WITHOUT_PICTURE))
    for first, second in _PAIRS:
        used |= _has(index, stems.get(first, [])) & _has(index, stems.get(second, []))
    return np.flatnonzero(~used).tolist()


def merged_samples(index: ShardIndex) -> list[int]:
    """Samples whose pictures look like those of several samples, whose names had a dot: ``v0.jpg`` and ``v1.jpg``.

    They have no picture without a further dot, none of a pair (``0``, ``1``, ``src``, ``tgt``), and several with the
    same ending.

    Args:
        index: of the shard.

    Returns:
        Their numbers in the shard, in order.
    """
    stems, known = _stems(index), ["", *(stem for pair in _PAIRS for stem in pair)]
    plain = _has(index, [column for stem in known for column in stems.get(stem, [])])
    endings: dict[str, list[int]] = {}
    for column in (column for stem, columns in stems.items() if stem not in known for column in columns):
        endings.setdefault(index.fields[column].lower().rpartition(".")[2], []).append(column)
    several = np.zeros(len(index), np.bool_)
    for columns in endings.values():
        several |= (index.sizes[:, columns] >= 0).sum(1) > 1
    return np.flatnonzero(several & ~plain).tolist()


def _stems(index: ShardIndex) -> dict[str, list[int]]:
    """What stands before the ending of a picture -> columns."""
    found: dict[str, list[int]] = {}
    for field in picture_fields(index.fields):
        found.setdefault(field.lower().rpartition(".")[0], []).append(index.fields.index(field))
    return found


def _named(index: ShardIndex, names: Iterable[str]) -> list[int]:
    return [index.fields.index(name) for name in names if name in index.fields]


def _has(index: ShardIndex, columns: list[int]) -> npt.NDArray[np.bool_]:
    return np.asarray((index.sizes[:, columns] >= 0).any(1), np.bool_)
