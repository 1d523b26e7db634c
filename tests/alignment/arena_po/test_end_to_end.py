"""From a table in Pick-a-Pic's columns to an adapter and its win rate, by the verbs that a user types."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from lightning_gen.cli import main
from lightning_gen.data.gap_table import GapTable
from tests.harness.tiny_clip import write_tiny_clip
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
    samples: {steps: 2}
    optimizer: {class_path: lightning_gen.training.optim.AdamW, init_args: {learning_rate: 1.0e-2}}
    warmup: {steps: 0}
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
    main(["arena", "gaps", "shards", "--arena", "arena.json", "--out", "of_shards.parquet"])
    raw, turned = (GapTable.load(name) for name in ("gaps.parquet", "of_shards.parquet"))
    assert list(raw.pair_id) != list(turned.pair_id), "the shards have another order"
    gaps = [dict(zip(one.pair_id, one.numbers["g"].tolist(), strict=True)) for one in (raw, turned)]
    assert gaps[0] == gaps[1] and raw.card["fingerprint"] == turned.card["fingerprint"]
    main(["fit", "--config", "small.yaml"])
    rows = [
        row for row in csv.DictReader(Path("runs/small/metrics.csv").read_text().splitlines()) if row.get("train/loss")
    ]
    assert len(rows) == 2 and all(math.isfinite(float(row["train/loss"])) for row in rows)
    assert all(float(row["train/gap"]) > 0 for row in rows) and float(rows[0]["train/logit_deviation"]) == 0
    main(["export", "runs/small", "adapter"])
    assert any(Path("adapter").glob("*.safetensors"))
    prompts = ["a cat", "a red house", "two dogs"]
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    given = ["--data", "PromptDataModule", "--data.predict", "prompts.jsonl"]
    given += ["--data.train", "null", "--data.val", "null"]
    main(["predict", "--config", "small.yaml", "--ckpt_path", "last", *given])
    main(["predict", "--config", "small.yaml", "--name", "reference", *given])
    tuned, start = (Path("runs", name, "predictions") for name in ("small", "reference"))
    pictures = [f"0000{number}/samples/0000.png" for number in range(3)]
    assert all((tuned / one).read_bytes() != (start / one).read_bytes() for one in pictures)
    write_tiny_clip(Path("clip"))
    main(["evaluate", "preference", "--samples", str(tuned), "--against", str(start), "--prompts", "prompts.jsonl",
          "--scorer", "pickscore", "clip", "--out", "duels"])  # fmt: skip
    assert "runs/reference/predictions" in Path("duels/metrics.json").read_text()
