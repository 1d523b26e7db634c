"""Ways to write a synthetic set: as shards, or as the raw forms that `lightning data convert` reads."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from lightning_gen.data.index import replace_file
from lightning_gen.data.synth.kinds import KINDS
from lightning_gen.data.synth.options import Sample, SynthOptions
from lightning_gen.data.synth.parquet import write_parquet
from lightning_gen.data.writing import write_shards

__all__ = ["LAYOUTS", "write_synthetic"]


def write_synthetic(
    kind: str,
    out: Path,
    options: SynthOptions,
    layout: str = "shards",
    per_file: int = 1024,
    flaws: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a synthetic set, and ``truth.json`` beside it.

    Args:
        kind: one of :data:`lightning_gen.data.synth.kinds.KINDS`.
        out: folder to write.
        options: size and difficulty.
        layout: one of :data:`LAYOUTS`.
        per_file: samples per shard or parquet file.
        flaws: faulty rows of every kind that are added to parquet files of pairs.
        overwrite: replace a synthetic set that is in the folder.

    Returns:
        Content of ``truth.json``.

    Raises:
        FileExistsError: the folder is not empty, and is no synthetic set that may be replaced.
        ValueError: an unknown kind or layout, or a layout that the kind does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no synthetic set {kind!r}: known are {', '.join(KINDS)}")
    if layout not in LAYOUTS:
        raise ValueError(f"--as {layout}: known are {', '.join(LAYOUTS)}")
    if per_file < 1 or flaws < 0:
        raise ValueError(f"--per-file is at least 1 and --flaws not negative, got {per_file} and {flaws}")
    samples = iter(KINDS[kind].samples(options))
    first = next(samples)
    if layout == "hpdv3" and b"label_0" not in first[1]["json"]:
        raise ValueError(f"--as hpdv3 writes preference pairs, {kind} has none: choose preference or hpdv3")
    _make_room(out, overwrite)
    LAYOUTS[layout](itertools.chain([first], samples), out, per_file, flaws)
    truth = {"kind": kind, "options": dataclasses.asdict(options), "flaws": flaws, **KINDS[kind].truth(options)}
    replace_file(out / "truth.json", (json.dumps(truth, indent=1, sort_keys=True) + "\n").encode())
    return truth


def _make_room(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not (overwrite and (out / "truth.json").is_file()):
            # A folder without this file was not written here; it is never emptied.
            raise FileExistsError(f"{out} is not empty: choose another folder, or --overwrite for a synthetic set")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


def _shards(samples: Iterable[Sample], out: Path, per_file: int, flaws: int) -> None:
    del flaws
    write_shards(samples, out, max_samples=per_file, source="synthetic")


def _parquet(samples: Iterable[Sample], out: Path, per_file: int, flaws: int) -> None:
    write_parquet(samples, out, per_file, flaws)


def _hpdv3(samples: Iterable[Sample], out: Path, per_file: int, flaws: int) -> None:
    """``train.json`` and ``images/``; ties have no place in it."""
    del per_file, flaws
    rows = []
    (out / "images").mkdir()
    for key, fields in samples:
        record = json.loads(fields["json"])
        if record["label_0"] == 0.5:
            continue
        order = (0, 1) if record["label_0"] == 1 else (1, 0)
        row: dict[str, Any] = {"prompt": record["caption"]}
        for place, stem in enumerate(order, 1):
            row[f"path{place}"] = f"images/{key}-{stem}.jpg"
            row[f"model{place}"] = record[f"model_{stem}"]
            (out / row[f"path{place}"]).write_bytes(fields[f"{stem}.jpg"])
        row |= {name: record[name] for name in ("confidence", "choice_dist") if name in record}
        rows.append(row)
    (out / "train.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _folder(samples: Iterable[Sample], out: Path, per_file: int, flaws: int) -> None:
    """Class folders, ``source/`` and ``target/``, or pictures with a list."""
    del per_file, flaws
    rows = list[str]()
    for key, fields in samples:
        record = json.loads(fields["json"])
        if "filename" in record:
            _write(out / record["filename"], fields["jpg"])
        elif "src.png" in fields:
            _write(out / "source" / f"{key}.png", fields["src.png"])
            _write(out / "target" / f"{key}.png", fields["tgt.png"])
            _write(out / "target" / f"{key}.txt", record["instruction"].encode())
        else:
            rows += _listed(out, key, fields, record)
    if rows:
        (out / "train.jsonl").write_text("".join(rows), encoding="utf-8")


def _listed(out: Path, key: str, fields: dict[str, bytes], record: dict[str, Any]) -> Iterator[str]:
    names = {field: f"images/{key}{'-' + field[0] if '.' in field else ''}.jpg" for field in fields if "jpg" in field}
    for field, name in names.items():
        _write(out / name, fields[field])
    columns = {"jpg": "image", "0.jpg": "image_0", "1.jpg": "image_1"}
    row = {columns[field]: name for field, name in names.items()}
    kept = {name: value for name, value in record.items() if name not in ("source", "split", "row", "scene")}
    yield json.dumps({**row, **kept}, sort_keys=True) + "\n"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


LAYOUTS: Final[dict[str, Callable[[Iterable[Sample], Path, int, int], None]]] = {
    "shards": _shards,
    "parquet": _parquet,
    "hpdv3": _hpdv3,
    "folder": _folder,
}
"""Name -> writer."""
