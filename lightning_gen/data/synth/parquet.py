"""Synthetic sets as parquet files: pairs in the exact columns of Pick-a-Pic, the rest as `datasets` writes it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning_gen.data.synth.options import Sample

__all__ = ["PICKAPIC_COLUMNS", "write_parquet"]

PICKAPIC_COLUMNS = (
    ("are_different", "bool"),
    ("best_image_uid", "string"),
    ("caption", "string"),
    ("created_at", "timestamp[ns]"),
    ("has_label", "bool"),
    ("image_0_uid", "string"),
    ("image_0_url", "string"),
    ("image_1_uid", "string"),
    ("image_1_url", "string"),
    ("jpg_0", "binary"),
    ("jpg_1", "binary"),
    ("label_0", "double"),
    ("label_1", "double"),
    ("model_0", "string"),
    ("model_1", "string"),
    ("ranking_id", "int64"),
    ("user_id", "int64"),
    ("num_example_per_prompt", "int64"),
    ("__index_level_0__", "int64"),
)
"""Columns of yuvalkirstain/pickapic_v2 and their types. Source: its dataset card."""

_START = datetime.datetime(2023, 1, 1)
_ROW_GROUP = 32


def write_parquet(samples: Iterable[Sample], out: Path, per_file: int, flaws: int = 0) -> None:
    """Write ``data/train-00000-of-0000N.parquet``.

    Args:
        samples: of any kind.
        out: folder.
        per_file: rows per file.
        flaws: for pairs: that many more rows of each kind of fault (no label; no picture; a contradictory
            ``best_image_uid``; a label that is none).

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError("parquet files need pyarrow: pip install 'lightning-gen[data]'") from None
    rows = [_row(number, fields) for number, (_, fields) in enumerate(samples)]
    rows += [row for number in range(flaws) for row in _faulty(rows[number % len(rows)])] if "jpg_0" in rows[0] else []
    schema = None
    if "jpg_0" in rows[0]:
        schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in PICKAPIC_COLUMNS])
    (out / "data").mkdir()
    files = [rows[start : start + per_file] for start in range(0, len(rows), per_file)]
    for number, chunk in enumerate(files):
        path = out / "data" / f"train-{number:05d}-of-{len(files):05d}.parquet"
        # Small pages: a reader must hold a whole page.
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(chunk, schema), path, row_group_size=_ROW_GROUP, write_batch_size=8
        )


def _row(number: int, fields: dict[str, bytes]) -> dict[str, Any]:
    record = json.loads(fields["json"])
    if "0.jpg" in fields:
        return _pickapic_row(number, fields, record)
    if "src.png" in fields:
        pictures = {"original_image": _image(fields["src.png"]), "edited_image": _image(fields["tgt.png"])}
        return {**pictures, "edit_prompt": record["instruction"], "edit_type": record["edit_type"]}
    row: dict[str, Any] = {"image": _image(fields["jpg"])}
    return row | ({"caption": record["caption"]} if "caption" in record else {"label": record["label"]})


def _image(data: bytes) -> dict[str, Any]:
    """What the datasets library makes of an Image feature."""
    return {"bytes": data, "path": None}


def _pickapic_row(number: int, fields: dict[str, bytes], record: dict[str, Any]) -> dict[str, Any]:
    label = record["label_0"]
    uids = record["uid_0"], record["uid_1"]
    return {
        "are_different": True,
        "best_image_uid": "tie" if label == 0.5 else uids[0] if label == 1 else uids[1],
        "caption": record["caption"],
        "created_at": _START + datetime.timedelta(minutes=number),
        "has_label": True,
        "image_0_uid": uids[0],
        "image_0_url": f"https://example.org/{uids[0]}.png",
        "image_1_uid": uids[1],
        "image_1_url": f"https://example.org/{uids[1]}.png",
        "jpg_0": fields["0.jpg"],
        "jpg_1": fields["1.jpg"],
        "label_0": label,
        "label_1": 1 - label,
        "model_0": record["model_0"],
        "model_1": record["model_1"],
        "ranking_id": number,
        "user_id": int(record["user"], 16),
        "num_example_per_prompt": 1,
        "__index_level_0__": number,
    }


def _faulty(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {**row, "has_label": False, "label_0": None, "label_1": None}
    yield {**row, "jpg_0": None}
    yield {**row, "best_image_uid": row["image_1_uid"], "label_0": 1.0, "label_1": 0.0}
    yield {**row, "label_0": 0.3, "label_1": 0.7}
