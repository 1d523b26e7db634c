"""Raw data sets to convert, small and with a known content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_gen.data.convert import Packing, Request, convert, open_source
from lightning_gen.data.convert.journal import Journal
from lightning_gen.data.convert.pipeline import Conversion
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.shards import IndexedShards
from tests.data.samples import encoded, picture


def jpeg(number: int) -> bytes:
    """Picture n as a JPEG."""
    return encoded(picture(number), "JPEG")


def folder(root: Path, count: int) -> Path:
    """A folder of pictures of two classes."""
    for number in range(count):
        path = root / ("cat" if number % 3 else "dog") / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def pair_row(number: int, **changes: Any) -> dict[str, Any]:
    """A row in Pick-a-Pic's columns that picture 0 won."""
    uids = f"{number}-a", f"{number}-b"
    row: dict[str, Any] = {
        "are_different": True, "best_image_uid": uids[0], "caption": f"prompt {number}", "created_at": None,
        "has_label": True, "image_0_uid": uids[0], "image_0_url": "", "image_1_uid": uids[1], "image_1_url": "",
        "jpg_0": jpeg(2 * number), "jpg_1": encoded(picture(2 * number + 1)), "label_0": 1.0, "label_1": 0.0,
        "model_0": "m0", "model_1": "m1", "ranking_id": number, "user_id": 7, "num_example_per_prompt": 1,
        "__index_level_0__": number,
    }  # fmt: skip
    return {**row, **changes}


def parquet(path: Path, rows: list[dict[str, Any]], groups: int = 4, schema: Any = None) -> Path:
    """Rows as a parquet file with several row groups."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    size = max(1, -(-len(rows) // groups))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), path, row_group_size=size, write_batch_size=4)
    return path


def run(kind: str, where: Path | str, out: Path, packing: Packing | None = None, **words: Any) -> Conversion:
    """Convert in this process."""
    return convert(open_source(kind, Request(str(where), **words)), out, packing or Packing())


def read(manifest: Manifest) -> dict[str, dict[str, bytes]]:
    """All samples, by key, in order."""
    shards = IndexedShards(manifest)
    found = {shards.key(index): shards[index] for index in range(len(shards))}
    shards.close()
    return found


def records(manifest: Manifest) -> list[dict[str, Any]]:
    """The JSON of all samples, in order of their rows where they have one."""
    found = [json.loads(fields["json"]) for fields in read(manifest).values()]
    return sorted(found, key=lambda record: record.get("row", 0))


class Killed(BaseException):
    """The process is gone: nothing is caught, nothing is tidied up."""


@contextlib.contextmanager
def killed_in_last_steps(step: int) -> Iterator[None]:
    """Die before the n-th change to the disk after everything was made.

    Every way to move or to remove a file or a folder counts, those inside ``shutil.rmtree`` too.
    """
    done, ending = 0, False
    finish = Journal.finish

    def begin(self: Journal) -> Manifest:
        nonlocal ending
        ending = True
        return finish(self)

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **words: Any) -> None:
            nonlocal done
            if ending and done == step:
                raise Killed
            done += ending
            real(*arguments, **words)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "finish", begin)
        for name in ("replace", "rename", "unlink", "remove", "rmdir"):
            patch.setattr(os, name, counted(getattr(os, name)))
        yield


def content(out: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
