"""From raw files to training: synth, convert and fit as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_gen.cli import main
from lightning_gen.data.finding import find_manifest
from lightning_gen.data.shards import IndexedShards

FIT = """
trainer:
  accelerator: cpu
  max_steps: 4
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  limit_val_batches: 0
model: {class_path: tests.data.kind_jobs.KeyRecorder}
data:
  class_path: NAME
  init_args: ARGUMENTS
"""

ROUTES = {
    "pick-a-pic parquet": (
        ["preference", "raw", "--as", "parquet", "--count", "60", "--flaws", "2"],
        ["--from", "parquet", "raw"],
        ("PickAPicDataModule", {"resolution": 32, "global_batch_size": 8, "bucket_step": 8}),
        {"0.jpg", "1.jpg", "json"},
    ),
    "hpdv3 folder": (
        ["hpdv3", "raw", "--as", "hpdv3", "--count", "60"],
        ["--from", "hpdv3", "raw"],
        ("HPDv3DataModule", {"resolution": 32, "global_batch_size": 8, "min_confidence": 0.6}),
        {"0.jpg", "1.jpg", "json"},
    ),
    "class folders": (
        ["imagenet", "raw", "--as", "folder", "--count", "60", "--classes", "3"],
        ["--from", "imagefolder", "raw", "--classes"],
        ("ImageNetDataModule", {"tokens": 16, "patch_size": 8, "global_batch_size": 8, "num_classes": 3}),
        {"jpg", "cls", "json"},
    ),
    "edits": (
        ["edits", "raw", "--count", "40"],
        ["--from", "wds", "raw"],
        ("EditPairsDataModule", {"resolution": 32, "global_batch_size": 8}),
        {"src.png", "tgt.png", "json"},
    ),
    "captions": (
        ["text_image", "raw", "--count", "40"],
        ["--from", "wds", "raw"],
        ("TextImageDataModule", {"resolution": 32, "global_batch_size": 8, "bucket_step": 8}),
        {"jpg", "txt", "json"},
    ),
}


@pytest.mark.parametrize("route", sorted(ROUTES))
def test_raw_files_become_shards_and_shards_train(
    route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synth, source, (name, arguments), fields = ROUTES[route]
    monkeypatch.chdir(tmp_path)
    assert main(["data", "synth", *synth, "--size", "48"]) == 0
    assert main(["data", "convert", *source, "shards", "--shuffle-seed", "0", "--max-samples", "16"]) == 0
    assert main(["data", "verify", "shards"]) == 0
    manifest = find_manifest("shards")
    assert set(IndexedShards(manifest)[0]) - {"cls"} == fields - {"cls"}
    Path("fit.yaml").write_text(
        FIT.replace("NAME", name).replace("ARGUMENTS", json.dumps({"train": "shards", **arguments}))
    )
    assert main(["fit", "--config", "fit.yaml"]) == 0
    assert "error" not in capsys.readouterr().err.lower()
