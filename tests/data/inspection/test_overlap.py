"""What two sets share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_gen.data.inspection.overlap import measure_overlap
from lightning_gen.data.manifest import Manifest
from lightning_gen.data.writing import write_shards


def written(folder: Path, **records: dict[str, Any]) -> Manifest:
    """A set of prompts, a sample per word."""
    return write_shards(
        ((key, {"txt": b"said", "json": json.dumps(record).encode()}) for key, record in records.items()), folder
    )


def pair(caption: str, first: str, second: str) -> dict[str, Any]:
    uids = {"uid_0": first, "uid_1": second}
    return {"caption": caption, **uids, "sha1_0": f"hash {first}", "sha1_1": f"hash {second}"}


def test_every_kind_is_counted_once_per_value(tmp_path: Path) -> None:
    here = written(tmp_path / "a", k0=pair("cat", "u", "v"), k1=pair("cat", "w", "u"), k2=pair("dog", "x", "y"))
    # The uid of a first picture may be that of a second one elsewhere.
    there = written(tmp_path / "b", k2=pair(" cat ", "z", "u"), other={"caption": "bird", "sha1": "hash x"})
    found = measure_overlap(here, there)
    assert found.counts == {
        "keys": (3, 2, 1),
        "uids": (5, 2, 1),
        "captions": (2, 2, 1),
        "pictures (sha1)": (5, 3, 2),
    }
    assert json.loads(json.dumps(found.to_json()))["counts"]["uids"] == {"here": 5, "there": 2, "shared": 1}


def test_a_prompt_may_stand_in_txt_instruction_or_prompt(tmp_path: Path) -> None:
    here = written(tmp_path / "a", a={}, b={"instruction": "turn it"}, c={"prompt": "a hat"})
    there = written(tmp_path / "b", d={"caption": "said"}, e={"caption": "turn it"}, f={"caption": "a hat"})
    assert measure_overlap(here, there).counts["captions"] == (3, 3, 3)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    here = write_shards([("a", {"json": b"{", "txt": b"t"}), ("b", {"json": b"[1]"})], tmp_path / "a")
    there = written(tmp_path / "b", a={})
    found = measure_overlap(here, there)
    assert (found.unreadable, found.counts["keys"], found.damaged) == (2, (2, 1, 1), [])
    there.tar_path(0).unlink()
    found = measure_overlap(here, there)
    assert len(found.damaged) == 1
    assert f"{there.tar_path(0)} is missing" in found.damaged[0]
