"""From a table in Pick-a-Pic's columns to a trained and exported adapter, by the verbs that a user types."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from lightning_gen.cli import main
from tests.harness.tiny_pipelines import write_tiny_pipeline

CONFIG = """\
name: small
runs: runs
seed_everything: 0
trainer: {accelerator: cpu, devices: 1, max_steps: 2, log_every_n_steps: 1, accumulate_grad_batches: 2,
          gradient_clip_val: 1.0, enable_progress_bar: false, num_sanity_val_steps: 0}
checkpoint: {every_n_train_steps: 2, keep: 1}
model:
  class_path: lightning_gen.alignment.arena_po.module.ArenaPO
  init_args:
    policy: {pipeline: pipeline, dtype: float32}
    lora: {rank: 2, alpha: 4.0}
data:
  class_path: lightning_gen.data.preferences.PickAPicDataModule
  init_args: {train: shards, resolution: 16, global_batch_size: 2, num_workers: 0, gaps: gaps.parquet}
"""


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_from_annotations_to_an_adapter(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    write_tiny_pipeline(Path("pipeline"), family)  # type: ignore[arg-type]
    Path("small.yaml").write_text(CONFIG)
    main(["data", "synth", "preference", "practice", "--as", "parquet", "--count", "60", "--size", "16"])
    main(["data", "convert", "--from", "parquet", "practice", "shards", "--shuffle-seed", "0"])
    main(["arena", "fit", "practice"])
    main(["arena", "gaps", "practice", "--arena", "arena.json"])
    main(["fit", "--config", "small.yaml"])
    rows = [
        row for row in csv.DictReader(Path("runs/small/metrics.csv").read_text().splitlines()) if row.get("train/loss")
    ]
    assert len(rows) == 2 and all(math.isfinite(float(row["train/loss"])) for row in rows)
    assert all(float(row["train/gap"]) > 0 for row in rows) and float(rows[0]["train/logit_deviation"]) == 0
    main(["export", "runs/small", "adapter"])
    assert any(Path("adapter").glob("*.safetensors"))
